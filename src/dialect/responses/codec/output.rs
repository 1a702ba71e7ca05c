//! The response object and its items, as a client gets them.

use std::fmt::Write;

use super::{
    echo,
    parts::{content_list, summary_list},
    traits::NAME,
};
use crate::dialect::hub::{
    Class, Exchange, Json, Object, Start, StopReason, StreamFault, Usage, Writer, event::Citation,
    request::ToolKind, tool_names,
};

/// The longest id of an answer that ids of items are made from, so that they are not too long for
/// the vendor (64 characters).
const LONGEST_BASE: usize = 52;

/// The head of a response, which does not change while it is written.
pub(super) struct Head {
    pub id: String,
    /// What ids of items are made from.
    base: String,
    created: i64,
    model: String,
    tier: Option<String>,
    echo: Vec<(String, Json)>,
}

impl Head {
    /// Of an answer that begins.
    pub fn new(start: &Start, exchange: &Exchange) -> Self {
        let created = start.created.unwrap_or(exchange.created);
        let bare = start.id.strip_prefix("resp_").unwrap_or(&start.id);
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let base = match bare {
            "" => created.to_string(),
            long if long.len() > LONGEST_BASE || !long.chars().all(good) => {
                let id = tool_names::call_id(long, 0, 0);
                id.trim_start_matches("call_").to_owned()
            }
            bare => bare.to_owned(),
        };
        let id = match start.id.starts_with("resp_") {
            true => start.id.clone(),
            false => format!("resp_{base}"),
        };
        let model = exchange.model.clone().or_else(|| start.model.clone()).unwrap_or_default();
        let echo = match &exchange.client.echo[..] {
            [] => echo::of(&Object::default()),
            said => said.to_vec(),
        };
        Self { id, base, created, model, tier: start.service_tier.clone(), echo }
    }

    /// The id of an item: `msg_`, the answer's id, its index.
    pub fn item_id(&self, prefix: &str, index: usize) -> String {
        let mut id = String::with_capacity(prefix.len() + self.base.len() + 5);
        let _ = write!(id, "{prefix}_{}_{index}", self.base);
        id
    }

    /// The response object.
    pub fn object(&self, state: &State<'_>, out: &mut Writer) {
        out.object(|o| {
            o.text_at("id", &self.id);
            o.text_at("object", "response");
            o.raw_at("created_at", self.created);
            o.text_at("status", state.status);
            match state.error {
                Some(fault) => o.object_at("error", |error| {
                    let (code, message) = words(fault);
                    error.text_at("code", code);
                    error.text_at("message", &message);
                }),
                None => o.raw_at("error", "null"),
            }
            match state.reason {
                Some(reason) => {
                    o.object_at("incomplete_details", |d| d.text_at("reason", reason));
                }
                None => o.raw_at("incomplete_details", "null"),
            }
            o.text_at("model", &self.model);
            o.array_at("output", |list| state.output.iter().for_each(|item| list.raw(item)));
            if let Some(tier) = &self.tier {
                o.text_at("service_tier", tier);
            }
            let twice = |name: &str| self.tier.is_some() && name == "service_tier";
            for (name, value) in self.echo.iter().filter(|(name, _)| !twice(name)) {
                o.json_at(name, value);
            }
            match state.usage.filter(Usage::is_some) {
                Some(usage) => o.object_at("usage", |u| counts(&usage, u)),
                None => o.raw_at("usage", "null"),
            }
        });
    }
}

/// How far a response is.
#[derive(Default)]
pub(super) struct State<'a> {
    pub status: &'a str,
    pub error: Option<&'a StreamFault>,
    /// Why it is incomplete.
    pub reason: Option<&'a str>,
    pub output: &'a [String],
    pub usage: Option<Usage>,
}

/// Typed clients read the details without asking whether they are there: what was not reported is 0
/// in them.
fn counts(usage: &Usage, out: &mut Writer) {
    out.raw_at("input_tokens", usage.input.unwrap_or(0));
    out.object_at("input_tokens_details", |details| {
        details.raw_at("cached_tokens", usage.cache_read.unwrap_or(0));
        details.raw_at("cache_write_tokens", usage.cache_write.unwrap_or(0));
    });
    out.raw_at("output_tokens", usage.output.unwrap_or(0));
    out.object_at("output_tokens_details", |details| {
        details.raw_at("reasoning_tokens", usage.reasoning.unwrap_or(0));
    });
    out.raw_at("total_tokens", usage.total());
}

/// The status of an answer that ended for this reason, and why it is incomplete. `refused`: it has the
/// words of a refusal; without any, an answer that was refused must not look as if it were whole.
pub(super) fn status(
    reason: Option<&StopReason>,
    refused: bool,
) -> (&'static str, Option<&'static str>) {
    match reason {
        Some(StopReason::MaxTokens | StopReason::Context) => {
            ("incomplete", Some("max_output_tokens"))
        }
        Some(StopReason::Filter) => ("incomplete", Some("content_filter")),
        Some(StopReason::Refusal) if !refused => ("incomplete", Some("content_filter")),
        _ => ("completed", None),
    }
}

/// The code and the message of a failure, in words by which Codex tells what may be tried again.
fn words(fault: &StreamFault) -> (&str, String) {
    let message = fault.message.clone();
    match fault.class {
        Class::ContextTooLong { .. } => ("context_length_exceeded", message),
        Class::NoCredit => ("insufficient_quota", message),
        Class::RateLimit => ("rate_limit_exceeded", with_wait(message, fault.retry_after)),
        Class::Overloaded => ("server_is_overloaded", message),
        Class::InvalidRequest
        | Class::ContentBlocked
        | Class::NotFound
        | Class::TooLarge
        | Class::Conflict => ("invalid_prompt", message),
        Class::Server | Class::Timeout | Class::Authentication | Class::Forbidden => {
            (fault.code.as_deref().unwrap_or("server_error"), message)
        }
    }
}

fn with_wait(message: String, seconds: Option<u64>) -> String {
    match seconds.filter(|_| !message.to_ascii_lowercase().contains("try again in")) {
        Some(seconds) => {
            format!("{}. Please try again in {seconds}s.", message.trim_end_matches('.'))
        }
        None => message,
    }
}

/// A content part of a message.
#[derive(Default)]
pub(super) struct Content {
    pub refusal: bool,
    pub text: String,
    pub annotations: Vec<Json>,
    pub logprobs: Vec<Json>,
}

impl Content {
    /// Writes it as it is by now.
    pub fn write(&self, out: &mut Writer) {
        out.object(|o| {
            if self.refusal {
                o.text_at("type", "refusal");
                o.text_at("refusal", &self.text);
                return;
            }
            o.text_at("type", "output_text");
            o.text_at("text", &self.text);
            list_at("annotations", &self.annotations, o);
            list_at("logprobs", &self.logprobs, o);
        });
    }
}

/// A member with a list of values.
pub(super) fn list_at(name: &str, list: &[Json], out: &mut Writer) {
    out.array_at(name, |l| list.iter().for_each(|value| l.raw(value.as_str())));
}

/// A message.
pub(super) fn message(
    id: &str,
    status: &str,
    phase: Option<&str>,
    content: &[String],
    out: &mut Writer,
) {
    out.object(|o| {
        o.text_at("id", id);
        o.text_at("type", "message");
        o.text_at("status", status);
        o.text_at("role", "assistant");
        o.array_at("content", |list| content.iter().for_each(|part| list.raw(part)));
        o.maybe_text_at("phase", phase);
    });
}

/// A call, as far as it has come.
pub(super) struct Call {
    pub item: String,
    pub id: String,
    pub name: String,
    pub kind: ToolKind,
    pub namespace: Option<String>,
    pub arguments: String,
}

impl Call {
    /// The member that has the arguments.
    pub fn member(&self) -> &'static str {
        if self.kind == ToolKind::Custom { "input" } else { "arguments" }
    }

    /// Writes the item.
    pub fn write(&self, status: &str, arguments: &str, out: &mut Writer) {
        let custom = self.kind == ToolKind::Custom;
        out.object(|o| {
            o.text_at("id", &self.item);
            o.text_at("type", if custom { "custom_tool_call" } else { "function_call" });
            o.text_at("status", status);
            o.text_at("call_id", &self.id);
            o.text_at("name", &self.name);
            o.maybe_text_at("namespace", self.namespace.as_deref());
            o.text_at(self.member(), arguments);
        });
    }
}

/// Reasoning, as far as it has come.
#[derive(Default)]
pub(super) struct Thought {
    pub item: String,
    pub summary: Vec<String>,
    pub content: Vec<String>,
    pub sealed: Option<String>,
}

impl Thought {
    /// Writes the item. The vendor's has a status only where it is not whole.
    pub fn write(&self, status: Option<&str>, out: &mut Writer) {
        out.object(|o| {
            o.text_at("id", &self.item);
            o.text_at("type", "reasoning");
            o.json_at("summary", &summary_list(&self.summary));
            if !self.content.is_empty() {
                o.json_at("content", &content_list(&self.content.concat()));
            }
            o.maybe_text_at("encrypted_content", self.sealed.as_deref());
            o.maybe_text_at("status", status);
        });
    }
}

/// A citation in the words of this language, of a text that is so many characters long by now;
/// `None`: its source has no address.
pub(super) fn annotation(citation: &Citation, length: usize) -> Option<Json> {
    if citation.language == NAME {
        return Some(citation.json.clone());
    }
    let object = citation.json.object();
    // Chat has an object of its own for it.
    let nested = object.as_ref().and_then(|o| Object::parse(o.get("url_citation")?.get()).ok());
    let said = nested.or(object).unwrap_or_default();
    let url = citation.url.clone().or_else(|| said.text("url"))?;
    let title = citation.title.clone().or_else(|| said.text("title")).unwrap_or_default();
    let index = |name: &str| said.get(name)?.get().parse::<usize>().ok();
    Some(Json::written(|out| {
        out.object(|o| {
            o.text_at("type", "url_citation");
            o.raw_at("start_index", index("start_index").unwrap_or(0));
            o.raw_at("end_index", index("end_index").unwrap_or(length));
            o.text_at("url", &url);
            o.text_at("title", &title);
        });
    }))
}

/// Log probabilities of tokens in the words of Chat, which are the same here: an element, a list of
/// them, or the object that has the list.
pub(super) fn logprobs(json: &Json) -> Vec<Json> {
    if json.is_array() {
        return json.array().unwrap_or_default().into_iter().map(Json::of).collect();
    }
    match json.object().and_then(|object| object.get("content").map(Json::of)) {
        Some(list) => list.array().unwrap_or_default().into_iter().map(Json::of).collect(),
        None => vec![json.clone()],
    }
}
