//! The head of an answer.

use std::time::Instant;

use http::{HeaderName, Version, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    answer::{self, REQUEST_ID},
    ctx::Ctx,
    reading,
    stream::{self, Reading},
    verdict,
};
use crate::{dialect, dialect::openai::Strip, wire::headers};

/// What vLLM tells of its load in the head of an answer, when it is asked to.
const LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// A backend has answered.
pub fn arrived(response: &mut ResponseHeader, ctx: &mut Ctx) {
    if response.status.is_informational() {
        return;
    }
    ctx.answer.status = Some(response.status.as_u16());
    ctx.answer.retry_after = headers::retry_after(&response.headers, jiff::Timestamp::now());
    ctx.end.fault = None;
    if let Some(load) = response.remove_header(&LOAD)
        && let (Some(endpoint), Ok(load)) = (&ctx.way.endpoint, load.to_str())
    {
        endpoint.record_load_header(load, Instant::now());
    }
}

/// Prepares the head for the client, and the reading of the body.
///
/// # Errors
/// If it redirects. If the client was told of a stream, and there is not even a body.
pub fn headers(session: &mut Session, response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
    let (status, opened) = (response.status.as_u16(), answer::opened(session));
    // Before anything can fail: what a failure looks like depends on it.
    ctx.answer.opened = opened;
    if verdict::is_redirect(status) {
        let error = Error::explain(ErrorType::HTTPStatus(status), "a redirect");
        return Err(error.into_up());
    }
    if response.status.is_informational() {
        return Ok(());
    }
    let connection = response.headers.get_all(header::CONNECTION);
    let nominated: Vec<String> =
        connection.iter().flat_map(|v| headers::nominated(v.as_bytes())).collect();
    let limited = ctx.limits.standings.is_some();
    let guarded = &ctx.snapshot.plan.guard_response_headers;
    let removed: Vec<HeaderName> = response
        .headers
        .keys()
        .filter(|name| {
            // Pingora itself decides about these two.
            **name != header::TRANSFER_ENCODING
                && **name != header::CONNECTION
                && (headers::is_hop_by_hop(name.as_str())
                    || guarded.contains(name)
                    || limited && dialect::is_limit_header(name.as_str())
                    || nominated.iter().any(|n| name.as_str() == n))
        })
        .cloned()
        .collect();
    for name in &removed {
        response.remove_header(name);
    }
    response.insert_header(REQUEST_ID, ctx.call.id.header())?;
    if let Some(standings) = &ctx.limits.standings {
        dialect::tell_limits(response, session.req_header().uri.path(), standings)?;
    }
    let (reading, front) = reading::of(response, ctx);
    ctx.answer.front = front;
    ctx.answer.reading = match reading {
        reading @ (Reading::Stream(_) | Reading::Refusal(_)) => reading,
        // The client has been told that a stream comes.
        _ if opened && is_empty(response) => {
            return Err(Error::explain(ErrorType::ConnectionClosed, "an empty answer").into_up());
        }
        Reading::Json(tap) if opened => Reading::Event(Some(tap)),
        _ if opened => Reading::Event(None),
        reading => reading,
    };
    let renamed = ctx.way.tries.model.is_some();
    stream::hold_back(session, ctx);
    let stream = matches!(ctx.answer.reading, Reading::Stream(_));
    if is_empty(response) {
        stream::nothing_follows(session, ctx)?;
        if opened {
            return Err(Error::explain(ErrorType::ConnectionClosed, "an empty answer").into_up());
        }
    }
    if !stream && response.status.is_success() {
        let at = ctx.answer.head_at.unwrap_or_else(Instant::now);
        ctx.way.first_token(at, false);
    }
    if ctx.answer.front.decodes() {
        response.remove_header(&header::CONTENT_ENCODING);
    }
    let changed = renamed || reading::strip(ctx) != Strip::Nothing;
    let resized = match ctx.answer.reading {
        // Events may be taken out.
        Reading::Stream(_) => true,
        // It may turn out to be a stream, whatever its head says.
        Reading::Json(_) | Reading::Nothing if ctx.call.stream && ctx.answer.front.is_open() => {
            true
        }
        Reading::Json(_) => changed || ctx.answer.front.decodes(),
        // What it is will be seen.
        Reading::Nothing => ctx.answer.front.is_open() && changed || ctx.answer.front.decodes(),
        _ => false,
    };
    if resized && response.headers.contains_key(header::CONTENT_LENGTH) {
        response.remove_header(&header::CONTENT_LENGTH);
        response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    if session.req_header().version == Version::HTTP_10 {
        // HTTP/1.0 has no chunks: the end of the connection ends the body.
        response.remove_header(&header::TRANSFER_ENCODING);
    }
    Ok(())
}

/// Whether the head says that no body follows.
fn is_empty(response: &ResponseHeader) -> bool {
    let length = response.headers.get(header::CONTENT_LENGTH);
    matches!(response.status.as_u16(), 204 | 304) || length.is_some_and(|n| n == "0")
}

/// Whether the answer is a stream of events.
pub fn is_stream(ctx: &Ctx) -> bool {
    matches!(ctx.answer.reading, Reading::Stream(_))
}
