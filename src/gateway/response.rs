//! The head of an answer.

use http::{HeaderName, Version, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{answer::REQUEST_ID, ctx::Ctx, stream::Reading};
use crate::{
    config::raw::StreamUsage,
    dialect::{self, Kind},
    usage::{StreamMeter, Strip},
    wire::headers,
};

/// A backend has answered: from here on no other one is asked.
pub fn arrived(response: &ResponseHeader, ctx: &mut Ctx) {
    if response.status.is_informational() {
        return;
    }
    ctx.answer.status = Some(response.status.as_u16());
    ctx.end.fault = None;
}

/// Prepares the head for the client, and the reading of the body.
///
/// # Errors
/// If the client was told of a stream, and there is not even a body.
pub fn headers(session: &Session, response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
    if response.status.is_informational() {
        return Ok(());
    }
    let connection = response.headers.get_all(header::CONNECTION);
    let nominated: Vec<String> =
        connection.iter().flat_map(|v| headers::nominated(v.as_bytes())).collect();
    let limited = ctx.limits.standings.is_some();
    let removed: Vec<HeaderName> = response
        .headers
        .keys()
        .filter(|name| {
            // Pingora itself decides about these two.
            **name != header::TRANSFER_ENCODING
                && **name != header::CONNECTION
                && (headers::is_hop_by_hop(name.as_str())
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
    ctx.answer.reading = match reading(response, ctx) {
        reading @ Reading::Stream(_) => reading,
        // The client has been told that a stream comes.
        _ if ctx.limits.opened && is_empty(response) => {
            return Err(Error::explain(ErrorType::ConnectionClosed, "an empty answer").into_up());
        }
        Reading::Json(tap) if ctx.limits.opened => Reading::Event(Some(tap)),
        _ if ctx.limits.opened => Reading::Event(None),
        reading => reading,
    };
    if let Reading::Stream(_) = ctx.answer.reading
        && response.headers.contains_key(header::CONTENT_LENGTH)
    {
        // Events may be taken out: the length is not known.
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

/// How the body is to be read.
fn reading(response: &ResponseHeader, ctx: &Ctx) -> Reading {
    if !response.status.is_success() || response.headers.contains_key(header::CONTENT_ENCODING) {
        return Reading::Nothing;
    }
    let Some(content_type) = response.headers.get(header::CONTENT_TYPE) else {
        return Reading::Nothing;
    };
    let is = |kind: &str| {
        let start = content_type.as_bytes().get(..kind.len());
        start.is_some_and(|s| s.eq_ignore_ascii_case(kind.as_bytes()))
    };
    if is("application/json") {
        Reading::Json(Box::default())
    } else if is("text/event-stream") {
        Reading::Stream(Box::new(StreamMeter::new(strip(ctx))))
    } else {
        Reading::Nothing
    }
}

/// What was added to the stream by asking for more than the client did.
fn strip(ctx: &Ctx) -> Strip {
    let usage = ctx.way.endpoint.as_ref().map_or(StreamUsage::Off, |e| e.plan.stream_usage);
    let inference = ctx.call.route.is_some_and(|r| r.kind == Kind::Inference { streams: true });
    if !inference || !ctx.body.asks(usage) {
        return Strip::Nothing;
    }
    let asked = ctx.call.usage_asked.is_some_and(|(include, _)| {
        // vLLM takes `stream_options` without `include_usage` for a question; OpenAI does not.
        include.unwrap_or(usage == StreamUsage::Continuous)
    });
    let running = ctx.call.usage_asked.is_some_and(|(_, running)| running);
    match usage {
        StreamUsage::Off => Strip::Nothing,
        _ if !asked => Strip::All { nulls: usage == StreamUsage::Final },
        StreamUsage::Continuous if !running => Strip::Running,
        _ => Strip::Nothing,
    }
}

/// Whether the answer is a stream of events.
pub fn is_stream(ctx: &Ctx) -> bool {
    matches!(ctx.answer.reading, Reading::Stream(_))
}
