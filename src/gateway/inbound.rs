//! What came from the client: the request, and its caller.

use std::{net::IpAddr, sync::Arc, time::Instant};

use http::HeaderValue;

use crate::{
    auth::{Credential, IdentifiedKey},
    base::{Principal, RequestId},
    dialect::{DIALECTS, Dialect, Kind, Match, UsageRequest},
};

/// What the client asked.
pub struct Request {
    /// When it arrived.
    pub arrived: Instant,
    /// Its id.
    pub id: RequestId,
    /// What a browser is told of the page that asks; `None`: it may not, or there is none.
    pub page: Option<HeaderValue>,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// What stands at the path; `None` until it was looked up, or if there is nothing.
    pub operation: Option<Match>,
    /// The language that the header fields say it is in, where no operation says it.
    pub claimed: &'static dyn Dialect,
    /// The model asked for.
    pub model: Option<String>,
    /// A stream was asked for.
    pub stream: bool,
    /// The stored answer that is asked for has the backend's name of the model, which the client knows by
    /// another one.
    pub renamed: bool,
    /// The usage of the stream that the client asked for.
    pub usage: UsageRequest,
}

impl Request {
    /// One that has just arrived.
    pub fn new() -> Self {
        Self {
            arrived: Instant::now(),
            id: RequestId::from_random(rand::random()),
            page: None,
            client: None,
            operation: None,
            claimed: DIALECTS[0],
            model: None,
            stream: false,
            renamed: false,
            usage: UsageRequest::default(),
        }
    }

    /// The client's language.
    pub fn language(&self) -> &'static dyn Dialect {
        self.operation.map_or(self.claimed, |operation| operation.language)
    }

    /// It is passed on to a backend.
    pub fn is_inference(&self) -> bool {
        self.operation.is_some_and(|operation| operation.kind().is_inference())
    }

    /// A backend only counts its tokens.
    pub fn counts_tokens(&self) -> bool {
        self.operation.is_some_and(|operation| operation.kind() == Kind::CountTokens)
    }

    /// Its answer is generated text.
    pub fn generates(&self) -> bool {
        self.operation.is_some_and(|operation| operation.kind().generates())
    }
}

/// Who asks.
#[derive(Default)]
pub struct Caller {
    /// The key that was shown.
    pub shown: Option<Credential>,
    /// Whose key it is, before anything was decided.
    pub found: Option<IdentifiedKey>,
    /// The caller, as far as it is known; `None` where no key is needed.
    pub principal: Option<Arc<Principal>>,
}

impl Caller {
    /// The caller's key, for records and logs.
    pub fn key(&self) -> Option<&str> {
        self.shown.as_ref().map(Credential::expose)
    }
}
