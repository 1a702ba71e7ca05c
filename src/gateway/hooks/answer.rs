//! `on_response` and `on_stream_event`: the answer on its way to the client.
//!
//! They run in the wrapper of the client's session (`deferred_head`), after the answer was metered and
//! judged: there a call may take its time without holding up the thread, and what the client gets can be
//! changed to the end.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::header;
use pingora::{Result, http::ResponseHeader, protocols::http::HttpTask};
use pingora_proxy::Session;
use serde_json::Value;

use super::{
    apply,
    events::{EventFilters, Filtered},
    run::{kept, state, subject},
    state::AnswerReport,
    words::OwnedWords,
};
use crate::{
    base::{Stage, lock},
    dialect::Dialect,
    gateway::ctx::Ctx,
    hooks::{Global, Hook, HookFailure, Input, Unusable, Verdict},
    lua::json,
    wire::{edit, head, splice},
};

/// Bytes of a plain answer that scripts get to see; a longer one passes unseen.
const LONGEST: usize = 16 << 20;

/// What scripts do with one answer.
pub struct AnswerFilters {
    language: &'static dyn Dialect,
    words: Arc<OwnedWords>,
    request: Option<Bytes>,
    /// `on_response`.
    heads: Vec<Arc<Hook>>,
    /// `on_stream_event`.
    events: Vec<Arc<Hook>>,
    /// The plain answer is kept for later scripts.
    keeps: bool,
    explains: bool,
    arrived: Instant,
    report: Arc<Mutex<AnswerReport>>,
    phase: Phase,
}

enum Phase {
    /// No head has come.
    Head,
    /// A plain answer of which scripts see all.
    Held {
        head: Box<ResponseHeader>,
        body: BytesMut,
    },
    Stream(Box<EventFilters>),
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

/// The scripts that see the answer to a request; `None` if there are none.
pub fn begin(session: &Session, ctx: &mut Ctx) -> Option<AnswerFilters> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let hooks = &snapshot.hooks;
    let keeps = hooks.keeps_answer();
    if !(hooks.has(Stage::Response) || hooks.has(Stage::StreamEvent) || keeps) {
        return None;
    }
    let subject = subject(ctx);
    let of = |stage| -> Vec<Arc<Hook>> {
        hooks.at(stage).iter().filter(|hook| hook.applies(&subject)).cloned().collect()
    };
    let (heads, events) = (of(Stage::Response), of(Stage::StreamEvent));
    if heads.is_empty() && events.is_empty() && !keeps {
        return None;
    }
    let words = Arc::new(OwnedWords::of(session.req_header(), ctx));
    let report = Arc::new(Mutex::new(AnswerReport::default()));
    state(ctx).report = Some(Arc::clone(&report));
    Some(AnswerFilters {
        language: ctx.request.language(),
        words,
        request: ctx.hooks.as_ref().and_then(|state| state.kept.clone()),
        heads,
        events,
        keeps,
        explains: ctx.carry.explains.capacity() > 0,
        arrived: ctx.request.arrived,
        report,
        phase: Phase::Head,
    })
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
                HttpTask::Done => {
                    if !matches!(self.phase, Phase::Passing) {
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

    /// A whole answer that goes out by itself.
    pub async fn whole(&mut self, head: &mut Box<ResponseHeader>, body: &mut Bytes) -> Result<()> {
        self.respond(head, Some(body)).await
    }

    async fn head(
        &mut self,
        mut head: Box<ResponseHeader>,
        end: bool,
        opened: bool,
        out: &mut Vec<HttpTask>,
    ) -> Result<()> {
        let content_type = head.headers.get(header::CONTENT_TYPE);
        let stream = content_type.is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        let reads = self.keeps || self.heads.iter().any(|hook| hook.reads("response", "body"));
        if !stream && !end && !opened && reads {
            self.phase = Phase::Held { head, body: BytesMut::new() };
            return Ok(());
        }
        if !opened {
            self.respond(&mut head, None).await?;
        }
        self.phase = match stream && head.status.is_success() && !self.events.is_empty() {
            true => Phase::Stream(Box::new(EventFilters::new(
                self.language,
                Arc::clone(&self.words),
                self.request.clone(),
                self.events.clone(),
            ))),
            false => Phase::Passing,
        };
        out.push(HttpTask::Header(head, end));
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
            Phase::Stream(filters) => {
                let Filtered { bytes, stopped } =
                    filters.push(piece.unwrap_or_default(), end).await;
                if let Some(why) = stopped {
                    let mut report = lock(&self.report);
                    report.stopped = Some(why);
                    self.phase = Phase::Over;
                    out.push(HttpTask::Body(Some(bytes), true));
                } else if end || !bytes.is_empty() {
                    out.push(HttpTask::Body(Some(bytes), end));
                }
                if let Phase::Stream(filters) = &mut self.phase {
                    if end {
                        lock(&self.report).trace.extend(filters.trace());
                        self.phase = Phase::Passing;
                    }
                }
            }
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
        let Phase::Held { mut head, body } = held else { return Ok(()) };
        let mut body = body.freeze();
        if end {
            self.respond(&mut head, Some(&mut body)).await?;
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

    /// Runs `on_response`.
    async fn respond(
        &mut self,
        head: &mut Box<ResponseHeader>,
        mut body: Option<&mut Bytes>,
    ) -> Result<()> {
        for hook in std::mem::take(&mut self.heads) {
            let parsed = body.as_ref().map(|body| Arc::new(read(body)));
            let globals = self.view(&hook, head, parsed.clone());
            let began = Instant::now();
            let returned = hook.run(globals).await;
            let took = began.elapsed();
            let outcome = returned.and_then(|returned| {
                let Some(value) = returned else { return Ok(Vec::new()) };
                Verdict::read(Stage::Response, value)
                    .and_then(|verdict| {
                        change(head, body.as_deref_mut(), parsed.as_deref(), verdict)
                    })
                    .map_err(|why| hook.unusable(why.0))
            });
            self.settle(&hook, took, outcome, head, body.as_deref_mut())?;
        }
        Ok(())
    }

    fn settle(
        &self,
        hook: &Hook,
        took: std::time::Duration,
        outcome: Result<Vec<String>, HookFailure>,
        head: &mut Box<ResponseHeader>,
        body: Option<&mut Bytes>,
    ) -> Result<()> {
        let (word, changed) = match outcome {
            Ok(changed) => {
                let word = if changed.is_empty() { "nothing" } else { "changed" };
                hook.count(word);
                if changed.iter().any(|what| what == "status") {
                    lock(&self.report).status = Some(head.status.as_u16());
                }
                (word, changed)
            }
            Err(failure) => {
                if failure.closed {
                    self.fail(head, body)?;
                }
                ("failed", vec![failure.why])
            }
        };
        if self.explains {
            lock(&self.report).trace.push(kept(hook, took, word, changed));
        }
        Ok(())
    }

    /// The answer is not given to the client.
    fn fail(&self, head: &mut Box<ResponseHeader>, body: Option<&mut Bytes>) -> Result<()> {
        let error = self.language.failure("A script of the gateway failed", "hook_failed");
        head.set_status(502)?;
        let mut report = lock(&self.report);
        report.status = Some(502);
        report.stopped = Some("hook_failed".to_owned());
        if let Some(body) = body {
            *body = error;
        }
        Ok(())
    }

    fn view(&self, hook: &Hook, head: &ResponseHeader, body: Option<Arc<Value>>) -> Vec<Global> {
        let words = self.words.borrow();
        let request = || serde_json::from_slice(self.request.as_ref()?).ok().map(Arc::new);
        let mut globals = vec![words.request(hook, request)];
        words.others(hook, &mut globals);
        let status = Input::Integer(head.status.as_u16().into());
        let latency = Input::from(self.arrived.elapsed().as_millis() as u64);
        let url = words.backend_url.unwrap_or_default();
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

/// A body for a script: a table if it is JSON, else text.
fn read(body: &[u8]) -> Value {
    serde_json::from_slice(body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()))
}

fn change(
    head: &mut Box<ResponseHeader>,
    body: Option<&mut Bytes>,
    parsed: Option<&Value>,
    verdict: Verdict,
) -> Result<Vec<String>, Unusable> {
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
    if let (Some(new), Some(body), Some(parsed)) = (&verdict.body, body, parsed) {
        if new.is_object() == parsed.is_object() && !parsed.is_string() {
            let edits = splice::edits(body, &json::normalised(parsed), new);
            if !edits.is_empty() {
                let mut bytes = BytesMut::from(&body[..]);
                edit::apply(&mut bytes, edits);
                *body = bytes.freeze();
                changed.push("body".to_owned());
            }
        } else if new != parsed {
            *body = apply::whole(new);
            changed.push("body".to_owned());
        }
    }
    Ok(changed)
}
