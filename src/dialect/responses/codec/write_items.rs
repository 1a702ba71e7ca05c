//! A conversation as `instructions` and `input`.

use super::{
    members::Members,
    message::{self, MESSAGE, MORE, Message},
    parts, read,
    traits::NAME,
};
use crate::dialect::hub::{
    Extension, Json, Losses, Part, Refused, Request, Role, Turn, Writer,
    request::{ReasoningPart, SystemText, Text, ToolCall, ToolKind, ToolResult},
};

/// # Errors
/// If a part has no word in this language and must not be left out.
pub(super) fn refuse(request: &Request) -> Result<(), Refused> {
    for turn in &request.turns {
        for part in &turn.parts {
            let inner = match part {
                Part::ToolResult(result) => &result.parts[..],
                part => std::slice::from_ref(part),
            };
            if inner.iter().any(|part| matches!(part, Part::Video(_))) {
                return Err(Refused::new(&turn.path, "The backend's language has no video"));
            }
        }
    }
    Ok(())
}

/// Writes `instructions` and `input`.
pub(super) fn write(
    request: &Request,
    losses: &mut Losses,
    to: &mut Members<'_>,
    out: &mut Writer,
) {
    let (instructions, system) = system(&request.system);
    to.put("instructions", instructions, out);
    if let Some(text) = plain_input(request) {
        return to.put("input", Some(Json::text(text)), out);
    }
    if to.own
        && request.turns.is_empty()
        && system.is_empty()
        && read::still_said(request, "input").is_none()
    {
        return;
    }
    let mut items = Items { losses, system: system.into_iter().peekable(), written: 0 };
    let input = Json::written(|out| {
        out.array(|list| {
            request.turns.iter().for_each(|turn| items.turn(turn, list));
            items.system_here(true, list);
        });
    });
    to.put("input", Some(input), out);
}

/// The text of a request whose input was one.
fn plain_input(request: &Request) -> Option<&str> {
    let kind = read::still_said(request, "input")?;
    match (&request.turns[..], kind.as_str()) {
        ([turn], "\"string\"") if turn.role == Role::User => match &turn.parts[..] {
            [Part::Text(text)] => Some(&text.text),
            _ => None,
        },
        _ => None,
    }
}

/// A message of the system.
struct System<'a> {
    texts: Vec<&'a SystemText>,
    /// As it came, if it came in this language.
    message: Option<Message>,
}

impl System<'_> {
    fn write(&self, out: &mut Writer) {
        let role = self.texts.first().map_or("system", |first| role(first));
        let parts: Vec<Part> = self
            .texts
            .iter()
            .map(|text| {
                let SystemText { text, cache, ext, .. } = (*text).clone();
                Part::Text(Text { text, cache, ext, ..Text::default() })
            })
            .collect();
        let parts: Vec<&Part> = parts.iter().collect();
        self.message.clone().unwrap_or_else(plain_message).write(role, &parts, out);
    }
}

fn role(text: &SystemText) -> &'static str {
    if text.origin == "developer" { "developer" } else { "system" }
}

/// A message without an id: one that was made up would be looked for.
fn plain_message() -> Message {
    Message { members: vec![("type".to_owned(), Json::text("message"))], ..Message::default() }
}

/// The instructions, and the messages of the system. One text without a mark is an instruction.
fn system(texts: &[SystemText]) -> (Option<Json>, Vec<System<'_>>) {
    let own = |text: &SystemText| text.ext.language == NAME;
    if let [one] = texts
        && !own(one)
        && one.cache.is_none()
        && one.origin != "developer"
    {
        return (Some(Json::text(&one.text)), Vec::new());
    }
    let mut instructions = None;
    let mut messages: Vec<System<'_>> = Vec::new();
    for text in texts {
        if text.origin == "instructions" && instructions.is_none() && messages.is_empty() {
            instructions = Some(Json::text(&text.text));
            continue;
        }
        let message = text.ext.get(MESSAGE).and_then(|json| Message::read(json.as_str()));
        let more = match messages.last() {
            Some(last) if own(text) => {
                message.is_none() && text.ext.get(MORE).is_some() && own(last.texts[0])
            }
            Some(last) => last.message.is_none() && role(last.texts[0]) == role(text),
            None => false,
        };
        match messages.last_mut().filter(|_| more) {
            Some(last) => last.texts.push(text),
            None => messages.push(System { texts: vec![text], message }),
        }
    }
    (instructions, messages)
}

struct Items<'a, S: Iterator<Item = System<'a>>> {
    losses: &'a mut Losses,
    system: std::iter::Peekable<S>,
    written: usize,
}

impl<'a, S: Iterator<Item = System<'a>>> Items<'a, S> {
    /// Messages of the system that stood here, or before anything that is left.
    fn system_here(&mut self, all: bool, out: &mut Writer) {
        let written = self.written;
        let here = |system: &System<'_>, written| {
            all || system.message.as_ref().is_none_or(|message| message.at <= written)
        };
        for number in 0.. {
            match self.system.next_if(|system| here(system, written + number)) {
                Some(system) => system.write(out),
                None => return self.written += number,
            }
        }
    }

    /// Before an item.
    fn count(&mut self, out: &mut Writer) {
        self.system_here(false, out);
        self.written += 1;
    }

    fn turn(&mut self, turn: &Turn, out: &mut Writer) {
        let role = match turn.role {
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::System if turn.developer => "developer",
            Role::System => "system",
        };
        if turn.name.is_some() {
            self.losses
                .add(format!("{}.name", turn.path), "the backend's language has no such field");
        }
        let Some(items) = message::items(turn) else { return self.plain_turn(turn, role, out) };
        let mut at = 0;
        for item in items {
            match item {
                None => {
                    self.item(&turn.parts[at], turn, out);
                    at += 1;
                }
                Some(message) => {
                    let content: Vec<&Part> = turn.parts[at..at + message.parts].iter().collect();
                    self.count(out);
                    message.write(role, &content, out);
                    at += message.parts;
                }
            }
        }
    }

    /// A turn of which nothing is known but its parts.
    fn plain_turn(&mut self, turn: &Turn, role: &str, out: &mut Writer) {
        let parts = grouped(&turn.parts);
        let mut content: Vec<&Part> = Vec::new();
        for part in parts {
            let (foreign, strange) = match part {
                Part::Opaque(opaque) => {
                    (opaque.language != NAME, opaque.kind.starts_with("input_"))
                }
                _ => (false, false),
            };
            if parts::is_content(part) || foreign || strange {
                if foreign {
                    self.losses
                        .add(&*turn.path, "given as text to a backend that does not have it");
                }
                content.push(part);
                continue;
            }
            self.message(role, &mut content, turn, out);
            self.item(part, turn, out);
        }
        self.message(role, &mut content, turn, out);
    }

    fn message(&mut self, role: &str, content: &mut Vec<&Part>, turn: &Turn, out: &mut Writer) {
        let blank = |part: &Part| match part {
            Part::Text(text) => text.text.is_empty(),
            Part::Opaque(opaque) => opaque.language != NAME && opaque.readable.is_empty(),
            _ => false,
        };
        // What is all that there is stays, or two turns of the other side would meet.
        if turn.parts.len() > 1 {
            content.retain(|part| !blank(part));
        }
        if content.is_empty() {
            return;
        }
        self.count(out);
        let mut message = plain_message();
        // Servers that check by the types of the vendor's library take a list of the model's texts
        // only with an id, which there is none of; a string they all take.
        message.plain =
            role == "assistant" && matches!(content[..], [Part::Text(Text { cache: None, .. })]);
        let phase = content.iter().find_map(|part| match part {
            Part::Text(text) => text.phase.as_deref(),
            _ => None,
        });
        if let Some(phase) = phase {
            message.members.push(("phase".to_owned(), Json::text(phase)));
        }
        message.write(role, content, out);
        content.clear();
    }

    fn item(&mut self, part: &Part, turn: &Turn, out: &mut Writer) {
        match part {
            Part::Reasoning(reasoning) => {
                if hidden(reasoning) {
                    let why = "reasoning without state of the backend's vendor is not sent back";
                    return self.losses.add(&*turn.path, why);
                }
                self.count(out);
                write_reasoning(reasoning, out);
            }
            Part::ToolCall(call) => {
                self.count(out);
                write_call(call, out);
            }
            Part::ToolResult(result) => {
                self.count(out);
                write_result(result, out);
            }
            part => {
                self.count(out);
                parts::write(part, turn.role == Role::Assistant, out);
            }
        }
    }
}

/// Parts with texts that stand between calls before them: some backends refuse a message between
/// two calls of one turn. Where reasoning stands between, the order means something, and stays.
fn grouped(parts: &[Part]) -> Vec<&Part> {
    let call = |part: &Part| matches!(part, Part::ToolCall(_));
    let mut all: Vec<&Part> = parts.iter().collect();
    let (Some(first), Some(last)) = (parts.iter().position(call), parts.iter().rposition(call))
    else {
        return all;
    };
    let between = &parts[first..last];
    if between.iter().all(|part| call(part) || parts::is_content(part)) {
        all[first..last].sort_by_key(|part| call(part));
    }
    all
}

/// Reasoning that the backend could not make anything of: it has no state of its vendor, and did
/// not come in this language without one.
fn hidden(reasoning: &ReasoningPart) -> bool {
    match &reasoning.state {
        Some(state) => state.language != NAME,
        None => reasoning.ext.language != NAME,
    }
}

fn write_reasoning(reasoning: &ReasoningPart, out: &mut Writer) {
    let own = reasoning.ext.language == NAME;
    let kept =
        |name: &str| reasoning.ext.of(NAME).iter().find(|(key, _)| key == name).map(|(_, v)| v);
    let shown = reasoning.text.iter().filter(|text| !own && !text.is_empty());
    let summary: Vec<String> = reasoning.summary.iter().chain(shown).cloned().collect();
    out.object(|o| {
        o.text_at("type", "reasoning");
        o.maybe_text_at("id", reasoning.item.as_deref().filter(|_| own));
        match kept("@summary") {
            Some(list) if parts::texts(list) == reasoning.summary => {
                if list.is_array() {
                    o.json_at("summary", list);
                }
            }
            _ => o.json_at("summary", &parts::summary_list(&summary)),
        }
        let text = reasoning.text.as_deref().filter(|_| own);
        match (kept("@content"), text) {
            (Some(list), text)
                if list.is_array() && parts::texts(list).concat() == text.unwrap_or("") =>
            {
                o.json_at("content", list);
            }
            (_, Some(text)) => o.json_at("content", &parts::content_list(text)),
            (_, None) => {}
        }
        o.maybe_text_at("encrypted_content", reasoning.state.as_ref().map(|s| s.value.as_str()));
        status_and_members(&reasoning.ext, o);
    });
}

/// The status as it came, and members that are not known.
fn status_and_members(ext: &Extension, out: &mut Writer) {
    if let Some((_, status)) = ext.of(NAME).iter().find(|(name, _)| name == "@status") {
        out.json_at("status", status);
    }
    parts::members(ext, out);
}

fn write_call(call: &ToolCall, out: &mut Writer) {
    let own = call.ext.language == NAME;
    let custom = call.kind == ToolKind::Custom;
    out.object(|o| {
        o.text_at("type", if custom { "custom_tool_call" } else { "function_call" });
        o.maybe_text_at("id", call.item.as_deref().filter(|_| own));
        o.text_at("call_id", &call.id);
        o.text_at("name", &call.name);
        o.maybe_text_at("namespace", call.namespace.as_deref());
        if custom {
            o.text_at("input", &call.arguments);
        } else {
            let none = call.arguments.trim().is_empty() && !own;
            o.text_at("arguments", if none { "{}" } else { &call.arguments });
        }
        status_and_members(&call.ext, o);
    });
}

fn write_result(result: &ToolResult, out: &mut Writer) {
    let own = result.ext.language == NAME;
    let custom = result.kind == ToolKind::Custom;
    out.object(|o| {
        o.text_at("type", if custom { "custom_tool_call_output" } else { "function_call_output" });
        o.maybe_text_at("id", result.item.as_deref().filter(|_| own));
        o.text_at("call_id", &result.call);
        match texts(result) {
            Some(text) => o.text_at("output", &text),
            None => o.array_at("output", |list| {
                if result.is_error && !own {
                    parts::write(&Part::Text(Text::plain("Error:")), false, list);
                }
                result.parts.iter().for_each(|part| parts::write(part, false, list));
            }),
        }
        status_and_members(&result.ext, o);
    });
}

/// The output as a string, if it can be one: it was one, or it came in another language and has
/// only texts. A failure is said in words, since there is no field for it.
fn texts(result: &ToolResult) -> Option<String> {
    if result.ext.language == NAME && !result.plain {
        return None;
    }
    let text = |part: &Part| match part {
        Part::Text(text) => Some(text.text.clone()),
        Part::Search(search) => Some(parts::readable(search)),
        Part::Opaque(opaque) if opaque.language != NAME => Some(opaque.readable.clone()),
        _ => None,
    };
    let all: Vec<String> = result.parts.iter().map(text).collect::<Option<_>>()?;
    let all = all.join("\n");
    let said = !result.is_error || all.to_ascii_lowercase().starts_with("error");
    Some(if said { all } else { format!("Error: {all}") })
}
