//! The `llmproxy` binary.

fn main() -> std::process::ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    plain_names();
    llmproxy::cli::main()
}

/// Looks for names in `/etc/hosts` and DNS, whatever `/etc/nsswitch.conf` says: for anything else a
/// static program would load modules of the system's C library, which may be of another version, and
/// crash.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
fn plain_names() {
    use std::ffi::{c_char, c_int};
    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    // SAFETY: glibc's `nss.h` has it so; it copies both strings, and no other thread runs yet.
    unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
}
