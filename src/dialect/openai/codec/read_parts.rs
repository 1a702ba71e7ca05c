//! Reads the content of messages: a string, or a list of parts.
//!
//! A text that was a part of a list has an extension of this language, one that was a string has
//! none: it is written as it came.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::value::RawValue;

use super::{
    details,
    members::{join, list, object, required, rest, text},
    words::{LANGUAGE, split_id},
};
use crate::dialect::hub::{
    Extension, Json, Object, Part, Refused, envelope,
    request::{Media, MediaSource, Opaque, ReasoningPart, Text, ToolCall, ToolResult},
};

/// Takes the content of a message. The second is true if it was a string.
///
/// # Errors
/// If it is neither a string nor a list, or a part of it is wrong.
pub fn content(message: &mut Object<'_>, path: &str) -> Result<(Vec<Part>, bool), Refused> {
    content_of(message, path, Place::Message)
}

/// What content is of.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Message,
    /// A result of a tool that is itself a part: it holds texts and media. Anything else stays as it
    /// is, so that no result stands in a result in a result.
    Result,
}

fn content_of(
    message: &mut Object<'_>,
    path: &str,
    place: Place,
) -> Result<(Vec<Part>, bool), Refused> {
    let Some(raw) = message.take("content") else { return Ok((Vec::new(), false)) };
    if raw.get().starts_with('"') {
        let text: String = serde_json::from_str(raw.get())
            .map_err(|_| Refused::invalid(join(path, "content"), "It is no valid string"))?;
        return Ok((vec![Part::Text(Text::plain(text))], true));
    }
    let path = join(path, "content");
    if !raw.get().starts_with('[') {
        return Err(Refused::invalid(path, "It must be a string or a list of parts"));
    }
    let parts = list(raw, &path)?.into_iter().enumerate();
    let parts: Result<_, _> =
        parts.map(|(at, raw)| part(raw, &format!("{path}[{at}]"), place)).collect();
    Ok((parts?, false))
}

fn part(raw: &RawValue, path: &str, place: Place) -> Result<Part, Refused> {
    // Mistral and vLLM take bare strings.
    if let Ok(text) = serde_json::from_str::<String>(raw.get()) {
        let ext = Extension::new(LANGUAGE, Vec::new());
        return Ok(Part::Text(Text { text, ext, ..Text::default() }));
    }
    let mut from = object(raw, path)?;
    let kind = match text(&mut from, "type", path)? {
        Some(kind) => kind,
        // vLLM takes parts without a type.
        None => ["text", "image_url", "input_audio", "audio_url", "video_url", "refusal"]
            .into_iter()
            .find(|kind| from.has(kind))
            .ok_or_else(|| Refused::invalid(join(path, "type"), "It is missing"))?
            .to_owned(),
    };
    Ok(match kind.as_str() {
        "text" | "input_text" | "output_text" => Part::Text(Text {
            text: required(&mut from, "text", path)?,
            cache: from.json("cache_control"),
            ext: rest(from, None),
            ..Text::default()
        }),
        "refusal" => Part::Refusal(required(&mut from, "refusal", path)?),
        "image_url" => Part::Image(at_url(from, "image_url", path)?),
        "audio_url" => Part::Audio(at_url(from, "audio_url", path)?),
        "video_url" => Part::Video(at_url(from, "video_url", path)?),
        "input_audio" => Part::Audio(audio(from, path)?),
        "file" => Part::File(file(from, path)?),
        "thinking" if place == Place::Message => Part::Reasoning(thinking(from, path)?),
        "tool_use" if place == Place::Message => Part::ToolCall(tool_use(from, path)?),
        "tool_result" if place == Place::Message => Part::ToolResult(tool_result(from, path)?),
        _ => Part::Opaque(Opaque {
            language: LANGUAGE,
            readable: from.text("text").unwrap_or_default(),
            kind,
            json: Json::of(raw),
        }),
    })
}

/// Takes an object that must be there.
fn inner<'a>(from: &mut Object<'a>, name: &str, path: &str) -> Result<Object<'a>, Refused> {
    let raw = from.take(name).ok_or_else(|| Refused::invalid(join(path, name), "It is missing"))?;
    object(raw, &join(path, name))
}

/// `{"url": ...}`, or the address alone, as some servers take it.
fn at_url(mut from: Object<'_>, name: &'static str, path: &str) -> Result<Media, Refused> {
    let bare = from.get(name).is_some_and(|value| value.get().starts_with('"'));
    let cache = from.json("cache_control");
    if bare {
        let (source, mime) = source(required(&mut from, name, path)?);
        return Ok(Media { source, mime, cache, ext: rest(from, None), ..Media::default() });
    }
    let mut value = inner(&mut from, name, path)?;
    let (source, mime) = source(required(&mut value, "url", &join(path, name))?);
    Ok(Media {
        source,
        mime,
        detail: text(&mut value, "detail", &join(path, name))?,
        cache,
        ext: rest(from, Some((name, value))),
        ..Media::default()
    })
}

/// An address, or what a data URL holds, and its media type.
fn source(url: String) -> (MediaSource, Option<String>) {
    let data = || {
        let (mime, data) = url.strip_prefix("data:")?.split_once(";base64,")?;
        // Parameters have no place; such an address stays as it is.
        if mime.contains(';') || !is_base64(data) {
            return None;
        }
        Some((data.to_owned(), (!mime.is_empty()).then(|| mime.to_owned())))
    };
    match data() {
        Some((data, mime)) => (MediaSource::Base64(data), mime),
        None => (MediaSource::Url(url), None),
    }
}

fn is_base64(data: &str) -> bool {
    data.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
}

fn audio(mut from: Object<'_>, path: &str) -> Result<Media, Refused> {
    let mut value = inner(&mut from, "input_audio", path)?;
    let path = join(path, "input_audio");
    let format = text(&mut value, "format", &path)?;
    Ok(Media {
        source: MediaSource::Base64(required(&mut value, "data", &path)?),
        mime: format.map(|format| match format.as_str() {
            "mp3" => "audio/mpeg".to_owned(),
            format => format!("audio/{format}"),
        }),
        cache: from.json("cache_control"),
        ext: rest(from, Some(("input_audio", value))),
        ..Media::default()
    })
}

fn file(mut from: Object<'_>, path: &str) -> Result<Media, Refused> {
    let mut value = inner(&mut from, "file", path)?;
    let path = join(path, "file");
    let (source, mime) = match (text(&mut value, "file_data", &path)?, value.has("file_id")) {
        (Some(data), _) => match source(data) {
            // Bare base64 without a data URL is taken, too.
            (MediaSource::Url(data), _) if STANDARD.decode(&data).is_ok() => {
                (MediaSource::Base64(data), None)
            }
            source => source,
        },
        (None, true) => (MediaSource::FileId(required(&mut value, "file_id", &path)?), None),
        (None, false) => {
            return Err(Refused::invalid(path, "It has neither file_data nor file_id"));
        }
    };
    Ok(Media {
        source,
        mime,
        name: text(&mut value, "filename", &path)?,
        cache: from.json("cache_control"),
        ext: rest(from, Some(("file", value))),
        ..Media::default()
    })
}

/// Mistral's chunk, whose text is a list of texts, or Anthropic's block, whose text is a string.
fn thinking(mut from: Object<'_>, path: &str) -> Result<ReasoningPart, Refused> {
    let signature = text(&mut from, "signature", path)?.filter(|text| !text.is_empty());
    let (text, language) = match from.get("thinking").map(RawValue::get) {
        Some(raw) if raw.starts_with('"') => (serde_json::from_str(raw).ok(), "messages"),
        Some(raw) if raw.starts_with('[') => (Some(details::chunk_text(raw)), LANGUAGE),
        _ => {
            return Err(Refused::invalid(
                join(path, "thinking"),
                "It must be a string or a list of texts",
            ));
        }
    };
    let state = signature.map(|signature| envelope::unwrap(&signature, language));
    Ok(ReasoningPart { text, state, ..ReasoningPart::default() })
}

/// Clients of several vendors leave Anthropic's blocks in their history.
fn tool_use(mut from: Object<'_>, path: &str) -> Result<ToolCall, Refused> {
    let (id, state) = split_id(&required(&mut from, "id", path)?);
    Ok(ToolCall {
        id,
        name: required(&mut from, "name", path)?,
        arguments: from.json("input").map_or_else(|| "{}".into(), |input| input.as_str().into()),
        state,
        ..ToolCall::default()
    })
}

fn tool_result(mut from: Object<'_>, path: &str) -> Result<ToolResult, Refused> {
    let (parts, plain) = content_of(&mut from, path, Place::Result)?;
    Ok(ToolResult {
        call: split_id(&required(&mut from, "tool_use_id", path)?).0,
        parts,
        plain,
        is_error: from.read("is_error").unwrap_or(false),
        ..ToolResult::default()
    })
}
