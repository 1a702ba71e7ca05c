//! What the gateway writes to the client itself.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use pingora::{Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    cors,
    ctx::Ctx,
    end::End,
    hooks::{self, error::ErrorResponse},
    settlement,
};
use crate::{
    base::{Rejection, Stage, limits::Standings},
    config::choices::ErrorFormat,
    dialect::{ErrorWording, LimitHeaders},
    wire::head,
};

/// The name of the header field that carries request ids.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Anthropic's name for it: clients of each API look for their own.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

pub use crate::wire::head::JSON;

/// The content type of texts.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// How errors are worded for this request.
pub fn error_wording(ctx: &Ctx) -> ErrorWording {
    let flat = ctx.snapshot.plan.error_format == ErrorFormat::Simple;
    ErrorWording::new(ctx.request.language(), flat)
}

/// Adds to the head of an answer what the gateway says in each: the id of the request, under the names of all
/// languages, and what a browser is told.
pub fn write_own(ctx: &Ctx, fields: &mut HeaderMap) {
    cors::write(ctx, fields);
    fields.insert(REQUEST_ID, ctx.request.id.header());
    fields.insert(ANTHROPIC_REQUEST_ID, ctx.request.id.header());
}

/// A rejection with the status that its language has for it.
pub fn in_language(ctx: &Ctx, rejection: Rejection) -> Rejection {
    let status = ctx.request.language().status(rejection.status, rejection.is_overload());
    Rejection { status, ..rejection }
}

/// Writes a whole answer, with which the request ends.
pub async fn write(
    session: &mut Session,
    ctx: &mut Ctx,
    end: End,
    content_type: HeaderValue,
    body: Bytes,
    more: &[(HeaderName, HeaderValue)],
) -> Result<()> {
    let status = end.status;
    ctx.conclude(end);
    if opened(session) {
        // The head has gone out while the request waited.
        let event = ctx.request.language().event(&body);
        return last(session, ctx, event).await;
    }
    settlement::settle(ctx, None);
    let head_only = session.req_header().method == Method::HEAD;
    let mut fields = HeaderMap::with_capacity(16);
    fields.insert(header::CONTENT_TYPE, content_type);
    fields.insert(header::CONTENT_LENGTH, body.len().into());
    write_own(ctx, &mut fields);
    for (name, value) in more {
        fields.insert(name.clone(), value.clone());
    }
    if let Some(standings) = &ctx.limits.standings {
        write_limits(ctx, standings, &mut fields);
    }
    let head = head::answer(status, fields)?;
    let empty = head_only || body.is_empty();
    session.write_response_header(Box::new(head), empty).await?;
    if !empty {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}

/// Writes the last piece of an answer whose head has gone out.
pub async fn last(session: &mut Session, ctx: &mut Ctx, piece: Bytes) -> Result<()> {
    settlement::settle(ctx, None);
    session.write_response_body(Some(piece), true).await
}

/// Writes a rejection, with which the request ends.
pub async fn refuse(session: &mut Session, ctx: &mut Ctx, rejection: Rejection) -> Result<()> {
    let rejection = in_language(ctx, rejection);
    let body = error_wording(ctx).rejection(&rejection);
    let mut more = Vec::new();
    if let Some(seconds) = rejection.retry_after {
        more.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
    }
    if rejection.status == 401 {
        // RFC 9110, section 11.6.1: a 401 says how to do better.
        more.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
    }
    if rejection.status == 415 {
        // RFC 9110, section 15.5.16: what would be taken.
        more.push((header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
    }
    if let Some(allow) = rejection.allow {
        more.push((header::ALLOW, HeaderValue::from_static(allow)));
    }
    if rejection.close {
        session.set_keepalive(None);
    }
    write_error(session, ctx, End::refused(rejection), body, more).await
}

/// Writes an error response, with which the request ends. `more`: further fields of its head.
pub async fn write_error(
    session: &mut Session,
    ctx: &mut Ctx,
    mut end: End,
    body: Bytes,
    more: Vec<(HeaderName, HeaderValue)>,
) -> Result<()> {
    let (mut body, mut more) = (body, more);
    if ctx.snapshot.hooks.has(Stage::Error) {
        let response = ErrorResponse { status: end.status, body, fields: more };
        let response = Box::pin(hooks::error::run_all(session, ctx, &end, response)).await;
        end.status = response.status;
        (body, more) = (response.body, response.fields);
    }
    write(session, ctx, end, JSON, body, &more).await
}

/// Whether the head of an answer has gone to the client.
pub fn opened(session: &Session) -> bool {
    session.response_written().is_some_and(|head| !head.status.is_informational())
}

/// Whether the head of a stream can be sent before there is an answer.
pub fn can_open(session: &Session, ctx: &Ctx) -> bool {
    ctx.request.stream && session.req_header().version != Version::HTTP_10
}

/// The head of a stream that has not begun yet.
pub fn head_of_stream(
    session: &Session,
    ctx: &Ctx,
    standings: Option<&Standings>,
) -> Result<Box<ResponseHeader>> {
    let language = ctx.request.language();
    let mut fields = HeaderMap::with_capacity(16);
    fields.insert(header::CONTENT_TYPE, language.stream_type());
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    write_own(ctx, &mut fields);
    if session.req_header().version == Version::HTTP_11 {
        fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(standings) = standings {
        write_limits(ctx, standings, &mut fields);
    }
    head::answer(200, fields).map(Box::new)
}

/// Adds the states of the request's limits to the head of an answer, in the client's language.
pub fn write_limits(ctx: &Ctx, standings: &Standings, fields: &mut HeaderMap) {
    let mut limits = LimitHeaders::default();
    ctx.request.language().limit_headers(standings, &mut limits);
    limits.insert(fields);
}

/// Sends what keeps the client's connection alive, after the head of a stream if none was sent.
pub async fn keep_alive(
    session: &mut Session,
    ctx: &Ctx,
    standings: Option<&Standings>,
) -> Result<()> {
    if !opened(session) {
        // Errors after this are events of the stream.
        let head = head_of_stream(session, ctx, standings)?;
        session.write_response_header(head, false).await?;
    }
    session.write_response_body(Some(ctx.request.language().keep_alive()), false).await
}

/// Writes a backend's answer that was kept.
pub async fn backends_own(
    session: &mut Session,
    ctx: &mut Ctx,
    head: Box<ResponseHeader>,
    body: Bytes,
) -> Result<()> {
    settlement::settle(ctx, None);
    session.write_response_header(head, body.is_empty()).await?;
    if !body.is_empty() {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}
