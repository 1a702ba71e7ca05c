//! Delivers usage records: a task for each reporter, which goes along the spool at its own pace.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use crate::{
    config::plan::ReporterPlan,
    runtime::{Carry, Live},
    usage::{
        Cursor, Spool, Standing,
        sink::{self, Pace, Resources, Sink},
    },
};

const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Runs for ever: starts, changes and ends the reporters as the configuration says.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>) {
    let mut running: HashMap<String, (ReporterPlan, JoinHandle<()>)> = HashMap::new();
    loop {
        let plan = Arc::clone(&live.load().plan);
        let wanted = &plan.usage.reporters;
        let gone: Vec<String> = running
            .iter()
            .filter(|(_, (plan, _))| !wanted.contains(plan))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some((_, task)) = running.remove(&name) {
                task.abort();
                task.await.ok();
            }
            if !wanted.iter().any(|plan| plan.name == name) {
                carry.usage.forget(&name);
            }
        }
        if let Some(spool) = carry.usage.spool() {
            for plan in wanted {
                if !running.contains_key(&plan.name) {
                    let task =
                        tokio::spawn(report(plan.clone(), Arc::clone(spool), Arc::clone(&carry)));
                    running.insert(plan.name.clone(), (plan.clone(), task));
                }
            }
        }
        carry.deliver_now.notified().await;
    }
}

/// One reporter.
async fn report(plan: ReporterPlan, spool: Arc<Spool>, carry: Arc<Carry>) {
    let standing = carry.usage.standing(&plan.name, plan.to.word());
    let with = Resources { client: &carry.outside, stores: &carry.stores };
    let sink = sink::make(&plan, with);
    let pace = Pace::of(&plan);
    let mut cursor = spool.cursor(&plan.name);
    standing.set_next(cursor.next());
    let mut ends = spool.ends();
    loop {
        if spool.end() <= cursor.next() && ends.changed().await.is_err() {
            return;
        }
        turn(&plan, &spool, &*sink, &standing, pace, &mut cursor, &carry).await;
    }
}

#[expect(clippy::too_many_arguments, reason = "being built")]
async fn turn(
    plan: &ReporterPlan,
    spool: &Spool,
    sink: &dyn Sink,
    standing: &Standing,
    pace: Pace,
    cursor: &mut Cursor,
    carry: &Carry,
) {
    let (entries, next) = match spool.read(cursor.next(), pace.batch) {
        Ok(read) => read,
        Err(why) => {
            log::error!("the usage spool: {why}");
            tokio::time::sleep(FIRST_PAUSE).await;
            return;
        }
    };
    let mut attempt = 0;
    while !entries.is_empty() {
        match sink.deliver(&entries).await {
            Ok(()) => {
                carry.metrics.usage.webhook_success.inc_by(entries.len() as u64);
                break;
            }
            Err(failure) if attempt >= pace.retry => {
                carry.metrics.usage.webhook_failure.inc_by(entries.len() as u64);
                log::error!(
                    "usage records given up after {} attempts: {} {}",
                    attempt + 1,
                    plan.name,
                    failure.why()
                );
                break;
            }
            Err(failure) => log::warn!("usage records: {} {}", plan.name, failure.why()),
        }
        tokio::time::sleep(pause(attempt, plan.max_backoff, rand::random())).await;
        attempt += 1;
    }
    if let Err(why) = cursor.advance(next) {
        log::error!("the usage spool: {why}");
    }
    standing.set_next(next);
}

/// The pause after an attempt: doubled each time, and shortened by up to a half at random (`dice`
/// from 0 to 1), so that many do not come back together.
fn pause(attempt: u32, longest: Duration, dice: f64) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << attempt.min(16)).min(longest);
    full.mul_f64(1.0 - dice / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_growing() {
        let minute = Duration::from_secs(60);
        assert_eq!(pause(0, minute, 0.0), Duration::from_millis(500));
        assert_eq!(pause(3, minute, 0.0), Duration::from_millis(4000));
        assert_eq!(pause(3, minute, 1.0), Duration::from_millis(2000));
        assert_eq!(pause(60, minute, 0.0), minute);
    }
}
