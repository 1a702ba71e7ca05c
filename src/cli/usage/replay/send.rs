//! Sends records with the sink of a reporter, each once.

use std::{collections::HashSet, pin::Pin, sync::Arc, time::Duration};

use indicatif::ProgressBar;

use crate::usage::{
    Entry,
    sink::{DeliveryError, Sink},
};

/// Attempts to send the same records before the replay stops.
const ATTEMPTS: u32 = 5;

/// The pause after the first attempt; it doubles after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A receiver that asks for a longer pause stops the replay: an operator waits for this command.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Refused records that are printed.
const PRINTED: usize = 10;

/// Sends records.
pub struct Sender {
    name: String,
    sink: Arc<dyn Sink>,
    bar: ProgressBar,
    sent: Sent,
    interrupt: Pin<Box<dyn Future<Output = ()>>>,
}

/// How a replay ended.
#[derive(Default)]
pub struct Sent {
    /// Records that were accepted or refused.
    pub done: u64,
    /// The refused ones, counted from 0 in the order of sending.
    pub refused: HashSet<u64>,
    /// Why the others were not sent; `None`: all were.
    pub stopped: Option<Stopped>,
}

impl Sent {
    /// Whether the `n`th record was not accepted.
    pub fn is_left(&self, n: u64) -> bool {
        n >= self.done || self.refused.contains(&n)
    }
}

/// Why the replay stopped early.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The index of the first record that was not sent; `None`: not a single one could be read.
    pub index: Option<u64>,
    pub why: String,
}

impl Sender {
    /// Sends to the sink of a reporter with this name. Ctrl-C stops it.
    pub fn new(name: &str, sink: Arc<dyn Sink>, bar: ProgressBar) -> Self {
        let interrupt = Box::pin(async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        Self { name: name.to_owned(), sink, bar, sent: Sent::default(), interrupt }
    }

    /// Sends all, `most` at a time. A record that cannot be read stops the replay.
    pub async fn send_all(
        mut self,
        records: impl Iterator<Item = Result<Entry, String>>,
        most: usize,
    ) -> Sent {
        let (mut batch, mut next) = (Vec::new(), None);
        for record in records {
            match record {
                Ok(entry) => {
                    next = Some(entry.index + 1);
                    batch.push(entry);
                }
                Err(why) => {
                    let stopped = self.send(batch).await;
                    self.sent.stopped = stopped.or(Some(Stopped { index: next, why }));
                    return self.end();
                }
            }
            if batch.len() >= most {
                self.sent.stopped = self.send(std::mem::take(&mut batch)).await;
                if self.sent.stopped.is_some() {
                    return self.end();
                }
            }
        }
        self.sent.stopped = self.send(batch).await;
        self.end()
    }

    fn end(self) -> Sent {
        self.bar.finish_and_clear();
        self.sent
    }

    /// Sends a batch. A refused batch is halved until the records at fault are found; they are
    /// skipped.
    async fn send(&mut self, batch: Vec<Entry>) -> Option<Stopped> {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            let Some(first) = part.first() else { continue };
            let (index, n) = (Some(first.index), part.len() as u64);
            match self.attempts(&part).await {
                Ok(()) => self.done(n),
                Err(DeliveryError::Refused { .. }) if n > 1 => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                }
                Err(DeliveryError::Refused { why }) => {
                    self.refused(&part[0], &why);
                    self.done(1);
                }
                Err(DeliveryError::Unavailable { why, .. } | DeliveryError::Gone { why }) => {
                    return Some(Stopped { index, why });
                }
            }
        }
        None
    }

    fn done(&mut self, n: u64) {
        self.sent.done += n;
        self.bar.inc(n);
    }

    fn refused(&mut self, entry: &Entry, why: &str) {
        self.sent.refused.insert(self.sent.done);
        match self.sent.refused.len() {
            n if n <= PRINTED => {
                self.bar.suspend(|| eprintln!("llmproxy: #{} was refused: {why}", entry.index));
            }
            n if n == PRINTED + 1 => {
                self.bar.suspend(|| eprintln!("llmproxy: further refused records are not printed"))
            }
            _ => {}
        }
    }

    /// Sends records, with retries while the receiver is away.
    async fn attempts(&mut self, records: &[Entry]) -> Result<(), DeliveryError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match self.attempt(records).await {
                Err(DeliveryError::Unavailable { why, retry_after }) => {
                    let wait = pause.max(retry_after.unwrap_or_default());
                    if wait > LONGEST_PAUSE {
                        let why = format!("{why}, and asks for a pause of {wait:?}");
                        return Err(DeliveryError::unavailable(why));
                    }
                    let name = &self.name;
                    self.bar.suspend(|| eprintln!("llmproxy: {name}: {why}; retrying in {wait:?}"));
                    self.or_interrupted(tokio::time::sleep(wait)).await?;
                    pause *= 2;
                }
                done => return done,
            }
        }
        self.attempt(records).await
    }

    async fn attempt(&mut self, records: &[Entry]) -> Result<(), DeliveryError> {
        let sink = Arc::clone(&self.sink);
        self.or_interrupted(sink.deliver(records)).await?
    }

    async fn or_interrupted<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, DeliveryError> {
        tokio::select! {
            done = work => Ok(done),
            () = &mut self.interrupt => {
                // A future that has ended must not be polled again.
                self.interrupt = Box::pin(std::future::pending());
                Err(DeliveryError::Gone { why: "interrupted".to_owned() })
            }
        }
    }
}
