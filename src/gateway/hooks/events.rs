//! The events of a stream, one at a time.

use std::{
    sync::{Arc, OnceLock as OnceCell},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};

use super::{trace, words::OwnedWords};
use crate::{
    dialect::{Dialect, EventWord},
    hooks::{Global, Hook, HookFailure, Input},
    lua::json,
    runtime::explain::KeptHook,
    wire::{
        edit, splice,
        sse::{self, Data, Piece, Splitter},
    },
};

/// The scripts of one stream.
pub struct EventFilters {
    language: &'static dyn Dialect,
    words: Arc<OwnedWords>,
    request: Option<Bytes>,
    /// The request's body, once a script has asked for it.
    parsed: OnceCell<Option<Arc<Value>>>,
    scripts: Vec<EventScript>,
    splitter: Splitter,
}

/// A script, and what it has done so far.
struct EventScript {
    hook: Arc<Hook>,
    spent: Duration,
    changed: u64,
    dropped: u64,
    failed: Option<String>,
    /// Its time for this stream is used up.
    off: bool,
}

/// What goes out.
pub struct Filtered {
    pub bytes: Bytes,
    /// Why the stream ends behind it.
    pub stopped: Option<String>,
}

/// What becomes of an event.
enum Event {
    Same,
    Changed(Bytes),
    Dropped,
    Stop(String),
}

impl EventFilters {
    pub fn new(
        language: &'static dyn Dialect,
        words: Arc<OwnedWords>,
        request: Option<Bytes>,
        hooks: Vec<Arc<Hook>>,
    ) -> Self {
        let script = |hook| EventScript {
            hook,
            spent: Duration::ZERO,
            changed: 0,
            dropped: 0,
            failed: None,
            off: false,
        };
        let scripts = hooks.into_iter().map(script).collect();
        Self {
            language,
            words,
            request,
            parsed: OnceCell::new(),
            scripts,
            splitter: Splitter::default(),
        }
    }

    /// Takes the next bytes of the stream.
    pub async fn push(&mut self, bytes: Bytes, end: bool) -> Filtered {
        if self.scripts.is_empty() {
            return Filtered { bytes, stopped: None };
        }
        let whole = self.splitter.is_between();
        let mut pieces = Vec::new();
        self.splitter.push(&bytes, |piece| pieces.push(piece));
        if end {
            pieces.extend(self.splitter.finish());
        }
        let mut out = BytesMut::new();
        let mut same = whole && self.splitter.is_between();
        for piece in pieces {
            let event = match &piece {
                Piece::Event(event) => self.event(event.clone()).await,
                Piece::Raw(_) | Piece::RawEnd(_) | Piece::Unfinished(_) => Event::Same,
            };
            let (Piece::Event(original)
            | Piece::Raw(original)
            | Piece::RawEnd(original)
            | Piece::Unfinished(original)) = piece;
            match event {
                Event::Same => out.extend_from_slice(&original),
                Event::Changed(event) => {
                    same = false;
                    out.extend_from_slice(&event);
                }
                Event::Dropped => same = false,
                Event::Stop(why) => {
                    return Filtered { bytes: out.freeze(), stopped: Some(why) };
                }
            }
        }
        let bytes = if same { bytes } else { out.freeze() };
        Filtered { bytes, stopped: None }
    }

    /// Runs all scripts on an event.
    async fn event(&mut self, event: Bytes) -> Event {
        let Some(data) = data_of(&event) else { return Event::Same };
        let Ok(document) = serde_json::from_slice::<Value>(&data) else { return Event::Same };
        let mut present = Present { bytes: event, data, document, changed: false };
        for at in 0..self.scripts.len() {
            if self.scripts[at].off {
                continue;
            }
            let hook = Arc::clone(&self.scripts[at].hook);
            let words = words_of(self.language.event_words(), &present.document);
            let globals = self.view(&hook, &present, &words);
            let began = Instant::now();
            let returned = hook.run(globals).await;
            let script = &mut self.scripts[at];
            script.spent += began.elapsed();
            match script.settle(returned, &mut present, &words) {
                Event::Same | Event::Changed(_) => {}
                other => return other,
            }
        }
        if present.changed { Event::Changed(present.bytes) } else { Event::Same }
    }

    fn view(&self, hook: &Hook, present: &Present, words: &[FoundWord]) -> Vec<Global> {
        let view = self.words.borrow();
        let read = || serde_json::from_slice(self.request.as_ref()?).ok().map(Arc::new);
        let request = || self.parsed.get_or_init(read).clone();
        let mut globals = Vec::with_capacity(4);
        if hook.reads("request", "") {
            globals.push(view.request(hook, request));
        }
        view.others(hook, &mut globals);
        let mut fields: Vec<Global> = vec![("type", kind(words, &present.document).into())];
        for word in words {
            if !fields.iter().any(|(name, _)| *name == word.name) {
                fields.push((word.name, Input::Json(Arc::new(word.value.clone()))));
            }
        }
        if let Some(name) = sse::kind(&present.bytes) {
            fields.push(("name", Input::Text(String::from_utf8_lossy(name).into_owned())));
        }
        if hook.reads("event", "raw") {
            fields.push(("raw", Input::Json(Arc::new(present.document.clone()))));
        }
        globals.push(("event", Input::Fields(fields)));
        globals
    }

    /// What the scripts have done, for `/admin/v1/explain`.
    pub fn trace(&self) -> Vec<KeptHook> {
        let described = |script: &EventScript| {
            let EventScript { hook, spent, changed, dropped, failed, .. } = script;
            let mut what = Vec::new();
            if *changed > 0 {
                what.push(format!("{changed} events"));
            }
            if *dropped > 0 {
                what.push(format!("{dropped} events dropped"));
            }
            let word = match failed {
                Some(why) => {
                    what.push(why.clone());
                    "failed"
                }
                None if what.is_empty() => "nothing",
                None => "changed",
            };
            trace::of_run(hook, *spent, word, what)
        };
        self.scripts.iter().map(described).collect()
    }
}

/// The event as the scripts so far have left it.
struct Present {
    bytes: Bytes,
    data: Bytes,
    document: Value,
    changed: bool,
}

impl Present {
    /// `old` is the document as scripts see it.
    fn replace(&mut self, old: &Value, new: &Value) {
        let edits = splice::edits(&self.data, old, new);
        if edits.is_empty() {
            return;
        }
        let mut data = BytesMut::from(&self.data[..]);
        edit::apply(&mut data, edits);
        let data = data.freeze();
        self.bytes = with_data(&self.bytes, &data);
        self.document = serde_json::from_slice(&data).unwrap_or_else(|_| new.clone());
        (self.data, self.changed) = (data, true);
    }
}

impl EventScript {
    /// Does what a script wants with an event.
    fn settle(
        &mut self,
        returned: Result<Option<Value>, HookFailure>,
        present: &mut Present,
        words: &[FoundWord],
    ) -> Event {
        let late = self.spent > self.hook.stream_timeout();
        let returned = returned.and_then(|value| match late {
            true => {
                let why = "its time for this stream is used up";
                Err(self.hook.unusable(why.to_owned()))
            }
            false => Ok(value),
        });
        self.off |= late;
        match returned {
            Ok(None | Some(Value::Bool(true))) => self.hook.count("nothing"),
            Ok(Some(Value::Bool(false))) => {
                self.hook.count("changed");
                self.dropped += 1;
                return Event::Dropped;
            }
            Ok(Some(Value::Object(mut event))) => {
                if let Some(why) = event.remove("stop") {
                    self.hook.count("refused");
                    let why = why.as_str().unwrap_or("The answer was stopped").to_owned();
                    return Event::Stop(why);
                }
                let before = present.changed;
                present.changed = false;
                let old = json::normalised(&present.document);
                let new = wanted(&old, event, words);
                present.replace(&old, &new);
                let changed = present.changed;
                present.changed |= before;
                self.changed += u64::from(changed);
                self.hook.count(if changed { "changed" } else { "nothing" });
            }
            Ok(Some(_)) => {
                let why = "it is neither an event nor false";
                return self.failed(self.hook.unusable(why.to_owned()));
            }
            Err(failure) => return self.failed(failure),
        }
        Event::Same
    }

    fn failed(&mut self, failure: HookFailure) -> Event {
        self.failed.get_or_insert(failure.why);
        match failure.closed {
            true => Event::Stop("A script of the gateway failed".to_owned()),
            false => Event::Same,
        }
    }
}

/// A word of an event, and where it stands.
struct FoundWord {
    name: &'static str,
    pointer: &'static str,
    value: Value,
}

fn words_of(words: &'static [EventWord], document: &Value) -> Vec<FoundWord> {
    let kind = document.get("type").and_then(Value::as_str);
    let applies = |word: &&EventWord| word.when.is_none_or(|when| kind == Some(when));
    let mut found: Vec<FoundWord> = Vec::new();
    for EventWord { name, pointer, .. } in words.iter().filter(applies) {
        if let Some(value) = document.pointer(pointer).filter(|value| !value.is_null())
            && !found.iter().any(|known| known.name == *name)
        {
            found.push(FoundWord { name, pointer, value: value.clone() });
        }
    }
    found
}

/// What an event is, by what it has.
fn kind(words: &[FoundWord], document: &Value) -> &'static str {
    let has = |name: &str| words.iter().any(|word| word.name == name);
    let text =
        |name: &str| words.iter().any(|word| word.name == name && word.value.as_str() != Some(""));
    match () {
        () if document.get("error").is_some_and(|error| !error.is_null()) => "error",
        () if has("finish_reason") => "finish",
        () if text("content") => "content",
        () if text("reasoning") => "reasoning",
        () if has("tool_calls") => "tool_calls",
        () if has("usage") => "usage",
        () => "other",
    }
}

/// The document that a script wants. What it does not mention stays.
fn wanted(document: &Value, event: Map<String, Value>, words: &[FoundWord]) -> Value {
    let mut event = event;
    let mut new = event.remove("raw").unwrap_or_else(|| document.clone());
    for FoundWord { name, pointer, value } in words {
        if let Some(wanted) = event.remove(*name)
            && wanted != json::normalised(value)
            && let Some(place) = new.pointer_mut(pointer)
        {
            *place = wanted;
        }
    }
    new
}

/// The data of an event; `None` if it has none, or nothing that a script could read.
fn data_of(event: &Bytes) -> Option<Bytes> {
    match sse::data(event) {
        Data::None => None,
        Data::One(range) => Some(event.slice(range)),
        Data::Many(data) => Some(Bytes::from(data.into_owned())),
    }
    .filter(|data| data.first() == Some(&b'{'))
}

/// An event with other data: one line, in the place of the first that there was.
fn with_data(event: &Bytes, data: &[u8]) -> Bytes {
    if let Data::One(range) = sse::data(event) {
        let mut bytes = BytesMut::with_capacity(event.len() + data.len());
        bytes.extend_from_slice(&event[..range.start]);
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(&event[range.end..]);
        return bytes.freeze();
    }
    let mut bytes = BytesMut::with_capacity(event.len() + data.len());
    if let Some(kind) = sse::kind(event) {
        bytes.extend_from_slice(b"event: ");
        bytes.extend_from_slice(kind);
        bytes.extend_from_slice(b"\n");
    }
    bytes.extend_from_slice(b"data: ");
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(b"\n\n");
    bytes.freeze()
}
