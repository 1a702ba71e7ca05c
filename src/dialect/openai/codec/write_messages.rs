//! Writes the messages for a backend.
//!
//! Messages are written from the beginning on, each from its own turns alone: a longer history
//! begins with the bytes of the shorter one.

use std::collections::HashMap;

use super::{
    content::{self, Piece, Style},
    details,
    members::{write_inner, write_outer},
    words::{LANGUAGE, MORE},
};
use crate::dialect::hub::{
    Losses, Part, Refused, Request, Role, Target, Turn, Writer,
    request::{ReasoningPart, State, SystemText, ToolCall, ToolKind, ToolResult},
};

/// How the block begins in which Claude Code says who pays; Anthropic takes it out of the prompt.
const ATTRIBUTION: &str = "x-anthropic-billing-header";

/// Writes messages.
pub struct Messages<'a> {
    request: &'a Request,
    target: &'a Target,
    native: bool,
    /// Ids of the last assistant message's calls.
    calls: Vec<&'a str>,
}

impl<'a> Messages<'a> {
    /// For one request.
    pub fn new(request: &'a Request, target: &'a Target) -> Self {
        let native = request.ext.language == LANGUAGE;
        Self { request, target, native, calls: Vec::new() }
    }

    /// Writes all of them.
    ///
    /// # Errors
    /// If something cannot be said to a backend of this kind.
    pub fn write(&mut self, out: &mut Writer, losses: &mut Losses) -> Result<(), Refused> {
        self.system(out, losses);
        let turns: &'a [Turn] = &self.request.turns;
        let mut at = 0;
        while at < turns.len() {
            let assistant = turns[at].role == Role::Assistant;
            let alone = assistant && self.native;
            let same = |turn: &&Turn| (turn.role == Role::Assistant) == assistant;
            let count =
                if alone { 1 } else { turns[at..].iter().take_while(|turn| same(turn)).count() };
            let run = &turns[at..at + count];
            if assistant {
                self.assistant(run, out, losses)?;
            } else {
                self.others(run, out, losses)?;
            }
            at += count;
        }
        Ok(())
    }

    fn style<'b>(&'b self, path: &'b str) -> Style<'b> {
        Style { quirks: &self.target.quirks, native: self.native, path }
    }

    fn system(&self, out: &mut Writer, losses: &mut Losses) {
        let kept = |text: &&SystemText| self.native || !text.text.starts_with(ATTRIBUTION);
        let texts: Vec<&SystemText> = self.request.system.iter().filter(kept).collect();
        let one = self.target.quirks.one_system;
        let role = |text: &SystemText| match text.origin {
            "system" => "system",
            _ if self.target.quirks.developer && !one => "developer",
            _ => "system",
        };
        let starts = |text: &SystemText, before: &SystemText| {
            !one && if self.native { text.ext.language != MORE } else { role(text) != role(before) }
        };
        let mut rest = &texts[..];
        while let [first, others @ ..] = rest {
            let more = others.iter().zip(rest).take_while(|(text, before)| !starts(text, before));
            let count = 1 + more.count();
            self.system_message(role(first), &rest[..count], out, losses);
            rest = &rest[count..];
        }
    }

    fn system_message(
        &self,
        role: &str,
        texts: &[&SystemText],
        out: &mut Writer,
        losses: &mut Losses,
    ) {
        let style = self.style("");
        let outer = |name: &str| name.starts_with("message.");
        let pieces: Vec<Piece<'_>> = texts
            .iter()
            .map(|text| {
                let only_outer = text.ext.members.iter().all(|(name, _)| outer(name));
                let string = text.ext.language.is_empty()
                    || (texts.len() == 1 && only_outer && !text.ext.members.is_empty());
                Piece::Text {
                    text: text.text.as_str().into(),
                    cache: content::cache(text.cache.as_ref(), style, losses),
                    ext: (self.native && !string).then_some(&text.ext),
                }
            })
            .collect();
        out.object(|out| {
            out.text_at("role", role);
            out.name("content");
            // Blocks of another language are one text, unless marks for caches stand in them.
            let marked = pieces.iter().any(|p| matches!(p, Piece::Text { cache: Some(_), .. }));
            if !self.native && !marked {
                out.text(&content::joined(&pieces, "\n\n"));
            } else {
                content::write(out, &pieces, "\n\n", style);
            }
            if let Some(first) = texts.first() {
                write_inner(out, &first.ext, "message");
            }
        });
    }

    /// What stands between two answers: results first, in the order of their calls, then what was
    /// in them and is no text, then the rest.
    fn others(
        &mut self,
        run: &'a [Turn],
        out: &mut Writer,
        losses: &mut Losses,
    ) -> Result<(), Refused> {
        let mut results: Vec<(&Turn, &ToolResult)> = Vec::new();
        for turn in run {
            results.extend(turn.parts.iter().filter_map(|part| match part {
                Part::ToolResult(result) => Some((turn, result)),
                _ => None,
            }));
        }
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (at, call) in std::mem::take(&mut self.calls).into_iter().enumerate() {
            places.entry(call).or_insert(at);
        }
        let order = |id: &str| places.get(id).copied().unwrap_or(usize::MAX);
        results.sort_by_key(|(_, result)| order(&result.call));
        let mut shown = Vec::new();
        for (turn, result) in &results {
            self.result(turn, result, &mut shown, out, losses)?;
        }
        if let (Some((turn, _)), false) = (results.first(), shown.is_empty()) {
            let style = self.style(&turn.path);
            out.object(|out| {
                out.text_at("role", "user");
                out.name("content");
                content::write(out, &shown, "\n", style);
            });
        }
        for turn in run {
            let only_results = turn.parts.iter().all(|part| matches!(part, Part::ToolResult(_)));
            if only_results && !(self.native && turn.parts.is_empty()) {
                continue;
            }
            self.other(turn, out, losses)?;
        }
        Ok(())
    }

    fn result(
        &self,
        turn: &'a Turn,
        result: &'a ToolResult,
        shown: &mut Vec<Piece<'a>>,
        out: &mut Writer,
        losses: &mut Losses,
    ) -> Result<(), Refused> {
        let style = self.style(&turn.path);
        let mut pieces = Vec::new();
        // Servers that take lists of parts are given what the client has sent.
        let as_it_is = self.native && !style.quirks.flat_text;
        for part in &result.parts {
            match content::piece(part, style, losses)? {
                Some(piece @ Piece::Other(_)) if !as_it_is => shown.push(piece),
                Some(piece) => pieces.push(piece),
                None => {}
            }
        }
        let cache = content::cache(result.cache.as_ref(), style, losses);
        out.object(|out| {
            out.text_at("role", "tool");
            out.text_at("tool_call_id", &result.call);
            if let Some(name) = result.name.as_deref().filter(|_| self.native) {
                out.text_at("name", name);
            }
            out.name("content");
            if as_it_is && !result.is_error {
                content::write(out, &pieces, "\n", style);
            } else {
                let text = content::joined(&pieces, "\n");
                let says_so = text
                    .trim_start()
                    .get(..5)
                    .is_some_and(|word| word.eq_ignore_ascii_case("error"));
                match result.is_error && !says_so {
                    true => out.text(&format!("Error: {text}")),
                    false => out.text(&text),
                }
            }
            out.maybe_json_at("cache_control", cache);
            write_outer(out, &result.ext);
        });
        Ok(())
    }

    /// A user's message, or one of the system behind the first turn.
    fn other(&self, turn: &Turn, out: &mut Writer, losses: &mut Losses) -> Result<(), Refused> {
        let quirks = &self.target.quirks;
        let style = self.style(&turn.path);
        let mut pieces = Vec::new();
        for part in &turn.parts {
            pieces.extend(content::piece(part, style, losses)?);
        }
        if pieces.is_empty() && !turn.parts.is_empty() {
            return Ok(());
        }
        let late = turn.role == Role::System;
        // Templates that take a system message only at the beginning are given a user's.
        let as_user = late && quirks.one_system && self.target.facts.late_system != Some(true);
        if as_user {
            let text = content::joined(&pieces, "\n\n");
            pieces = vec![Piece::plain(format!("<system-reminder>\n{text}\n</system-reminder>"))];
        }
        let name = self.name(turn, losses);
        out.object(|out| {
            out.text_at(
                "role",
                match () {
                    () if !late || as_user => "user",
                    () if turn.developer && quirks.developer => "developer",
                    () => "system",
                },
            );
            out.name("content");
            content::write(out, &pieces, "\n", style);
            out.maybe_text_at("name", name);
            write_outer(out, &turn.ext);
        });
        Ok(())
    }

    fn name<'b>(&self, turn: &'b Turn, losses: &mut Losses) -> Option<&'b str> {
        let refused = self.target.quirks.refuses.iter().any(|name| name == "name");
        if turn.name.is_some() && refused {
            losses.add("name", "the backend takes no names of speakers");
        }
        turn.name.as_deref().filter(|_| !refused)
    }

    /// One message of all that the assistant said and called without something between.
    fn assistant(
        &mut self,
        run: &'a [Turn],
        out: &mut Writer,
        losses: &mut Losses,
    ) -> Result<(), Refused> {
        let said = Said::of(run);
        let Some(first) = run.first() else { return Ok(()) };
        self.calls = said.calls.iter().map(|call| call.id.as_str()).collect();
        let quirks = &self.target.quirks;
        let style = self.style(&first.path);
        let refusal_member = (self.native || quirks.developer) && said.texts.is_empty();
        let mut pieces = Vec::new();
        for (apart, part) in &said.texts {
            // Texts of one run are one text in pieces; a call between them is a break.
            if *apart && style.quirks.flat_text && !pieces.is_empty() {
                pieces.push(Piece::plain("\n"));
            }
            pieces.extend(content::piece(part, style, losses)?);
        }
        if !refusal_member {
            let parts = (self.native || quirks.developer) && !quirks.flat_text;
            pieces.extend(said.refusal.iter().map(|text| content::refusal(text, parts)));
        }
        let thought = self.thought(&said);
        let chunks = quirks.reasoning_field == Some("thinking") && thought.is_some();
        let empty = pieces.is_empty() && said.calls.is_empty() && said.refusal.is_empty();
        if empty && !self.native {
            return Ok(());
        }
        let name = self.name(first, losses);
        out.object(|out| {
            out.text_at("role", "assistant");
            out.name("content");
            match () {
                () if chunks => thinking(out, &said, &pieces),
                () if !pieces.is_empty() => content::write(out, &pieces, "", style),
                () if said.calls.is_empty() && said.refusal.is_empty() => out.text(""),
                () => out.raw("null"),
            }
            if refusal_member && !said.refusal.is_empty() {
                out.text_at("refusal", &said.refusal.concat());
            }
            self.reasoning(&said, thought.as_deref(), out);
            if !said.calls.is_empty() {
                out.array_at("tool_calls", |out| {
                    said.calls.iter().for_each(|call| self.call(call, style, out, losses));
                });
            }
            out.maybe_text_at("name", name);
            for turn in run {
                write_outer(out, &turn.ext);
            }
        });
        Ok(())
    }

    /// The text of the reasoning, if the backend wants it back.
    fn thought(&self, said: &Said<'_>) -> Option<String> {
        self.target.quirks.reasoning_field?;
        let texts = said.reasoning.iter().filter_map(|part| match &part.text {
            Some(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            None => Some(part.summary.join("\n\n")).filter(|text| !text.is_empty()),
        });
        let all: Vec<String> = texts.collect();
        (!all.is_empty()).then(|| all.join("\n\n"))
    }

    fn reasoning(&self, said: &Said<'_>, thought: Option<&str>, out: &mut Writer) {
        let quirks = &self.target.quirks;
        let Some(field) = quirks.reasoning_field else { return };
        let state = |part: &ReasoningPart| {
            let list = |s: &&State| s.language == LANGUAGE && s.value.starts_with('[');
            part.state.as_ref().filter(list).map(|state| state.value.clone())
        };
        let lists = said.reasoning.iter().any(|part| state(part).is_some());
        let details = field == "reasoning_details";
        if lists || (details && thought.is_some()) {
            out.array_at("reasoning_details", |out| {
                for part in &said.reasoning {
                    match (state(part), &part.text) {
                        (Some(state), text) => {
                            details::write_own(out, &state, text.as_deref());
                        }
                        (None, Some(text)) if details => out.object(|out| {
                            out.text_at("type", "reasoning.text");
                            out.text_at("text", text);
                        }),
                        _ => {}
                    }
                }
            });
        }
        if details || field == "thinking" {
            return;
        }
        match thought {
            Some(thought) => out.text_at(field, thought),
            None if quirks.reasoning_on_calls && !said.calls.is_empty() => out.text_at(field, ""),
            None => {}
        }
    }

    fn call(&self, call: &ToolCall, style: Style<'_>, out: &mut Writer, losses: &mut Losses) {
        let (kind, member) = match call.kind {
            ToolKind::Function => ("function", "arguments"),
            ToolKind::Custom => ("custom", "input"),
        };
        // Templates read the arguments as an object.
        let blank =
            !self.native && call.kind == ToolKind::Function && call.arguments.trim().is_empty();
        let arguments = if blank { "{}" } else { &call.arguments };
        let cache = content::cache(call.cache.as_ref(), style, losses);
        out.object(|out| {
            out.text_at("id", &call.id);
            out.text_at("type", kind);
            out.object_at(kind, |out| {
                out.text_at("name", &call.name);
                out.text_at(member, arguments);
                write_inner(out, &call.ext, kind);
            });
            if let Some(state) = call.state.as_ref().filter(|state| state.language == LANGUAGE) {
                out.object_at("extra_content", |out| {
                    out.object_at("google", |out| {
                        out.text_at("thought_signature", &state.value);
                    });
                });
            }
            out.maybe_json_at("cache_control", cache);
            write_outer(out, &call.ext);
        });
    }
}

/// What the turns of an assistant hold, by kind.
#[derive(Default)]
struct Said<'a> {
    /// Each with whether something else stood between it and the one before it.
    texts: Vec<(bool, &'a Part)>,
    refusal: Vec<&'a str>,
    reasoning: Vec<&'a ReasoningPart>,
    calls: Vec<&'a ToolCall>,
}

impl<'a> Said<'a> {
    fn of(run: &'a [Turn]) -> Self {
        let mut said = Self::default();
        let mut apart = false;
        for turn in run {
            for part in &turn.parts {
                match part {
                    Part::ToolCall(call) => said.calls.push(call),
                    Part::Reasoning(part) => said.reasoning.push(part),
                    Part::Refusal(text) => said.refusal.push(text),
                    _ => {
                        said.texts.push((apart, part));
                        apart = false;
                        continue;
                    }
                }
                apart = true;
            }
            apart = true;
        }
        said
    }
}

/// Content with Mistral's chunks of thinking before the text.
fn thinking(out: &mut Writer, said: &Said<'_>, pieces: &[Piece<'_>]) {
    out.array(|out| {
        for part in &said.reasoning {
            let summary = part.summary.join("\n\n");
            let text = part.text.as_deref().unwrap_or(&summary);
            let own = |state: &&State| state.language == LANGUAGE;
            let signature = part.state.as_ref().filter(own).map(|state| state.value.as_str());
            if text.is_empty() && signature.is_none() {
                continue;
            }
            out.object(|out| {
                out.text_at("type", "thinking");
                out.array_at("thinking", |out| {
                    out.object(|out| {
                        out.text_at("type", "text");
                        out.text_at("text", text);
                    });
                });
                out.maybe_text_at("signature", signature);
                out.raw_at("closed", true);
            });
        }
        for piece in pieces {
            match piece {
                Piece::Other(json) => out.raw(json.as_str()),
                Piece::Text { text, .. } => out.object(|out| {
                    out.text_at("type", "text");
                    out.text_at("text", text);
                }),
            }
        }
    });
}
