//! What is done to the body of an answer before it is metered: its compression is undone, and where
//! its header says nothing or something wrong, its first bytes tell what it is.

use bytes::Bytes;
use http::header;
use pingora::http::ResponseHeader;

use crate::wire::{
    inflate::{Coding, InflateError, Inflater},
    sniff::{Kind, Sniffed, Sniffer},
};

/// What is done to a body before it is metered.
#[derive(Default)]
pub struct Preprocessor {
    /// Undoes its compression.
    inflater: Option<Inflater>,
    /// Finds out what it is; `None` once that is known, or does not matter.
    sniffer: Option<Sniffer>,
}

/// A piece of a body after [`Preprocessor::take`].
pub enum Preprocessed {
    /// To be metered.
    Piece(Option<Bytes>),
    /// To be metered; it is known now what the body is.
    Known(Kind, Bytes),
    /// White space before anything else.
    Blank(Bytes),
}

impl Preprocessor {
    /// For a body in this coding; `sniffs`: its kind is found out.
    pub fn new(coding: Option<Coding>, sniffs: bool) -> Self {
        Self { inflater: coding.map(Inflater::new), sniffer: sniffs.then(Sniffer::default) }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// If it cannot be decoded.
    pub fn take(
        &mut self,
        piece: Option<Bytes>,
        end_of_stream: bool,
    ) -> Result<Preprocessed, InflateError> {
        let piece = match &mut self.inflater {
            Some(inflater) => inflated(inflater, piece, end_of_stream)?,
            None => piece,
        };
        let Some(sniffer) = &mut self.sniffer else {
            return Ok(Preprocessed::Piece(piece));
        };
        let sniffed = match piece {
            Some(bytes) if !bytes.is_empty() => sniffer.push(bytes),
            _ => Sniffed::More,
        };
        Ok(match sniffed {
            Sniffed::Is(kind, bytes) => {
                self.sniffer = None;
                Preprocessed::Known(kind, bytes)
            }
            Sniffed::Blank(bytes) if !end_of_stream => Preprocessed::Blank(bytes),
            Sniffed::Blank(bytes) => Preprocessed::Piece(Some(bytes)),
            Sniffed::More if end_of_stream => Preprocessed::Piece(Some(sniffer.finish())),
            Sniffed::More => Preprocessed::Piece(Some(Bytes::new())),
        })
    }

    /// The body is decoded.
    pub fn decodes(&self) -> bool {
        self.inflater.is_some()
    }

    /// It is not known yet what the body is.
    pub fn is_open(&self) -> bool {
        self.sniffer.is_some()
    }
}

fn inflated(
    inflater: &mut Inflater,
    piece: Option<Bytes>,
    end_of_stream: bool,
) -> Result<Option<Bytes>, InflateError> {
    let piece = piece.map(|bytes| inflater.push(&bytes)).transpose()?;
    if end_of_stream {
        inflater.finish()?;
    }
    Ok(piece)
}

/// What a content type says of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// A JSON document.
    Json,
    /// Server-sent events.
    Events,
    /// A document on each line.
    Lines,
    /// It may be any of these.
    Unclear,
    /// Audio, pictures and the like.
    Other,
}

/// What the head of an answer says of its body.
pub fn declared(head: &ResponseHeader) -> Declared {
    let content_type = head.headers.get(header::CONTENT_TYPE);
    of_content_type(content_type.map_or(&b""[..], |value| value.as_bytes()))
}

fn of_content_type(content_type: &[u8]) -> Declared {
    let kind = content_type.split(|b| *b == b';').next().unwrap_or_default();
    let kind = String::from_utf8_lossy(kind.trim_ascii()).to_ascii_lowercase();
    match kind.split_once('/') {
        Some(("application", "json")) => Declared::Json,
        Some(("text", "event-stream")) => Declared::Events,
        Some((_, "x-ndjson" | "ndjson" | "jsonl" | "x-jsonl" | "jsonlines" | "x-jsonlines")) => {
            Declared::Lines
        }
        Some((_, sub)) if sub.ends_with("+json") => Declared::Json,
        Some(("text", _)) | None => Declared::Unclear,
        Some(("application", "octet-stream" | "binary" | "x-json" | "javascript")) => {
            Declared::Unclear
        }
        Some(_) => Declared::Other,
    }
}

/// How the body is encoded; `None` if it is not.
///
/// # Errors
/// The name of the coding, if it cannot be decoded.
pub fn coding(head: &ResponseHeader) -> Result<Option<Coding>, String> {
    let values = head.headers.get_all(header::CONTENT_ENCODING).iter();
    let codings = values
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| !name.is_empty() && name != "identity")
        .collect::<Vec<_>>();
    match codings.as_slice() {
        [] => Ok(None),
        [one] if one == "gzip" || one == "x-gzip" => Ok(Some(Coding::Gzip)),
        [one] if one == "deflate" => Ok(Some(Coding::Deflate)),
        _ => Err(codings.join(", ").escape_default().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_says_what_is_to_be_expected() {
        for (text, expected) in [
            ("application/json", Declared::Json),
            ("Application/JSON; charset=utf-8", Declared::Json),
            ("application/problem+json", Declared::Json),
            ("text/event-stream;charset=utf-8", Declared::Events),
            ("application/x-ndjson", Declared::Lines),
            ("application/jsonl", Declared::Lines),
            ("", Declared::Unclear),
            ("json", Declared::Unclear),
            ("text/plain", Declared::Unclear),
            ("text/html; charset=x", Declared::Unclear),
            ("application/octet-stream", Declared::Unclear),
            ("audio/mpeg", Declared::Other),
            ("image/png", Declared::Other),
            ("application/pdf", Declared::Other),
            ("multipart/form-data", Declared::Other),
        ] {
            assert_eq!(of_content_type(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn codings_are_told_apart() {
        let of = |values: &[&str]| {
            let mut response = ResponseHeader::build(200, None).unwrap();
            for value in values {
                response.append_header(header::CONTENT_ENCODING, *value).unwrap();
            }
            coding(&response)
        };
        for none in [&[][..], &[""], &["identity"], &["Identity, "]] {
            assert_eq!(of(none), Ok(None), "{none:?}");
        }
        assert_eq!(of(&["GZip"]), Ok(Some(Coding::Gzip)));
        assert_eq!(of(&["identity, x-gzip"]), Ok(Some(Coding::Gzip)));
        assert_eq!(of(&["deflate"]), Ok(Some(Coding::Deflate)));
        assert_eq!(of(&["br"]), Err("br".to_owned()));
        assert_eq!(of(&["gzip", "zstd"]), Err("gzip, zstd".to_owned()));
    }
}
