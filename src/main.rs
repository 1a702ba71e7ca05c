//! The `llmproxy` binary.

use std::ffi::c_char;

use tikv_jemallocator::Jemalloc;

/// glibc's allocator took a fifth of the instructions of a request, because Pingora asks for buffers of
/// 20 and 64 KiB with each, and kept the memory of streams that had ended.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Settings of the allocator, which jemalloc finds by this name.
#[repr(transparent)]
pub struct AllocatorSettings(*const c_char);

// SAFETY: it points to constant bytes.
unsafe impl Sync for AllocatorSettings {}

/// - `tcache_max`: Pingora's buffer for the body of an answer (64 KiB) comes from the thread's own cache.
/// - `tcache_gc_incr_bytes`: the cache is trimmed after so many bytes. By default, 64 KiB, it would be with
///   every request.
/// - `dirty_decay_ms`, `background_thread`: memory of requests that have ended goes back to the system
///   within a second, also when nothing else is asked for.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: AllocatorSettings = AllocatorSettings(
    c"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_max:131072,tcache_gc_incr_bytes:4194304"
        .as_ptr(),
);

fn main() -> std::process::ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    resolve_without_modules();
    llmproxy::cli::main()
}

/// Resolves names with `/etc/hosts` and DNS only, whatever `/etc/nsswitch.conf` says: for other
/// sources a static program loads modules of the system's C library, and crashes if that has
/// another version.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
fn resolve_without_modules() {
    use std::ffi::{c_char, c_int};
    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    // SAFETY: the declaration is that of glibc's `nss.h`. It copies both strings, and no other
    // thread runs yet.
    unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
}
