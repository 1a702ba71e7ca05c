//! The `llmproxy` binary.

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
