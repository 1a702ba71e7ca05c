//! The items of a request's `input`, grouped into turns.

use serde_json::value::RawValue;

use super::{
    message::{ITEMS, MESSAGE, MORE, Message},
    node::Node,
    parts::{self, Origin},
    tools,
    traits::NAME,
};
use crate::dialect::hub::{
    Extension, Json, Object, Part, Refused, Role, Turn, Writer, envelope,
    request::{
        Opaque, ReasoningPart, State, SystemText, Text, Tool, ToolCall, ToolKind, ToolResult,
    },
};

/// What an `input` has.
#[derive(Default)]
pub(super) struct Input {
    pub system: Vec<SystemText>,
    pub turns: Vec<Turn>,
    /// Tools that items add.
    pub tools: Vec<Tool>,
    /// Places of what only the vendor has.
    pub stateful: Vec<String>,
    /// The items of each turn.
    cuts: Vec<Vec<Option<Message>>>,
    /// Something has been said by another than the system.
    began: bool,
}

impl Input {
    /// Reads an `input`.
    ///
    /// # Errors
    /// If it is neither text nor a list of items, or an item is wrong.
    pub fn read(raw: &RawValue) -> Result<Self, Refused> {
        let mut input = Self::default();
        if let Ok(text) = serde_json::from_str::<String>(raw.get()) {
            let parts = vec![Part::Text(Text {
                ext: Extension::new(NAME, Vec::new()),
                ..Text::plain(text)
            })];
            let ext = Extension::new(NAME, Vec::new());
            input.turns.push(Turn { parts, path: "input".to_owned(), ext, ..Turn::default() });
            return Ok(input);
        }
        let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) else {
            return Err(Refused::invalid("input", "must be a string or a list of items"));
        };
        for (at, raw) in items.into_iter().enumerate() {
            input.item(raw, at)?;
        }
        input.keep_cuts();
        Ok(input)
    }

    fn item(&mut self, raw: &RawValue, at: usize) -> Result<(), Refused> {
        let mut node = Node::new(raw, format!("input[{at}]"))?;
        let kind = match node.get("type") {
            Some(_) => node.peek("type"),
            None if node.has("role") => Some("message".to_owned()),
            None if node.has("id") => Some("item_reference".to_owned()),
            None => None,
        };
        let Some(kind) = kind else {
            return Err(Refused::invalid(node.at("type"), "must be the name of a type of items"));
        };
        let path = node.path.clone();
        match kind.as_str() {
            "message" => return self.message(node, at),
            "function_call" | "custom_tool_call" => {
                node.take("type");
                let part = call(node, kind == "custom_tool_call")?;
                self.add(Role::Assistant, path, part);
            }
            "function_call_output" | "custom_tool_call_output" => {
                node.take("type");
                let part = self.output(node, kind == "custom_tool_call_output")?;
                self.add(Role::User, path, part);
            }
            "reasoning" => {
                node.take("type");
                let part = reasoning(node)?;
                self.add(Role::Assistant, path, part);
            }
            _ => self.opaque(raw, kind, path)?,
        }
        Ok(())
    }

    /// Adds a part that is an item by itself. The model's items in a row are one turn, as are
    /// results.
    fn add(&mut self, role: Role, path: String, part: Part) {
        self.began |= !matches!(part, Part::Opaque(_));
        self.turn(role, path, false).parts.push(part);
        if let Some(cut) = self.cuts.last_mut() {
            cut.push(None);
        }
    }

    fn turn(&mut self, role: Role, path: String, message: bool) -> &mut Turn {
        let last = self.turns.last().zip(self.cuts.last());
        let joins = last.is_some_and(|(turn, cut)| {
            let results = || !message && cut.iter().all(Option::is_none);
            turn.role == role && (role == Role::Assistant || role == Role::User && results())
        });
        if !joins {
            let ext = Extension::new(NAME, Vec::new());
            self.turns.push(Turn { role, path, ext, ..Turn::default() });
            self.cuts.push(Vec::new());
        }
        let at = self.turns.len() - 1;
        &mut self.turns[at]
    }

    fn message(&mut self, mut node: Node<'_>, at: usize) -> Result<(), Refused> {
        let path = node.path.clone();
        let role = node.required("role")?;
        let (role, developer) = match role.as_str() {
            "user" => (Role::User, false),
            "assistant" => (Role::Assistant, false),
            "system" => (Role::System, false),
            "developer" => (Role::System, true),
            _ => {
                let why = "must be `user`, `assistant`, `system` or `developer`";
                return Err(Refused::invalid(node.at("role"), why));
            }
        };
        let output = role == Role::Assistant;
        let origin = Origin { output, item: node.peek("id"), phase: node.peek("phase") };
        let (content, plain) = self.content(&mut node, "content", &origin)?;
        let members = node.rest();
        let message = Message { parts: content.len(), plain, at, members };
        let texts = !content.is_empty() && content.iter().all(|p| matches!(p, Part::Text(_)));
        if role == Role::System && !self.began && texts {
            self.system_texts(content, developer, &message);
            return Ok(());
        }
        self.began = true;
        let unknown = unknown(&message.members);
        let turn = self.turn(role, path, true);
        turn.developer = developer;
        turn.parts.extend(content);
        turn.ext.members.extend(unknown);
        if let Some(cut) = self.cuts.last_mut() {
            cut.push(Some(message));
        }
        Ok(())
    }

    fn system_texts(&mut self, content: Vec<Part>, developer: bool, message: &Message) {
        let origin = if developer { "developer" } else { "system" };
        for (number, part) in content.into_iter().enumerate() {
            let Part::Text(Text { text, cache, mut ext, .. }) = part else { continue };
            let form = match number {
                0 => (MESSAGE.to_owned(), message.json()),
                _ => (MORE.to_owned(), Json::written(|out| out.raw("true"))),
            };
            ext.members.push(form);
            self.system.push(SystemText { text, origin, cache, ext });
        }
    }

    /// A string or a list of parts. True: it was a string.
    fn content(
        &mut self,
        node: &mut Node<'_>,
        name: &str,
        origin: &Origin,
    ) -> Result<(Vec<Part>, bool), Refused> {
        let path = node.at(name);
        let Some(raw) = node.take(name) else {
            return Err(Refused::invalid(path, "is required"));
        };
        if let Ok(text) = serde_json::from_str::<String>(raw.get()) {
            let Origin { phase, item, .. } = origin.clone();
            let ext = Extension::new(NAME, Vec::new());
            let text = Text { phase, item, ext, ..Text::plain(text) };
            return Ok((vec![Part::Text(text)], true));
        }
        let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) else {
            return Err(Refused::invalid(path, "must be a string or a list of parts"));
        };
        let parts = list
            .into_iter()
            .enumerate()
            .map(|(at, raw)| parts::read(raw, format!("{path}[{at}]"), origin, &mut self.stateful))
            .collect::<Result<_, _>>()?;
        Ok((parts, false))
    }

    fn output(&mut self, mut node: Node<'_>, custom: bool) -> Result<Part, Refused> {
        let call = node.required("call_id")?;
        let (parts, plain) = self.content(&mut node, "output", &Origin::default())?;
        let item = node.text("id")?;
        Ok(Part::ToolResult(ToolResult {
            call,
            parts,
            plain,
            kind: kind(custom),
            item,
            ext: Extension::new(NAME, form(node)),
            ..ToolResult::default()
        }))
    }

    fn opaque(&mut self, raw: &RawValue, kind: String, path: String) -> Result<(), Refused> {
        let json = Json::of(raw);
        let (readable, role) = (readable(&kind, &json), role(&kind));
        match kind.as_str() {
            "item_reference" | "compaction" | "compaction_trigger" | "program"
            | "program_output" => self.stateful.push(path.clone()),
            "additional_tools" => {
                let mut node = Node::new(raw, path.clone())?;
                let list = node.list("tools")?.unwrap_or_default();
                self.tools.extend(tools::read(list, &node.at("tools"))?);
            }
            _ => {}
        }
        self.add(role, path, Part::Opaque(Opaque { language: NAME, kind, json, readable }));
        Ok(())
    }

    /// Turns keep how they were cut where that cannot be seen.
    fn keep_cuts(&mut self) {
        for (turn, cut) in self.turns.iter_mut().zip(self.cuts.drain(..)) {
            if cut.iter().all(Option::is_none) {
                continue;
            }
            let item = |item: &Option<Message>, list: &mut Writer| match item {
                Some(message) => list.raw(message.json().as_str()),
                None => list.raw("0"),
            };
            let items = Json::written(|out| {
                out.array(|list| cut.iter().for_each(|one| item(one, list)));
            });
            turn.ext.members.push((ITEMS.to_owned(), items));
        }
    }
}

/// Members of a message that the vendor's documents do not have.
fn unknown(members: &[(String, Json)]) -> Vec<(String, Json)> {
    let known = |name: &str| {
        matches!(name, "type" | "id" | "status" | "phase") || name.starts_with("internal_")
    };
    members.iter().filter(|(name, _)| !known(name)).cloned().collect()
}

/// What is left of an item; its status is of its form.
fn form(node: Node<'_>) -> Vec<(String, Json)> {
    let mut rest = node.rest();
    if let Some((name, _)) = rest.iter_mut().find(|(name, _)| name == "status") {
        *name = "@status".to_owned();
    }
    rest
}

fn kind(custom: bool) -> ToolKind {
    if custom { ToolKind::Custom } else { ToolKind::Function }
}

fn call(mut node: Node<'_>, custom: bool) -> Result<Part, Refused> {
    Ok(Part::ToolCall(ToolCall {
        id: node.required("call_id")?,
        name: node.required("name")?,
        arguments: node.required(if custom { "input" } else { "arguments" })?,
        kind: kind(custom),
        item: node.text("id")?,
        namespace: node.text("namespace")?,
        ext: Extension::new(NAME, form(node)),
        ..ToolCall::default()
    }))
}

fn reasoning(mut node: Node<'_>) -> Result<Part, Refused> {
    let item = node.text("id")?;
    let sealed = node.text("encrypted_content")?;
    let state: Option<State> = sealed.map(|text| envelope::unwrap(&text, NAME));
    let lists = ["summary", "content"].map(|name| node.json(name));
    for (list, name) in lists.iter().zip(["summary", "content"]) {
        if list.as_ref().is_some_and(|list| !list.is_array()) {
            return Err(Refused::invalid(node.at(name), "must be a list"));
        }
    }
    let [summaries, contents] = lists;
    let mut ext = Extension::new(NAME, form(node));
    let summary = summaries.as_ref().map(parts::texts).unwrap_or_default();
    let text = contents.as_ref().map(parts::texts).filter(|texts| !texts.is_empty());
    let text = text.map(|texts| texts.concat());
    let null = || Json::written(|out| out.raw("null"));
    if summaries.as_ref() != Some(&parts::summary_list(&summary)) {
        ext.members.push(("@summary".to_owned(), summaries.unwrap_or_else(null)));
    }
    if contents != text.as_deref().map(parts::content_list) {
        ext.members.push(("@content".to_owned(), contents.unwrap_or_else(null)));
    }
    let redacted = state.is_some() && text.is_none() && summary.is_empty();
    Ok(Part::Reasoning(ReasoningPart { text, summary, state, redacted, item, ext }))
}

/// Whose turn an item of another type belongs to.
fn role(kind: &str) -> Role {
    let clients = kind.ends_with("_output")
        || kind.ends_with("_response")
        || matches!(
            kind,
            "item_reference" | "additional_tools" | "configuration_update" | "compaction_trigger"
        );
    if clients { Role::User } else { Role::Assistant }
}

/// What a model of another vendor could read of an item.
fn readable(kind: &str, json: &Json) -> String {
    let Some(item) = json.object() else { return String::new() };
    let of = |object: &Object<'_>, name: &str| object.text(name).unwrap_or_default();
    let inner = |name: &str| Object::parse(item.get(name)?.get()).ok();
    let lines: Vec<String> = match kind {
        "web_search_call" => {
            let action = inner("action").unwrap_or_default();
            let what = ["query", "url", "pattern"].map(|name| of(&action, name));
            let what = what.into_iter().find(|text| !text.is_empty());
            what.map(|what| vec![format!("Web search: {what}")]).unwrap_or_default()
        }
        "file_search_call" => {
            let list = item.get("queries").and_then(|raw| serde_json::from_str(raw.get()).ok());
            let queries: Vec<String> = list.unwrap_or_default();
            vec![format!("File search: {}", queries.join(", "))]
        }
        "code_interpreter_call" => vec!["Ran code:".to_owned(), of(&item, "code")],
        "mcp_call" => vec![
            format!("Called {} with {}", of(&item, "name"), of(&item, "arguments")),
            of(&item, "output"),
        ],
        "local_shell_call" | "shell_call" => {
            let action = inner("action").unwrap_or_default();
            let words = action.get("command").or_else(|| action.get("commands"));
            let words = words.and_then(|raw| serde_json::from_str::<Vec<String>>(raw.get()).ok());
            vec![format!("Ran a command: {}", words.unwrap_or_default().join(" "))]
        }
        "local_shell_call_output" | "apply_patch_call_output" => vec![of(&item, "output")],
        "apply_patch_call" => {
            let operation = inner("operation").unwrap_or_default();
            let head = format!("{} {}", of(&operation, "type"), of(&operation, "path"));
            vec![head, of(&operation, "diff")]
        }
        _ => Vec::new(),
    };
    let lines: Vec<String> = lines.into_iter().filter(|line| !line.trim().is_empty()).collect();
    lines.join("\n")
}
