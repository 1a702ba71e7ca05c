//! The head of an answer.

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{attempt::Attempt, count, ctx::Ctx, deferred_head, passing, reply, retry, translate};
use crate::{
    config::choices::Engine,
    dialect::{self, Dialect, Metering, Passage, Rewording},
    wire::{head, headers},
};

/// What of a request was lost on its way to a backend of another language.
const DROPPED: HeaderName = HeaderName::from_static("x-llmproxy-dropped");

/// What vLLM reports of its load in the head of an answer, when it is asked to.
const LOAD: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// A backend has answered.
pub fn arrived(response: &mut ResponseHeader, ctx: &mut Ctx) {
    let Some(attempt) = &mut ctx.attempt else { return };
    if response.status.is_informational() {
        return;
    }
    attempt.answer.status = Some(response.status.as_u16());
    attempt.answer.retry_after = headers::retry_after(&response.headers, jiff::Timestamp::now);
    attempt.fault = None;
    if let Some(load) = response.remove_header(&LOAD)
        && let Ok(load) = load.to_str()
    {
        attempt.endpoint.record_load_header(load, Instant::now());
    }
}

/// Prepares the head for the client, and the passage of the body.
///
/// # Errors
/// If it redirects. If the client was promised a stream and there is no body.
pub fn headers(session: &mut Session, response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
    let (status, promised) = (response.status.as_u16(), reply::opened(session));
    if let Some(attempt) = &mut ctx.attempt {
        // Before anything can fail: what a failure looks like depends on it.
        attempt.answer.promised = promised;
    }
    if retry::is_redirect(status) {
        let error = Error::explain(ErrorType::HTTPStatus(status), "a redirect");
        return Err(error.into_up());
    }
    if response.status.is_informational() {
        return Ok(());
    }
    if let Some((head, body)) = count::in_place_of(status, ctx)? {
        return Err(passing::substitute(ctx, head, body));
    }
    fields(response, ctx)?;
    let empty = has_no_body(response);
    prepare(response, ctx);
    translated_head(response, ctx)?;
    let answer = ctx.attempt.as_ref().map(|attempt| &attempt.answer);
    let waited_for = answer.is_some_and(|a| a.passage.is_stream() || a.is_error());
    let unsaid = ctx.attempt.as_ref().is_some_and(|attempt| {
        // Whatever the language: an answer without a body is none, and is no error either.
        attempt.translated.is_some() && !attempt.answer.is_error()
    });
    if empty && (unsaid || promised && !waited_for) {
        return Err(Error::explain(ErrorType::ConnectionClosed, "an empty answer").into_up());
    }
    passing::hold_back(session, ctx);
    // Until its end it can become an error.
    let whole = ctx.attempt.as_ref().is_some_and(|a| a.answer.passage.comes_whole());
    if (ctx.retry.defers || whole) && ctx.deferred.is_none() && !ctx.has_begun() {
        ctx.deferred = Some(deferred_head::defer(session, None, true));
    }
    let stream = ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.passage.is_stream());
    if empty {
        passing::nothing_follows(session, ctx)?;
        if promised {
            return Err(Error::explain(ErrorType::ConnectionClosed, "an empty answer").into_up());
        }
    }
    let Some(attempt) = &mut ctx.attempt else { return Ok(()) };
    if !stream && response.status.is_success() {
        let at = attempt.answer.head_at.unwrap_or_else(Instant::now);
        attempt.first_token(at, false);
    }
    if attempt.answer.passage.decodes() {
        response.remove_header(&header::CONTENT_ENCODING);
    }
    if may_be_resized(attempt, ctx.request.stream)
        && response.headers.contains_key(header::CONTENT_LENGTH)
    {
        response.remove_header(&header::CONTENT_LENGTH);
        response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    if session.req_header().version == Version::HTTP_10 {
        // HTTP/1.0 has no chunks: the end of the connection ends the body.
        response.remove_header(&header::TRANSFER_ENCODING);
    }
    Ok(())
}

/// Removes fields that are not for the client, and adds those of the gateway.
fn fields(response: &mut ResponseHeader, ctx: &Ctx) -> Result<()> {
    head::edit_response(response, |fields| {
        remove_backends_own(fields, ctx);
        reply::write_own(ctx, fields);
        if let Some(standings) = &ctx.limits.standings {
            reply::write_limits(ctx, standings, fields);
        }
    })
}

fn remove_backends_own(fields: &mut HeaderMap, ctx: &Ctx) {
    let connection = fields.get_all(header::CONNECTION);
    let nominated: Vec<String> =
        connection.iter().flat_map(|v| headers::nominated(v.as_bytes())).collect();
    let limited = ctx.limits.standings.is_some();
    let guarded = &ctx.snapshot.plan.guard_response_headers;
    head::remove_fields(fields, |name| {
        // Pingora itself decides about these two.
        *name != header::TRANSFER_ENCODING
            && *name != header::CONNECTION
            && (headers::is_hop_by_hop(name.as_str())
                || guarded.contains(name)
                || limited && dialect::is_limit_header(name.as_str())
                || nominated.iter().any(|n| name.as_str() == n))
    });
}

/// A translated answer has the form that the client has asked for, whatever the backend's is.
fn translated_head(response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
    let Some(attempt) = &mut ctx.attempt else { return Ok(()) };
    let dropped = translate::dropped(attempt);
    let dropped = dropped.and_then(|value| HeaderValue::from_str(&value).ok());
    if let Some(value) = dropped {
        head::edit_response(response, |fields| {
            fields.insert(DROPPED, value);
        })?;
    }
    let (Some(translated), Some(translation)) = (&attempt.translated, attempt.translation()) else {
        return Ok(());
    };
    let status = response.status.as_u16();
    if status >= 400 {
        response.set_status(translation.status(status))?;
    }
    let content_type = match ctx.request.stream && response.status.is_success() {
        true => ctx.request.language().stream_type(),
        false => reply::JSON,
    };
    head::edit_response(response, |fields| {
        let own = translated.language.own_prefixes();
        head::remove_fields(fields, |name| own.iter().any(|own| name.as_str().starts_with(own)));
        fields.insert(header::CONTENT_TYPE, content_type);
        if fields.remove(header::CONTENT_LENGTH).is_some() {
            fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    })?;
    if let Some(kept) = &mut attempt.answer.error_head {
        **kept = response.clone();
    }
    Ok(())
}

/// Chooses the passage of the body; an error response is kept to be judged.
fn prepare(response: &ResponseHeader, ctx: &mut Ctx) {
    let language = ctx.request.language();
    // An answer that was stored has been metered when it was made.
    let metered = ctx.request.is_inference();
    let Some(attempt) = &mut ctx.attempt else { return };
    let status = response.status.as_u16();
    let translated = attempt.translation().cloned();
    attempt.answer.rewording = rewording(response, language, attempt);
    if retry::wants_body(status, &ctx.snapshot.plan.routing)
        || status >= 400 && translated.is_some()
        || attempt.answer.rewording.is_some()
    {
        attempt.answer.error_head = Some(Box::new(response.clone()));
        return;
    }
    if !metered {
        attempt.answer.renames = ctx.request.renamed && status == 200 && is_document(response);
        return;
    }
    let renamed = ctx.request.model.as_deref().filter(|_| attempt.model.is_some());
    let metering = Metering {
        added: attempt.usage,
        asked: ctx.request.usage,
        model: renamed.map(Into::into),
        choices_per_prompt: ctx.body.choices_per_prompt(),
    };
    let promised = attempt.answer.promised;
    let (passage, coding) = Passage::new(response, language, metering, promised, translated);
    attempt.answer.passage = passage;
    if let Some(coding) = coding
        && attempt.endpoint.is_first_unreadable()
    {
        log::warn!(
            "backend {}: its answers are not metered: they are encoded as `{coding}`, and only gzip and deflate can be decoded",
            attempt.endpoint.name
        );
    }
}

/// How an engine's own error is worded for the client: what vLLM says of its context in another vendor's
/// language is not what clients of that vendor know.
fn rewording(
    response: &ResponseHeader,
    language: &'static dyn Dialect,
    attempt: &Attempt,
) -> Option<Rewording> {
    let plan = &attempt.endpoint.plan;
    let own = plan.engine == Engine::Vllm && !plan.hosted && attempt.translation().is_none();
    let worded = response.status.as_u16() == 400 && !has_no_body(response);
    language.overflow_wording().filter(|_| own && worded)
}

/// Whether the body may become longer or shorter than its head says.
fn may_be_resized(attempt: &Attempt, stream: bool) -> bool {
    let answer = &attempt.answer;
    if answer.renames {
        return true;
    }
    if answer.is_error() {
        return answer.rewording.is_some();
    }
    let passage = &answer.passage;
    let changed = attempt.model.is_some() || passage.changes_stream();
    if passage.is_stream() {
        // Events may be taken out.
        return true;
    }
    if (passage.is_document() || passage.is_off()) && stream && passage.is_open() {
        // It may turn out to be a stream, whatever its head says.
        return true;
    }
    if passage.is_document() {
        return changed || passage.decodes();
    }
    // What it is will be seen.
    passage.is_off() && (passage.is_open() && changed || passage.decodes())
}

/// Whether the head says that a JSON document follows.
fn is_document(response: &ResponseHeader) -> bool {
    let kind = response.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.to_ascii_lowercase().starts_with(b"application/json") && !has_no_body(response)
}

/// Whether the head says that no body follows.
fn has_no_body(response: &ResponseHeader) -> bool {
    let length = response.headers.get(header::CONTENT_LENGTH);
    matches!(response.status.as_u16(), 204 | 304) || length.is_some_and(|n| n == "0")
}
