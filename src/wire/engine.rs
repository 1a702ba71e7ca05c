//! The priority of a request and the salt of its prefix cache, in the form that each engine expects.

use hmac::{Hmac, Mac};
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use sha2::Sha256;

/// The header field of vLLM's priority. It takes precedence over `priority` in the body.
pub const VLLM_PRIORITY: HeaderName = HeaderName::from_static("x-vllm-priority");

/// The value of [`VLLM_PRIORITY`] for an importance, of which larger is more: with vLLM lower goes
/// first.
pub fn vllm_priority(importance: i32) -> HeaderValue {
    HeaderValue::from(-i64::from(importance))
}

/// The body's field for the same with SGLang, where larger goes first.
pub fn sglang_priority(importance: i32) -> (&'static str, Value) {
    ("priority", importance.into())
}

/// The body's field with which vLLM keeps prefix caches apart.
pub fn vllm_cache_salt(salt: String) -> (&'static str, Value) {
    ("cache_salt", salt.into())
}

/// The salt of all requests of one scope, 64 hexadecimal digits: the same in all replicas, and
/// unpredictable without the secret.
pub fn salt(secret: &[u8], scope: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(scope.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_has_its_own_idea_of_first() {
        let (more, less) = (vllm_priority(10), vllm_priority(-3));
        assert_eq!((more.to_str().unwrap(), less.to_str().unwrap()), ("-10", "3"));
        assert_eq!(vllm_priority(0), "0");
        assert_eq!(vllm_priority(i32::MIN), "2147483648");
        assert_eq!(sglang_priority(10), ("priority", 10.into()));
    }

    #[test]
    fn salts_are_hmacs() {
        // RFC 4231, test case 2.
        assert_eq!(
            salt(b"Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_ne!(salt(b"secret", "key:a"), salt(b"secret", "user:a"));
        assert_ne!(salt(b"secret", "key:a"), salt(b"other", "key:a"));
    }
}
