//! A toy API language, and a faulty one: what a new language consists of. One file that implements
//! `Dialect`, and one line in `DIALECTS` of `src/dialect/catalog.rs`; this one is only in the list
//! of the library's own tests, which run on it as on any other.
//!
//! A request is `MODEL [stream] [most tokens]: TEXT`. An answer is words, and at its end `# PROMPT
//! COMPLETION`; a stream has a word on each line. What goes wrong is said as `! KIND: WHY`.

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, header};

use crate::{
    base::{Rejection, TokenCounts, limits::Standings},
    dialect::{
        Blame, Dialect, Glance, Kind, LimitHeaders, Meter, Metering, Model, Operation, Progress,
        Want,
    },
    wire::edit::Edit,
};

/// A language of words.
pub struct Toy;

static OPERATIONS: [Operation; 3] = [
    Operation {
        path: "/toy/{model}:say",
        allow: "POST",
        kind: Kind::Inference { generates: true },
    },
    Operation { path: "/toy/models", allow: "GET", kind: Kind::Models },
    Operation { path: "/toy/models/{model}", allow: "GET", kind: Kind::Model },
];

static KEY: [HeaderName; 1] = [HeaderName::from_static("x-toy-key")];

impl Dialect for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn operations(&self) -> &'static [Operation] {
        &OPERATIONS
    }

    fn usual_path(&self) -> &'static str {
        "/toy/any:say"
    }

    fn glance(
        &self,
        at: &Operation,
        _: &str,
        body: &[u8],
        _: &[String],
    ) -> Result<Glance, Rejection> {
        let text = std::str::from_utf8(body).map_err(Rejection::not_json)?;
        let Some((head, said)) = text.split_once(':') else {
            return Err(Rejection::bad_field("text", "it must follow a colon"));
        };
        let mut words = head.split_whitespace();
        let model = words.next().map(str::to_owned);
        let mut glance = Glance { model, ..Glance::default() };
        for word in words {
            match word.parse() {
                Ok(most) => glance.max_tokens = Some(most),
                Err(_) => glance.stream = word == "stream",
            }
        }
        glance.conversation = Some(body.len() - said.len()..body.len());
        assert!(at.kind.generates());
        Ok(glance)
    }

    fn guard_edits(&self, _: &[u8], _: &[String]) -> Vec<Edit> {
        Vec::new()
    }

    fn edits(&self, _: &[u8], glance: &Glance, want: &Want<'_>) -> Vec<Edit> {
        let length = glance.model.as_ref().map_or(0, String::len);
        let edit = |name: &str| Edit { range: 0..length, with: name.as_bytes().to_vec().into() };
        want.model.map(edit).into_iter().collect()
    }

    fn changes_stream(&self, _: &Metering) -> bool {
        false
    }

    fn document_meter(&self) -> Box<dyn Meter> {
        Box::<Words>::default()
    }

    fn stream_meter(&self, _: &Metering, _: bool) -> Box<dyn Meter> {
        Box::new(Words { streams: true, ..Words::default() })
    }

    fn rename_model(&self, document: Bytes, _: &str) -> Bytes {
        document
    }

    fn rejection(&self, rejection: &Rejection) -> Bytes {
        format!("! {}: {}\n", rejection.status, rejection.message).into()
    }

    fn failure(&self, message: &str, code: &str) -> Bytes {
        format!("! {code}: {message}\n").into()
    }

    fn event(&self, document: &[u8]) -> Bytes {
        Bytes::copy_from_slice(document)
    }

    fn event_part(&self, piece: Bytes, _: bool, _: bool) -> Bytes {
        piece
    }

    fn error_event(&self, body: &[u8]) -> Option<Bytes> {
        body.starts_with(b"!").then(|| Bytes::copy_from_slice(body))
    }

    fn keep_alive(&self) -> Bytes {
        Bytes::from_static(b"\n")
    }

    fn stream_type(&self) -> HeaderValue {
        HeaderValue::from_static("text/event-stream")
    }

    fn credential_fields(&self) -> &'static [HeaderName] {
        &KEY
    }

    fn backend_credential(&self) -> (HeaderName, &'static str) {
        (KEY[0].clone(), "")
    }

    fn limit_prefixes(&self) -> &'static [&'static str] {
        &["x-toy-"]
    }

    fn limit_headers(&self, standings: &Standings, out: &mut LimitHeaders) {
        if let Some(requests) = standings.requests {
            let names = ["x-toy-most", "x-toy-left", "x-toy-wait"].map(HeaderName::from_static);
            let wait = format!("{}s", requests.reset.as_secs());
            out.limit(names, requests, |text| text.extend_from_slice(wait.as_bytes()));
        }
    }

    fn models(&self, models: &[Model], _: Option<&str>) -> Result<Bytes, Rejection> {
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        Ok(names.join(" ").into())
    }

    fn model(&self, model: &Model) -> Bytes {
        model.name.clone().into()
    }

    fn read_models(&self, body: &[u8]) -> Vec<Model> {
        let names = String::from_utf8_lossy(body);
        let model = |name: &str| Model { name: name.to_owned(), created: 0, entry: None };
        names.split_whitespace().map(model).collect()
    }
}

/// Reads the words of an answer.
#[derive(Default)]
struct Words {
    streams: bool,
    line: BytesMut,
    counts: Option<TokenCounts>,
}

impl Words {
    fn line(&mut self, seen: &mut Progress) {
        let line = std::mem::take(&mut self.line).freeze();
        let line = String::from_utf8_lossy(&line);
        seen.running = self.streams;
        match line.trim().split_once(' ') {
            Some(("#", counts)) => {
                let mut counts = counts.split(' ').map(|count| count.parse().unwrap_or(0));
                let (prompt, completion) = (counts.next().unwrap_or(0), counts.next().unwrap_or(0));
                let total = prompt + completion;
                self.counts =
                    Some(TokenCounts { prompt, completion, total, ..TokenCounts::default() });
                seen.finished = true;
            }
            Some(("!", why)) if why.starts_with("client") => seen.error = Some(Blame::Client),
            Some(("!", _)) => seen.error = Some(Blame::Engine),
            _ => {
                seen.events += 1;
                seen.parts += 1;
                seen.content = true;
            }
        }
    }
}

impl Meter for Words {
    fn push(&mut self, piece: Bytes, seen: &mut Progress) -> Bytes {
        for byte in piece.iter() {
            match byte {
                b'\n' if !self.line.is_empty() => self.line(seen),
                b'\n' => {}
                byte => self.line.extend_from_slice(&[*byte]),
            }
        }
        piece
    }

    fn finish(&mut self, seen: &mut Progress) -> Bytes {
        if !self.line.is_empty() {
            self.line(seen);
        }
        seen.ended = true;
        Bytes::new()
    }

    fn abandon(&mut self, _: &mut Progress) -> Bytes {
        Bytes::new()
    }

    fn sent_pending(&mut self, _: &mut Progress) {}

    fn counts(&self) -> Option<TokenCounts> {
        self.counts
    }
}

/// A language with the mistakes that one can make in its list: the name of another one, a path that
/// stands at another one's, a path without its slash, and no operation at its usual path.
pub struct Faulty;

static FAULTY: [Operation; 2] = [
    Operation { path: "/v1/models/{model}/x", allow: "GET", kind: Kind::Model },
    Operation { path: "toy", allow: "POST", kind: Kind::Inference { generates: true } },
];

impl Dialect for Faulty {
    fn operations(&self) -> &'static [Operation] {
        &FAULTY
    }

    fn usual_path(&self) -> &'static str {
        "/toy/nothing"
    }

    fn name(&self) -> &'static str {
        Toy.name()
    }

    fn glance(&self, _: &Operation, _: &str, _: &[u8], _: &[String]) -> Result<Glance, Rejection> {
        Err(Rejection::bad_field("all", "this language understands nothing"))
    }

    fn guard_edits(&self, _: &[u8], _: &[String]) -> Vec<Edit> {
        Vec::new()
    }

    fn edits(&self, _: &[u8], _: &Glance, _: &Want<'_>) -> Vec<Edit> {
        Vec::new()
    }

    fn changes_stream(&self, _: &Metering) -> bool {
        true
    }

    fn document_meter(&self) -> Box<dyn Meter> {
        Toy.document_meter()
    }

    fn stream_meter(&self, metering: &Metering, by_line: bool) -> Box<dyn Meter> {
        Toy.stream_meter(metering, by_line)
    }

    fn rename_model(&self, document: Bytes, _: &str) -> Bytes {
        document
    }

    fn rejection(&self, _: &Rejection) -> Bytes {
        Bytes::new()
    }

    fn failure(&self, _: &str, _: &str) -> Bytes {
        Bytes::new()
    }

    fn event(&self, _: &[u8]) -> Bytes {
        Bytes::new()
    }

    fn event_part(&self, piece: Bytes, _: bool, _: bool) -> Bytes {
        piece
    }

    fn error_event(&self, _: &[u8]) -> Option<Bytes> {
        None
    }

    fn keep_alive(&self) -> Bytes {
        Bytes::new()
    }

    fn stream_type(&self) -> HeaderValue {
        HeaderValue::from_static("text/plain")
    }

    fn credential_fields(&self) -> &'static [HeaderName] {
        &[]
    }

    fn backend_credential(&self) -> (HeaderName, &'static str) {
        (header::AUTHORIZATION, "")
    }

    fn limit_prefixes(&self) -> &'static [&'static str] {
        &[]
    }

    fn limit_headers(&self, _: &Standings, _: &mut LimitHeaders) {}

    fn models(&self, _: &[Model], _: Option<&str>) -> Result<Bytes, Rejection> {
        Ok(Bytes::new())
    }

    fn model(&self, _: &Model) -> Bytes {
        Bytes::new()
    }

    fn read_models(&self, _: &[u8]) -> Vec<Model> {
        Vec::new()
    }
}
