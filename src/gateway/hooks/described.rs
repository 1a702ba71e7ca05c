//! The words about a request, from where they are.

use pingora::http::RequestHeader;

use super::words::{OwnedWords, RequestWords};
use crate::gateway::ctx::Ctx;

/// What scripts see of a request.
pub fn request<'a>(head: &'a RequestHeader, ctx: &'a Ctx) -> RequestWords<'a> {
    let state = ctx.hooks.as_deref();
    RequestWords {
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

/// The same for stages that run apart from the request.
pub fn owned(head: &RequestHeader, ctx: &Ctx) -> OwnedWords {
    OwnedWords::copy(&request(head, ctx), ctx.caller.principal.clone())
}
