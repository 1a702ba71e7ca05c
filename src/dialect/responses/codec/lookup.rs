//! The items of a backend's answer, found again however the backend names them: by id, by index, or
//! not at all, as llama.cpp does.

use super::traits::NAME;
use crate::dialect::hub::{
    Event, Json, Object, PartKind,
    event::Citation,
    request::{State, ToolKind},
};

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Message,
    Reasoning,
    Call(ToolKind),
    /// Anything else, which is passed on whole.
    Other,
}

impl Kind {
    /// By the type of an item.
    pub fn of(kind: &str) -> Self {
        match kind {
            "message" => Self::Message,
            "reasoning" => Self::Reasoning,
            "function_call" => Self::Call(ToolKind::Function),
            "custom_tool_call" => Self::Call(ToolKind::Custom),
            _ => Self::Other,
        }
    }
}

/// A text within an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Text(u64),
    Refusal(u64),
    /// Of the reasoning itself.
    Thought(u64),
    Summary(u64),
    Arguments,
}

/// An item that the backend has begun.
struct Item {
    id: String,
    index: Option<u64>,
    kind: Kind,
    /// What the result of a call refers to.
    call_id: String,
    name: String,
    namespace: Option<String>,
    phase: Option<String>,
    /// The part of reasoning and of calls, which are one.
    part: Option<u32>,
    /// Arguments that came before the name.
    pending: String,
    cells: Vec<Cell>,
    done: bool,
    /// It is in the final list.
    listed: bool,
}

/// One text of an item, and what of it was passed on.
struct Cell {
    place: Place,
    part: Option<u32>,
    sent: String,
    citations: usize,
    closed: bool,
}

/// All items of an answer.
pub(super) struct Items {
    issuer: String,
    items: Vec<Item>,
    /// The number of the next part.
    next: u32,
    refused: bool,
}

impl Items {
    /// Of an answer whose reasoning has state of this issuer.
    pub fn new(issuer: String) -> Self {
        Self { issuer, items: Vec::new(), next: 0, refused: false }
    }

    /// The model has refused, and has not called anything.
    pub fn refused(&self) -> bool {
        let called = |item: &Item| matches!(item.kind, Kind::Call(_)) && item.part.is_some();
        self.refused && !self.items.iter().any(called)
    }

    /// An item opens.
    pub fn added(&mut self, event: &Object<'_>, item: &Object<'_>, out: &mut Vec<Event>) {
        let id = item.text("id").unwrap_or_default();
        let index = count(event, "output_index");
        let kind = Kind::of(&item.text("type").unwrap_or_default());
        let known = |known: &Item| {
            known.kind == kind && !id.is_empty() && known.id == id && known.index == index
        };
        if self.items.iter().any(known) {
            return;
        }
        let at = self.create(kind, id, index);
        self.learn(at, item);
        self.start_call(at, out);
    }

    /// The item that an event is of; one that was not announced begins with it.
    pub fn locate(&mut self, event: &Object<'_>, kind: Kind) -> usize {
        let id = event.text("item_id").unwrap_or_default();
        let index = count(event, "output_index");
        let newest = |fits: &dyn Fn(&Item) -> bool| {
            self.items.iter().rposition(|item| item.kind == kind && fits(item))
        };
        let by_id = || newest(&|item: &Item| !id.is_empty() && item.id == id);
        let by_index = || newest(&|item: &Item| index.is_some() && item.index == index);
        let open = || newest(&|item: &Item| id.is_empty() && index.is_none() && !item.done);
        match by_id().or_else(by_index).or_else(open) {
            Some(at) => at,
            None => self.create(kind, id, index),
        }
    }

    fn create(&mut self, kind: Kind, id: String, index: Option<u64>) -> usize {
        self.items.push(Item {
            id,
            index,
            kind,
            call_id: String::new(),
            name: String::new(),
            namespace: None,
            phase: None,
            part: None,
            pending: String::new(),
            cells: Vec::new(),
            done: false,
            listed: false,
        });
        self.items.len() - 1
    }

    /// What an item says of itself beside its texts.
    fn learn(&mut self, at: usize, item: &Object<'_>) {
        let known = &mut self.items[at];
        let text = |name: &str| item.text(name).filter(|text| !text.is_empty());
        if known.call_id.is_empty() {
            known.call_id = text("call_id").unwrap_or_default();
        }
        if known.name.is_empty() {
            known.name = text("name").unwrap_or_default();
        }
        known.namespace = known.namespace.take().or_else(|| text("namespace"));
        known.phase = known.phase.take().or_else(|| text("phase"));
        if known.id.is_empty() {
            known.id = text("id").unwrap_or_default();
        }
    }

    /// The index of a content that the event does not say: behind those that are closed.
    pub fn content_index(&self, at: usize, event: &Object<'_>) -> u64 {
        let closed = || self.items[at].cells.iter().filter(|cell| cell.closed).count() as u64;
        count(event, "content_index").unwrap_or_else(closed)
    }

    fn number(&mut self) -> u32 {
        let part = self.next;
        self.next += 1;
        part
    }

    /// A call opens as soon as its name is known.
    fn start_call(&mut self, at: usize, out: &mut Vec<Event>) {
        let Kind::Call(kind) = self.items[at].kind else { return };
        if self.items[at].part.is_some() || self.items[at].name.is_empty() {
            return;
        }
        let part = self.number();
        let item = &mut self.items[at];
        item.part = Some(part);
        let (id, name) = (item.call_id.clone(), item.name.clone());
        let kind = PartKind::ToolCall { id, name, kind, namespace: item.namespace.clone() };
        out.push(Event::PartStart { choice: 0, part, kind });
        let text = std::mem::take(&mut item.pending);
        if !text.is_empty() {
            out.push(Event::Arguments { choice: 0, part, text });
        }
    }

    fn cell(&mut self, at: usize, place: Place) -> &mut Cell {
        let cells = &mut self.items[at].cells;
        let found = cells.iter().position(|cell| cell.place == place);
        let found = found.unwrap_or_else(|| {
            cells.push(Cell {
                place,
                part: None,
                sent: String::new(),
                citations: 0,
                closed: false,
            });
            cells.len() - 1
        });
        &mut cells[found]
    }

    /// A piece of a text.
    pub fn text(&mut self, at: usize, place: Place, text: String, out: &mut Vec<Event>) {
        let done = self.items[at].done;
        let cell = self.cell(at, place);
        if done || cell.closed || text.is_empty() {
            return;
        }
        cell.sent += &text;
        if place == Place::Arguments && self.items[at].part.is_none() {
            self.items[at].pending += &text;
            return self.start_call(at, out);
        }
        let part = self.part(at, place, out);
        self.refused |= matches!(place, Place::Refusal(_));
        out.push(match place {
            Place::Text(_) => Event::Text { choice: 0, part, text, logprobs: None },
            Place::Refusal(_) => Event::Refusal { choice: 0, part, text },
            Place::Thought(_) => Event::Reasoning { choice: 0, part, text, summary: None },
            Place::Summary(number) => {
                let summary = Some(u32::try_from(number).unwrap_or(u32::MAX));
                Event::Reasoning { choice: 0, part, text, summary }
            }
            Place::Arguments => Event::Arguments { choice: 0, part, text },
        });
    }

    /// The part of a text, which opens with its first piece.
    fn part(&mut self, at: usize, place: Place, out: &mut Vec<Event>) -> u32 {
        let (kind, of_cell) = match place {
            Place::Text(_) => (PartKind::Text { phase: self.items[at].phase.clone() }, true),
            Place::Refusal(_) => (PartKind::Refusal, true),
            _ => (PartKind::Reasoning { redacted: false }, false),
        };
        let known = if of_cell { self.cell(at, place).part } else { self.items[at].part };
        if let Some(part) = known {
            return part;
        }
        let part = self.number();
        if of_cell {
            self.cell(at, place).part = Some(part);
        } else {
            self.items[at].part = Some(part);
        }
        out.push(Event::PartStart { choice: 0, part, kind });
        part
    }

    /// A whole text: what of it has not come in pieces. Where a piece in the middle is missing,
    /// nothing can be put there any more.
    pub fn whole(&mut self, at: usize, place: Place, text: &str, out: &mut Vec<Event>) {
        let rest = text.strip_prefix(self.cell(at, place).sent.as_str());
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            self.text(at, place, rest.to_owned(), out);
        }
    }

    /// A part of a content opens. Some servers give it its first text.
    pub fn content_added(
        &mut self,
        at: usize,
        index: u64,
        content: &Object<'_>,
        out: &mut Vec<Event>,
    ) {
        let place = match content.text("type").as_deref() {
            Some("output_text" | "text") => Place::Text(index),
            Some("reasoning_text") => Place::Thought(index),
            _ => return,
        };
        if self.cell(at, place).sent.is_empty() {
            let text = content.text("text").unwrap_or_default();
            self.text(at, place, text, out);
        }
    }

    /// A part of a message's content, whole.
    pub fn content(&mut self, at: usize, index: u64, content: &Object<'_>, out: &mut Vec<Event>) {
        let text = |name: &str| content.text(name).unwrap_or_default();
        match text("type").as_str() {
            "output_text" | "text" => {
                self.whole(at, Place::Text(index), &text("text"), out);
                let list: Option<Vec<Json>> = content.get("annotations").and_then(|raw| {
                    Some(Json::of(raw).array()?.into_iter().map(Json::of).collect())
                });
                let known = self.cell(at, Place::Text(index)).citations;
                for annotation in list.unwrap_or_default().into_iter().skip(known) {
                    self.citation(at, index, annotation, out);
                }
                self.close(at, Place::Text(index), out);
            }
            "refusal" => {
                self.whole(at, Place::Refusal(index), &text("refusal"), out);
                self.close(at, Place::Refusal(index), out);
            }
            "reasoning_text" => self.whole(at, Place::Thought(index), &text("text"), out),
            _ => {}
        }
    }

    /// The citation with this number has come.
    pub fn has_citation(&mut self, at: usize, index: u64, number: u64) -> bool {
        number < self.cell(at, Place::Text(index)).citations as u64
    }

    /// A citation of a text that is open.
    pub fn citation(&mut self, at: usize, index: u64, json: Json, out: &mut Vec<Event>) {
        let cell = self.cell(at, Place::Text(index));
        let Some(part) = cell.part.filter(|_| !cell.closed) else { return };
        cell.citations += 1;
        let text = |name: &str| json.object()?.text(name);
        let (url, title) = (text("url"), text("title"));
        let citation = Citation { language: NAME, json, url, title };
        out.push(Event::Citation { choice: 0, part, citation });
    }

    fn close(&mut self, at: usize, place: Place, out: &mut Vec<Event>) {
        let cell = self.cell(at, place);
        if !cell.closed {
            cell.closed = true;
            out.extend(cell.part.map(|part| Event::PartStop { choice: 0, part }));
        }
    }

    /// An item is whole.
    pub fn done(&mut self, event: &Object<'_>, item: &Object<'_>, out: &mut Vec<Event>) {
        let kind = Kind::of(&item.text("type").unwrap_or_default());
        let id = item.text("id").unwrap_or_default();
        let index = count(event, "output_index");
        let newest = |fits: &dyn Fn(&Item) -> bool| {
            self.items.iter().rposition(|known| known.kind == kind && fits(known))
        };
        let by_id = || newest(&|known: &Item| !id.is_empty() && known.id == id);
        let by_index = || newest(&|known: &Item| index.is_some() && known.index == index);
        let open = || newest(&|known: &Item| index.is_none() && !known.done);
        let at = match by_id().or_else(by_index).or_else(open) {
            Some(at) => at,
            None => self.create(kind, id, index),
        };
        self.finish(at, item, out);
    }

    /// An item of the final list, at this place: what of it has not been said.
    pub fn listed(&mut self, place: usize, item: &Object<'_>, out: &mut Vec<Event>) {
        let kind = Kind::of(&item.text("type").unwrap_or_default());
        let (id, call) = (item.text("id").unwrap_or_default(), item.text("call_id"));
        let call = call.unwrap_or_default();
        let first = |fits: &dyn Fn(&Item) -> bool| {
            self.items.iter().position(|known| known.kind == kind && !known.listed && fits(known))
        };
        let by_id = || first(&|known: &Item| !id.is_empty() && known.id == id);
        let by_call = || first(&|known: &Item| !call.is_empty() && known.call_id == call);
        let by_index = || first(&|known: &Item| known.index == Some(place as u64));
        let at = match by_id().or_else(by_call).or_else(by_index).or_else(|| first(&|_| true)) {
            Some(at) => at,
            None => self.create(kind, id, Some(place as u64)),
        };
        self.items[at].listed = true;
        self.finish(at, item, out);
    }

    fn finish(&mut self, at: usize, item: &Object<'_>, out: &mut Vec<Event>) {
        if self.items[at].done {
            return;
        }
        self.learn(at, item);
        match self.items[at].kind {
            Kind::Message => {
                for (index, content) in objects(item, "content").iter().enumerate() {
                    self.content(at, index as u64, content, out);
                }
            }
            Kind::Reasoning => self.finish_reasoning(at, item, out),
            Kind::Call(kind) => {
                let name = if kind == ToolKind::Custom { "input" } else { "arguments" };
                self.start_call(at, out);
                self.whole(at, Place::Arguments, &text_or_json(item, name), out);
            }
            Kind::Other => {
                let part = self.number();
                let kind = item.text("type").unwrap_or_default();
                let json = Json::written(|out| {
                    out.object(|o| {
                        item.members().for_each(|(name, value)| o.name(name).raw(value.get()));
                    });
                });
                let kind = PartKind::Opaque { language: NAME, kind, json };
                out.push(Event::PartStart { choice: 0, part, kind });
                self.items[at].part = Some(part);
            }
        }
        self.close_item(at, out);
    }

    fn finish_reasoning(&mut self, at: usize, item: &Object<'_>, out: &mut Vec<Event>) {
        for (index, summary) in objects(item, "summary").iter().enumerate() {
            let text = summary.text("text").unwrap_or_default();
            self.whole(at, Place::Summary(index as u64), &text, out);
        }
        for (index, content) in objects(item, "content").iter().enumerate() {
            let text = content.text("text").unwrap_or_default();
            self.whole(at, Place::Thought(index as u64), &text, out);
        }
        let Some(value) = item.text("encrypted_content").filter(|text| !text.is_empty()) else {
            return;
        };
        let part = self.items[at].part.unwrap_or_else(|| {
            let part = self.number();
            self.items[at].part = Some(part);
            let kind = PartKind::Reasoning { redacted: true };
            out.push(Event::PartStart { choice: 0, part, kind });
            part
        });
        let state = State { issuer: Some(self.issuer.clone()), language: NAME.to_owned(), value };
        out.push(Event::State { choice: 0, part, state });
    }

    fn close_item(&mut self, at: usize, out: &mut Vec<Event>) {
        let item = &mut self.items[at];
        if std::mem::replace(&mut item.done, true) {
            return;
        }
        let close = |cell: &mut Cell| {
            let open = !std::mem::replace(&mut cell.closed, true);
            cell.part.filter(|_| open)
        };
        let cells: Vec<u32> = item.cells.iter_mut().filter_map(close).collect();
        let parts = cells.into_iter().chain(item.part);
        out.extend(parts.map(|part| Event::PartStop { choice: 0, part }));
    }

    /// The answer is over: what is open closes. A call whose name never came is none.
    pub fn close_all(&mut self, out: &mut Vec<Event>) {
        (0..self.items.len()).for_each(|at| self.close_item(at, out));
    }
}

/// A whole number.
pub(super) fn count(object: &Object<'_>, name: &str) -> Option<u64> {
    object.get(name)?.get().parse().ok()
}

/// The objects of a list.
pub(super) fn objects<'a>(object: &Object<'a>, name: &str) -> Vec<Object<'a>> {
    let read = |raw: &'a serde_json::value::RawValue| serde_json::from_str(raw.get()).ok();
    object.get(name).and_then(read).unwrap_or_default()
}

/// A string; what is none counts as its JSON, as some servers write arguments.
pub(super) fn text_or_json(object: &Object<'_>, name: &str) -> String {
    let Some(raw) = object.get(name).filter(|raw| raw.get() != "null") else {
        return String::new();
    };
    serde_json::from_str(raw.get()).unwrap_or_else(|_| Json::of(raw).as_str().to_owned())
}
