//! Writes the content of messages: a string where that says all of it, else a list of parts.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    members::{write_inner, write_outer},
    words::LANGUAGE,
};
use crate::dialect::hub::{
    Json, Losses, Part, Refused, Writer,
    request::{Extension, Media, MediaSource, Search, Text},
    target::Quirks,
};

/// How content is written for a backend.
#[derive(Clone, Copy)]
pub struct Style<'a> {
    pub quirks: &'a Quirks,
    /// The request came in this language.
    pub native: bool,
    /// Where the message stands in the client's request.
    pub path: &'a str,
}

/// A part as it is written.
pub enum Piece<'a> {
    Text {
        text: Cow<'a, str>,
        cache: Option<&'a Json>,
        /// `None`: it came as a string.
        ext: Option<&'a Extension>,
    },
    Other(Json),
}

impl<'a> Piece<'a> {
    /// Text that is not one of the request's own parts.
    pub fn plain(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text { text: text.into(), cache: None, ext: None }
    }
}

/// A part as it is written; `None`: it is not written, and the loss is noted.
///
/// # Errors
/// If a backend of this kind cannot be told of it, and the answer would be another without it.
pub fn piece<'a>(
    part: &'a Part,
    style: Style<'_>,
    losses: &mut Losses,
) -> Result<Option<Piece<'a>>, Refused> {
    let media = |json: Result<Json, Refused>| Ok(Some(Piece::Other(json?)));
    match part {
        Part::Text(text) => Ok(Some(text_piece(text, style, losses))),
        Part::Refusal(text) => Ok(Some(Piece::plain(text))),
        Part::Image(image) => media(at_url("image_url", image, style)),
        Part::Video(video) => media(at_url("video_url", video, style)),
        Part::Audio(audio) => media(sound(audio, style)),
        Part::File(document) => file(document, style).map(Some),
        Part::Search(search) => Ok(Some(Piece::plain(found(search)))),
        Part::Opaque(opaque) if opaque.language == LANGUAGE => {
            Ok(Some(Piece::Other(opaque.json.clone())))
        }
        Part::Opaque(opaque) => {
            losses.add(style.path, format!("the backend's language has no {}", opaque.kind));
            Ok((!opaque.readable.is_empty()).then(|| Piece::plain(opaque.readable.as_str())))
        }
        Part::ToolCall(_) | Part::ToolResult(_) | Part::Reasoning(_) => Ok(None),
    }
}

/// A refusal, as a part of its own kind or as text.
pub fn refusal(text: &str, part: bool) -> Piece<'_> {
    if !part {
        return Piece::plain(text);
    }
    Piece::Other(Json::written(|out| {
        out.object(|out| {
            out.text_at("type", "refusal");
            out.text_at("refusal", text);
        });
    }))
}

fn text_piece<'a>(text: &'a Text, style: Style<'_>, losses: &mut Losses) -> Piece<'a> {
    if text.citations.as_ref().is_some_and(|list| list.as_str() != "[]") {
        losses.add("citations", "the backend's language has none in a request");
    }
    let cache = cache(text.cache.as_ref(), style, losses);
    let ext = (text.ext.language == LANGUAGE).then_some(&text.ext);
    Piece::Text { text: Cow::Borrowed(&text.text), cache, ext }
}

/// A mark for caches, if the backend reads it.
pub fn cache<'a>(
    mark: Option<&'a Json>,
    style: Style<'_>,
    losses: &mut Losses,
) -> Option<&'a Json> {
    if mark.is_some() && !style.quirks.cache_control {
        losses.add("cache_control", "the backend reads no marks for caches");
        return None;
    }
    mark
}

/// Writes pieces as a string, joined by `separator`, or as a list.
pub fn write(out: &mut Writer, pieces: &[Piece<'_>], separator: &str, style: Style<'_>) {
    let flat = |piece: &Piece<'_>| match piece {
        Piece::Text { cache, ext, .. } => {
            let own = ext.is_some_and(|ext| !style.quirks.flat_text || !ext.members.is_empty());
            cache.is_none() && !own
        }
        Piece::Other(_) => false,
    };
    let joins = pieces.len() < 2 || style.quirks.flat_text;
    if joins && pieces.iter().all(flat) {
        return out.text(&joined(pieces, separator));
    }
    out.array(|out| {
        for piece in pieces {
            match piece {
                Piece::Other(json) => out.raw(json.as_str()),
                Piece::Text { text, cache, ext } => out.object(|out| {
                    out.text_at("type", "text");
                    out.text_at("text", text);
                    out.maybe_json_at("cache_control", *cache);
                    if let Some(ext) = ext {
                        write_outer(out, ext);
                    }
                }),
            }
        }
    });
}

/// The texts of pieces.
pub fn joined(pieces: &[Piece<'_>], separator: &str) -> String {
    let texts = pieces.iter().filter_map(|piece| match piece {
        Piece::Text { text, .. } => Some(text.as_ref()),
        Piece::Other(_) => None,
    });
    texts.collect::<Vec<_>>().join(separator)
}

/// The parts of a list as they are, for what goes into one message.
fn part(kind: &str, media: &Media, style: Style<'_>, write: impl FnOnce(&mut Writer)) -> Json {
    Json::written(|out| {
        out.object(|out| {
            out.text_at("type", kind);
            out.object_at(kind, |out| {
                write(out);
                write_inner(out, &media.ext, kind);
            });
            if style.quirks.cache_control {
                out.maybe_json_at("cache_control", media.cache.as_ref());
            }
            write_outer(out, &media.ext);
        });
    })
}

fn at_url(kind: &'static str, media: &Media, style: Style<'_>) -> Result<Json, Refused> {
    let url = address(media, style)?;
    Ok(part(kind, media, style, |out| {
        out.text_at("url", &url);
        out.maybe_text_at("detail", media.detail.as_deref());
    }))
}

/// An address, or a data URL.
fn address<'a>(media: &'a Media, style: Style<'_>) -> Result<Cow<'a, str>, Refused> {
    let mime = media.mime.as_deref().unwrap_or("");
    match &media.source {
        MediaSource::Url(url) => Ok(Cow::Borrowed(url)),
        MediaSource::Base64(data) => Ok(Cow::Owned(format!("data:{mime};base64,{data}"))),
        MediaSource::Text(text) => {
            Ok(Cow::Owned(format!("data:{mime};base64,{}", STANDARD.encode(text))))
        }
        MediaSource::FileId(_) => {
            let why = "A file that another vendor keeps cannot be given to this backend";
            Err(Refused::new(style.path, why))
        }
    }
}

fn sound(media: &Media, style: Style<'_>) -> Result<Json, Refused> {
    let MediaSource::Base64(data) = &media.source else {
        return at_url("audio_url", media, style);
    };
    // A data URL in `audio_url` says its type, `input_audio` needs a format.
    let format = media.mime.as_deref().and_then(|mime| mime.strip_prefix("audio/"));
    Ok(part("input_audio", media, style, |out| {
        out.text_at("data", data);
        out.maybe_text_at("format", format.map(|f| if f == "mpeg" { "mp3" } else { f }));
    }))
}

/// A document: text where it can be read as such, else a file for the servers that take one.
fn file<'a>(media: &'a Media, style: Style<'_>) -> Result<Piece<'a>, Refused> {
    let takes_files = style.native || style.quirks.developer;
    let text = match &media.source {
        MediaSource::Text(text) => Some(Cow::Borrowed(text.as_str())),
        MediaSource::Base64(data) if !style.native => plain_text(media, data).map(Cow::Owned),
        _ => None,
    };
    if let Some(text) = text {
        return Ok(Piece::plain(match &media.name {
            Some(title) => Cow::Owned(format!("{title}\n\n{text}")),
            None => text,
        }));
    }
    if !takes_files {
        return Err(Refused::new(style.path, "The backend takes no documents but plain text"));
    }
    let data = match &media.source {
        MediaSource::FileId(_) if style.native => None,
        MediaSource::Base64(data) if media.mime.is_none() => Some(Cow::Borrowed(data.as_str())),
        _ => Some(address(media, style)?),
    };
    Ok(Piece::Other(part("file", media, style, |out| {
        out.maybe_text_at("filename", media.name.as_deref());
        out.maybe_text_at("file_data", data.as_deref());
        if let MediaSource::FileId(id) = &media.source {
            out.text_at("file_id", id);
        }
    })))
}

fn plain_text(media: &Media, data: &str) -> Option<String> {
    media.mime.as_deref().filter(|mime| mime.starts_with("text/"))?;
    String::from_utf8(STANDARD.decode(data).ok()?).ok()
}

/// A search result as text: title, source, text.
fn found(search: &Search) -> String {
    let head = [search.title.as_str(), search.source.as_str()];
    let texts = search.parts.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.text.as_str()),
        _ => None,
    });
    head.into_iter().filter(|line| !line.is_empty()).chain(texts).collect::<Vec<_>>().join("\n")
}
