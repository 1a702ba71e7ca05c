//! Counting the tokens of a request where no backend of its model can do it: an estimate, which says
//! that it is one.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::{Error, http::ResponseHeader};
use pingora_proxy::Session;

use super::{ctx::Ctx, end::End, reply, stop::Stop, translate};
use crate::{
    dialect::{self, Kind},
    wire::head,
};

/// Says that a count is an estimate.
const ESTIMATE: HeaderName = HeaderName::from_static("x-llmproxy-estimate");

/// Answers with an estimate, if the tokens are to be counted and no backend can. `true` if it has
/// been answered.
///
/// # Errors
/// If the client cannot be written to.
pub async fn estimate(session: &mut Session, ctx: &mut Ctx) -> Result<bool, Stop> {
    let counts = ctx.request.operation.is_some_and(|found| found.kind() == Kind::CountTokens);
    if !counts || can_be_counted(ctx) {
        return Ok(false);
    }
    let Some(body) = estimated(ctx) else { return Ok(false) };
    let more = [(ESTIMATE, HeaderValue::from_static("true"))];
    reply::write(session, ctx, End::answered(200), reply::JSON, body, &more).await?;
    Ok(true)
}

/// The estimate that a client gets in place of this answer: the backend cannot count although engines
/// of its kind do, because it is older or its counter is switched off. That is remembered.
///
/// # Errors
/// If no head can be written.
pub fn in_place_of(
    status: u16,
    ctx: &Ctx,
) -> Result<Option<(Box<ResponseHeader>, Bytes)>, Box<Error>> {
    let Some(attempt) = &ctx.attempt else { return Ok(None) };
    let asked = attempt.translated.as_ref().and_then(|translated| translated.path);
    if !matches!(status, 404 | 405 | 501) || asked != Some(dialect::TOKENIZE) {
        return Ok(None);
    }
    let Some(body) = estimated(ctx) else { return Ok(None) };
    if attempt.endpoint.has_no_tokenizer(Instant::now()) {
        log::info!(
            "backend {}: {status} for {}: token counts are estimated",
            attempt.endpoint.name,
            dialect::TOKENIZE,
        );
    }
    let mut fields = HeaderMap::with_capacity(8);
    fields.insert(header::CONTENT_TYPE, reply::JSON);
    fields.insert(ESTIMATE, HeaderValue::from_static("true"));
    reply::write_own(ctx, &mut fields);
    if let Some(standings) = &ctx.limits.standings {
        reply::write_limits(ctx, standings, &mut fields);
    }
    Ok(Some((Box::new(head::answer(200, fields)?), body)))
}

/// The body of an answer that estimates.
fn estimated(ctx: &Ctx) -> Option<Bytes> {
    let (_, counting) = ctx.request.language().counter(false, true)?;
    let model = ctx.request.model.as_deref().unwrap_or_default();
    let assumed = ctx.snapshot.limits.assume(model, ctx.body.bytes().len(), None, 1);
    Some(counting.answer(assumed.prompt.max(1)).into())
}

/// A backend of the model can count.
fn can_be_counted(ctx: &Ctx) -> bool {
    let client = ctx.request.language();
    let pools = ctx.route.iter().flat_map(|route| route.pools());
    let mut members = pools.flat_map(|pool| ctx.snapshot.pools[pool].members());
    members.any(|(endpoint, _)| translate::counts(client, endpoint))
}
