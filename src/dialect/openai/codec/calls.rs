//! The calls of one choice, put together from deltas that servers number, name and repeat in many
//! ways.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::words::{LANGUAGE, split_id};
use crate::dialect::hub::{
    Object,
    json::compact,
    request::{State, ToolKind},
    serial::MOST_PARTS,
};

/// One entry of `tool_calls`, of a delta or of a message.
#[derive(Debug, Default)]
pub struct Piece {
    index: Option<u64>,
    id: Option<String>,
    name: Option<String>,
    arguments: String,
    kind: ToolKind,
    signature: Option<String>,
}

impl Piece {
    /// Reads an entry. What is not of its type counts as missing.
    pub fn read(raw: &RawValue) -> Option<Self> {
        let mut from = Object::parse(raw.get()).ok()?;
        // Only the first entry of a call has its type.
        let kind = match from.text("type").as_deref() {
            Some("custom") => ToolKind::Custom,
            None if from.has("custom") => ToolKind::Custom,
            _ => ToolKind::Function,
        };
        let inner = match kind {
            ToolKind::Function => from.take("function"),
            ToolKind::Custom => from.take("custom"),
        };
        let mut piece = inner.and_then(Self::legacy).unwrap_or_default();
        piece.kind = kind;
        piece.index = from.get("index").and_then(|n| n.get().trim_matches('"').parse().ok());
        piece.id = from.read("id").filter(|id: &String| !id.is_empty());
        piece.signature = signature(from.get("extra_content"));
        Some(piece)
    }

    /// Reads the old `function_call`.
    pub fn legacy(raw: &RawValue) -> Option<Self> {
        let mut from = Object::parse(raw.get()).ok()?;
        let arguments = from.take("arguments").or_else(|| from.take("input"));
        Some(Self {
            name: from.read("name").filter(|name: &String| !name.is_empty()),
            arguments: match arguments.map(RawValue::get) {
                None => String::new(),
                Some(text) if text.starts_with('"') => {
                    serde_json::from_str(text).unwrap_or_default()
                }
                // Some servers write the object itself.
                Some(object) => compact(object).into_owned(),
            },
            ..Self::default()
        })
    }

    /// With this number.
    pub fn at(self, index: u64) -> Self {
        Self { index: Some(index), ..self }
    }
}

/// Google's signature of a call.
fn signature(extra: Option<&RawValue>) -> Option<String> {
    let mut extra = Object::parse(extra?.get()).ok()?;
    Object::parse(extra.take("google")?.get()).ok()?.text("thought_signature")
}

/// A call.
#[derive(Debug, Default)]
pub struct Call {
    pub id: String,
    pub name: String,
    pub kind: ToolKind,
    /// All of its arguments that have come.
    pub arguments: String,
    /// Its part, once it has been opened.
    pub part: Option<u32>,
    pub closed: bool,
    /// State that has not been given yet.
    pub state: Option<State>,
    shape: Shape,
    /// All that has come is `{}`, which has not been given on: servers that translate write it first,
    /// and then what is meant.
    held: bool,
}

impl Call {
    /// Its arguments from there on, as far as they are certain.
    pub fn text(&self, from: usize) -> &str {
        if self.held { "" } else { &self.arguments[from..] }
    }

    /// Closes it: what was held back, if there was something.
    pub fn close(&mut self) -> Option<String> {
        self.closed = true;
        std::mem::take(&mut self.held).then(|| self.arguments.clone())
    }

    /// Nothing of it is missing, as far as can be seen.
    pub fn is_whole(&self) -> bool {
        self.kind == ToolKind::Custom || self.shape.is_whole()
    }
}

/// The calls of a choice.
#[derive(Debug, Default)]
pub struct Calls {
    list: Vec<Call>,
    /// The first call with an id.
    ids: HashMap<String, usize>,
    /// The last call in a slot.
    slots: HashMap<u64, usize>,
    /// Those before this one are closed.
    done: usize,
}

/// Calls of one choice. The answer of a server that makes more has more parts than it may have, or
/// has calls without a name, and ends with an error.
const MOST_CALLS: usize = 2 * MOST_PARTS as usize;

impl Calls {
    /// Takes an entry: the number of its call, and where the arguments that are new begin.
    /// `whole`: it is of a message, in which each entry is a call of its own.
    pub fn take(&mut self, piece: Piece, whole: bool) -> (usize, usize) {
        let known = if whole { None } else { self.find(&piece) };
        let known = known.or_else(|| (self.list.len() >= MOST_CALLS).then_some(MOST_CALLS - 1));
        let at = known.unwrap_or_else(|| {
            self.list.push(Call { kind: piece.kind, ..Call::default() });
            let at = self.list.len() - 1;
            if let Some(slot) = piece.index {
                self.slots.insert(slot, at);
            }
            at
        });
        let call = &mut self.list[at];
        if let Some(id) = piece.id.filter(|_| call.id.is_empty() && call.part.is_none()) {
            let (id, state) = split_id(&id);
            (call.id, call.state) = (id, state.or(call.state.take()));
            self.ids.entry(call.id.clone()).or_insert(at);
        }
        if call.name.is_empty() {
            call.name = piece.name.unwrap_or_default();
        }
        if let Some(value) = piece.signature.filter(|value| !value.is_empty()) {
            call.state = Some(State { issuer: None, language: LANGUAGE.to_owned(), value });
        }
        if call.held && !call.closed && !is_bare(&piece.arguments, true) {
            call.arguments.clear();
            (call.shape, call.held) = (Shape::default(), false);
        }
        let from = call.arguments.len();
        // What comes behind whole arguments is a repetition of them.
        let more = !call.closed && (call.kind == ToolKind::Custom || !call.shape.is_whole());
        if more && !(call.kind == ToolKind::Custom && from > 0 && call.arguments == piece.arguments)
        {
            call.shape.take(&piece.arguments);
            call.arguments += &piece.arguments;
            let first = from == 0 && !whole && call.kind == ToolKind::Function;
            call.held = first && is_bare(&call.arguments, false);
        }
        (at, from)
    }

    /// The call that an entry belongs to; `None`: to a new one.
    fn find(&self, piece: &Piece) -> Option<usize> {
        let in_slot = |slot: u64| self.slots.get(&slot).copied();
        let Some(id) = &piece.id else {
            let at = match piece.index {
                Some(slot) => in_slot(slot)?,
                None => self.list.len().checked_sub(1)?,
            };
            return (!self.list[at].is_followed_by(piece)).then_some(at);
        };
        let id = split_id(id).0;
        if let Some(at) = self.ids.get(&id) {
            return Some(*at);
        }
        // A new id in the same place is a new call (Ollama numbers all of them 0), unless nothing
        // else says so: an id that comes late, or another one with each delta.
        let at = in_slot(piece.index?)?;
        let call = &self.list[at];
        let late = call.id.is_empty()
            && piece.name.as_ref().is_none_or(|name| call.name.is_empty() || *name == call.name);
        (!call.is_whole() && (late || piece.name.is_none())).then_some(at)
    }

    /// The call with this number.
    pub fn get(&mut self, at: usize) -> &mut Call {
        &mut self.list[at]
    }

    /// All of them, but not those at the beginning that are closed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Call> {
        let closed = self.list[self.done..].iter().take_while(|call| call.closed);
        self.done += closed.count();
        self.list[self.done..].iter_mut()
    }

    /// All calls that were begun are whole.
    pub fn are_whole(&self) -> bool {
        self.list.iter().all(|call| call.is_whole() || call.arguments.trim().is_empty())
    }
}

impl Call {
    /// An entry without an id, in the place of this call, begins another one: it has a name, and
    /// this one is whole or has another name. The same call once more is none.
    fn is_followed_by(&self, piece: &Piece) -> bool {
        let Some(name) = &piece.name else { return false };
        if self.is_whole() {
            let same = *name == self.name
                && (piece.arguments.is_empty() || piece.arguments == self.arguments);
            return !same;
        }
        piece.index.is_none() && !self.name.is_empty() && *name != self.name
    }
}

/// An object without members, or, if it `may_be_nothing`, no text at all.
fn is_bare(arguments: &str, may_be_nothing: bool) -> bool {
    let text = arguments.trim();
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    inner.map_or(may_be_nothing && text.is_empty(), |inner| inner.trim().is_empty())
}

/// Where arguments are between their first brace and the last one.
#[derive(Debug, Default)]
struct Shape {
    depth: u32,
    begun: bool,
    inside: bool,
    escaped: bool,
}

impl Shape {
    fn is_whole(&self) -> bool {
        self.begun && self.depth == 0
    }

    fn take(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.inside => self.escaped = true,
                b'"' => self.inside = !self.inside,
                _ if self.inside => {}
                b'{' | b'[' => {
                    self.begun |= byte == b'{';
                    self.depth += 1;
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }
}
