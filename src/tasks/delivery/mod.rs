//! Delivers usage records: a task for each reporter, which goes along the spool at its own pace.

mod gauges;
mod mood;
mod reader;
mod reporter;
mod settle;

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use self::{gauges::Gauges, reporter::Reporter};
use crate::{
    config::plan::ReporterPlan,
    runtime::{Carry, Live},
    usage::Spool,
};

/// How often gauges are set.
const TICK: Duration = Duration::from_millis(250);

/// After a panic.
const REST: Duration = Duration::from_secs(5);

/// The reporters that run.
type Running = HashMap<String, (ReporterPlan, JoinHandle<()>)>;

/// Runs for ever: starts, changes and ends the reporters as the configuration says.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>) {
    let mut running = Running::new();
    let mut gauges = Gauges::default();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let plan = Arc::clone(&live.load().plan);
        let turn = async {
            follow(&plan.usage.reporters, &mut running, &carry).await;
            gauges.set(&carry);
        };
        if !unharmed("the delivery of usage records", turn).await {
            sleep(REST).await;
        }
        tokio::select! {
            () = carry.deliver_now.notified() => {}
            _ = ticks.tick() => {}
        }
    }
}

/// Ends reporters that are not wanted any more or not as they are, and starts those that are
/// missing.
async fn follow(wanted: &[ReporterPlan], running: &mut Running, carry: &Arc<Carry>) {
    let gone = |(name, (plan, task)): (&String, &(ReporterPlan, JoinHandle<()>))| {
        (!wanted.contains(plan) || task.is_finished()).then(|| name.clone())
    };
    let gone: Vec<_> = running.iter().filter_map(gone).collect();
    for name in gone {
        let Some((_, task)) = running.remove(&name) else { continue };
        // A call that is under way may be made once more by its successor.
        task.abort();
        task.await.ok();
        if !wanted.iter().any(|plan| plan.name == name) {
            carry.usage.forget(&name);
        }
    }
    let Some(spool) = carry.usage.spool() else { return };
    for plan in wanted {
        if !running.contains_key(&plan.name) {
            let task = tokio::spawn(report(plan.clone(), Arc::clone(spool), Arc::clone(carry)));
            running.insert(plan.name.clone(), (plan.clone(), task));
        }
    }
}

/// One reporter, for ever: a defect of its own does not end it.
async fn report(plan: ReporterPlan, spool: Arc<Spool>, carry: Arc<Carry>) {
    loop {
        let life = async { Reporter::new(&plan, &spool, &carry).run().await };
        unharmed(&format!("usage reporter {}", plan.name), life).await;
        sleep(REST).await;
    }
}

/// Waits for something that may panic, which must not end what comes after it; whether it did not.
async fn unharmed(what: &str, work: impl Future<Output = ()>) -> bool {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    if done.is_err() {
        log::error!("{what}: it panicked, and begins anew");
    }
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[tokio::test]
    async fn a_panic_ends_nothing_but_itself() {
        assert!(unharmed("a test", async {}).await);
        assert!(!unharmed("a test", async { panic!("as the test wants") }).await);
    }

    #[tokio::test]
    async fn a_reporter_that_has_ended_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let text = "backends: [{url: \"http://127.0.0.1:1\"}]
usage: {reporters: [{type: file, file: {path: usage.jsonl}}]}
";
        let plan = config::load_text(text, folder.path(), &|_| None).plan.unwrap().usage;
        let at = |name: &str| folder.path().join(name);
        let (carry, _) = Carry::new(at("keys.db"), at("limits.db"), Some(at("usage")));
        carry.usage.open(&plan).unwrap();
        let mut running = Running::new();
        let task = tokio::spawn(async {});
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        running.insert("file".to_owned(), (plan.reporters[0].clone(), task));
        follow(&plan.reporters, &mut running, &carry).await;
        assert!(!running["file"].1.is_finished());
        follow(&[], &mut running, &carry).await;
        assert!(running.is_empty() && carry.usage.reporters().is_empty());
    }
}
