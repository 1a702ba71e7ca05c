//! Reads messages into the system's texts and turns. Results of tools that stand one behind the
//! other are one turn; each other message is one.

use std::collections::{HashMap, HashSet};

use serde_json::value::RawValue;

use super::{
    details,
    members::{join, list, object, required, rest, take, text},
    read_parts::content,
    words::{LANGUAGE, MORE, split_id},
};
use crate::dialect::hub::{
    Extension, Json, Object, Part, Refused, Request, Role, Turn, envelope,
    request::{State, SystemText, Text, ToolCall, ToolKind, ToolResult},
    tool_names,
};

/// Reads the messages into a request.
///
/// # Errors
/// If something is not of its type, or a role does not exist.
pub fn read(raw: &RawValue, request: &mut Request) -> Result<(), Refused> {
    let (mut calls, mut open) = (Calls::default(), None);
    for (at, raw) in list(raw, "messages")?.into_iter().enumerate() {
        let path = format!("messages[{at}]");
        let mut message = object(raw, &path)?;
        let role = required(&mut message, "role", &path)?;
        match role.as_str() {
            "system" | "developer" if request.turns.is_empty() => {
                system(message, role == "developer", &path, &mut request.system)?;
            }
            "system" | "developer" => {
                let mut turn = turn(message, Role::System, path)?;
                turn.developer = role == "developer";
                request.turns.push(turn);
            }
            "user" => {
                let turn = turn(message, Role::User, path)?;
                calls.note(&turn);
                request.turns.push(turn);
            }
            "assistant" => {
                let turn = assistant(message, path.clone(), &mut request.stateful)?;
                calls.note(&turn);
                request.turns.push(turn);
            }
            "tool" | "function" => {
                let result = result(message, role == "function", &path, &calls)?;
                add(result, path, &mut request.turns, &mut open);
            }
            _ => {
                let why = "It is none of system, developer, user, assistant, tool, function";
                return Err(Refused::invalid(join(&path, "role"), why));
            }
        }
    }
    Ok(())
}

/// What results have to know of the calls before them.
#[derive(Default)]
struct Calls {
    /// By their ids.
    kinds: HashMap<String, ToolKind>,
    /// The ids of the last calls, by the names of their tools.
    last: HashMap<String, String>,
}

impl Calls {
    fn note(&mut self, turn: &Turn) {
        for part in &turn.parts {
            if let Part::ToolCall(call) = part {
                self.kinds.insert(call.id.clone(), call.kind);
                self.last.insert(call.name.clone(), call.id.clone());
            }
        }
    }
}

/// One text for each part. A mark for caches on the message is one on its text.
fn system(
    mut message: Object<'_>,
    developer: bool,
    path: &str,
    out: &mut Vec<SystemText>,
) -> Result<(), Refused> {
    let origin = if developer { "developer" } else { "system" };
    let (parts, _) = content(&mut message, path)?;
    let cache = message.json("cache_control");
    let outer = message.rest().into_iter().map(|(name, value)| (format!("message.{name}"), value));
    let mut outer: Vec<_> = outer.collect();
    let (count, first) = (parts.len(), out.len());
    for (at, part) in parts.into_iter().enumerate() {
        let Part::Text(Text { text, cache: own, mut ext, .. }) = part else {
            let path = format!("{path}.content[{at}]");
            return Err(Refused::invalid(path, "A system message has only texts"));
        };
        if at == 0 && !outer.is_empty() {
            ext.language = LANGUAGE;
            ext.members.append(&mut outer);
        }
        if out.len() > first {
            ext.language = MORE;
        }
        let cache = own.or_else(|| cache.clone().filter(|_| at + 1 == count));
        out.push(SystemText { text, origin, cache, ext });
    }
    Ok(())
}

fn turn(mut message: Object<'_>, role: Role, path: String) -> Result<Turn, Refused> {
    let (mut parts, _) = content(&mut message, &path)?;
    let cache = message.json("cache_control");
    match parts.last_mut() {
        Some(Part::Text(text)) if text.cache.is_none() => text.cache = cache,
        Some(Part::Image(media) | Part::File(media)) if media.cache.is_none() => {
            media.cache = cache;
        }
        _ => {}
    }
    Ok(Turn {
        role,
        parts,
        name: text(&mut message, "name", &path)?,
        ext: rest(message, None),
        path,
        developer: false,
    })
}

fn assistant(
    mut message: Object<'_>,
    path: String,
    stateful: &mut Vec<String>,
) -> Result<Turn, Refused> {
    let mut calls = Vec::new();
    let mut known: HashMap<(String, String), usize> = HashMap::new();
    if let Some(raw) = message.take("tool_calls") {
        let at = join(&path, "tool_calls");
        for (number, raw) in list(raw, &at)?.into_iter().enumerate() {
            let call = call(raw, &format!("{at}[{number}]"))?;
            // The same call once more is none.
            let key = (call.id.clone(), call.arguments.clone());
            let first = *known.entry(key).or_insert(calls.len());
            if calls.get(first) != Some(&call) {
                calls.push(call);
            }
        }
    }
    if let Some(raw) = message.take("function_call") {
        let at = join(&path, "function_call");
        let mut from = object(raw, &at)?;
        calls.push(ToolCall {
            id: legacy_id(&path),
            name: required(&mut from, "name", &at)?,
            arguments: text(&mut from, "arguments", &at)?.unwrap_or_default(),
            ..ToolCall::default()
        });
    }
    if message.get("audio").is_some_and(|audio| audio.get() != "null") {
        stateful.push(join(&path, "audio"));
    }
    // Both are sent back where both were given.
    let string = |message: &mut Object<'_>, name: &str| {
        let is_text = message.get(name).is_some_and(|value| value.get().starts_with('"'));
        if is_text { text(message, name, &path) } else { Ok(None) }
    };
    let shown = string(&mut message, "reasoning_content")?;
    let shown = string(&mut message, "reasoning")?.filter(|_| shown.is_none()).or(shown);
    let mut parts: Vec<Part> = details::read(message.take("reasoning_details"), shown)
        .into_iter()
        .map(Part::Reasoning)
        .collect();
    let refusal = text(&mut message, "refusal", &path)?;
    let Turn { parts: said, name, ext, .. } = turn(message, Role::Assistant, path.clone())?;
    // The same call may stand in the content, as Messages has it, and in the list.
    let known: HashSet<&str> = calls.iter().map(|call| call.id.as_str()).collect();
    parts.extend(said.into_iter().filter(|part| match part {
        Part::ToolCall(call) => !known.contains(call.id.as_str()),
        _ => true,
    }));
    parts.extend(refusal.map(Part::Refusal));
    parts.extend(calls.into_iter().map(Part::ToolCall));
    Ok(Turn { role: Role::Assistant, parts, path, name, ext, developer: false })
}

fn call(raw: &RawValue, path: &str) -> Result<ToolCall, Refused> {
    let mut from = object(raw, path)?;
    let kind = match text(&mut from, "type", path)?.as_deref() {
        Some("custom") => ToolKind::Custom,
        _ => ToolKind::Function,
    };
    let (name, member) = match kind {
        ToolKind::Function => ("function", "arguments"),
        ToolKind::Custom => ("custom", "input"),
    };
    let at = join(path, name);
    let raw = from.take(name).ok_or_else(|| Refused::invalid(at.clone(), "It is missing"))?;
    let mut inner = object(raw, &at)?;
    // Some clients send the object itself.
    let arguments = match inner.get(member) {
        Some(raw) if raw.get().starts_with('{') => {
            inner.json(member).map(|json| json.as_str().to_owned())
        }
        _ => text(&mut inner, member, &at)?,
    };
    let (id, in_id) = split_id(&required(&mut from, "id", path)?);
    Ok(ToolCall {
        id,
        name: required(&mut inner, "name", &at)?,
        arguments: arguments.unwrap_or_default(),
        kind,
        state: signature(&mut from).or(in_id),
        cache: from.json("cache_control"),
        ext: rest(from, Some((name, inner))),
        ..ToolCall::default()
    })
}

/// Google's signature of a call: `extra_content.google.thought_signature`. Other members beside it
/// stay where they are.
fn signature(call: &mut Object<'_>) -> Option<State> {
    let mut extra = Object::parse(call.get("extra_content")?.get()).ok()?;
    let mut google = Object::parse(extra.take("google")?.get()).ok()?;
    let text: String = google.read("thought_signature")?;
    if google.members().next().is_some() || extra.members().next().is_some() {
        return None;
    }
    call.take("extra_content");
    Some(envelope::unwrap(&text, LANGUAGE))
}

/// The id of a call that had none: from where it stands.
fn legacy_id(path: &str) -> String {
    tool_names::call_id(path, 0, 0)
}

fn result(
    mut message: Object<'_>,
    legacy: bool,
    path: &str,
    before: &Calls,
) -> Result<ToolResult, Refused> {
    let (parts, plain) = content(&mut message, path)?;
    let mut name = text(&mut message, "name", path)?;
    let call = if legacy {
        let called = name.as_ref().and_then(|name| before.last.get(name)).cloned();
        called.unwrap_or_else(|| legacy_id(path))
    } else {
        split_id(&required(&mut message, "tool_call_id", path)?).0
    };
    if legacy {
        name = None;
    }
    Ok(ToolResult {
        // It has the kind of its call.
        kind: before.kinds.get(&call).copied().unwrap_or_default(),
        call,
        name,
        parts,
        plain,
        is_error: take(&mut message, "is_error", path, "true or false")?.unwrap_or(false),
        cache: message.json("cache_control"),
        ext: rest(message, None),
        ..ToolResult::default()
    })
}

/// Adds a result to the turn of results that stands last, or to a new one. `open`: the number of that
/// turn, if it is known to hold nothing else.
fn add(result: ToolResult, path: String, turns: &mut Vec<Turn>, open: &mut Option<usize>) {
    let part = Part::ToolResult(result);
    let last = turns.len().checked_sub(1);
    let known = *open == last;
    let results = |turn: &Turn| {
        let all = known || turn.parts.iter().all(|part| matches!(part, Part::ToolResult(_)));
        turn.role == Role::User && all && !turn.parts.is_empty()
    };
    match turns.last_mut().filter(|turn| results(turn)) {
        Some(turn) => turn.parts.push(part),
        None => {
            let ext = Extension::new(LANGUAGE, Vec::<(String, Json)>::new());
            turns.push(Turn { role: Role::User, parts: vec![part], path, ext, ..Turn::default() });
        }
    }
    *open = turns.len().checked_sub(1);
}
