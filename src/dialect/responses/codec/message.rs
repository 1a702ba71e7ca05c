//! How the parts of a turn were cut into items, so that the flat list can be written again.

use serde_json::value::RawValue;

use super::traits::NAME;
use crate::dialect::hub::{Json, Object, Part, Turn, Writer};

/// The member of a turn's extension that says it: a list with an element for each item, 0 for a
/// part that is an item by itself, an object for a message.
pub(super) const ITEMS: &str = "@items";

/// The member of a text of the system that begins a message.
pub(super) const MESSAGE: &str = "@message";

/// The member of a text of the system that belongs to the message of the text before.
pub(super) const MORE: &str = "@more";

/// A message as it came, without its role and its content.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Message {
    /// Its parts.
    pub parts: usize,
    /// Its content was a string.
    pub plain: bool,
    /// Where it stood in the list.
    pub at: usize,
    /// Its other members.
    pub members: Vec<(String, Json)>,
}

impl Message {
    /// As a member of an extension.
    pub fn json(&self) -> Json {
        Json::written(|out| {
            out.object(|o| {
                o.raw_at("parts", self.parts);
                o.raw_at("plain", self.plain);
                o.raw_at("at", self.at);
                o.object_at("members", |members| members.members(&self.members));
            });
        })
    }

    /// Reads what [`Self::json`] wrote.
    pub fn read(text: &str) -> Option<Self> {
        let mut object = Object::parse(text).ok()?;
        Some(Self {
            parts: object.read("parts")?,
            plain: object.read("plain")?,
            at: object.read("at")?,
            members: Object::parse(object.take("members")?.get()).ok()?.rest_with_nulls(),
        })
    }

    /// Writes the item.
    pub fn write(&self, role: &str, content: &[&Part], out: &mut Writer) {
        let output = role == "assistant";
        out.object(|o| {
            o.members(&self.members);
            o.text_at("role", role);
            match content {
                [Part::Text(text)] if self.plain => o.text_at("content", &text.text),
                _ => o.array_at("content", |list| {
                    content.iter().for_each(|part| super::parts::write(part, output, list));
                }),
            }
        });
    }
}

/// An object's members, `null` included.
trait RestWithNulls {
    fn rest_with_nulls(self) -> Vec<(String, Json)>;
}

impl RestWithNulls for Object<'_> {
    fn rest_with_nulls(self) -> Vec<(String, Json)> {
        self.members().map(|(name, value)| (name.to_owned(), Json::of(value))).collect()
    }
}

/// The items of a turn, as long as it still has the parts that it came with; `None`: it is of
/// another language, or was changed.
pub(super) fn items(turn: &Turn) -> Option<Vec<Option<Message>>> {
    if turn.ext.language != NAME {
        return None;
    }
    let list = turn.ext.get(ITEMS)?.array()?;
    let item = |raw: &&RawValue| match raw.get() {
        "0" => Some(None),
        text => Message::read(text).map(Some),
    };
    let items: Vec<Option<Message>> = list.iter().map(item).collect::<Option<_>>()?;
    let mut at = 0;
    for item in &items {
        let many = item.as_ref().map_or(1, |message| message.parts);
        let parts = turn.parts.get(at..at + many)?;
        let fits = match item {
            Some(_) => parts.iter().all(in_message),
            None => parts.iter().all(|part| !super::parts::is_content(part)),
        };
        if !fits {
            return None;
        }
        at += many;
    }
    (at == turn.parts.len()).then_some(items)
}

fn in_message(part: &Part) -> bool {
    super::parts::is_content(part) || matches!(part, Part::Opaque(_))
}
