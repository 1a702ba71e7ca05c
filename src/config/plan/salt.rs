//! The salt that decides which requests share a prefix cache.

use crate::{
    base::{Principal, Secret},
    config::choices::CacheSalt,
    wire::engine,
};

impl CacheSalt {
    /// The salt of a caller's requests; `None` if all requests share.
    pub fn of(self, secret: &Secret, who: Option<&Principal>) -> Option<String> {
        let scope = self.scope(who)?;
        Some(engine::salt(secret.expose().as_bytes(), &scope))
    }

    /// The group that the caller shares with. A key without a user is a user of its own; unknown
    /// callers share only among themselves.
    fn scope(self, who: Option<&Principal>) -> Option<String> {
        match (self, who) {
            (Self::Shared, _) => None,
            (Self::PerUser, Some(who)) if !who.user_id.is_empty() => {
                Some(format!("user:{}", who.user_id))
            }
            (Self::PerKey | Self::PerUser, Some(who)) if !who.key_id.is_empty() => {
                Some(format!("key:{}", who.key_id))
            }
            (Self::PerKey | Self::PerUser, _) => Some("unknown".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_share_with_whom_they_are_said_to() {
        let who = |key: &str, user: &str| {
            Some(Principal {
                key_id: key.to_owned(),
                user_id: user.to_owned(),
                ..Principal::default()
            })
        };
        let same = |salt: CacheSalt, a: Option<Principal>, b: Option<Principal>| {
            let secret = Secret::new("secret");
            salt.of(&secret, a.as_ref()) == salt.of(&secret, b.as_ref())
        };
        let (key, user) = (CacheSalt::PerKey, CacheSalt::PerUser);
        assert!(same(CacheSalt::Shared, who("a", "u"), None));
        assert!(same(user, who("a", "u"), who("b", "u")));
        assert!(!same(key, who("a", "u"), who("b", "u")));
        assert!(!same(user, who("a", "u"), who("a", "v")));
        assert!(!same(user, who("a", ""), who("b", "")));
        // A user cannot take the name of a key.
        assert!(!same(user, who("a", ""), who("b", "a")));
        assert!(same(key, None, None) && !same(key, None, who("unknown", "")));
        let salt = key.of(&Secret::new("secret"), who("a", "").as_ref()).unwrap();
        assert!(salt.len() == 64 && !salt.contains("a:"));
    }
}
