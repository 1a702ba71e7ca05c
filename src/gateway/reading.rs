//! How the body of an answer is read: by its header, and where that says nothing or something wrong,
//! by its first bytes.

use bytes::Bytes;
use http::header;
use pingora::{Error, ErrorType, Result, http::ResponseHeader};

use super::{ctx::Ctx, stream::Reading, verdict};
use crate::{
    config::raw::StreamUsage,
    dialect::openai::{JsonTap, StreamMeter, Strip},
    wire::{
        inflate::{Coding, Inflater, Trouble},
        sniff::{Kind, Sniffed, Sniffer},
    },
};

/// What is done to a body before it is read.
#[derive(Default)]
pub struct Front {
    /// Undoes its compression.
    inflater: Option<Inflater>,
    /// Finds out what it is; `None` once that is known, or is of no interest.
    sniffer: Option<Sniffer>,
}

/// A piece after that.
pub enum Piece {
    /// It is read.
    Read(Option<Bytes>),
    /// The same, and it is known now what the body is.
    Known(Kind, Option<Bytes>),
    /// White space before anything else.
    Blank(Bytes),
}

impl Front {
    /// Takes the next piece.
    ///
    /// # Errors
    /// If it cannot be decoded.
    pub fn take(&mut self, piece: Option<Bytes>, end_of_stream: bool) -> Result<Piece> {
        let piece = match &mut self.inflater {
            Some(inflater) => inflated(inflater, piece, end_of_stream).map_err(|trouble| {
                Error::explain(ErrorType::InvalidHTTPHeader, trouble.word()).into_up()
            })?,
            None => piece,
        };
        let Some(sniffer) = &mut self.sniffer else {
            return Ok(Piece::Read(piece));
        };
        let sniffed = match piece {
            Some(bytes) if !bytes.is_empty() => sniffer.push(bytes),
            _ => Sniffed::More,
        };
        Ok(match sniffed {
            Sniffed::Is(kind, bytes) => {
                self.sniffer = None;
                Piece::Known(kind, Some(bytes))
            }
            Sniffed::Blank(bytes) if !end_of_stream => Piece::Blank(bytes),
            Sniffed::Blank(bytes) => Piece::Read(Some(bytes)),
            Sniffed::More if end_of_stream => Piece::Read(Some(sniffer.finish())),
            Sniffed::More => Piece::Read(Some(Bytes::new())),
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
) -> Result<Option<Bytes>, Trouble> {
    let piece = piece.map(|bytes| inflater.push(&bytes)).transpose()?;
    if end_of_stream {
        inflater.finish()?;
    }
    Ok(piece)
}

/// How the body is to be read by its header.
pub fn of(response: &ResponseHeader, ctx: &Ctx) -> (Reading, Front) {
    if verdict::wants_body(response.status.as_u16(), &ctx.snapshot.plan.routing) {
        return (Reading::Refusal(Box::new(response.clone())), Front::default());
    }
    let content_type =
        response.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
    let declared = declared(content_type);
    if !response.status.is_success() || declared == Declared::Other {
        return (Reading::Nothing, Front::default());
    }
    let coding = match coding(response) {
        Ok(coding) => coding,
        Err(name) => {
            if let Some(endpoint) = &ctx.way.endpoint
                && endpoint.is_first_unreadable()
            {
                log::warn!(
                    "backend {}: its answers are not metered: they are encoded as `{name}`, and only gzip and deflate can be decoded",
                    endpoint.name
                );
            }
            return (Reading::Nothing, Front::default());
        }
    };
    let reading = match declared {
        Declared::Json => Reading::Json(Box::default()),
        Declared::Events => Reading::Stream(Box::new(meter(ctx))),
        Declared::Lines => Reading::Stream(Box::new(meter(ctx).by_line())),
        Declared::Unclear | Declared::Other => Reading::Nothing,
    };
    let sniffer = (declared != Declared::Lines).then(Sniffer::default);
    (reading, Front { inflater: coding.map(Inflater::new), sniffer })
}

/// How it is to be read when its first bytes are known; `before` is what the header has said.
pub fn known(kind: Kind, before: Reading, ctx: &Ctx) -> Reading {
    match (kind, before) {
        (Kind::Events, before @ Reading::Stream(_)) => before,
        (Kind::Events, _) => Reading::Stream(Box::new(meter(ctx))),
        (Kind::Json, before @ (Reading::Json(_) | Reading::Event(Some(_)))) => before,
        // The client has been told that a stream comes, and the backend has said so too.
        (Kind::Json, _) if ctx.answer.opened => Reading::Event(Some(Box::<JsonTap>::default())),
        (Kind::Json, Reading::Event(None)) => Reading::Event(Some(Box::<JsonTap>::default())),
        (Kind::Json, _) => Reading::Json(Box::default()),
        (Kind::Other, before) => before,
    }
}

/// What a content type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Declared {
    Json,
    Events,
    /// A document on each line.
    Lines,
    /// It may be any of these.
    Unclear,
    /// Audio, pictures and the like.
    Other,
}

fn declared(content_type: &[u8]) -> Declared {
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

/// How the body is encoded; `None` if it is not. If it cannot be decoded: the name of the coding.
fn coding(response: &ResponseHeader) -> Result<Option<Coding>, String> {
    let values = response.headers.get_all(header::CONTENT_ENCODING).iter();
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

/// The meter of a stream that answers this request.
pub fn meter(ctx: &Ctx) -> StreamMeter {
    let name = ctx.call.model.as_deref().filter(|_| ctx.way.tries.model.is_some());
    StreamMeter::new(strip(ctx)).naming(name).per_prompt(ctx.body.choices_per_prompt())
}

/// What was added to the stream by asking for more than the client did.
pub fn strip(ctx: &Ctx) -> Strip {
    let (asked, running) = ctx.call.usage_asked;
    match ctx.body.asked {
        StreamUsage::Off => Strip::Nothing,
        usage if !asked => Strip::All { nulls: usage == StreamUsage::Final },
        StreamUsage::Continuous if !running => Strip::Running,
        _ => Strip::Nothing,
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
            assert_eq!(declared(text.as_bytes()), expected, "{text}");
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
