//! The story of a request for `/admin/v1/explain`: its tries, and how the backends stood then.

use std::time::{Duration, Instant};

use super::{ctx::Ctx, tries::Picked};
use crate::{
    balance::{Candidate, PickRequest, Pool},
    runtime::explain::{self, AttemptTrace, Trace},
};

/// Backends of a pool of which it is told how they stood.
const CANDIDATES: usize = 16;

/// The tries so far.
#[derive(Default)]
pub struct Story {
    tries: Vec<AttemptTrace>,
    /// When each was begun; `None` once it has ended.
    since: Vec<Option<Instant>>,
    /// The one that is told of.
    present: usize,
    /// How long the request waited for a slot.
    pub queued: Option<Duration>,
}

/// How the backends of a pool stand, if anybody may ask.
pub fn candidates(ctx: &Ctx, pool: &Pool, wish: &PickRequest<'_>) -> Vec<Candidate> {
    if ctx.carry.explains.capacity() == 0 {
        return Vec::new();
    }
    pool.candidates(wish, CANDIDATES)
}

/// Where a backend was looked for.
pub struct Place {
    /// Tiers before this one.
    pub tier: usize,
    /// The pool.
    pub pool: usize,
    /// The model's name there.
    pub model: String,
    /// How its backends stood.
    pub candidates: Vec<Candidate>,
}

fn told(candidates: Vec<Candidate>) -> Vec<explain::Candidate> {
    candidates.into_iter().map(Into::into).collect()
}

impl Story {
    /// A try begins.
    pub fn begin(&mut self, arrived: Instant, model: Option<&str>, picked: &mut Picked) {
        let now = Instant::now();
        self.present = self.tries.len();
        self.since.push(Some(now));
        self.tries.push(AttemptTrace {
            at_ms: millis(now - arrived),
            tier: picked.tier,
            pool: picked.pool,
            model: picked.model.as_deref().or(model).unwrap_or_default().to_owned(),
            backend: picked.choice.endpoint.name.clone(),
            candidates: told(std::mem::take(&mut picked.candidates)),
            first_byte_ms: None,
            took_ms: 0,
            result: String::new(),
            hedge: false,
        });
    }

    /// There was nobody to choose.
    pub fn nobody(&mut self, arrived: Instant, place: Place) {
        // That all have been tried can be seen without this.
        if place.candidates.iter().all(|candidate| candidate.barred == Some("tried")) {
            return;
        }
        self.since.push(None);
        self.tries.push(AttemptTrace {
            at_ms: millis(arrived.elapsed()),
            tier: place.tier,
            pool: place.pool,
            model: place.model,
            backend: String::new(),
            candidates: told(place.candidates),
            first_byte_ms: None,
            took_ms: 0,
            result: "no backend available".to_owned(),
            hedge: false,
        });
    }

    /// The first byte of its answer has come.
    pub fn first_byte(&mut self) {
        if let Some((present, since)) = self.open() {
            present.first_byte_ms.get_or_insert_with(|| millis(since.elapsed()));
        }
    }

    /// The first byte of its answer came at `at`.
    pub fn first_byte_at(&mut self, at: Instant) {
        if let Some((present, since)) = self.open() {
            present.first_byte_ms = Some(millis(at.saturating_duration_since(since)));
        }
    }

    /// The present try is made at the same time as another one.
    pub fn hedge(&mut self) {
        if let Some(present) = self.tries.get_mut(self.present) {
            present.hedge = true;
        }
    }

    /// The place of the present try.
    pub fn present(&self) -> usize {
        self.present
    }

    /// What is told from now on is told of the try at this place.
    pub fn turn_to(&mut self, place: usize) {
        self.present = place;
    }

    fn open(&mut self) -> Option<(&mut AttemptTrace, Instant)> {
        let since = (*self.since.get(self.present)?)?;
        Some((self.tries.get_mut(self.present)?, since))
    }

    /// The present try has ended.
    pub fn end(&mut self, result: String) {
        if let Some((present, since)) = self.open() {
            present.took_ms = millis(since.elapsed());
            present.result = result;
            self.since[self.present] = None;
        }
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// Keeps the story of a request that has ended.
pub fn keep(ctx: &mut Ctx, status: u16, outcome: &str, duration: Duration) {
    let explains = &ctx.carry.explains;
    if explains.capacity() == 0 || ctx.way.route.is_none() && ctx.end.rejection.is_none() {
        return;
    }
    let result = match (&ctx.end.fault, ctx.answer.status) {
        (Some(fault), _) => fault.word().to_owned(),
        (None, Some(status @ 200..=299)) if ctx.answer.broken_off() => {
            format!("status {status}, broken off")
        }
        (None, Some(200..=299)) => "ok".to_owned(),
        (None, Some(status)) => format!("status {status}"),
        (None, None) => "no answer".to_owned(),
    };
    ctx.way.story.end(result);
    let who = ctx.who.principal.as_deref();
    explains.put(Trace {
        request_id: ctx.call.id.as_str().to_owned(),
        time: jiff::Timestamp::now() - duration,
        model: ctx.call.model.clone().unwrap_or_default(),
        key_id: who.map(|p| p.key_id.clone()).unwrap_or_default(),
        user_id: who.map(|p| p.user_id.clone()).unwrap_or_default(),
        tries: std::mem::take(&mut ctx.way.story.tries),
        outcome: outcome.to_owned(),
        status,
        duration_ms: millis(duration),
        queued_ms: ctx.way.story.queued.map(millis),
    });
}
