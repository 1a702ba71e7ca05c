//! `on_response` and `on_stream_event`: the answer on its way to the client.
//!
//! They run in the wrapper of the client's session (`deferred_head`), after the answer was metered and
//! judged: there a call may take its time without holding up the thread, and what the client gets can be
//! changed to the end.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::header;
use pingora::{Result, http::ResponseHeader, protocols::http::HttpTask};
use serde_json::Value;

use super::{
    apply,
    delivered::Delivered,
    events::{EventFilters, Filtered},
    state::{AnswerReport, Asked},
    trace,
    words::{OwnedWords, RequestWords},
};
use crate::{
    base::{Rejection, Stage, lock},
    dialect::{Dialect, ErrorWording},
    guards::{AnswerFilter, Blocked, Finding, Verdict as Moderated},
    hooks::{Global, Hook, HookFailure, Input, Unusable, Verdict},
    lua::json,
    telemetry::Metrics,
    wire::{edit, head, splice},
};

/// Bytes of a plain answer that scripts get to see; a longer one passes unseen.
const LONGEST: usize = 16 << 20;

/// What scripts do with one answer.
pub struct AnswerFilters {
    pub(super) language: &'static dyn Dialect,
    pub(super) words: Arc<OwnedWords>,
    pub(super) request: Option<Bytes>,
    /// `on_response`.
    pub(super) heads: Vec<Arc<Hook>>,
    /// `on_stream_event`.
    pub(super) events: Vec<Arc<Hook>>,
    /// Puts values back, and looks for what must not be said.
    pub(super) guard: Option<AnswerFilter>,
    /// Services that are still being asked about the request.
    pub(super) beside: Vec<Asked>,
    /// What those have said that have answered.
    pub(super) verdicts: Vec<Moderated>,
    pub(super) wording: ErrorWording,
    pub(super) metrics: Metrics,
    /// The plain answer is kept for later scripts.
    pub(super) keeps: bool,
    pub(super) explains: bool,
    pub(super) arrived: Instant,
    pub(super) report: Arc<Mutex<AnswerReport>>,
    /// The backend has answered with success, whatever scripts make of it.
    pub(super) good: bool,
    pub(super) phase: Phase,
}

#[derive(Default)]
pub(super) enum Phase {
    /// No head has come.
    #[default]
    Head,
    /// A plain answer of which scripts see all.
    Held {
        head: Box<ResponseHeader>,
        body: BytesMut,
        /// What the client gets in its place, whatever it is.
        own: Option<Bytes>,
    },
    Stream(Box<EventFilters>, Delivered),
    /// The rest passes as it is.
    Passing,
    /// The answer was ended.
    Over,
}

/// What goes out, and whether the answer ends with it whatever the backend does.
pub struct Outgoing {
    pub tasks: Vec<HttpTask>,
    pub stopped: bool,
}

impl AnswerFilters {
    /// What of these goes to the client. `opened`: the client has got a head already.
    pub async fn tasks(&mut self, tasks: Vec<HttpTask>, opened: bool) -> Result<Outgoing> {
        let mut out = Vec::with_capacity(tasks.len() + 1);
        for task in tasks {
            if matches!(self.phase, Phase::Over) {
                return Ok(Outgoing { tasks: out, stopped: true });
            }
            match task {
                HttpTask::Header(head, end) if !head.status.is_informational() => {
                    self.head(head, end, opened, &mut out).await?;
                }
                HttpTask::Body(piece, end) => self.piece(piece, end, &mut out).await?,
                // Trailers end a body as well; what was changed has none.
                HttpTask::Trailer(_) if self.holds() => self.piece(None, true, &mut out).await?,
                HttpTask::Done => {
                    if self.holds() {
                        self.piece(None, true, &mut out).await?;
                        // The end is said by the last piece.
                        if matches!(self.phase, Phase::Over) {
                            return Ok(Outgoing { tasks: out, stopped: true });
                        }
                    }
                    out.push(HttpTask::Done);
                }
                other => out.push(other),
            }
        }
        Ok(Outgoing { tasks: out, stopped: matches!(self.phase, Phase::Over) })
    }

    /// The end of the body is not said yet.
    fn holds(&self) -> bool {
        matches!(self.phase, Phase::Stream(..) | Phase::Held { .. })
    }

    /// Whether the answer waits for services that are still being asked about the request.
    pub fn waits(&self) -> bool {
        !self.beside.is_empty() && matches!(self.phase, Phase::Head)
    }

    /// Waits for what they say. It can be broken off, and called again.
    pub async fn wait(&mut self) {
        while let Some(asked) = self.beside.first_mut() {
            let verdict = asked.verdict().await;
            self.beside.remove(0);
            self.verdicts.extend(verdict);
        }
    }

    /// What the services say that were asked beside the backend, if they object.
    async fn objection(&mut self) -> Option<Rejection> {
        self.wait().await;
        for verdict in std::mem::take(&mut self.verdicts) {
            let (rejection, finding) = match verdict {
                Moderated::Blocked { rejection, finding } => (Some(rejection), finding),
                Moderated::Failed { rejection, finding, .. } => (rejection, finding),
                Moderated::Allowed => continue,
            };
            self.found(&finding);
            if rejection.is_some() {
                return rejection;
            }
        }
        None
    }

    /// The client gets a rejection in place of the answer.
    fn refuse(
        &mut self,
        mut head: Box<ResponseHeader>,
        rejection: &Rejection,
        opened: bool,
        out: &mut Vec<HttpTask>,
    ) -> Result<()> {
        let mut body = self.wording.rejection(rejection);
        if opened {
            body = self.language.event(&body);
        } else {
            self.reject(&mut head, rejection, body.len())?;
            out.push(HttpTask::Header(head, false));
        }
        out.push(HttpTask::Body(Some(body), true));
        self.phase = Phase::Over;
        let code = rejection.code.as_deref().unwrap_or_default();
        lock(&self.report).stopped = Some(code.to_owned());
        Ok(())
    }

    fn reject(
        &self,
        head: &mut ResponseHeader,
        rejection: &Rejection,
        length: usize,
    ) -> Result<()> {
        head.set_status(rejection.status)?;
        head.insert_header(header::CONTENT_TYPE, head::JSON)?;
        head.remove_header(&header::TRANSFER_ENCODING);
        head.insert_header(header::CONTENT_LENGTH, length)?;
        lock(&self.report).status = Some(rejection.status);
        Ok(())
    }

    /// A plain answer, as the guards let it pass.
    fn check(&mut self, head: &mut ResponseHeader, body: &mut Bytes) -> Result<()> {
        let Some(guard) = self.guard.as_mut().filter(|_| self.good) else {
            return Ok(());
        };
        match guard.document(body) {
            Ok(new) => *body = new,
            Err(blocked) => {
                self.found(&blocked.finding);
                *body = self.wording.rejection(&blocked.rejection);
                self.reject(head, &blocked.rejection, body.len())?;
            }
        }
        self.restored();
        Ok(())
    }

    /// Counts what the guards have put back.
    fn restored(&self) {
        if let Some(finding) = self.guard.as_ref().and_then(AnswerFilter::findings) {
            self.found(&finding);
        }
    }

    fn found(&self, finding: &Finding) {
        trace::count(&self.metrics, finding);
        if self.explains {
            lock(&self.report).trace.push(trace::of_finding(finding));
        }
    }

    /// The rest of a stream that broke: what was held back, and these last events of it. `true`: it ends with
    /// an error of its own.
    pub async fn rest(&mut self, rest: Bytes) -> (Bytes, bool) {
        match self.phase {
            Phase::Over => return (Bytes::new(), true),
            Phase::Stream(..) => {}
            _ => return (rest, false),
        }
        let mut out = Vec::new();
        if self.piece(Some(rest.clone()), true, &mut out).await.is_err() {
            return (rest, false);
        }
        let mut bytes = BytesMut::new();
        for task in out {
            if let HttpTask::Body(Some(piece), _) = task {
                bytes.extend_from_slice(&piece);
            }
        }
        (bytes.freeze(), matches!(self.phase, Phase::Over))
    }

    /// What was done to an answer that ends here: its client has left, or is refused the rest.
    pub fn close(&mut self) {
        if let Phase::Stream(filters, _) = std::mem::replace(&mut self.phase, Phase::Over) {
            if self.explains {
                lock(&self.report).trace.extend(filters.trace());
            }
            self.restored();
        }
    }

    /// A whole answer that goes out by itself.
    pub async fn whole(&mut self, head: &mut Box<ResponseHeader>, body: &mut Bytes) -> Result<()> {
        if let Some(rejection) = self.respond(head, Seen::Whole(body)).await? {
            *body = self.wording.rejection(&rejection);
            self.reject(head, &rejection, body.len())?;
        }
        Ok(())
    }

    async fn head(
        &mut self,
        mut head: Box<ResponseHeader>,
        end: bool,
        opened: bool,
        out: &mut Vec<HttpTask>,
    ) -> Result<()> {
        if let Some(rejection) = self.objection().await {
            return self.refuse(head, &rejection, opened, out);
        }
        self.good = head.status.is_success();
        let content_type = head.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.map(|v| v.as_bytes().to_ascii_lowercase());
        let says = |what: &[u8]| content_type.as_ref().is_some_and(|v| v.starts_with(what));
        // Documents on lines of their own: none of the languages has them, but a backend may.
        let lines = says(b"application/x-ndjson") || says(b"application/jsonl");
        // A client that has got the head of a stream gets anything as its events.
        let stream = opened
            || lines
            || says(b"text/event-stream")
            || self.words.is_stream() && !says(b"application/json") && self.good;
        let reads = self.keeps
            || self.guard.is_some() && self.good
            || self.heads.iter().any(|hook| hook.reads("response", "body"));
        if !stream && !end && !opened && reads {
            self.phase = Phase::Held { head, body: BytesMut::new(), own: None };
            return Ok(());
        }
        let mut own = None;
        let seen = if stream || end { Seen::Nothing } else { Seen::Coming(&mut own) };
        if !opened && let Some(rejection) = self.respond(&mut head, seen).await? {
            return self.refuse(head, &rejection, opened, out);
        }
        if own.is_some() {
            self.phase = Phase::Held { head, body: BytesMut::new(), own };
            return Ok(());
        }
        if lines {
            self.events.clear();
            self.guard = self.guard.take().map(AnswerFilter::by_line);
        }
        let looks = !self.events.is_empty() || self.guard.is_some();
        self.phase = match stream && self.good && looks {
            true => {
                let (words, request) = (Arc::clone(&self.words), self.request.clone());
                let events = self.events.clone();
                let filters = EventFilters::new(self.language, words, request, events);
                let delivered = match lines {
                    true => Delivered::of_lines(self.language),
                    false => Delivered::new(self.language),
                };
                Phase::Stream(Box::new(filters), delivered)
            }
            false => Phase::Passing,
        };
        // A client that has got comments has got a head with them.
        if !opened || end {
            out.push(HttpTask::Header(head, end));
        }
        Ok(())
    }

    async fn piece(
        &mut self,
        piece: Option<Bytes>,
        end: bool,
        out: &mut Vec<HttpTask>,
    ) -> Result<()> {
        match &mut self.phase {
            Phase::Head | Phase::Passing | Phase::Over => out.push(HttpTask::Body(piece, end)),
            Phase::Stream(filters, delivered) => {
                let Filtered { bytes, stopped } =
                    filters.push(piece.unwrap_or_default(), end).await;
                let ends = end || stopped.is_some();
                let (bytes, blocked) = match &mut self.guard {
                    Some(guard) => guarded(guard, &bytes, ends),
                    None => (bytes, None),
                };
                delivered.push(&bytes);
                let last = match (&blocked, &stopped) {
                    (Some(blocked), _) => delivered.refused(&blocked.rejection, &self.wording),
                    (None, Some(why)) => delivered.stopped(why),
                    (None, None) => Bytes::new(),
                };
                if let Some(blocked) = &blocked {
                    self.found(&blocked.finding);
                }
                if let Some(why) = stopped.or(blocked.map(|blocked| blocked.finding.kind)) {
                    lock(&self.report).stopped = Some(why);
                    self.close();
                    let bytes = [bytes, last].concat().into();
                    out.push(HttpTask::Body(Some(bytes), true));
                } else if end || !bytes.is_empty() {
                    out.push(HttpTask::Body(Some(bytes), end));
                }
                if end && matches!(self.phase, Phase::Stream(..)) {
                    self.close();
                    self.phase = Phase::Passing;
                }
            }
            Phase::Held { own: Some(_), .. } if end => self.release(end, out).await?,
            Phase::Held { own: Some(_), .. } => {}
            Phase::Held { body, .. } => {
                body.extend_from_slice(piece.as_deref().unwrap_or_default());
                if end || body.len() > LONGEST {
                    self.release(end, out).await?;
                }
            }
        }
        Ok(())
    }

    /// Sends on what was held.
    async fn release(&mut self, end: bool, out: &mut Vec<HttpTask>) -> Result<()> {
        let held = std::mem::replace(&mut self.phase, Phase::Passing);
        let Phase::Held { mut head, body, own } = held else { return Ok(()) };
        let replaced = own.is_some();
        let mut body = own.unwrap_or_else(|| body.freeze());
        if !end && self.guard.is_some() && self.good {
            // What cannot be looked at as a whole does not pass.
            let rejection = Rejection::answer_too_long();
            return self.refuse(head, &rejection, false, out);
        }
        if end {
            if !replaced {
                if let Some(rejection) = self.respond(&mut head, Seen::Whole(&mut body)).await? {
                    return self.refuse(head, &rejection, false, out);
                }
                self.check(&mut head, &mut body)?;
            }
            head.remove_header(&header::TRANSFER_ENCODING);
            head.insert_header(header::CONTENT_LENGTH, body.len())?;
            if self.keeps {
                lock(&self.report).body = Some(body.clone());
            }
        }
        let empty = end && body.is_empty();
        out.push(HttpTask::Header(head, empty));
        if !empty {
            out.push(HttpTask::Body(Some(body), end));
        }
        Ok(())
    }

    /// Runs `on_response`. The rejection is what the client gets if a script that must not fail has failed.
    async fn respond(
        &mut self,
        head: &mut Box<ResponseHeader>,
        mut body: Seen<'_>,
    ) -> Result<Option<Rejection>> {
        for hook in std::mem::take(&mut self.heads) {
            let parsed = body.whole().map(|body| Arc::new(read(body)));
            let globals = self.view(&hook, head, parsed.clone());
            let began = Instant::now();
            let returned = hook.run(globals).await;
            let took = began.elapsed();
            let outcome = returned.and_then(|returned| {
                let Some(value) = returned else { return Ok(Vec::new()) };
                Verdict::read(Stage::Response, value)
                    .and_then(|verdict| change(head, &mut body, parsed.as_deref(), verdict))
                    .map_err(|why| hook.unusable(why.0))
            });
            if let Some(rejection) = self.settle(&hook, took, outcome, head) {
                return Ok(Some(rejection));
            }
        }
        Ok(None)
    }

    fn settle(
        &self,
        hook: &Hook,
        took: Duration,
        outcome: Result<Vec<String>, HookFailure>,
        head: &ResponseHeader,
    ) -> Option<Rejection> {
        let (word, changed, rejection) = match outcome {
            Ok(changed) => {
                let word = if changed.is_empty() { "nothing" } else { "changed" };
                hook.count(word);
                if changed.iter().any(|what| what == "status") {
                    lock(&self.report).status = Some(head.status.as_u16());
                }
                (word, changed, None)
            }
            Err(failure) => {
                let closed = failure.closed.then(|| Rejection::hook_failed(failure.stage));
                ("failed", vec![failure.why], closed)
            }
        };
        if self.explains {
            lock(&self.report).trace.push(trace::of_run(hook, took, word, changed));
        }
        rejection
    }

    fn view(&self, hook: &Hook, head: &ResponseHeader, body: Option<Arc<Value>>) -> Vec<Global> {
        let url = lock(&self.report).backend_url.clone().unwrap_or_default();
        let url = &*url;
        let words = RequestWords { backend_url: Some(url), ..self.words.borrow() };
        let request = || serde_json::from_slice(self.request.as_ref()?).ok().map(Arc::new);
        let mut globals = vec![words.request(hook, request)];
        words.others(hook, &mut globals);
        let status = Input::Integer(head.status.as_u16().into());
        let latency = Input::from(self.arrived.elapsed().as_millis() as u64);
        let mut fields: Vec<Global> = vec![
            ("status", status.clone()),
            ("status_code", status),
            ("latency_ms", latency.clone()),
            ("backend_url", url.into()),
        ];
        if hook.reads("response", "headers") {
            fields.push(("headers", Input::Headers(Arc::new(head.headers.clone()))));
        }
        if hook.reads("response", "body") {
            fields.push(("body", Input::json(body)));
        }
        globals.push(("response", Input::Fields(fields)));
        globals.push(("latency_ms", latency));
        globals.push(("backend_url", url.into()));
        globals
    }
}

/// Events, as the guards let them pass; and why, if the stream has to end.
fn guarded(guard: &mut AnswerFilter, bytes: &Bytes, end: bool) -> (Bytes, Option<Box<Blocked>>) {
    match guard.push(bytes, end) {
        Ok(bytes) => (bytes, None),
        Err(blocked) => (blocked.sent.clone(), Some(blocked)),
    }
}

/// A body for a script: a table if it is JSON, else text.
fn read(body: &[u8]) -> Value {
    serde_json::from_slice(body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()))
}

/// What `on_response` sees of a body.
enum Seen<'b> {
    Whole(&'b mut Bytes),
    /// It is still to come, and no script reads it; one may put another in its place.
    Coming(&'b mut Option<Bytes>),
    /// That of a stream, or none.
    Nothing,
}

impl Seen<'_> {
    fn whole(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(body) => Some(body),
            Self::Coming(_) | Self::Nothing => None,
        }
    }
}

fn change(
    head: &mut Box<ResponseHeader>,
    body: &mut Seen<'_>,
    parsed: Option<&Value>,
    verdict: Verdict,
) -> Result<Vec<String>, Unusable> {
    if verdict.body.is_some() && matches!(body, Seen::Nothing) {
        return Err(Unusable("`body`: this answer has none that can be changed".to_owned()));
    }
    let mut changed = Vec::new();
    if let Some(status) = verdict.status.filter(|status| *status != head.status.as_u16()) {
        head.set_status(status).map_err(|e| Unusable(e.to_string()))?;
        changed.push("status".to_owned());
    }
    if !verdict.headers.is_empty() {
        let mut own = Vec::new();
        head::edit_response(head, |fields| own = apply::headers(fields, verdict.headers))
            .map_err(|e| Unusable(e.to_string()))?;
        changed.extend(own);
    }
    let Some(new) = &verdict.body else { return Ok(changed) };
    match (body, parsed) {
        (Seen::Coming(place), _) => {
            **place = Some(apply::whole(new));
            changed.push("body".to_owned());
        }
        (Seen::Whole(body), Some(parsed)) => {
            if new.is_object() == parsed.is_object() && !parsed.is_string() {
                let edits = splice::edits(body, &json::normalised(parsed), new);
                if !edits.is_empty() {
                    let mut bytes = BytesMut::from(&body[..]);
                    edit::apply(&mut bytes, edits);
                    **body = bytes.freeze();
                    changed.push("body".to_owned());
                }
            } else if new != parsed {
                **body = apply::whole(new);
                changed.push("body".to_owned());
            }
        }
        (Seen::Whole(_), None) | (Seen::Nothing, _) => {}
    }
    Ok(changed)
}
