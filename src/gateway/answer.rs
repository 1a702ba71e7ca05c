//! Answers that the gateway makes itself.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use pingora::{Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{ctx::Ctx, limits};
use crate::{
    base::Rejection,
    config::choices::ErrorFormat,
    dialect::{self, openai, simple},
};

/// The name of the header that carries request ids.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Writes a whole answer.
pub async fn write(
    session: &mut Session,
    ctx: &mut Ctx,
    status: u16,
    content_type: &'static str,
    body: Bytes,
    more: &[(HeaderName, HeaderValue)],
) -> Result<()> {
    ctx.end.status = Some(status);
    limits::settle_at_the_end(ctx);
    if opened(session) {
        // The head has gone out while the request waited.
        return session.write_response_body(Some(event(&body)), true).await;
    }
    let head_only = session.req_header().method == Method::HEAD;
    let mut response = ResponseHeader::build(status, Some(6))?;
    response.insert_header(header::CONTENT_TYPE, content_type)?;
    response.insert_header(header::CONTENT_LENGTH, body.len())?;
    response.insert_header(REQUEST_ID, ctx.call.id.header())?;
    for (name, value) in more {
        response.insert_header(name.clone(), value.clone())?;
    }
    if let Some(standings) = &ctx.limits.standings {
        dialect::tell_limits(&mut response, session.req_header().uri.path(), standings)?;
    }
    let empty = head_only || body.is_empty();
    session.write_response_header(Box::new(response), empty).await?;
    if !empty {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}

/// Whether the head of an answer has gone to the client.
pub fn opened(session: &Session) -> bool {
    session.response_written().is_some_and(|head| !head.status.is_informational())
}

/// What a backend has answered that is no success, as an event of a stream: its own words, if they
/// are such that readers of streams take them for an error.
pub fn error_event(ctx: &Ctx, status: u16, body: &[u8]) -> Bytes {
    let said: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    if said.is_some_and(|said| said.get("error").is_some_and(|error| !error.is_null())) {
        return event(body);
    }
    let message = format!("The backend answered with status {status}");
    event(&failure(ctx, status, &message, "backend_failed"))
}

/// A document as an event of a stream. In JSON a line break is a space.
pub fn event(document: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(document.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend(document.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }));
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// The body of a refusal.
pub fn refusal_body(ctx: &Ctx, no: &Rejection) -> Bytes {
    Bytes::from(match ctx.snapshot.plan.error_format {
        ErrorFormat::Openai => openai::rejection(no),
        ErrorFormat::Simple => simple::error(no.status, &no.message),
    })
}

/// Writes a refusal.
pub async fn refusal(session: &mut Session, ctx: &mut Ctx, no: &Rejection) -> Result<()> {
    let body = refusal_body(ctx, no);
    let mut more = Vec::new();
    if let Some(seconds) = no.retry_after {
        more.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
    }
    if no.status == 401 {
        // RFC 9110, section 11.6.1: a 401 says how to do better.
        more.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
    }
    if no.status == 415 {
        // RFC 9110, section 15.5.16: what would be taken.
        more.push((header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
    }
    if let Some(allow) = no.allow {
        more.push((header::ALLOW, HeaderValue::from_static(allow)));
    }
    if no.close {
        session.set_keepalive(None);
    }
    write(session, ctx, no.status, "application/json", body, &more).await
}

/// The body of an answer to a failure.
pub fn failure(ctx: &Ctx, status: u16, message: &str, code: &str) -> Bytes {
    Bytes::from(match ctx.snapshot.plan.error_format {
        ErrorFormat::Openai => openai::failure(message, code),
        ErrorFormat::Simple => simple::error(status, message),
    })
}
