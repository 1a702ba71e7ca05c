//! Reasoning as Chat servers show it: a text, Mistral's chunks, and `reasoning_details`, in which
//! OpenRouter gives what issuers want back. The gateway uses them for clients of Chat, too: each
//! reasoning part of an answer has a number there, and its text stands beside its state, since
//! issuers check it to the byte.

use serde_json::value::RawValue;

use super::words::LANGUAGE;
use crate::dialect::hub::{
    Json, Object, Writer, envelope,
    request::{ReasoningPart, State},
};

/// How an envelope of the gateway begins.
const ENVELOPE: &str = "lp1.";

/// The text of Mistral's list of texts.
pub fn chunk_text(raw: &str) -> String {
    let chunks: Vec<&RawValue> = serde_json::from_str(raw).unwrap_or_default();
    let text = |raw: &RawValue| match Object::parse(raw.get()) {
        Ok(chunk) => chunk.text("text"),
        Err(_) => serde_json::from_str(raw.get()).ok(),
    };
    chunks.into_iter().filter_map(text).collect()
}

/// The reasoning of an assistant's message: what its `reasoning_details` and its text say.
pub fn read(raw: Option<&RawValue>, text: Option<String>) -> Vec<ReasoningPart> {
    let entries: Vec<Object<'_>> =
        raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let text = text.filter(|text| !text.is_empty());
    let (Some(raw), false) = (raw, entries.is_empty()) else {
        let part = |text| ReasoningPart { text: Some(text), ..ReasoningPart::default() };
        return text.map(part).into_iter().collect();
    };
    let ours = |entry: &Object<'_>| {
        ["signature", "data"]
            .iter()
            .filter_map(|name| entry.text(name))
            .any(|value| value.starts_with(ENVELOPE))
    };
    if entries.iter().any(ours) {
        return numbered(&entries, text);
    }
    let joined = |kind: &str, name: &str| -> Vec<String> {
        let of_kind = entries.iter().filter(|e| e.text("type").as_deref() == Some(kind));
        of_kind.filter_map(|entry| entry.text(name)).collect()
    };
    let texts = joined("reasoning.text", "text").concat();
    let text = text.or_else(|| (!texts.is_empty()).then_some(texts));
    vec![ReasoningPart {
        summary: if text.is_none() { joined("reasoning.summary", "summary") } else { Vec::new() },
        text,
        state: Some(State {
            issuer: None,
            language: LANGUAGE.to_owned(),
            value: Json::of(raw).as_str().to_owned(),
        }),
        ..ReasoningPart::default()
    }]
}

/// What the gateway has written: the entries of a part have its number.
fn numbered(entries: &[Object<'_>], text: Option<String>) -> Vec<ReasoningPart> {
    let mut parts: Vec<(Option<String>, ReasoningPart)> = Vec::new();
    for entry in entries {
        let number = entry.get("index").map(|number| number.get().to_owned());
        let at = parts.iter().position(|(known, _)| number.is_some() && *known == number);
        let at = at.unwrap_or_else(|| {
            parts.push((number, ReasoningPart::default()));
            parts.len() - 1
        });
        let part = &mut parts[at].1;
        match entry.text("type").as_deref() {
            Some("reasoning.summary") => part.summary.extend(entry.text("summary")),
            Some("reasoning.encrypted") => {
                part.state = entry.text("data").map(|data| envelope::unwrap(&data, LANGUAGE));
                part.redacted = part.state.as_ref().is_some_and(|s| s.language == "messages");
            }
            _ => {
                part.text = entry.text("text").or(part.text.take());
                let signature = entry.text("signature").filter(|text| !text.is_empty());
                part.state = signature.map(|text| envelope::unwrap(&text, LANGUAGE));
            }
        }
    }
    let mut parts: Vec<_> = parts.into_iter().map(|(_, part)| part).collect();
    let has_text = parts.iter().any(|part| part.text.is_some() || !part.summary.is_empty());
    if let (Some(text), false) = (text, has_text) {
        match parts.iter_mut().find(|part| !part.redacted) {
            Some(part) => part.text = Some(text),
            None => parts.insert(0, ReasoningPart { text: Some(text), ..Default::default() }),
        }
    }
    parts
}

/// Writes the entries of one part of an answer, for a client.
pub fn write(out: &mut Writer, number: u32, part: &ReasoningPart) {
    let Some(state) = &part.state else { return };
    if state.language == LANGUAGE {
        return write_own(out, &state.value, part.text.as_deref());
    }
    let sealed = envelope::wrap(state, LANGUAGE);
    for summary in &part.summary {
        out.object(|out| {
            out.text_at("type", "reasoning.summary");
            out.text_at("summary", summary);
            out.raw_at("index", number);
        });
    }
    let text = part.text.as_deref().unwrap_or("");
    if part.redacted || (state.language != "messages" && text.is_empty()) {
        return out.object(|out| {
            out.text_at("type", "reasoning.encrypted");
            out.text_at("data", &sealed);
            out.raw_at("index", number);
        });
    }
    out.object(|out| {
        out.text_at("type", "reasoning.text");
        out.text_at("text", text);
        out.text_at("signature", &sealed);
        out.raw_at("index", number);
    });
}

/// Writes the entries of a state of this language: the list itself, or Mistral's signature.
pub fn write_own(out: &mut Writer, value: &str, text: Option<&str>) {
    match serde_json::from_str::<Vec<&RawValue>>(value) {
        Ok(entries) => entries.into_iter().for_each(|entry| out.raw(entry.get())),
        Err(_) => out.object(|out| {
            out.text_at("type", "reasoning.text");
            out.text_at("text", text.unwrap_or(""));
            out.text_at("signature", value);
        }),
    }
}

/// The entries of a stream, put together.
#[derive(Default)]
pub struct Gathered(Vec<Entry>);

struct Entry {
    kind: String,
    index: Option<String>,
    text: String,
    members: Vec<(String, Json)>,
}

impl Entry {
    /// The member that comes in pieces.
    fn piece(&self) -> &'static str {
        match self.kind.as_str() {
            "reasoning.summary" => "summary",
            "reasoning.encrypted" => "data",
            _ => "text",
        }
    }
}

impl Gathered {
    /// Takes the entries of one event, and gives the text in them and the summaries.
    pub fn take(&mut self, raw: &RawValue) -> (String, String) {
        let (mut text, mut summary) = (String::new(), String::new());
        let entries: Vec<Object<'_>> = serde_json::from_str(raw.get()).unwrap_or_default();
        for mut from in entries {
            let mut entry = Entry {
                kind: from.read("type").unwrap_or_else(|| "reasoning.text".to_owned()),
                index: from.take("index").map(|index| index.get().to_owned()),
                text: String::new(),
                members: Vec::new(),
            };
            entry.text = from.read(entry.piece()).unwrap_or_default();
            entry.members = from.rest();
            entry.members.retain(|(_, value)| value.as_str() != "null");
            match entry.piece() {
                "text" => text += &entry.text,
                "summary" => summary += &entry.text,
                _ => {}
            }
            self.add(entry);
        }
        (text, summary)
    }

    fn add(&mut self, new: Entry) {
        let last = self.0.last_mut().filter(|last| {
            last.kind == new.kind && last.index == new.index && last.piece() != "data"
        });
        let Some(last) = last else { return self.0.push(new) };
        last.text += &new.text;
        for (name, value) in new.members {
            match last.members.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => last.members.push((name, value)),
            }
        }
    }

    /// What has been gathered, if an issuer wants it back: something is signed or encrypted.
    pub fn finish(&mut self) -> Option<String> {
        let entries = std::mem::take(&mut self.0);
        let wanted = |entry: &Entry| {
            (entry.piece() == "data" && !entry.text.is_empty())
                || entry
                    .members
                    .iter()
                    .any(|(name, value)| name == "signature" && value.as_str() != "\"\"")
        };
        if !entries.iter().any(wanted) {
            return None;
        }
        let list = Json::written(|out| {
            out.array(|out| {
                for entry in &entries {
                    out.object(|out| {
                        out.text_at("type", &entry.kind);
                        out.text_at(entry.piece(), &entry.text);
                        out.members(&entry.members);
                        out.maybe_raw_at("index", entry.index.as_deref());
                    });
                }
            });
        });
        Some(list.as_str().to_owned())
    }

    /// Nothing came.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn states_of_other_languages_come_back_with_their_own_text() {
        let state = |language: &str, value: &str| {
            Some(State {
                issuer: Some("acme".into()),
                language: language.into(),
                value: value.into(),
            })
        };
        let parts = [
            ReasoningPart {
                text: Some("a \"b\"".into()),
                state: state("messages", "sig1"),
                ..ReasoningPart::default()
            },
            // Thinking that is not shown has a signature alone.
            ReasoningPart {
                text: Some(String::new()),
                state: state("messages", "sig2"),
                ..ReasoningPart::default()
            },
            ReasoningPart {
                state: state("messages", "hidden"),
                redacted: true,
                ..ReasoningPart::default()
            },
            ReasoningPart {
                summary: vec!["s".into(), "t".into()],
                state: state("responses", "enc"),
                ..ReasoningPart::default()
            },
            ReasoningPart {
                text: Some("open".into()),
                state: state("responses", "enc2"),
                ..ReasoningPart::default()
            },
        ];
        let list = Json::written(|out| {
            out.array(|out| {
                for (number, part) in (0..).zip(&parts) {
                    write(out, number, part);
                }
            });
        });
        let back = read(Some(&raw(list.as_str())), Some("a \"b\"".into()));
        assert_eq!(back, parts);
    }

    #[test]
    fn a_foreign_list_is_one_state() {
        let list = r#"[{"type":"reasoning.text","text":"x","signature":"s","format":"anthropic-claude-v1","index":0}]"#;
        let [part] = &read(Some(&raw(list)), None)[..] else { panic!() };
        assert_eq!(part.text.as_deref(), Some("x"));
        assert_eq!(part.state.as_ref().unwrap().value, list);
        let out = Json::written(|out| out.array(|out| write(out, 0, part)));
        assert_eq!(out.as_str(), list);
    }

    #[test]
    fn pieces_of_a_stream_are_one_list() {
        let mut all = Gathered::default();
        for (piece, text) in [
            (r#"[{"type":"reasoning.text","text":"a","index":0,"format":"f"}]"#, "a"),
            (r#"[{"type":"reasoning.text","text":"b","index":0,"signature":null}]"#, "b"),
            (r#"[{"type":"reasoning.text","signature":"S","index":0}]"#, ""),
        ] {
            assert_eq!(all.take(&raw(piece)).0, text);
        }
        assert_eq!(
            all.finish().unwrap(),
            r#"[{"type":"reasoning.text","text":"ab","format":"f","signature":"S","index":0}]"#
        );
        all.take(&raw(r#"[{"type":"reasoning.text","text":"a","index":0}]"#));
        assert_eq!(all.finish(), None);
    }
}
