//! The request for a backend that does not speak the client's language.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use super::{attempt::Attempt, ctx::Ctx, retry::PlannedAttempt, translated::TranslatedRequest};
use crate::{
    balance::Endpoint,
    base::Rejection,
    config::{
        choices::{Engine, StreamUsage},
        plan::{self, BackendPlan},
    },
    dialect::{
        self, Dialect, Kind, Translation,
        hub::{
            Codec, Exchange, Json, Losses, ModelFacts, Refused, Request, Target, envelope, prepare,
        },
    },
    runtime::explain::LanguageReason,
};

/// The request for a backend that was picked; `None`: it speaks the client's language.
///
/// # Errors
/// If the backend's languages cannot say it.
pub fn for_backend(
    ctx: &mut Ctx,
    picked: &PlannedAttempt,
) -> Result<Option<Arc<TranslatedRequest>>, Rejection> {
    let endpoint = &picked.choice.endpoint;
    let languages = &endpoint.plan.languages;
    let client = ctx.request.language();
    let sole = languages.iter().nth(1).is_none();
    let lacks = lacks_operation(ctx, endpoint);
    let same = languages.has(client.name()) && !lacks && (sole || serves(ctx, picked));
    if same && !(ctx.snapshot.mixes_languages && envelope::is_in(ctx.body.bytes())) {
        return Ok(None);
    }
    let model = picked.model.as_ref();
    let known = ctx.body.translations.find(&endpoint.plan.name, model.map(|model| &**model));
    if known.is_some() {
        return Ok(known);
    }
    let (request, body) = match same {
        true => match unwrapped(ctx, endpoint, model) {
            Some(made) => made,
            None => return Ok(None),
        },
        false => translate(ctx, endpoint, model)?,
    };
    let request = Arc::new(request);
    ctx.body.take_share(body.len());
    let made = Arc::clone(&request);
    ctx.body.translations.keep(&endpoint.plan.name, model.cloned(), made, body);
    Ok(Some(request))
}

/// The backend speaks the client's language, but not all of it.
fn lacks_operation(ctx: &Ctx, endpoint: &Endpoint) -> bool {
    let asked = ctx.request.operation.map(|found| found.operation.path);
    asked == Some(dialect::COMPLETIONS) && !endpoint.plan.quirks.completions
}

/// The model serves such a request in the client's language, or there is no other that it could be
/// said in.
fn serves(ctx: &Ctx, picked: &PlannedAttempt) -> bool {
    let asked = ctx.request.model.as_deref().unwrap_or_default();
    let client = ctx.request.language();
    let other = near(client, &picked.choice.endpoint.plan).next();
    other.is_none()
        || ctx.body.glance().tools.is_none()
        || client.serves(ctx.body.glance(), &facts(ctx, picked.model.as_deref().unwrap_or(asked)))
}

/// What is known of a model: from the configuration, and by its name at the backend.
fn facts(ctx: &Ctx, name_there: &str) -> ModelFacts {
    let asked = ctx.request.model.as_deref().unwrap_or_default();
    let routing = &ctx.snapshot.plan.routing;
    // A fallback has abilities of its own.
    let configured = routing.translation(name_there).or_else(|| routing.translation(asked));
    configured.map(|plan| plan.facts.clone()).unwrap_or_default().or(plan::model_facts(name_there))
}

/// A request in the backend's own language, whose history has state of other issuers: it goes without
/// that state, which the backend would reject. `None`: it passes as it is.
fn unwrapped(
    ctx: &mut Ctx,
    endpoint: &Endpoint,
    model: Option<&Arc<str>>,
) -> Option<(TranslatedRequest, Bytes)> {
    let client = ctx.request.language();
    let operation = ctx.request.operation.map(|found| found.operation)?;
    let codec = client.codec(operation).filter(|_| operation.kind.generates())?;
    // What cannot be read is the backend's to reject.
    let request = read(ctx, codec).ok()?;
    let target = Target { strict: false, ..target(ctx, endpoint, model) };
    let outgoing = prepare::unwrap((*request).clone(), codec, &target).ok()?;
    if outgoing.losses.is_empty() {
        return None;
    }
    log_losses(ctx, endpoint, client, &outgoing.losses);
    let request = TranslatedRequest {
        language: client,
        path: None,
        reason: LanguageReason::Native,
        answer: None,
        losses: outgoing.losses,
    };
    Some((request, outgoing.body.into()))
}

/// Names what a request goes without.
fn log_losses(ctx: &Ctx, endpoint: &Endpoint, to: &dyn Dialect, losses: &Losses) {
    if !losses.is_empty() {
        log::info!(
            "request {}: translated from {} to {} for backend {}, without {}",
            ctx.request.id,
            ctx.request.language().name(),
            to.name(),
            endpoint.name,
            shown(losses),
        );
    }
}

fn target(ctx: &Ctx, endpoint: &Endpoint, model: Option<&Arc<str>>) -> Target {
    let plan = &endpoint.plan;
    let asked = ctx.request.model.as_deref().unwrap_or_default();
    let fields = ctx.body.engine_fields(plan.engine).into_iter();
    Target {
        model: model.map(|model| model.to_string()),
        facts: facts(ctx, model.map_or(asked, |model| model)),
        quirks: (*plan.quirks).clone(),
        strict: ctx.snapshot.plan.routing.translation(asked).is_some_and(|plan| plan.strict),
        issuer: plan.state_domain.to_string(),
        fields: fields
            .filter_map(|(name, value)| Some((name, Json::parse(&value.to_string()).ok()?)))
            .collect(),
        usage_off: plan.stream_usage == StreamUsage::Off,
        running_usage: plan.stream_usage == StreamUsage::Continuous,
    }
}

fn translate(
    ctx: &mut Ctx,
    endpoint: &Endpoint,
    model: Option<&Arc<str>>,
) -> Result<(TranslatedRequest, Bytes), Rejection> {
    let client = ctx.request.language();
    let plan = &endpoint.plan;
    let operation = ctx.request.operation.map(|found| found.operation);
    let from = operation.and_then(|operation| client.codec(operation));
    let counts = operation.is_some_and(|operation| operation.kind == Kind::CountTokens);
    let lacks = lacks_operation(ctx, endpoint);
    let own = Some(client).filter(|client| lacks && plan.languages.has(client.name()));
    let near = own
        .into_iter()
        .chain(near(client, plan))
        .find_map(|language| spoken(language, endpoint, counts));
    let (Some(from), Some((language, path, to))) = (from, near) else {
        let shown = ctx.request.operation.map_or("", |found| found.label());
        return Err(Rejection::no_such_operation(shown));
    };
    let request = read(ctx, from)?;
    let mut target = target(ctx, endpoint, model);
    if !language.takes_engine_fields() {
        target.fields.clear();
    }
    let client_wishes = request.client.clone();
    let outgoing = prepare::translate((*request).clone(), from.traits(), to, &target)
        .map_err(|refused| rejection(&refused))?;
    let exchange = Exchange {
        model: ctx.request.model.clone(),
        created: now(),
        client: client_wishes,
        undo: outgoing.undo,
        issuer: target.issuer,
        backend: language.name(),
        summaries: plan.hosted,
    };
    let stream = ctx.request.stream && ctx.request.generates();
    let answer = Translation { from: to, to: from, exchange: Arc::new(exchange), stream };
    log_losses(ctx, endpoint, language, &outgoing.losses);
    let (path, answer, losses) = (Some(path), Some(answer), outgoing.losses);
    let reason = match () {
        () if counts => LanguageReason::Counts,
        () if plan.languages.has(client.name()) && !lacks => LanguageReason::ChatTools,
        () => LanguageReason::Nearest,
    };
    let request = TranslatedRequest { language, path, reason, answer, losses };
    Ok((request, outgoing.body.into()))
}

/// The languages of a backend that a client's requests lose least in, the best first.
fn near(
    client: &'static dyn Dialect,
    plan: &BackendPlan,
) -> impl Iterator<Item = &'static dyn Dialect> {
    let named = |name| plan.languages.iter().find(|language| language.name() == name);
    client.nearest().iter().filter_map(move |name| named(*name))
}

/// How a request is said in a language of a backend; `counts`: its tokens are to be counted.
fn spoken(
    language: &'static dyn Dialect,
    endpoint: &Endpoint,
    counts: bool,
) -> Option<(&'static dyn Dialect, &'static str, &'static dyn Codec)> {
    if counts {
        let plan = &endpoint.plan;
        let tokenizes = plan.engine == Engine::Vllm && endpoint.may_tokenize(Instant::now());
        // Engines that speak several languages count where vLLM does.
        let only = plan.languages.iter().nth(1).is_none();
        let (path, counting) = language.counter(tokenizes, plan.hosted || only)?;
        return Some((language, path, counting));
    }
    let (path, codec) = language.usual_codec()?;
    Some((language, path, codec))
}

/// A backend can count the tokens of a request in this client's language.
pub fn counts(client: &'static dyn Dialect, endpoint: &Endpoint) -> bool {
    let plan = &endpoint.plan;
    plan.languages.has(client.name())
        || near(client, plan).any(|language| spoken(language, endpoint, true).is_some())
}

/// The client's request, read once.
fn read(ctx: &mut Ctx, from: &dyn Codec) -> Result<Arc<Request>, Rejection> {
    if ctx.body.translations.read.is_none() {
        // It was checked to be UTF-8 when it was glanced at.
        let text = std::str::from_utf8(ctx.body.bytes()).unwrap_or_default();
        let read = from.read(text).map(Arc::new);
        ctx.body.translations.read = Some(read);
    }
    match &ctx.body.translations.read {
        Some(Ok(request)) => Ok(Arc::clone(request)),
        Some(Err(refused)) => Err(rejection(refused)),
        None => Err(rejection(&Refused::invalid("", "it cannot be read"))),
    }
}

fn rejection(refused: &Refused) -> Rejection {
    if refused.invalid {
        return Rejection::invalid_member(&refused.path, &refused.why);
    }
    Rejection::untranslatable(&refused.path, &refused.why)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or_default()
}

/// The language that a request for this backend is, or would have to be, translated into; `None`: the
/// backend has none that it could be.
pub fn language_of(client: &'static dyn Dialect, plan: &BackendPlan) -> Option<&'static str> {
    near(client, plan).next().map(|language| language.name())
}

/// What the client is told of the losses.
pub fn dropped(attempt: &Attempt) -> Option<String> {
    let losses = &attempt.translated.as_ref()?.losses;
    (!losses.is_empty()).then(|| shown(losses))
}

/// The paths of losses as a list, fit for a header field and a line of the log. Cut where it would be
/// long.
fn shown(losses: &Losses) -> String {
    let mut out = String::new();
    for path in losses.paths() {
        if out.len() + path.len() > 900 {
            out.push_str(",...");
            break;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(path.chars().map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '_' }));
    }
    out
}
