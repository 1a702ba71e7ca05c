//! The body of an answer, piece by piece, as it passes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pingora::{Error, ErrorType, Result};

use super::ctx::Ctx;
use crate::{
    base::{TokenCounts, UsageSource},
    usage::{JsonTap, StreamMeter},
};

/// An answer.
#[derive(Default)]
pub struct Answer {
    /// Its status, once its head has come.
    pub status: Option<u16>,
    /// How its body is read.
    pub reading: Reading,
    /// From the arrival of the request to the first event of a stream.
    pub first_token: Option<Duration>,
    /// The whole body has come.
    pub whole: bool,
    /// A piece of the body has come.
    pub begun: bool,
    last: Option<Instant>,
}

/// How a body is read.
#[derive(Default)]
pub enum Reading {
    /// Not at all.
    #[default]
    Nothing,
    /// As one JSON document.
    Json(Box<JsonTap>),
    /// As events.
    Stream(Box<StreamMeter>),
    /// As a document that is passed on as one event; it is also read, if it is JSON.
    Event(Option<Box<JsonTap>>),
}

impl Answer {
    /// The counts, and what they are worth.
    pub fn usage(&self) -> (TokenCounts, UsageSource) {
        match &self.reading {
            Reading::Nothing | Reading::Event(None) => Default::default(),
            Reading::Json(tap) | Reading::Event(Some(tap)) => tap.usage(),
            Reading::Stream(meter) => meter.usage(),
        }
    }

    /// How many events of a stream have carried a part of the answer, if no usage was reported: a
    /// client that leaves before the usage chunk has got about so many tokens. Otherwise 0.
    pub fn streamed(&self) -> u64 {
        match &self.reading {
            Reading::Stream(meter) if meter.usage().1 == UsageSource::None => meter.content(),
            _ => 0,
        }
    }

    /// The engine broke the generation off, or said that it failed.
    pub fn broken_off(&self) -> bool {
        match &self.reading {
            Reading::Nothing | Reading::Event(None) => false,
            Reading::Json(tap) | Reading::Event(Some(tap)) => tap.aborted(),
            Reading::Stream(meter) => meter.aborted() || meter.failed(),
        }
    }
}

/// Reads the next piece; what is put back goes to the client.
///
/// # Errors
/// If a deadline has cut the answer off: without a length or chunks its end looks like any other.
/// If nothing came that could be an event of the stream that the client was told of.
pub fn filter(body: &mut Option<Bytes>, end_of_stream: bool, ctx: &mut Ctx) -> Result<()> {
    if end_of_stream && ctx.way.watch.as_ref().is_some_and(|w| w.fired().is_some()) {
        return Err(Error::explain(ErrorType::ReadTimedout, "cut off by a deadline").into_up());
    }
    let answer = &mut ctx.answer;
    answer.whole |= end_of_stream;
    let first = !answer.begun && body.as_ref().is_some_and(|piece| !piece.is_empty());
    if first {
        answer.begun = true;
        // The client is about to get bytes of this answer: no other backend will be asked.
        ctx.body.forget();
    }
    if let Some(watch) = &ctx.way.watch {
        let wait = ctx.snapshot.plan.timeouts.between_chunks.filter(|_| !end_of_stream);
        watch.set_chunk(Ctx::after(wait));
    }
    match &mut answer.reading {
        Reading::Nothing => {}
        Reading::Event(_) if end_of_stream && !answer.begun => {
            return Err(Error::explain(ErrorType::ConnectionClosed, "an empty answer").into_up());
        }
        Reading::Event(tap) => {
            if let (Some(tap), Some(piece)) = (tap, &body) {
                tap.push(piece);
            }
            *body = Some(part_of_event(body.take(), first, end_of_stream));
        }
        Reading::Json(tap) => {
            if let Some(piece) = body {
                tap.push(piece);
            }
        }
        Reading::Stream(meter) => {
            let before = meter.events();
            let mut out = match body.take() {
                Some(piece) => meter.push(piece),
                None => Bytes::new(),
            };
            let events = meter.events() - before;
            if end_of_stream {
                let rest = meter.finish();
                out = if out.is_empty() { rest } else { joined(out, &rest) };
            }
            *body = Some(out);
            if events > 0 {
                pace(ctx, events);
            }
        }
    }
    Ok(())
}

/// A piece of a document, as a piece of an event: in JSON a line break is a space.
fn part_of_event(piece: Option<Bytes>, first: bool, last: bool) -> Bytes {
    let mut out = if first { b"data: ".to_vec() } else { Vec::new() };
    let line = |b: &u8| if matches!(b, b'\n' | b'\r') { b' ' } else { *b };
    out.extend(piece.iter().flat_map(|p| p.iter().map(line)));
    if last {
        out.extend_from_slice(b"\n\n");
    }
    out.into()
}

fn joined(first: Bytes, second: &Bytes) -> Bytes {
    if second.is_empty() {
        return first;
    }
    let mut all = Vec::with_capacity(first.len() + second.len());
    all.extend_from_slice(&first);
    all.extend_from_slice(second);
    all.into()
}

/// Notes when events came.
fn pace(ctx: &mut Ctx, events: u64) {
    let now = Instant::now();
    let metrics = &ctx.carry.metrics;
    match ctx.answer.last {
        None => {
            let wait = now - ctx.call.arrived;
            ctx.answer.first_token = Some(wait);
            metrics.first_token.observe(wait.as_secs_f64());
        }
        Some(last) => {
            // Events that came together share the time since the last ones.
            let each = (now - last).as_secs_f64() / events as f64;
            for _ in 0..events {
                metrics.inter_token.observe(each);
            }
        }
    }
    ctx.answer.last = Some(now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Strip;

    fn answer(events: &[&str]) -> Answer {
        let mut meter = StreamMeter::new(Strip::All { nulls: true });
        events.iter().for_each(|e| drop(meter.push(Bytes::from(format!("data: {e}\n\n")))));
        Answer { reading: Reading::Stream(Box::new(meter)), ..Answer::default() }
    }

    #[test]
    fn events_count_where_no_usage_is_reported() {
        let part = r#"{"choices":[{"delta":{"content":"a"}}],"usage":null}"#;
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}"#;
        assert_eq!(answer(&[part, part]).streamed(), 2);
        assert_eq!(answer(&[part, part, "[DONE]"]).streamed(), 2);
        assert_eq!(answer(&[part, part, usage, "[DONE]"]).streamed(), 0);
        assert_eq!(answer(&[]).streamed(), 0);
        assert_eq!(Answer::default().streamed(), 0);
    }

    #[test]
    fn a_document_becomes_one_event() {
        let mut all = Vec::new();
        for (piece, first, last) in [("{\n ", true, false), ("\"a\":\r\n1}", false, true)] {
            all.extend(part_of_event(Some(Bytes::from(piece)), first, last));
        }
        assert_eq!(all, b"data: {  \"a\":  1}\n\n");
    }
}
