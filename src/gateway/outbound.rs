//! The request as the backend gets it: without the client's credentials and connection fields.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version, header};
use pingora::{Error, ErrorType, OrErr, Result, http::RequestHeader};

use super::{
    body::Shape,
    ctx::Ctx,
    hooks,
    reply::{JSON, REQUEST_ID},
    stop::Stop,
    translated::TranslatedRequest,
};
use crate::{
    auth::Auth,
    base::Stage,
    config::{
        choices::{Engine, StreamUsage},
        plan::BackendPlan,
    },
    dialect::{self, UsageRequest},
    wire::{engine, head, headers as hop},
};

/// Asks vLLM for its load in the head of an answer.
const LOAD_FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");

const USER_ID: HeaderName = HeaderName::from_static("x-api-key-userid");
const NAME: HeaderName = HeaderName::from_static("x-api-key-name");

/// Credentials of the client, and what is rewritten below. `Accept-Encoding` goes because the
/// answer has to be read; `Expect` was answered by the gateway. In lower case, as `http` has them,
/// and with `-` for `_`.
fn is_removed(name: &str) -> bool {
    hop::is_credential(name)
        || matches!(
            name,
            "x-api-key-userid"
                | "x-api-key-name"
                | "accept-encoding"
                | "expect"
                | "transfer-encoding"
        )
}

/// The client's header without the fields of its connection, as [`headers`] expects it where Pingora
/// does not make the request.
pub fn of_client(request: &RequestHeader) -> RequestHeader {
    let mut request = request.clone();
    request.set_version(Version::HTTP_11);
    let connection = request.headers.get_all(header::CONNECTION);
    let nominated: Vec<String> =
        connection.iter().flat_map(|v| hop::nominated(v.as_bytes())).collect();
    let removed: Vec<HeaderName> = request
        .headers
        .keys()
        .filter(|n| hop::is_hop_by_hop(n.as_str()) || nominated.iter().any(|x| n.as_str() == x))
        .cloned()
        .collect();
    for name in &removed {
        request.remove_header(name);
    }
    request.remove_header("http2-settings");
    request
}

/// Turns the client's header into the backend's. Pingora has removed hop-by-hop fields already
/// (its standard policy for upstream requests).
pub fn headers(request: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
    let Some(endpoint) = ctx.attempt.as_ref().map(|attempt| attempt.endpoint.clone()) else {
        return Error::e_explain(ErrorType::InternalError, "no backend was chosen");
    };
    let backend = &endpoint.plan;
    let translated = ctx.attempt.as_ref().and_then(|attempt| attempt.translated.clone());
    let translated = translated.as_deref();
    address(request, backend, translated)?;
    let length = ctx.request.is_inference().then(|| for_backend(ctx).len());
    head::edit_request(request, |fields| {
        remove_clients_own(fields, ctx, backend);
        if let Some(translated) = translated.filter(|translated| translated.answer.is_some()) {
            speak(fields, ctx, translated);
        }
        fields.insert(header::HOST, backend.authority.clone());
        fields.insert(REQUEST_ID, ctx.request.id.header());
        if let Some(proxy) = backend.proxy.as_ref().filter(|_| !backend.tls)
            && let Some(key) = &proxy.authorization
        {
            fields.insert(header::PROXY_AUTHORIZATION, key.clone());
        }
        for (name, value) in backend.identity() {
            fields.insert(name.clone(), value.clone());
        }
        if ctx.snapshot.auth.as_deref().is_some_and(Auth::forwards_identity) {
            identify(fields, ctx);
        }
        instruct(fields, ctx, backend);
        if let Some(length) = length {
            fields.insert(header::CONTENT_LENGTH, length.into());
        }
    })
}

/// Runs the scripts that see what is about to be sent.
///
/// # Errors
/// If one refuses the request.
pub async fn hooked(request: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
    if !ctx.snapshot.hooks.has(Stage::UpstreamRequest) || !ctx.request.is_inference() {
        return Ok(());
    }
    let body = for_backend(ctx);
    let sent = Box::pin(hooks::upstream::run_all(request, body, ctx)).await;
    let body = sent.map_err(|rejection| Stop::Refuse(rejection).into_error())?;
    let length = body.len();
    if let Some(attempt) = &mut ctx.attempt {
        attempt.own_body = Some(body);
    }
    head::edit_request(request, |fields| {
        fields.insert(header::CONTENT_LENGTH, length.into());
    })
}

/// Removes what only the gateway is told, and what is rewritten.
fn remove_clients_own(fields: &mut HeaderMap, ctx: &Ctx, backend: &BackendPlan) {
    let guarded = &ctx.snapshot.plan.guard_headers;
    let auth = ctx.snapshot.auth.as_deref();
    head::remove_fields(fields, |name| {
        let same = |own: &HeaderName| hop::same_field(own.as_str(), name.as_str());
        is_removed(&hop::folded(name.as_str()))
            || dialect::credential_fields().contains(name)
            || guarded.iter().any(same)
            || backend.identity().any(|(own, _)| same(own))
            || auth.is_some_and(|auth| auth.is_key_header(name))
    });
}

/// Removes what only servers of the client's language understand, and adds what those of the
/// backend's demand.
fn speak(fields: &mut HeaderMap, ctx: &Ctx, translated: &TranslatedRequest) {
    let own = ctx.request.language().own_prefixes();
    head::remove_fields(fields, |name| own.iter().any(|own| name.as_str().starts_with(own)));
    for (name, value) in translated.language.own_fields() {
        fields.insert(name.clone(), value.clone());
    }
    fields.insert(header::CONTENT_TYPE, JSON);
    fields.remove(header::ACCEPT);
}

/// Turns the path that the client asked for into the backend's. By way of a proxy a plain request
/// names the whole URL.
fn address(
    request: &mut RequestHeader,
    backend: &BackendPlan,
    translated: Option<&TranslatedRequest>,
) -> Result<()> {
    let path = request.uri.path_and_query().map_or("/", |p| p.as_str());
    // The client's query belongs to its own language.
    let other = translated.and_then(|translated| translated.path);
    let path = other.unwrap_or(path);
    let target = match other {
        // One of the engine's own paths.
        Some(own) if !own.starts_with("/v1/") => Some(backend.base.own(own)),
        _ => backend.base.target(path),
    };
    if backend.proxy.is_some() && !backend.tls {
        let whole = format!("{}{}", backend.origin(), target.as_deref().unwrap_or(path));
        return request.set_raw_path(whole.as_bytes());
    }
    // HTTP/2 requests carry the gateway's authority in their target.
    if target.is_some() || other.is_some() || request.uri.authority().is_some() {
        let uri: Uri = target
            .as_deref()
            .unwrap_or(path)
            .parse()
            .or_err(ErrorType::InternalError, "the path of the backend")?;
        request.set_uri(uri);
    }
    Ok(())
}

/// Tells the engine what only its headers can say.
fn instruct(fields: &mut HeaderMap, ctx: &Ctx, backend: &BackendPlan) {
    if backend.engine != Engine::Vllm {
        return;
    }
    if let Some(priority) = ctx.body.extras.priority {
        fields.insert(engine::VLLM_PRIORITY, engine::vllm_priority(priority));
    }
    if ctx.snapshot.plan.routing.load.from_answers && !ctx.request.stream {
        fields.insert(LOAD_FORMAT, HeaderValue::from_static("TEXT"));
    }
}

/// Adds the identity of the caller. Text that is not valid in a header field is left out.
fn identify(fields: &mut HeaderMap, ctx: &Ctx) {
    let Some(who) = &ctx.caller.principal else { return };
    for (name, text) in [(USER_ID, &who.user_id), (NAME, &who.name)] {
        if !text.is_empty()
            && let Ok(value) = HeaderValue::from_bytes(text.as_bytes())
        {
            fields.insert(name, value);
        }
    }
}

/// Puts the whole body in place of the first piece that Pingora sends, and nothing in place of the
/// others. An empty piece is not sent; `None` would end the body.
///
/// # Errors
/// If what a client sends after its document is too long, or takes too long.
pub fn body(body: &mut Option<Bytes>, end_of_stream: bool, ctx: &mut Ctx) -> Result<()> {
    if !ctx.request.is_inference() {
        // It was not read, and there is none as a rule.
        return Ok(());
    }
    let sent = ctx.attempt.as_mut().map(|attempt| &mut attempt.sent_body);
    if sent.is_some_and(|sent| !std::mem::replace(sent, true)) {
        *body = Some(for_backend(ctx));
        return Ok(());
    }
    let more = body.as_ref().map_or(0, Bytes::len);
    *body = (!end_of_stream).then(Bytes::new);
    ctx.body.tail.take(more, ctx.snapshot.plan.timeouts.client_read, Instant::now())
}

/// The body for the present backend.
pub fn for_backend(ctx: &mut Ctx) -> Bytes {
    let streamed = ctx.request.stream && ctx.request.generates();
    let Some(attempt) = &mut ctx.attempt else {
        return Bytes::new();
    };
    if let Some(own) = &attempt.own_body {
        return own.clone();
    }
    if attempt.translated.is_some() {
        let backend = &attempt.endpoint.plan.name;
        return ctx.body.translations.body(backend, attempt.model.as_deref());
    }
    let plan = &attempt.endpoint.plan;
    let usage = match plan.stream_usage {
        _ if !streamed => None,
        StreamUsage::Off => None,
        StreamUsage::Final => Some(UsageRequest { at_the_end: true, running: false }),
        StreamUsage::Continuous => Some(UsageRequest { at_the_end: true, running: true }),
    };
    attempt.usage = usage;
    let shape = Shape { usage, model: attempt.model.clone(), engine: plan.engine };
    let sole = !ctx.retry.may_follow();
    ctx.body.version(ctx.request.language(), &shape, sole)
}
