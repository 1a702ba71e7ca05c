//! Writes blocks of a content for a backend.

use super::{LANGUAGE, media};
use crate::dialect::hub::{
    Extension, Json, Losses, Object, Part, Refused, Writer,
    request::{Media, MediaSource, Opaque, Search, Text},
    tool_names,
};

/// A block as it goes out.
pub struct Block {
    pub json: Json,
    /// It is the result of this call.
    pub result: Option<String>,
    /// It is this call.
    pub call: Option<String>,
    /// It is reasoning.
    pub thought: bool,
}

/// Where a block is written.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The request was read from Messages: nothing of it is left out.
    pub native: bool,
    /// The turn's place in the client's request.
    pub turn: &'a str,
    /// The number of the part in it.
    pub part: usize,
}

impl Place<'_> {
    /// In the client's words, as near as they are known.
    pub fn path(&self) -> String {
        format!("{}.content[{}]", self.turn, self.part)
    }
}

/// Writes a part that may also stand in a result.
pub fn leaf(part: &Part, place: Place<'_>, losses: &mut Losses) -> Result<Option<Json>, Refused> {
    match part {
        Part::Text(part) => Ok(text(part, place.native)),
        Part::Refusal(refusal) => Ok(text(&Text::plain(refusal.as_str()), place.native)),
        Part::Image(part) => image(part, place, losses).map(Some),
        Part::File(part) => file(part, place).map(Some),
        Part::Search(part) => search(part, place, losses).map(Some),
        Part::Opaque(part) => Ok(opaque(part, place, losses)),
        Part::Audio(_) => Err(Refused::new(place.path(), "the backend's language takes no audio")),
        Part::Video(_) => Err(Refused::new(place.path(), "the backend's language takes no video")),
        Part::ToolCall(_) | Part::ToolResult(_) | Part::Reasoning(_) => {
            Err(Refused::new(place.path(), "cannot stand in the result of a tool"))
        }
    }
}

/// The vendor refuses blank texts.
fn text(part: &Text, native: bool) -> Option<Json> {
    if !native && part.text.trim().is_empty() {
        return None;
    }
    Some(Json::written(|out| {
        out.object(|o| {
            o.text_at("type", "text");
            o.text_at("text", &part.text);
            if part.ext.language == LANGUAGE {
                o.maybe_json_at("citations", part.citations.as_ref());
            }
            cache(o, part.cache.as_ref());
            rest(o, &part.ext);
        });
    }))
}

/// A mark for caches: the vendor's own, or OpenAI's breakpoint, whose times are others.
pub fn cache(out: &mut Writer, mark: Option<&Json>) {
    let Some(mark) = mark else { return };
    let Some(members) = mark.object() else { return };
    if members.has("type") {
        out.json_at("cache_control", mark);
    } else if members.has("mode") {
        out.raw_at("cache_control", r#"{"type":"ephemeral"}"#);
    }
}

/// Restores the members that have no word in the hub.
pub fn rest(out: &mut Writer, ext: &Extension) {
    if ext.language == LANGUAGE {
        out.members(&ext.members);
        out.members(&ext.defaults);
    }
}

fn with_source(
    kind: &str,
    part: &Media,
    title: Option<&str>,
    source: impl FnOnce(&mut Writer),
) -> Json {
    // A source of blocks is kept whole; of others, what has no word in the hub.
    let kept = part.ext.of(LANGUAGE).iter().find(|(name, _)| name == "source");
    let kept = kept.map(|(_, kept)| kept);
    let whole = kept.filter(|kept| kept.object().is_some_and(|members| members.has("type")));
    Json::written(|out| {
        out.object(|o| {
            o.text_at("type", kind);
            match whole {
                Some(whole) => o.json_at("source", whole),
                None => o.object_at("source", |o| {
                    source(o);
                    o.members(&kept.and_then(Json::object).map(Object::rest).unwrap_or_default());
                }),
            }
            o.maybe_text_at("title", title);
            cache(o, part.cache.as_ref());
            for (name, value) in part.ext.of(LANGUAGE) {
                if name != "source" {
                    o.json_at(name, value);
                }
            }
            if part.ext.language == LANGUAGE {
                o.members(&part.ext.defaults);
            }
        });
    })
}

fn base64(out: &mut Writer, mime: Option<&str>, data: &str) {
    out.text_at("type", "base64");
    out.maybe_text_at("media_type", mime);
    out.text_at("data", data);
}

fn image(part: &Media, place: Place<'_>, losses: &mut Losses) -> Result<Json, Refused> {
    if part.detail.as_deref().is_some_and(|detail| detail != "auto") {
        losses.add(format!("{}.detail", place.path()), "the backend's language has no such field");
    }
    let whole = |source: &dyn Fn(&mut Writer)| Ok(with_source("image", part, None, source));
    match &part.source {
        MediaSource::Base64(data) if place.native => {
            whole(&|out| base64(out, part.mime.as_deref(), data))
        }
        MediaSource::Base64(data) => bytes(part, part.mime.as_deref(), data, place),
        MediaSource::Url(url) => match media::data_url(url) {
            Some((mime, data)) if !place.native => {
                bytes(part, mime.or(part.mime.as_deref()), data, place)
            }
            _ => {
                address(url, place)?;
                whole(&|out| located(out, "url", "url", url))
            }
        },
        MediaSource::FileId(id) => whole(&|out| located(out, "file", "file_id", id)),
        MediaSource::Text(_) => Err(Refused::new(place.path(), "an image cannot be a text")),
    }
}

fn located(out: &mut Writer, kind: &str, name: &str, value: &str) {
    out.text_at("type", kind);
    out.text_at(name, value);
}

/// The vendor fetches what can be had by HTTP.
fn address(url: &str, place: Place<'_>) -> Result<(), Refused> {
    let scheme =
        |scheme: &str| url.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
    match place.native || scheme("https://") || scheme("http://") {
        true => Ok(()),
        false => Err(Refused::new(place.path(), "the backend takes addresses of HTTP only")),
    }
}

fn bytes(part: &Media, said: Option<&str>, data: &str, place: Place<'_>) -> Result<Json, Refused> {
    let mime = media::told(said, data);
    match mime.as_deref().filter(|mime| media::IMAGES.contains(mime)) {
        Some(mime) => Ok(with_source("image", part, None, |out| base64(out, Some(mime), data))),
        None => {
            let kind = mime.as_deref().map_or("this type".to_owned(), |mime| format!("`{mime}`"));
            let why =
                format!("the backend takes no images of {kind}, only JPEG, PNG, GIF and WebP");
            Err(Refused::new(place.path(), why))
        }
    }
}

fn file(part: &Media, place: Place<'_>) -> Result<Json, Refused> {
    let title = part.name.as_deref().filter(|name| place.native || !name.is_empty());
    let whole = |source: &dyn Fn(&mut Writer)| with_source("document", part, title, source);
    match &part.source {
        MediaSource::Base64(data) if place.native => {
            Ok(whole(&|out| base64(out, part.mime.as_deref(), data)))
        }
        MediaSource::Base64(data) => document(part, part.mime.as_deref(), data, place),
        MediaSource::Text(text) => {
            let mime = if place.native { part.mime.as_deref() } else { Some("text/plain") };
            Ok(whole(&|out| plain_text(out, mime, text)))
        }
        MediaSource::Url(url) => match media::data_url(url) {
            Some((mime, data)) if !place.native => {
                document(part, mime.or(part.mime.as_deref()), data, place)
            }
            _ => {
                address(url, place)?;
                Ok(whole(&|out| located(out, "url", "url", url)))
            }
        },
        MediaSource::FileId(id) => Ok(whole(&|out| located(out, "file", "file_id", id))),
    }
}

fn plain_text(out: &mut Writer, mime: Option<&str>, text: &str) {
    out.text_at("type", "text");
    out.maybe_text_at("media_type", mime);
    out.text_at("data", text);
}

/// A document whose bytes are there: PDF, or a text.
fn document(
    part: &Media,
    said: Option<&str>,
    data: &str,
    place: Place<'_>,
) -> Result<Json, Refused> {
    let title = part.name.as_deref().filter(|name| !name.is_empty());
    let named = || title.filter(|name| name.to_ascii_lowercase().ends_with(".pdf"));
    let mime = media::told(said, data)
        .or_else(|| named().map(|_| "application/pdf".to_owned()))
        .unwrap_or_default();
    if mime == "application/pdf" {
        return Ok(with_source("document", part, title, |out| base64(out, Some(&mime), data)));
    }
    if media::IMAGES.contains(&&*mime) {
        return bytes(part, Some(&mime), data, place);
    }
    let text = media::is_text(&mime).then(|| media::text(data)).flatten();
    match text {
        Some(text) => Ok(with_source("document", part, title, |out| {
            plain_text(out, Some("text/plain"), &text)
        })),
        None => {
            let why = format!("the backend takes no documents of `{mime}`, only PDF and text");
            Err(Refused::new(place.path(), why))
        }
    }
}

fn search(part: &Search, place: Place<'_>, losses: &mut Losses) -> Result<Json, Refused> {
    let mut content = Vec::with_capacity(part.parts.len());
    for part in &part.parts {
        content.extend(leaf(part, place, losses)?);
    }
    Ok(Json::written(|out| {
        out.object(|o| {
            o.text_at("type", "search_result");
            o.text_at("source", &part.source);
            o.text_at("title", &part.title);
            o.array_at("content", |list| content.iter().for_each(|json| list.raw(json.as_str())));
            cache(o, part.cache.as_ref());
            rest(o, &part.ext);
        });
    }))
}

fn opaque(part: &Opaque, place: Place<'_>, losses: &mut Losses) -> Option<Json> {
    if part.language == LANGUAGE {
        return Some(part.json.clone());
    }
    if part.readable.is_empty() {
        losses.add(place.path(), format!("the backend's language has no `{}`", part.kind));
    }
    text(&Text::plain(part.readable.as_str()), false)
}

/// An id of a call as the vendor takes it: of letters, digits, `_` and `-`.
pub fn call_id(id: &str, native: bool) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if native || (!id.is_empty() && id.chars().all(good)) {
        return id.to_owned();
    }
    let plain: String = id.chars().map(|c| if good(c) { c } else { '_' }).collect();
    format!("{plain}_{}", tool_names::hash(id))
}
