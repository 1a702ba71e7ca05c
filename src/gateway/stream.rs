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
    /// As a document that is passed on as one event.
    Event,
}

impl Answer {
    /// The counts, and what they are worth.
    pub fn usage(&self) -> (TokenCounts, UsageSource) {
        match &self.reading {
            Reading::Nothing | Reading::Event => Default::default(),
            Reading::Json(tap) => tap.usage(),
            Reading::Stream(meter) => meter.usage(),
        }
    }

    /// The engine broke the generation off, or said that it failed.
    pub fn broken_off(&self) -> bool {
        match &self.reading {
            Reading::Nothing | Reading::Event => false,
            Reading::Json(tap) => tap.aborted(),
            Reading::Stream(meter) => meter.aborted() || meter.failed(),
        }
    }
}

/// Reads the next piece; what is put back goes to the client.
///
/// # Errors
/// If a deadline has cut the answer off: without a length or chunks its end looks like any other.
pub fn filter(body: &mut Option<Bytes>, end_of_stream: bool, ctx: &mut Ctx) -> Result<()> {
    if end_of_stream && ctx.way.watch.as_ref().is_some_and(|w| w.fired().is_some()) {
        return Err(Error::explain(ErrorType::ReadTimedout, "cut off by a deadline").into_up());
    }
    let answer = &mut ctx.answer;
    answer.whole |= end_of_stream;
    let first = body.is_some() && !answer.begun;
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
        Reading::Event => *body = Some(part_of_event(body.take(), first, end_of_stream)),
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
