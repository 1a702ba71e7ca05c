//! Writes what steers an answer: its limit, reasoning, sampling, ends and form.

use super::{LANGUAGE, read::is_ours};
use crate::dialect::hub::{
    Json, Losses, Object, Refused, Request, Target, Writer, effort,
    request::{Format, Reasoning, ReasoningMode},
    target::Thinking,
};

/// The limit where neither the client nor the configuration says one.
const LIMIT: u64 = 4096;

/// Why a choice of tools and reasoning do not go together.
pub const FORCED: &str = "the model can be made to call a tool only while it does not reason";

/// The smallest budget for reasoning that the vendor takes.
const LEAST_BUDGET: u64 = 1024;

/// `max_tokens`; `None`: a count of tokens, which has none. A limit that no client has set leaves
/// the answer what it would have without reasoning.
pub fn limit(request: &Request, target: &Target, losses: &mut Losses) -> Option<u64> {
    if request.max_output.is_none() && is_ours(&request.ext) {
        return None;
    }
    let ours = || default(target).saturating_add(budget(request, target).unwrap_or(0));
    let wanted = request.max_output.unwrap_or_else(ours);
    let most = target.facts.max_output.unwrap_or(u64::MAX);
    if request.max_output.is_some_and(|wanted| wanted > most) {
        let name =
            if request.ext.language == "responses" { "max_output_tokens" } else { "max_tokens" };
        losses.add(name, format!("the model gives {most} tokens at most"));
    }
    Some(wanted.min(most))
}

fn default(target: &Target) -> u64 {
    target.facts.default_output.unwrap_or(LIMIT)
}

/// The tokens that reasoning is expected to take of an answer's limit; `None`: the model is not told
/// to reason, or not how much.
fn budget(request: &Request, target: &Target) -> Option<u64> {
    let wish = &request.reasoning;
    if is_off(wish) || !is_asked(wish) {
        return None;
    }
    let of_word = |word: &str| effort::budget(word);
    let word = wish.effort.as_deref();
    let budget = match target.facts.thinking {
        Thinking::None => None,
        Thinking::Budget => wish.budget.or_else(|| of_word(word.unwrap_or("medium"))),
        Thinking::Effort => word.map_or(wish.budget, of_word),
        Thinking::Unknown => wish.budget,
    };
    budget.map(|budget| budget.max(LEAST_BUDGET))
}

fn is_off(wish: &Reasoning) -> bool {
    wish.mode == Some(ReasoningMode::Off)
        || wish.effort.as_deref() == Some("none")
        || wish.budget == Some(0)
}

fn is_asked(wish: &Reasoning) -> bool {
    wish.effort.is_some() || wish.budget.is_some() || wish.mode.is_some()
}

/// What else of a request decides on reasoning.
#[derive(Clone, Copy)]
pub struct Around {
    /// Of the answer, in tokens.
    pub limit: Option<u64>,
    /// The model has to call a tool.
    pub forced: bool,
    /// The model goes on from calls before which it has not reasoned.
    pub bare_calls: bool,
}

impl Around {
    /// The most tokens that a budget may have: it is a part of the answer's limit, and has to leave
    /// something of it. A limit of the gateway's own leaves the answer its share.
    fn most(self, request: &Request, target: &Target) -> u64 {
        let Some(limit) = self.limit else { return u64::MAX };
        let share = if request.max_output.is_some() { 1 } else { default(target).min(limit / 2) };
        limit.saturating_sub(share)
    }
}

/// What is said of reasoning.
#[derive(Default)]
pub struct Thought {
    /// `thinking`.
    pub thinking: Option<Json>,
    /// `output_config.effort`.
    pub effort: Option<String>,
    /// The model will think.
    pub on: bool,
}

/// What is said of reasoning to a backend.
pub fn reasoning(
    request: &Request,
    target: &Target,
    around: Around,
    losses: &mut Losses,
) -> Thought {
    let wish = &request.reasoning;
    if is_ours(&request.ext) {
        return own(wish);
    }
    let path = match request.ext.language {
        "chat" => "reasoning_effort",
        "responses" => "reasoning.effort",
        _ => "reasoning",
    };
    let word = wish.effort.as_deref();
    let off = is_off(wish);
    let budgeted = |show, losses: &mut Losses| match around.bare_calls {
        true => {
            // The vendor answers 400.
            losses.add(path, "the model has not reasoned before the calls that it goes on from");
            Thought::default()
        }
        false => {
            let budget = budget(request, target);
            budgeted(budget, around.most(request, target), show, path, losses)
        }
    };
    match target.facts.thinking {
        _ if !is_asked(wish) => Thought::default(),
        Thinking::None => {
            if !off {
                losses.add(path, "the model does not reason");
            }
            Thought::default()
        }
        // Without a budget such a model does not think.
        Thinking::Budget if off => Thought::default(),
        Thinking::Effort | Thinking::Unknown if off => {
            Thought { thinking: Some(mode("disabled", None, None)), ..Thought::default() }
        }
        Thinking::Budget => budgeted(shown(wish), losses),
        Thinking::Effort => {
            let effort = word.or_else(|| wish.budget.map(effort::word)).map(lowest);
            // Effort alone does not make it think. Who has only said how much wants the call more.
            let on = wish.mode.is_some() || !around.forced;
            if !on {
                losses.add(path, FORCED);
            }
            Thought { thinking: on.then(|| mode("adaptive", None, shown(wish))), effort, on }
        }
        Thinking::Unknown => {
            let thought = match wish.budget {
                Some(_) => budgeted(None, losses),
                None => Thought::default(),
            };
            Thought { effort: word.map(lowest), ..thought }
        }
    }
}

/// Messages has no word below `low`.
fn lowest(word: &str) -> String {
    if word == "minimal" { "low" } else { word }.to_owned()
}

/// Other languages' words for what a client is shown.
fn shown(wish: &Reasoning) -> Option<&str> {
    match wish.show.as_deref()? {
        "auto" | "concise" | "detailed" => Some("summarized"),
        _ => None,
    }
}

fn mode(kind: &str, budget: Option<u64>, show: Option<&str>) -> Json {
    Json::written(|out| {
        out.object(|o| {
            o.text_at("type", kind);
            o.maybe_raw_at("budget_tokens", budget);
            o.maybe_text_at("display", show);
        });
    })
}

/// A budget of `most` tokens at most.
fn budgeted(
    budget: Option<u64>,
    most: u64,
    show: Option<&str>,
    path: &str,
    losses: &mut Losses,
) -> Thought {
    let budget = budget.map(|budget| budget.min(most));
    match budget.filter(|budget| *budget >= LEAST_BUDGET) {
        Some(budget) => {
            let thinking = Some(mode("enabled", Some(budget), show));
            Thought { thinking, effort: None, on: true }
        }
        None => {
            let why = format!(
                "reasoning takes {LEAST_BUDGET} tokens or more, for which the answer's limit is too small"
            );
            losses.add(path, why);
            Thought::default()
        }
    }
}

/// As the client of this language said it.
fn own(wish: &Reasoning) -> Thought {
    let said = wish.ext.get("type").and_then(Json::as_text);
    let kind = said.as_deref().or(match wish.mode {
        Some(ReasoningMode::On) => Some("enabled"),
        Some(ReasoningMode::Auto) => Some("adaptive"),
        Some(ReasoningMode::Off) => Some("disabled"),
        None => wish.budget.map(|_| "enabled"),
    });
    let thinking = kind.map(|kind| {
        Json::written(|out| {
            out.object(|o| {
                o.text_at("type", kind);
                o.maybe_raw_at("budget_tokens", wish.budget);
                o.maybe_text_at("display", wish.show.as_deref());
                for (name, value) in wish.ext.of(LANGUAGE) {
                    if name != "type" {
                        o.json_at(name, value);
                    }
                }
                o.members(&wish.ext.defaults);
            });
        })
    });
    // A choice that cannot go with it is the client's own.
    Thought { thinking, effort: wish.effort.clone(), on: false }
}

/// Writes temperature, top_p and top_k.
pub fn sampling(
    out: &mut Writer,
    request: &Request,
    target: &Target,
    thinks: bool,
    losses: &mut Losses,
) {
    let facts = &target.facts;
    let refused = if facts.sampling == Some(false) {
        Some("the model takes no sampling parameters")
    } else if thinks && facts.thinking != Thinking::Unknown {
        Some("the model takes no sampling parameters while it reasons")
    } else {
        None
    };
    let all = &request.sampling;
    for (name, value) in
        [("temperature", &all.temperature), ("top_p", &all.top_p), ("top_k", &all.top_k)]
    {
        let Some(value) = value else { continue };
        if let Some(why) = refused {
            losses.add(name, why);
            continue;
        }
        let large = value.as_str().parse::<f64>().is_ok_and(|value| value > 1.0);
        if name == "temperature" && large && !is_ours(&request.ext) {
            losses.add(name, "1 is the highest that the backend's language takes");
            out.raw_at(name, 1);
        } else {
            out.json_at(name, value);
        }
    }
}

/// Writes the texts that end an answer.
pub fn stop(out: &mut Writer, request: &Request, losses: &mut Losses) {
    let native = is_ours(&request.ext);
    let blank = |text: &&String| !native && text.trim().is_empty();
    if request.stop.iter().any(|text| blank(&text)) {
        losses.add("stop", "the backend's language takes no blank text that ends an answer");
    }
    let left: Vec<_> = request.stop.iter().filter(|text| !blank(text)).collect();
    if !left.is_empty() {
        out.array_at("stop_sequences", |list| left.iter().for_each(|text| list.text(text)));
    }
}

/// Writes `output_config`.
pub fn output_config(
    out: &mut Writer,
    request: &Request,
    effort: Option<&str>,
    format: Option<&Json>,
) {
    let rest = request.ext.of(LANGUAGE).iter().find(|(name, _)| name == "output_config");
    let rest = rest.and_then(|(_, rest)| rest.object()).map(Object::rest).unwrap_or_default();
    if effort.is_none() && format.is_none() && rest.is_empty() {
        return;
    }
    out.object_at("output_config", |o| {
        o.maybe_text_at("effort", effort);
        o.maybe_json_at("format", format);
        o.members(&rest);
    });
}

/// The form of the answer.
///
/// # Errors
/// If the backend cannot give it.
pub fn format(request: &Request, target: &Target) -> Result<Option<Json>, Refused> {
    let path = match request.ext.language {
        "chat" => "response_format",
        "responses" => "text.format",
        _ => "output_config.format",
    };
    let Some(format) = &request.format else { return Ok(None) };
    if target.facts.schemas == Some(false) && *format != Format::Text {
        return Err(Refused::new(path, "the model takes no schema for its answer"));
    }
    let schema = |schema: &str| {
        Json::written(|out| {
            out.object(|o| {
                o.text_at("type", "json_schema");
                o.raw_at("schema", schema);
                if is_ours(&request.ext) {
                    own_format(o, format);
                }
            });
        })
    };
    match format {
        Format::Text => Ok(None),
        Format::JsonObject => Ok(Some(schema(r#"{"type":"object","additionalProperties":true}"#))),
        Format::Schema { schema: given, .. } => Ok(Some(schema(given.as_str()))),
        Format::Other { language, json } if *language == LANGUAGE => Ok(Some(json.clone())),
        Format::Other { .. } => {
            Err(Refused::new(path, "the backend's language does not know this form of an answer"))
        }
    }
}

/// What a client of this language said beside the schema.
fn own_format(out: &mut Writer, format: &Format) {
    if let Format::Schema { name, description, strict, .. } = format {
        out.maybe_text_at("name", name.as_deref());
        out.maybe_text_at("description", description.as_deref());
        out.maybe_raw_at("strict", *strict);
    }
}

/// Writes `metadata`.
pub fn metadata(out: &mut Writer, request: &Request) {
    let rest = request.ext.of(LANGUAGE).iter().find(|(name, _)| name == "metadata");
    let rest = rest.and_then(|(_, rest)| rest.object()).map(Object::rest).unwrap_or_default();
    if request.user.is_none() && rest.is_empty() {
        return;
    }
    out.object_at("metadata", |o| {
        o.maybe_text_at("user_id", request.user.as_deref());
        o.members(&rest);
    });
}

/// Writes `service_tier`.
pub fn service_tier(out: &mut Writer, request: &Request, losses: &mut Losses) {
    let Some(tier) = request.service_tier.as_deref() else { return };
    let known = match tier {
        _ if is_ours(&request.ext) => Some(tier),
        "auto" | "priority" => Some("auto"),
        "default" | "standard_only" => Some("standard_only"),
        _ => None,
    };
    match known {
        Some(tier) => out.text_at("service_tier", tier),
        None => losses.add("service_tier", format!("the backend's language has no tier `{tier}`")),
    }
}
