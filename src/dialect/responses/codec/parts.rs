//! Parts of a message's content, and of a tool's output, to the hub and back.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::value::RawValue;

use super::{node::Node, traits::NAME};
use crate::dialect::hub::{
    Extension, Json, Object, Part, Refused, Writer,
    request::{Media, MediaSource, Opaque, Search, Text},
};

/// What the parts of a message have of it.
#[derive(Clone, Default)]
pub(super) struct Origin {
    /// Texts are the model's.
    pub output: bool,
    pub item: Option<String>,
    pub phase: Option<String>,
}

/// Reads a part of a list of contents. Places of ids of files go to `stateful`.
pub(super) fn read(
    raw: &RawValue,
    path: String,
    origin: &Origin,
    stateful: &mut Vec<String>,
) -> Result<Part, Refused> {
    let mut node = Node::new(raw, path)?;
    let Some(kind) = node.text("type")? else {
        return Err(Refused::invalid(node.at("type"), "is required"));
    };
    match kind.as_str() {
        "input_text" | "output_text" | "text" => text(node, &kind, origin),
        "refusal" => {
            let refusal = node.required("refusal")?;
            let plain = node.rest().is_empty();
            Ok(if plain { Part::Refusal(refusal) } else { opaque(raw, kind) })
        }
        "input_image" if node.has("image_url") || node.has("file_id") => image(node, stateful),
        "input_file" if ["file_data", "file_url", "file_id"].iter().any(|n| node.has(n)) => {
            file(node, stateful)
        }
        "input_audio" => audio(node),
        _ => Ok(opaque(raw, kind)),
    }
}

fn opaque(raw: &RawValue, kind: String) -> Part {
    let json = Json::of(raw);
    let readable = json.object().and_then(|object| object.text("text")).unwrap_or_default();
    Part::Opaque(Opaque { language: NAME, kind, json, readable })
}

fn text(mut node: Node<'_>, kind: &str, origin: &Origin) -> Result<Part, Refused> {
    let text = node.required("text")?;
    let cache = node.json("prompt_cache_breakpoint");
    let annotations = node.json("annotations");
    let logprobs = node.json("logprobs");
    let mut members = node.rest();
    let (empty, citations) = match annotations {
        Some(list) if list.as_str() == "[]" => (Some(list), None),
        list => (None, list),
    };
    if kind != natural(origin.output) {
        members.push(("@type".to_owned(), Json::text(kind)));
    }
    let form = [("@annotations", empty), ("@logprobs", logprobs)];
    members.extend(form.into_iter().filter_map(|(name, json)| Some((name.to_owned(), json?))));
    Ok(Part::Text(Text {
        text,
        cache,
        citations,
        phase: origin.phase.clone(),
        item: origin.item.clone(),
        ext: Extension::new(NAME, members),
    }))
}

/// The type of texts of the model, and of others.
fn natural(output: bool) -> &'static str {
    if output { "output_text" } else { "input_text" }
}

fn image(mut node: Node<'_>, stateful: &mut Vec<String>) -> Result<Part, Refused> {
    let detail = node.text("detail")?;
    let cache = node.json("prompt_cache_breakpoint");
    let (mime, source) = match node.text("image_url")? {
        Some(url) => of_url(url),
        None => (None, file_id(&mut node, stateful)?),
    };
    let ext = Extension::new(NAME, node.rest());
    Ok(Part::Image(Media { source, mime, name: None, detail, cache, ext }))
}

fn file(mut node: Node<'_>, stateful: &mut Vec<String>) -> Result<Part, Refused> {
    let detail = node.text("detail")?;
    let name = node.text("filename")?;
    let cache = node.json("prompt_cache_breakpoint");
    let (mime, source) = if let Some(data) = node.text("file_data")? {
        match data_url(&data) {
            Some((mime, data)) => (Some(mime.to_owned()), MediaSource::Base64(data.to_owned())),
            None => (None, MediaSource::Base64(data)),
        }
    } else if let Some(url) = node.text("file_url")? {
        (None, MediaSource::Url(url))
    } else {
        (None, file_id(&mut node, stateful)?)
    };
    let ext = Extension::new(NAME, node.rest());
    Ok(Part::File(Media { source, mime, name, detail, cache, ext }))
}

fn file_id(node: &mut Node<'_>, stateful: &mut Vec<String>) -> Result<MediaSource, Refused> {
    stateful.push(node.at("file_id"));
    Ok(MediaSource::FileId(node.required("file_id")?))
}

fn audio(mut node: Node<'_>) -> Result<Part, Refused> {
    let Some(mut inner) = node.node("input_audio")? else {
        return Err(Refused::invalid(node.at("input_audio"), "is required"));
    };
    let data = inner.required("data")?;
    let format = inner.required("format")?;
    let subtype = if format == "mp3" { "mpeg" } else { &format };
    Ok(Part::Audio(Media {
        source: MediaSource::Base64(data),
        mime: Some(format!("audio/{subtype}")),
        ext: Extension::new(NAME, node.rest()),
        ..Media::default()
    }))
}

/// The media type and the data of a `data:` URL in base64 that has no other parameter.
pub(super) fn data_url(url: &str) -> Option<(&str, &str)> {
    let (head, data) = url.strip_prefix("data:")?.split_once(',')?;
    let mime = head.strip_suffix(";base64")?;
    (!mime.is_empty() && !mime.contains(';')).then_some((mime, data))
}

fn of_url(url: String) -> (Option<String>, MediaSource) {
    match data_url(&url) {
        Some((mime, data)) => (Some(mime.to_owned()), MediaSource::Base64(data.to_owned())),
        None => (None, MediaSource::Url(url)),
    }
}

/// A part can stand in a message's content.
pub(super) fn is_content(part: &Part) -> bool {
    matches!(
        part,
        Part::Text(_)
            | Part::Image(_)
            | Part::Audio(_)
            | Part::File(_)
            | Part::Refusal(_)
            | Part::Search(_)
    )
}

/// Writes a part of a content; `output`: the texts are the model's.
pub(super) fn write(part: &Part, output: bool, out: &mut Writer) {
    match part {
        Part::Text(text) => write_text(text, output, out),
        Part::Refusal(text) => out.object(|o| {
            o.text_at("type", "refusal");
            o.text_at("refusal", text);
        }),
        Part::Image(media) => out.object(|o| write_image(media, o)),
        Part::File(media) => write_file(media, output, out),
        Part::Audio(media) => out.object(|o| write_audio(media, o)),
        Part::Search(search) => plain(&readable(search), output, out),
        Part::Opaque(opaque) if opaque.language == NAME => out.raw(opaque.json.as_str()),
        Part::Opaque(opaque) => plain(&opaque.readable, output, out),
        Part::Video(_) | Part::ToolCall(_) | Part::ToolResult(_) | Part::Reasoning(_) => {}
    }
}

/// A text without anything else.
fn plain(text: &str, output: bool, out: &mut Writer) {
    out.object(|o| {
        o.text_at("type", natural(output));
        o.text_at("text", text);
    });
}

fn write_text(text: &Text, output: bool, out: &mut Writer) {
    let own = text.ext.language == NAME;
    let kind = text.ext.get("@type").filter(|_| own).and_then(Json::as_text);
    out.object(|o| {
        o.text_at("type", kind.as_deref().unwrap_or(natural(output)));
        o.text_at("text", &text.text);
        if own {
            let citations = text.citations.as_ref().or_else(|| text.ext.get("@annotations"));
            o.maybe_json_at("annotations", citations);
            o.maybe_json_at("logprobs", text.ext.get("@logprobs"));
        } else if output {
            o.array_at("annotations", |_| {});
        }
        write_cache(text.cache.as_ref(), o);
        members(&text.ext, o);
    });
}

/// Members of this language that are not of the form alone.
pub(super) fn members(ext: &Extension, out: &mut Writer) {
    for (name, value) in ext.of(NAME).iter().filter(|(name, _)| !name.starts_with('@')) {
        out.json_at(name, value);
    }
}

/// The vendor's mark for caches; another language's mark says no more than that there is one.
fn write_cache(cache: Option<&Json>, out: &mut Writer) {
    let Some(cache) = cache else { return };
    if cache.object().is_some_and(|object| object.has("mode")) {
        out.json_at("prompt_cache_breakpoint", cache);
    } else {
        out.object_at("prompt_cache_breakpoint", |mark| mark.text_at("mode", "explicit"));
    }
}

fn write_image(media: &Media, out: &mut Writer) {
    let own = media.ext.language == NAME;
    out.text_at("type", "input_image");
    let detail = media.detail.as_deref().or((!own).then_some("auto"));
    out.maybe_text_at("detail", detail);
    match &media.source {
        MediaSource::Base64(data) => {
            let mime = media.mime.as_deref().unwrap_or_else(|| image_type(data));
            out.text_at("image_url", &format!("data:{mime};base64,{data}"));
        }
        MediaSource::Text(url) | MediaSource::Url(url) => out.text_at("image_url", url),
        MediaSource::FileId(id) => out.text_at("file_id", id),
    }
    write_cache(media.cache.as_ref(), out);
    members(&media.ext, out);
}

/// The media type of an image, by how its data begin in base64.
fn image_type(data: &str) -> &'static str {
    match data.as_bytes() {
        [b'/', b'9', b'j', ..] => "image/jpeg",
        [b'R', b'0', b'l', b'G', ..] => "image/gif",
        [b'U', b'k', b'l', b'G', ..] => "image/webp",
        _ => "image/png",
    }
}

fn write_file(media: &Media, output: bool, out: &mut Writer) {
    let own = media.ext.language == NAME;
    if let MediaSource::Text(text) = &media.source {
        let title = media.name.as_deref().map(|name| format!("{name}\n\n")).unwrap_or_default();
        return plain(&format!("{title}{text}"), output, out);
    }
    out.object(|o| {
        o.text_at("type", "input_file");
        o.maybe_text_at("detail", media.detail.as_deref().filter(|_| own));
        let mime = media.mime.as_deref().or((!own).then_some("application/pdf"));
        // The vendor wants a name for what has none at all.
        let named = media.name.as_deref();
        let unnamed = (!own && matches!(media.source, MediaSource::Base64(_))).then_some("file");
        o.maybe_text_at("filename", named.or(unnamed));
        match (&media.source, mime) {
            (MediaSource::Base64(data), Some(mime)) => {
                o.text_at("file_data", &format!("data:{mime};base64,{data}"));
            }
            (MediaSource::Base64(data), None) => o.text_at("file_data", data),
            (MediaSource::Url(url), _) => o.text_at("file_url", url),
            (MediaSource::FileId(id), _) => o.text_at("file_id", id),
            (MediaSource::Text(text), _) => o.text_at("file_data", &STANDARD.encode(text)),
        }
        write_cache(media.cache.as_ref(), o);
        members(&media.ext, o);
    });
}

fn write_audio(media: &Media, out: &mut Writer) {
    let mime = media.mime.as_deref().unwrap_or("audio/wav");
    let format = match mime.strip_prefix("audio/").unwrap_or(mime) {
        "mpeg" => "mp3",
        "x-wav" | "wave" => "wav",
        format => format,
    };
    let data = match &media.source {
        MediaSource::Base64(data)
        | MediaSource::Text(data)
        | MediaSource::Url(data)
        | MediaSource::FileId(data) => data,
    };
    out.text_at("type", "input_audio");
    out.object_at("input_audio", |o| {
        o.text_at("data", data);
        o.text_at("format", format);
    });
    members(&media.ext, out);
}

/// A search result as text.
pub(super) fn readable(search: &Search) -> String {
    let texts = search.parts.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.text.as_str()),
        _ => None,
    });
    let mut lines = vec![search.title.as_str(), search.source.as_str()];
    lines.extend(texts);
    lines.retain(|line| !line.is_empty());
    lines.join("\n")
}

/// The texts of a list of `{"type":KIND,"text":...}`.
pub(super) fn texts(list: &Json) -> Vec<String> {
    let text = |raw: &RawValue| Object::parse(raw.get()).ok()?.text("text");
    list.array().unwrap_or_default().into_iter().filter_map(text).collect()
}

/// The list of an item's summaries.
pub(super) fn summary_list(summary: &[String]) -> Json {
    Json::written(|out| {
        out.array(|list| summary.iter().for_each(|text| text_part("summary_text", text, list)));
    })
}

/// The list of an item's contents.
pub(super) fn content_list(text: &str) -> Json {
    Json::written(|out| out.array(|list| text_part("reasoning_text", text, list)))
}

fn text_part(kind: &str, text: &str, out: &mut Writer) {
    out.object(|o| {
        o.text_at("type", kind);
        o.text_at("text", text);
    });
}
