//! Delivers usage records: a task for each reporter, which reads the spool at its own pace.

mod failure_log;
mod gauges;
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

/// Time between two updates of the gauges.
const TICK: Duration = Duration::from_millis(250);

/// Pause after a panic.
const REST: Duration = Duration::from_secs(5);

/// The running reporters, by name.
type Running = HashMap<String, (ReporterPlan, JoinHandle<()>)>;

/// Runs until the process ends: starts, changes and stops reporters as configured.
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
        if !survives_panic("the delivery of usage records", turn).await {
            sleep(REST).await;
        }
        tokio::select! {
            () = carry.deliver_now.notified() => {}
            _ = ticks.tick() => {}
        }
    }
}

/// Stops reporters that were removed or changed, and starts those that do not run.
async fn follow(wanted: &[ReporterPlan], running: &mut Running, carry: &Arc<Carry>) {
    let stopped = |(name, (plan, task)): (&String, &(ReporterPlan, JoinHandle<()>))| {
        (!wanted.contains(plan) || task.is_finished()).then(|| name.clone())
    };
    let stopped: Vec<_> = running.iter().filter_map(stopped).collect();
    for name in stopped {
        let Some((_, task)) = running.remove(&name) else { continue };
        // The next task of the reporter may repeat a call that is under way.
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

/// Runs a reporter, and restarts it after a panic.
async fn report(plan: ReporterPlan, spool: Arc<Spool>, carry: Arc<Carry>) {
    loop {
        let work = async { Reporter::new(&plan, &spool, &carry).run().await };
        survives_panic(&format!("usage reporter {}", plan.name), work).await;
        sleep(REST).await;
    }
}

/// Runs something that may panic, without ending the caller; `false` if it has panicked.
async fn survives_panic(what: &str, work: impl Future<Output = ()>) -> bool {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    if done.is_err() {
        log::error!("{what}: it panicked and is restarted");
    }
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[tokio::test]
    async fn a_panic_ends_nothing_but_itself() {
        assert!(survives_panic("a test", async {}).await);
        assert!(!survives_panic("a test", async { panic!("for the test") }).await);
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
