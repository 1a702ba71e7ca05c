//! Writes a request for a backend.

use std::collections::HashMap;

use super::{
    LANGUAGE,
    blocks::{self, Block, Place},
    choice, controls, parts,
    read::is_ours,
    write_tools,
};
use crate::dialect::hub::{
    Losses, Part, Refused, Request, Role, Target, Turn, Writer,
    request::{SystemText, Text},
};

/// Members of the request's extension that are left over from objects, and are written with them.
const OBJECTS: [&str; 3] = ["metadata", "output_config", "tool_choice"];

/// Writes a request.
///
/// # Errors
/// If something of it cannot be said, and must not be left out.
pub fn request(request: &Request, target: &Target, losses: &mut Losses) -> Result<String, Refused> {
    let limit = controls::limit(request, target, losses);
    let tools = write_tools::write(request, target, losses)?;
    let choice = choice::write(request, !tools.is_empty())?;
    let messages = messages(request, target, losses)?;
    let around =
        controls::Around { limit, forced: choice.forced, bare_calls: has_bare_calls(&messages) };
    let thought = controls::reasoning(request, target, around, losses);
    if choice.forced && thought.on {
        return Err(Refused::new("tool_choice", controls::FORCED));
    }
    let format = controls::format(request, target)?;
    let mut out = Writer::default();
    out.object(|o| {
        o.maybe_text_at("model", target.model.as_deref().or(request.model.as_deref()));
        o.maybe_raw_at("max_tokens", limit);
        system(o, request);
        o.array_at("messages", |list| {
            messages.iter().for_each(|message| list.object(|o| message.write(o)));
        });
        if !tools.is_empty() {
            let write = |list: &mut Writer| tools.iter().for_each(|tool| list.raw(tool.as_str()));
            o.array_at("tools", write);
        }
        o.maybe_json_at("tool_choice", choice.json.as_ref());
        controls::stop(o, request, losses);
        controls::sampling(o, request, target, thought.on, losses);
        o.maybe_json_at("thinking", thought.thinking.as_ref());
        controls::output_config(o, request, thought.effort.as_deref(), format.as_ref());
        controls::metadata(o, request);
        controls::service_tier(o, request, losses);
        if request.stream {
            o.raw_at("stream", true);
        }
        rest(o, request, target);
    });
    Ok(out.finish())
}

fn rest(out: &mut Writer, request: &Request, target: &Target) {
    let added = |name: &str| target.fields.iter().any(|(field, _)| *field == name);
    for (name, value) in request.ext.of(LANGUAGE) {
        if !added(name) && !OBJECTS.contains(&name.as_str()) {
            out.json_at(name, value);
        }
    }
    if is_ours(&request.ext) {
        // What says the default was not written above, unless it was changed since.
        let stale = |name: &str| match name {
            "stream" => request.stream,
            "tools" => !request.tools.is_empty(),
            "system" => !request.system.is_empty(),
            "stop_sequences" => !request.stop.is_empty(),
            "model" => target.model.is_some(),
            _ => false,
        };
        for (name, value) in &request.ext.defaults {
            if !added(name) && !stale(name) {
                out.json_at(name, value);
            }
        }
    }
    for (name, value) in &target.fields {
        out.json_at(name, value);
    }
}

fn system(out: &mut Writer, request: &Request) {
    let native = is_ours(&request.ext);
    if let (true, [SystemText { text, ext, .. }]) = (native, &request.system[..])
        && !is_ours(ext)
    {
        return out.text_at("system", text);
    }
    let all: Vec<_> =
        request.system.iter().filter(|block| native || !block.text.trim().is_empty()).collect();
    if all.is_empty() {
        return;
    }
    out.array_at("system", |list| {
        for block in all {
            list.object(|o| {
                o.text_at("type", "text");
                o.text_at("text", &block.text);
                blocks::cache(o, block.cache.as_ref());
                blocks::rest(o, &block.ext);
            });
        }
    });
}

/// A message as it goes out.
struct Message<'a> {
    role: Role,
    blocks: Vec<Block>,
    /// As it was read from this language: with what else it says.
    turn: Option<&'a Turn>,
}

impl Message<'_> {
    fn write(&self, out: &mut Writer) {
        let role = match self.role {
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::System => "system",
        };
        out.text_at("role", role);
        match self.turn.and_then(string) {
            Some(text) => out.text_at("content", text),
            None => out.array_at("content", |list| {
                self.blocks.iter().for_each(|block| list.raw(block.json.as_str()));
            }),
        }
        if let Some(turn) = self.turn {
            blocks::rest(out, &turn.ext);
        }
    }

    fn has_calls(&self) -> bool {
        self.blocks.iter().any(|block| block.call.is_some())
    }
}

/// The content that was a string: its text is no block of this language.
fn string(turn: &Turn) -> Option<&str> {
    match &turn.parts[..] {
        [Part::Text(Text { text, ext, .. })] if !is_ours(ext) => Some(text),
        _ => None,
    }
}

fn messages<'a>(
    request: &'a Request,
    target: &Target,
    losses: &mut Losses,
) -> Result<Vec<Message<'a>>, Refused> {
    let native = is_ours(&request.ext);
    let late_system = target.facts.late_system.unwrap_or(native);
    let mut all =
        Conversation { messages: Vec::with_capacity(request.turns.len()), held: Vec::new() };
    for turn in &request.turns {
        let reminder = turn.role == Role::System && !late_system;
        let blocks = blocks_of(turn, native, reminder, losses)?;
        let role = if reminder { Role::User } else { turn.role };
        match native {
            true => all.messages.push(Message { role, blocks, turn: (!reminder).then_some(turn) }),
            false => all.take(role, blocks),
        }
    }
    all.release();
    if !native {
        order(&mut all.messages);
    }
    Ok(all.messages)
}

fn blocks_of(
    turn: &Turn,
    native: bool,
    reminder: bool,
    losses: &mut Losses,
) -> Result<Vec<Block>, Refused> {
    let mut out = Vec::with_capacity(turn.parts.len());
    for (part, value) in turn.parts.iter().enumerate() {
        let place = Place { native, turn: &turn.path, part };
        let marked = match value {
            Part::Text(text) if reminder && !text.text.trim().is_empty() => {
                Some(Part::Text(Text {
                    text: format!("<system-reminder>\n{}\n</system-reminder>", text.text),
                    ..text.clone()
                }))
            }
            _ => None,
        };
        out.extend(parts::write(marked.as_ref().unwrap_or(value), place, losses)?);
    }
    Ok(out)
}

/// Messages whose roles change from one to the next.
struct Conversation<'a> {
    messages: Vec<Message<'a>>,
    /// What the system says between calls and their results, which must not be parted.
    held: Vec<Block>,
}

impl Conversation<'_> {
    fn take(&mut self, role: Role, blocks: Vec<Block>) {
        if blocks.is_empty() {
            return;
        }
        if role == Role::System {
            match self.messages.last().is_some_and(Message::has_calls) {
                true => self.held.extend(blocks),
                false => self.push(role, blocks),
            }
            return;
        }
        if !blocks.iter().any(|block| block.result.is_some()) {
            self.release();
        }
        self.push(role, blocks);
        self.release();
    }

    fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.push(Role::System, held);
        }
    }

    fn push(&mut self, role: Role, blocks: Vec<Block>) {
        match self.messages.last_mut().filter(|last| last.role == role) {
            Some(last) => last.blocks.extend(blocks),
            None => self.messages.push(Message { role, blocks, turn: None }),
        }
    }
}

/// The model is to go on from calls, and its turn does not begin with reasoning: from the last
/// message of the user that has no results, the first one of the model.
fn has_bare_calls(messages: &[Message<'_>]) -> bool {
    let has_results = |message: &Message<'_>| message.blocks.iter().any(|b| b.result.is_some());
    let turn = messages
        .iter()
        .rev()
        .take_while(|message| message.role != Role::User || has_results(message))
        .filter(|message| message.role == Role::Assistant);
    let first = turn.last();
    first.is_some_and(|message| {
        message.has_calls() && !message.blocks.first().is_some_and(|block| block.thought)
    })
}

/// Results stand first in their message, in the order of their calls.
fn order(messages: &mut [Message<'_>]) {
    for at in 0..messages.len() {
        let (before, rest) = messages.split_at_mut(at);
        let message = &mut rest[0];
        if message.role != Role::User || message.blocks.iter().all(|block| block.result.is_none()) {
            continue;
        }
        let mut calls: HashMap<&str, usize> = HashMap::new();
        let blocks = before.last().map_or(&[][..], |last| &last.blocks);
        for (place, call) in blocks.iter().filter_map(|block| block.call.as_deref()).enumerate() {
            calls.entry(call).or_insert(place);
        }
        message.blocks.sort_by_cached_key(|block| match &block.result {
            Some(id) => calls.get(id.as_str()).copied().unwrap_or(usize::MAX - 1),
            None => usize::MAX,
        });
    }
}
