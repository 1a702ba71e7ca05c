//! What every script sees of a request: the global `request`, and the words about its caller.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, Method};
use pingora::http::RequestHeader;
use serde_json::{Map, Value};

use crate::{
    base::Principal,
    gateway::ctx::Ctx,
    hooks::{Global, Hook, Input},
};

/// The words about a request, borrowed from where they are.
#[derive(Clone, Copy)]
pub struct RequestWords<'a> {
    pub id: &'a str,
    pub method: &'a Method,
    pub path: &'a str,
    pub client: Option<IpAddr>,
    pub headers: &'a HeaderMap,
    pub model: Option<&'a str>,
    pub stream: bool,
    pub language: &'static str,
    pub operation: &'static str,
    pub principal: Option<&'a Principal>,
    /// The data of the caller's key, from its provider.
    pub key_data: Option<&'a Map<String, Value>>,
    pub key: Option<&'a str>,
    pub tags: &'a [String],
    pub metadata: Option<&'a Map<String, Value>>,
    pub backend_url: Option<&'a str>,
}

impl<'a> RequestWords<'a> {
    /// From a request.
    pub fn of(head: &'a RequestHeader, ctx: &'a Ctx) -> Self {
        let state = ctx.hooks.as_deref();
        Self {
            id: ctx.request.id.as_str(),
            method: &head.method,
            path: head.uri.path(),
            client: ctx.request.client,
            headers: &head.headers,
            model: ctx.request.model.as_deref(),
            stream: ctx.request.stream,
            language: ctx.request.language().name(),
            operation: ctx.request.operation.map_or("", |found| found.label()),
            principal: ctx.caller.principal.as_deref(),
            key_data: ctx.caller.found.as_ref().and_then(|found| found.data()),
            key: ctx.caller.key(),
            tags: state.map_or(&[], |state| &state.tags),
            metadata: state.map(|state| &state.metadata),
            backend_url: None,
        }
    }

    /// The global `request`, with the fields that a script may read.
    pub fn request(&self, hook: &Hook, body: impl FnOnce() -> Option<Arc<Value>>) -> Global {
        let reads = |field| hook.reads("request", field);
        let user = self.principal.map_or("", |principal| principal.user_id.as_str());
        let mut fields: Vec<(&'static str, Input)> = Vec::with_capacity(16);
        for (name, text) in [
            ("id", Some(self.id)),
            ("method", Some(self.method.as_str())),
            ("path", Some(self.path)),
            ("model", self.model),
            ("language", Some(self.language)),
            ("operation", Some(self.operation)),
            ("user_id", Some(user)),
            ("api_key", Some(self.key.unwrap_or_default())),
            ("backend_url", self.backend_url),
        ] {
            if let Some(text) = text.filter(|_| reads(name)) {
                fields.push((name, text.into()));
            }
        }
        for name in ["ip", "client_ip"] {
            if let Some(ip) = self.client.filter(|_| reads(name)) {
                fields.push((name, Input::Text(ip.to_string())));
            }
        }
        if reads("stream") {
            fields.push(("stream", Input::Bool(self.stream)));
        }
        if reads("headers") {
            fields.push(("headers", Input::Headers(Arc::new(self.headers.clone()))));
        }
        if reads("tags") {
            fields.push(("tags", self.tags()));
        }
        if reads("body") {
            fields.push(("body", Input::json(body())));
        }
        ("request", Input::Fields(fields))
    }

    fn tags(&self) -> Input {
        let own = self.principal.map_or(&[][..], |principal| principal.tags.as_slice());
        Input::List(own.iter().chain(self.tags).map(|tag| Input::from(tag.as_str())).collect())
    }

    /// The words that every stage has beside `request`: `metadata`, `principal`, `key_info`, `client`.
    pub fn others(&self, hook: &Hook, globals: &mut Vec<Global>) {
        if hook.reads("metadata", "") {
            let mut metadata = self.principal.map(|p| p.metadata.clone()).unwrap_or_default();
            metadata
                .extend(self.metadata.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
            globals.push(("metadata", Input::Json(Arc::new(Value::Object(metadata)))));
        }
        if hook.reads("principal", "") {
            globals.push(("principal", self.principal()));
        }
        if hook.reads("key_info", "") {
            globals.push(("key_info", self.key_info()));
        }
        if hook.reads("client", "") {
            let ip = self.client.map(|ip| ip.to_string()).unwrap_or_default();
            globals.push(("client", Input::Fields(vec![("ip", Input::Text(ip))])));
        }
        if hook.reads("timestamp", "") {
            globals.push(("timestamp", Input::Integer(jiff::Timestamp::now().as_second())));
        }
    }

    fn principal(&self) -> Input {
        let Some(principal) = self.principal else { return Input::Fields(Vec::new()) };
        Input::Fields(vec![
            ("key_id", principal.key_id.as_str().into()),
            ("user_id", principal.user_id.as_str().into()),
            ("name", principal.name.as_str().into()),
            ("team", principal.team.as_str().into()),
            ("tier", principal.tier.as_str().into()),
            ("metadata", Input::Json(Arc::new(Value::Object(principal.metadata.clone())))),
            ("tags", self.tags()),
        ])
    }

    /// What the key's provider knows of it. The key itself is the caller's own.
    fn key_info(&self) -> Input {
        let mut data = self.key_data.cloned().unwrap_or_default();
        for value in data.values_mut() {
            // Amounts of the configuration are whole as a rule, and read so.
            let whole = value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15);
            if let Some(whole) = whole.filter(|_| value.is_f64()) {
                *value = (whole as i64).into();
            }
        }
        if let Some(principal) = self.principal {
            for (name, text) in [("user_id", &principal.user_id), ("name", &principal.name)] {
                data.entry(name).or_insert_with(|| text.as_str().into());
            }
        }
        Input::Json(Arc::new(Value::Object(data)))
    }
}

/// The same words for stages that run apart from the request.
pub struct OwnedWords {
    id: String,
    method: Method,
    path: String,
    client: Option<IpAddr>,
    headers: HeaderMap,
    model: Option<String>,
    stream: bool,
    language: &'static str,
    operation: &'static str,
    principal: Option<Arc<Principal>>,
    key_data: Option<Map<String, Value>>,
    key: Option<String>,
    tags: Vec<String>,
    metadata: Map<String, Value>,
    backend_url: Option<String>,
}

impl OwnedWords {
    /// A copy of what a request says.
    pub fn of(head: &RequestHeader, ctx: &Ctx) -> Self {
        let words = RequestWords::of(head, ctx);
        Self {
            id: words.id.to_owned(),
            method: words.method.clone(),
            path: words.path.to_owned(),
            client: words.client,
            headers: words.headers.clone(),
            model: words.model.map(str::to_owned),
            stream: words.stream,
            language: words.language,
            operation: words.operation,
            principal: ctx.caller.principal.clone(),
            key_data: words.key_data.cloned(),
            key: words.key.map(str::to_owned),
            tags: words.tags.to_vec(),
            metadata: words.metadata.cloned().unwrap_or_default(),
            backend_url: None,
        }
    }

    /// The backend that the request went to.
    pub fn at(self, backend_url: Option<&str>) -> Self {
        Self { backend_url: backend_url.map(str::to_owned), ..self }
    }

    /// Whether a stream was asked for.
    pub fn is_stream(&self) -> bool {
        self.stream
    }

    /// With what only its record has, when that is made.
    pub fn of_record(self, model: Option<&str>, principal: Option<Arc<Principal>>) -> Self {
        Self { model: model.map(str::to_owned), principal, ..self }
    }

    pub fn borrow(&self) -> RequestWords<'_> {
        RequestWords {
            id: &self.id,
            method: &self.method,
            path: &self.path,
            client: self.client,
            headers: &self.headers,
            model: self.model.as_deref(),
            stream: self.stream,
            language: self.language,
            operation: self.operation,
            principal: self.principal.as_deref(),
            key_data: self.key_data.as_ref(),
            key: self.key.as_deref(),
            tags: &self.tags,
            metadata: Some(&self.metadata),
            backend_url: self.backend_url.as_deref(),
        }
    }
}
