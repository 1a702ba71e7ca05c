//! Which backend has stored which response: a request that refers to one has to go there.

use std::sync::Arc;

use quick_cache::sync::Cache;

/// The most responses that are remembered; the least used are forgotten.
const MOST: usize = 100_000;

/// Where a response is, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The id of the backend's endpoint.
    pub endpoint: u32,
    /// The model that was asked for.
    pub model: Option<Arc<str>>,
    /// The user or the key that asked; empty where no key is needed. No other caller gets it.
    pub caller: Box<str>,
}

/// The owners of responses.
pub struct Owners(Cache<Box<str>, Owner>);

impl Default for Owners {
    fn default() -> Self {
        Self(Cache::new(MOST))
    }
}

impl Owners {
    /// A backend has made this response for this caller.
    pub fn remember(&self, response: &str, owner: Owner) {
        self.0.insert(response.into(), owner);
    }

    /// The owner of a response that this caller has got.
    pub fn find(&self, response: &str, caller: &str) -> Option<Owner> {
        self.0.get(response).filter(|owner| *owner.caller == *caller)
    }

    /// It was deleted.
    pub fn forget(&self, response: &str) {
        self.0.remove(response);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_its_callers_only() {
        let owners = Owners::default();
        let owner = Owner { endpoint: 3, model: None, caller: "a".into() };
        owners.remember("resp_1", owner.clone());
        assert_eq!(owners.find("resp_1", "a"), Some(owner));
        assert_eq!(owners.find("resp_1", "b"), None);
        owners.forget("resp_1");
        assert_eq!(owners.find("resp_1", "a"), None);
    }
}
