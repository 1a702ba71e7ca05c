//! A request for a backend that speaks Responses.

use sha2::{Digest, Sha256};

use super::{
    members::Members,
    read,
    read::{ENCRYPTED, LOGPROBS},
    tools,
    traits::{NAME, TRAITS},
    write_items,
};
use crate::dialect::hub::{
    Json, Losses, Refused, Request, Target, Writer,
    request::{Format, ReasoningMode},
};

/// The longest `safety_identifier`, in characters.
const LONGEST_USER: usize = 64;

/// Writes a request.
///
/// # Errors
/// If it has what the language cannot say: video.
pub(super) fn request(
    request: &Request,
    target: &Target,
    losses: &mut Losses,
) -> Result<String, Refused> {
    write_items::refuse(request)?;
    let own = request.ext.language == NAME;
    let mut members = Members::new(target, own);
    let json = Json::written(|out| {
        out.object(|o| {
            let model = target.model.as_ref().or(request.model.as_ref());
            members.put("model", model.map(|model| Json::text(model)), o);
            write_items::write(request, losses, &mut members, o);
            controls(request, target, losses, &mut members, o);
            limits(request, losses, &mut members, o);
            about(request, &mut members, o);
            for (name, value) in &target.fields {
                members.put(name, Some(value.clone()), o);
            }
            for (name, value) in request.ext.of(NAME).iter().filter(|(n, _)| !n.starts_with('@')) {
                members.put(name, Some(value.clone()), o);
            }
        });
    });
    for name in members.refused {
        // What the gateway itself has put there is no loss.
        let made = match name.as_str() {
            "store" => request.store.is_none(),
            "include" => !own,
            _ => false,
        };
        if name == "tools" {
            return Err(Refused::new(name, "The backend does not take it"));
        }
        if !made {
            losses.add(name, "the backend does not take it");
        }
    }
    Ok(json.as_str().to_owned())
}

fn number(value: impl std::fmt::Display) -> Json {
    Json::written(|out| out.raw(&value.to_string()))
}

/// Tools, the answer's form, reasoning.
fn controls(
    request: &Request,
    target: &Target,
    losses: &mut Losses,
    to: &mut Members<'_>,
    out: &mut Writer,
) {
    let listed = tools::listed(request);
    let empty = request.ext.of(NAME).iter().any(|(name, _)| name == "@tools");
    if !listed.is_empty() || empty {
        to.put("tools", Some(Json::written(|list| tools::write(&listed, losses, list))), out);
    }
    // A choice without tools is refused.
    if let Some(choice) = request.tool_choice.as_ref().filter(|_| to.own || !listed.is_empty()) {
        let json = read::still_said(request, "tool_choice");
        match json.or_else(|| tools::choice(choice, &request.tools)) {
            Some(json) => to.put("tool_choice", Some(json), out),
            None => losses.add("tool_choice", "the backend's language has no such choice"),
        }
    }
    to.put("parallel_tool_calls", request.parallel_tools.map(number), out);
    to.put(
        "text",
        read::still_said(request, "text").or_else(|| text(request, losses, to.own)),
        out,
    );
    let reasoning =
        read::still_said(request, "reasoning").or_else(|| reasoning(request, target, losses));
    to.put("reasoning", reasoning, out);
}

fn text(request: &Request, losses: &mut Losses, own: bool) -> Option<Json> {
    let format = match &request.format {
        Some(Format::Other { language, .. }) if *language != NAME => {
            losses.add("response_format", "the backend's language has no such format");
            None
        }
        format => format.as_ref(),
    };
    if format.is_none() && request.verbosity.is_none() {
        return None;
    }
    Some(Json::written(|out| {
        out.object(|o| {
            if let Some(format) = format {
                write_format(format, own, o.name("format"));
            }
            o.maybe_text_at("verbosity", request.verbosity.as_deref());
        });
    }))
}

fn write_format(format: &Format, own: bool, out: &mut Writer) {
    match format {
        Format::Text => out.object(|o| o.text_at("type", "text")),
        Format::JsonObject => out.object(|o| o.text_at("type", "json_object")),
        Format::Schema { name, description, schema, strict } => out.object(|o| {
            o.text_at("type", "json_schema");
            o.maybe_text_at("name", name.as_deref().or((!own).then_some("output")));
            o.maybe_text_at("description", description.as_deref());
            o.json_at("schema", schema);
            o.maybe_raw_at("strict", strict.or((!own).then_some(false)));
        }),
        Format::Other { json, .. } => out.raw(json.as_str()),
    }
}

fn reasoning(request: &Request, target: &Target, losses: &mut Losses) -> Option<Json> {
    let reasoning = &request.reasoning;
    let (word, unsaid) = target.effort_of(reasoning);
    if unsaid {
        let path = if request.ext.language == "messages" { "thinking" } else { "reasoning_effort" };
        losses.add(path, "the model may have no word for it");
    }
    let shown = matches!(reasoning.mode, Some(ReasoningMode::On | ReasoningMode::Auto));
    let summary = match reasoning.show.as_deref() {
        Some("omitted") => None,
        Some("summarized") => Some("auto"),
        None if shown => Some("auto"),
        show => show,
    };
    let rest = reasoning.ext.of(NAME);
    if word.is_none() && summary.is_none() && rest.is_empty() {
        return None;
    }
    Some(Json::written(|out| {
        out.object(|o| {
            o.maybe_text_at("effort", word);
            o.maybe_text_at("summary", summary);
            o.members(rest);
        });
    }))
}

/// Limits and sampling.
fn limits(request: &Request, losses: &mut Losses, to: &mut Members<'_>, out: &mut Writer) {
    let limit = request.max_output.map(|limit| {
        if to.own || limit >= TRAITS.least_output {
            return limit;
        }
        let why = format!("raised to {}, the fewest that the backend takes", TRAITS.least_output);
        losses.add("max_tokens", why);
        TRAITS.least_output
    });
    to.put("max_output_tokens", limit.map(number), out);
    let sampling = &request.sampling;
    for (name, value) in [
        ("temperature", &sampling.temperature),
        ("top_p", &sampling.top_p),
        ("top_k", &sampling.top_k),
        ("frequency_penalty", &sampling.frequency_penalty),
        ("presence_penalty", &sampling.presence_penalty),
        ("seed", &sampling.seed),
        ("logit_bias", &sampling.logit_bias),
    ] {
        to.put(name, value.clone(), out);
    }
    if !request.stop.is_empty() {
        match read::still_said(request, "stop") {
            Some(stop) => to.put("stop", Some(stop), out),
            None => losses.add("stop", "the backend's language has no such field"),
        }
    }
    let top = || request.logprobs.filter(|top| *top > 0 && !to.own).map(number);
    let top = read::still_said(request, "top_logprobs").or_else(top);
    to.put("top_logprobs", top, out);
}

/// What is kept, for whom, and what the answer has beside itself.
fn about(request: &Request, to: &mut Members<'_>, out: &mut Writer) {
    let kept = request.store == Some(true);
    let mut include = Vec::new();
    if !kept && !to.own {
        include.push(ENCRYPTED);
    }
    if request.logprobs.is_some() && !to.own {
        include.push(LOGPROBS);
    }
    let list = || {
        let write = |out: &mut Writer| out.array(|l| include.iter().for_each(|word| l.text(word)));
        (!include.is_empty()).then(|| Json::written(write))
    };
    to.put("include", read::still_said(request, "include").or_else(list), out);
    // A gateway has nothing kept that it was not asked to.
    let store = request.store.or((!to.own).then_some(false));
    to.put("store", store.map(number), out);
    to.put("metadata", request.metadata.clone(), out);
    if let Some(user) = &request.user {
        let older = request.ext.of(NAME).iter().any(|(name, _)| name == "@user");
        let name = if older { "user" } else { "safety_identifier" };
        to.put(name, Some(Json::text(&identifier(user, to.own))), out);
    }
    to.put("prompt_cache_key", request.cache_key.as_deref().map(Json::text), out);
    to.put("service_tier", request.service_tier.as_deref().map(Json::text), out);
    let stream = request.ext.of(NAME).iter().find(|(name, _)| name == "@stream");
    let stream = request.stream.then(|| number(true)).or_else(|| Some(stream?.1.clone()));
    to.put("stream", stream, out);
}

/// A name that the vendor takes: what is too long is hashed.
fn identifier(user: &str, own: bool) -> String {
    if own || user.chars().count() <= LONGEST_USER {
        return user.to_owned();
    }
    Sha256::digest(user.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
