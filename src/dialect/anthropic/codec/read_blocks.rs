//! Reads blocks of a client's content.

use serde_json::{Value, value::RawValue};

use super::{
    LANGUAGE,
    fields::{Content, Fields},
};
use crate::dialect::hub::{
    Json, Part, Refused, envelope,
    request::{Media, MediaSource, Opaque, ReasoningPart, Search, Text, ToolCall, ToolResult},
};

/// Reads a block of a message.
///
/// # Errors
/// If a member is missing or of the wrong type.
pub fn block(path: String, raw: &RawValue) -> Result<Part, Refused> {
    let mut block = Fields::new(raw, path)?;
    match block.needed("type")?.as_str() {
        "tool_use" => call(block),
        "tool_result" => result(block),
        "thinking" => thinking(block),
        "redacted_thinking" => redacted(block),
        kind => leaf(kind, block, raw),
    }
}

/// A block that may also stand in a result.
fn leaf(kind: &str, mut block: Fields<'_>, raw: &RawValue) -> Result<Part, Refused> {
    match kind {
        "text" => Ok(Part::Text(Text {
            text: block.needed("text")?,
            cache: block.json("cache_control"),
            citations: block.json("citations"),
            ext: block.rest(),
            ..Text::default()
        })),
        "image" => media(kind, block, raw, Part::Image),
        "document" => media(kind, block, raw, Part::File),
        "search_result" => search(block),
        _ => Ok(opaque(kind, raw)),
    }
}

fn inner(path: String, raw: &RawValue) -> Result<Part, Refused> {
    let mut block = Fields::new(raw, path)?;
    let kind = block.needed("type")?;
    leaf(&kind, block, raw)
}

fn media(
    name: &str,
    mut block: Fields<'_>,
    raw: &RawValue,
    part: impl FnOnce(Media) -> Part,
) -> Result<Part, Refused> {
    let mut source = block.fields("source")?.ok_or_else(|| block.missing("source"))?;
    let kind = source.needed("type")?;
    let mut whole = None;
    let (found, mime) = match kind.as_str() {
        "base64" => {
            let mime = source.text("media_type")?;
            (MediaSource::Base64(source.needed("data")?), mime)
        }
        "text" => {
            let mime = source.text("media_type")?;
            (MediaSource::Text(source.needed("data")?), mime)
        }
        "url" => (MediaSource::Url(source.needed("url")?), None),
        "file" => (MediaSource::FileId(source.needed("file_id")?), None),
        "content" => {
            whole = block_source(raw);
            (MediaSource::Text(texts(&mut source)?), Some("text/plain".to_owned()))
        }
        _ => return Ok(opaque(name, raw)),
    };
    let rest = whole.or_else(|| source.leftover());
    let title = block.text("title")?;
    let cache = block.json("cache_control");
    let mut ext = block.rest();
    ext.members.extend(rest.map(|rest| ("source".to_owned(), rest)));
    Ok(part(Media { source: found, mime, name: title, cache, ext, ..Media::default() }))
}

/// The `source` of a block, whole.
fn block_source(raw: &RawValue) -> Option<Json> {
    Json::of(raw).object()?.json("source")
}

/// The texts of a document that consists of blocks.
fn texts(source: &mut Fields<'_>) -> Result<String, Refused> {
    match source.content("content")? {
        None => Err(source.missing("content")),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::List(list)) => {
            let mut all = Vec::new();
            for (path, raw) in list {
                all.extend(Fields::new(raw, path)?.text("text")?);
            }
            Ok(all.join("\n"))
        }
    }
}

fn search(mut block: Fields<'_>) -> Result<Part, Refused> {
    let source = block.needed("source")?;
    let title = block.needed("title")?;
    let list = block.list("content")?.ok_or_else(|| block.missing("content"))?;
    let mut parts = Vec::with_capacity(list.len());
    for (path, raw) in list {
        let mut text = Fields::new(raw, path)?;
        let kind = text.needed("type")?;
        parts.push(match kind.as_str() {
            "text" => leaf(&kind, text, raw)?,
            _ => opaque(&kind, raw),
        });
    }
    let cache = block.json("cache_control");
    Ok(Part::Search(Search { source, title, parts, cache, ext: block.rest() }))
}

fn call(mut block: Fields<'_>) -> Result<Part, Refused> {
    let input = block.object("input")?;
    Ok(Part::ToolCall(ToolCall {
        id: block.needed("id")?,
        name: block.needed("name")?,
        arguments: input.map_or_else(|| "{}".to_owned(), |input| input.as_str().to_owned()),
        cache: block.json("cache_control"),
        ext: block.rest(),
        ..ToolCall::default()
    }))
}

fn result(mut block: Fields<'_>) -> Result<Part, Refused> {
    let call = block.needed("tool_use_id")?;
    let (parts, plain) = match block.content("content")? {
        None => (Vec::new(), true),
        Some(Content::Text(text)) => (vec![Part::Text(Text::plain(text))], true),
        Some(Content::List(list)) => {
            let parts = list.into_iter().map(|(path, raw)| inner(path, raw));
            (parts.collect::<Result<_, _>>()?, false)
        }
    };
    let is_error = block.flag("is_error", Some(false))?.unwrap_or_default();
    let cache = block.json("cache_control");
    let ext = block.rest();
    Ok(Part::ToolResult(ToolResult {
        call,
        parts,
        plain,
        is_error,
        cache,
        ext,
        ..ToolResult::default()
    }))
}

fn thinking(mut block: Fields<'_>) -> Result<Part, Refused> {
    let text = block.needed("thinking")?;
    let signature = block.text("signature")?;
    let state = signature.filter(|signature| !signature.is_empty());
    Ok(Part::Reasoning(ReasoningPart {
        text: (!text.is_empty()).then_some(text),
        state: state.map(|signature| envelope::unwrap(&signature, LANGUAGE)),
        ext: block.rest(),
        ..ReasoningPart::default()
    }))
}

/// What is in an envelope here was not hidden by an issuer of this language: it only had no text.
fn redacted(mut block: Fields<'_>) -> Result<Part, Refused> {
    let state = envelope::unwrap(&block.needed("data")?, LANGUAGE);
    Ok(Part::Reasoning(ReasoningPart {
        redacted: state.language == LANGUAGE,
        state: Some(state),
        ext: block.rest(),
        ..ReasoningPart::default()
    }))
}

fn opaque(kind: &str, raw: &RawValue) -> Part {
    Part::Opaque(Opaque {
        language: LANGUAGE,
        kind: kind.to_owned(),
        json: Json::of(raw),
        readable: readable(kind, raw),
    })
}

/// What another model could read of a block: calls and results of tools that the vendor runs, and
/// summaries of what was compacted.
fn readable(kind: &str, raw: &RawValue) -> String {
    let Ok(block) = serde_json::from_str::<Value>(raw.get()) else { return String::new() };
    let word = |name: &str| block[name].as_str().unwrap_or_default();
    match kind {
        "server_tool_use" | "mcp_tool_use" => format!("[{} {}]", word("name"), block["input"]),
        "compaction" => word("content").to_owned(),
        kind if kind.ends_with("_tool_result") => {
            let mut found = Vec::new();
            gather(&block["content"], &mut found);
            found.join("\n")
        }
        _ => String::new(),
    }
}

fn gather<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(list) => list.iter().for_each(|value| gather(value, found)),
        Value::Object(members) => {
            let plain = members.get("type").is_some_and(|kind| kind == "text");
            for (name, value) in members {
                match name.as_str() {
                    "title" | "url" | "text" | "stdout" | "stderr" | "error_code" => {
                        found.extend(value.as_str().filter(|text| !text.is_empty()));
                    }
                    // Of another kind of source, these are bytes.
                    "data" if plain => found.extend(value.as_str()),
                    "content" | "source" => gather(value, found),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}
