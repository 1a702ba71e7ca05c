//! Counting the tokens of a request where no backend of its model can do it: an estimate, which says
//! that it is one.

use http::{HeaderName, HeaderValue};
use pingora_proxy::Session;

use super::{ctx::Ctx, end::End, reply, stop::Stop, translate};
use crate::dialect::Kind;

/// Says that a count is an estimate.
const ESTIMATE: HeaderName = HeaderName::from_static("x-llmproxy-estimate");

/// Answers with an estimate, if the tokens are to be counted and no backend can. `true` if it has
/// been answered.
///
/// # Errors
/// If the client cannot be written to.
pub async fn estimate(session: &mut Session, ctx: &mut Ctx) -> Result<bool, Stop> {
    let Some(found) = ctx.request.operation.filter(|found| found.kind() == Kind::CountTokens)
    else {
        return Ok(false);
    };
    if can_be_counted(ctx) {
        return Ok(false);
    }
    let Some((_, counting)) = found.language.counter(false, true) else { return Ok(false) };
    let model = ctx.request.model.as_deref().unwrap_or_default();
    let assumed = ctx.snapshot.limits.assume(model, ctx.body.bytes().len(), None, 1);
    let body = counting.answer(assumed.prompt.max(1)).into();
    let more = [(ESTIMATE, HeaderValue::from_static("true"))];
    reply::write(session, ctx, End::answered(200), reply::JSON, body, &more).await?;
    Ok(true)
}

/// A backend of the model can count.
fn can_be_counted(ctx: &Ctx) -> bool {
    let client = ctx.request.language();
    let pools = ctx.route.iter().flat_map(|route| route.pools());
    let mut members = pools.flat_map(|pool| ctx.snapshot.pools[pool].members());
    members.any(|(endpoint, _)| translate::counts(client, &endpoint.plan))
}
