//! One reporter: takes its records from the spool to its sink.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    failure_log::FailureLog,
    reader::{self, Reader},
};
use crate::{
    base::lock,
    config::plan::{Destination, ReporterPlan},
    runtime::Carry,
    telemetry::UsageMetrics,
    usage::{
        Cursor, Entry, ReporterStatus, Spool,
        dead_letters::DeadLetters,
        sink::{self, Pace, Resources, Sink},
    },
};

/// How often a sink cleans up, and how long that may take.
const TIDY: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(600));

/// Time from the start to the first clean-up of a sink.
const FIRST_TIDY: Duration = Duration::from_secs(60);

/// The longest time between two searches of a disabled reporter for records that are too old.
const AGE_CHECK: Duration = Duration::from_secs(60);

/// How often it checks whether the spool is short of space.
const SPACE_CHECK: Duration = Duration::from_secs(1);

pub struct Reporter {
    pub plan: ReporterPlan,
    pub pace: Pace,
    pub sink: Arc<dyn Sink>,
    /// How long one call to the sink may take, whatever the sink's own timeouts.
    pub call_timeout: Duration,
    pub standing: Arc<ReporterStatus>,
    /// Where records are put aside; `None`: they are given up instead.
    pub letters: Option<DeadLetters>,
    pub failures: FailureLog,
    /// Notified when the receiver has answered 410.
    pub gone: Notify,
    spool: Arc<Spool>,
    carry: Arc<Carry>,
    /// Its position in the spool. Saved by threads that may wait for the disk.
    cursor: Arc<Mutex<Cursor>>,
}

impl Reporter {
    /// A reporter at its saved position.
    pub fn new(plan: &ReporterPlan, spool: &Arc<Spool>, carry: &Arc<Carry>) -> Self {
        let standing = carry.usage.reporter(&plan.name, plan.to.word());
        let with = Resources { client: &carry.outside, stores: &carry.stores };
        let cursor = spool.cursor(&plan.name);
        standing.set_next(cursor.next());
        standing.delivers();
        let call_timeout = match &plan.to {
            Destination::Webhook(webhook) => webhook.timeout.saturating_add(Duration::from_secs(5)),
            _ => Duration::from_secs(60),
        };
        let reporter = Self {
            plan: plan.clone(),
            pace: Pace::of(plan),
            sink: sink::make(plan, with),
            call_timeout,
            standing,
            letters: carry.usage.folder().map(|folder| DeadLetters::open(folder, &plan.name)),
            failures: FailureLog::default(),
            gone: Notify::new(),
            spool: Arc::clone(spool),
            carry: Arc::clone(carry),
            cursor: Arc::new(Mutex::new(cursor)),
        };
        let (metrics, name) = (reporter.metrics(), [plan.name.as_str()]);
        metrics.disabled.with_label_values(&name).set(0);
        for counters in [&metrics.delivered, &metrics.errors, &metrics.dead] {
            counters.with_label_values(&name);
        }
        reporter
    }

    /// Delivers until it is dropped.
    pub async fn run(&self) {
        let deliver = async {
            tokio::select! {
                () = self.deliver() => {}
                // Deliveries under way are dropped with the other branch.
                () = self.gone.notified() => self.park().await,
            }
        };
        tokio::join!(deliver, self.tidy());
    }

    /// Delivers all records in order, several batches at a time if so configured.
    async fn deliver(&self) {
        let reader = self.reader();
        let batches = stream::unfold(reader, async |mut reader| {
            let batch = reader.batch().await;
            Some((batch, reader))
        });
        let at_a_time = self.pace.concurrency.max(1);
        // In the order of the batches, so that the position never skips an unsettled one.
        let settled = batches.map(|batch| self.settle(batch)).buffered(at_a_time);
        let mut settled = pin!(settled.ready_chunks(at_a_time));
        while let Some(positions) = settled.next().await {
            if let Some(next) = positions.last() {
                self.advance(*next).await;
            }
        }
    }

    fn reader(&self) -> Reader {
        let next = lock(&self.cursor).next();
        Reader::new(&self.spool, &self.carry, &self.standing, self.pace, next)
    }

    /// Sends nothing, because the receiver has answered 410. Records stay in the spool until they are too
    /// old or the spool is short of space, because they must not stop the gateway. Without a spool on
    /// disk they are given up at once.
    async fn park(&self) {
        let why = self.standing.failure().map(|(_, why)| why).unwrap_or_default();
        if self.letters.is_none() {
            let mut reader = self.reader();
            loop {
                let batch = reader.batch().await;
                self.give_up(&batch.entries, 1, &why);
                self.advance(batch.next).await;
            }
        }
        let check = (self.plan.max_age / 4).clamp(Duration::from_millis(100), AGE_CHECK);
        let mut checked = Instant::now();
        loop {
            sleep(check.min(SPACE_CHECK)).await;
            let short = self.spool.is_half_full();
            if short || checked.elapsed() >= check {
                while self.put_some_aside(short, &why).await {}
                checked = Instant::now();
            }
        }
    }

    /// Puts one portion of records aside, those that are too old or all; whether there may be more.
    async fn put_some_aside(&self, all: bool, why: &str) -> bool {
        let from = lock(&self.cursor).next();
        if self.spool.end() <= from {
            return false;
        }
        let Some((entries, next)) = reader::read(&self.spool, from, 256).await else {
            return false;
        };
        if let Some(first) = entries.first() {
            self.standing.has_read(first);
        }
        let n = if all { entries.len() } else { self.too_old(&entries) };
        let to = entries.get(n).map_or(next, |entry| entry.index);
        if to <= from || !self.put_aside(&entries[..n], why).await {
            return false;
        }
        self.advance(to).await;
        true
    }

    /// How many records at the beginning are older than `max_age`.
    pub fn too_old(&self, entries: &[Entry]) -> usize {
        let now = Timestamp::now().as_millisecond();
        let most = self.plan.max_age.as_millis();
        let age = |entry: &Entry| now.saturating_sub(entry.time).max(0).unsigned_abs();
        entries.iter().take_while(|entry| u128::from(age(entry)) > most).count()
    }

    /// Saves that everything before `next` is settled.
    async fn advance(&self, next: u64) {
        let cursor = Arc::clone(&self.cursor);
        let saved = spawn_blocking(move || {
            let mut cursor = lock(&cursor);
            match next > cursor.next() {
                true => cursor.advance(next),
                false => Ok(()),
            }
        });
        if let Err(why) = saved.await.unwrap_or_else(|e| Err(e.to_string()))
            && self.failures.logs_unsaved_cursor(Instant::now())
        {
            log::error!(
                "the usage spool: the position of reporter {} cannot be saved: {why}",
                self.plan.name
            );
        }
        self.standing.set_next(next);
    }

    /// Lets the sink clean up periodically, until it is dropped. Not at once: at the start there is enough
    /// to do, and an unused sink need not be opened.
    async fn tidy(&self) {
        sleep(FIRST_TIDY).await;
        loop {
            let call = AssertUnwindSafe(self.sink.tidy()).catch_unwind();
            let done = match timeout(TIDY.1, call).await {
                Ok(Ok(done)) => done,
                Ok(Err(_)) => Err("it panicked".to_owned()),
                Err(_) => Err(format!("it took longer than {:?}", TIDY.1)),
            };
            if let Err(why) = done {
                log::error!("usage reporter {}: cannot clean up: {why}", self.plan.name);
            }
            sleep(TIDY.0).await;
        }
    }

    /// The number of records that wait for it.
    pub fn waiting(&self) -> u64 {
        self.spool.behind(self.standing.next())
    }

    /// Whether it is a webhook, which has counters of its own.
    pub fn is_webhook(&self) -> bool {
        matches!(self.plan.to, Destination::Webhook(_))
    }

    pub fn metrics(&self) -> &UsageMetrics {
        self.carry.usage.metrics()
    }

    /// For how long attempts have failed, and why the last one did.
    pub fn failing(&self) -> Option<(Duration, String)> {
        self.failures.failing(Instant::now())
    }
}
