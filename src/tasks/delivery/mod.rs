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
    time::{MissedTickBehavior, interval},
};

use self::{gauges::Gauges, reporter::Reporter};
use crate::{
    config::plan::ReporterPlan,
    runtime::{Carry, Live},
    usage::Spool,
};

/// How often gauges are set.
const TICK: Duration = Duration::from_millis(250);

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
        follow(&plan.usage.reporters, &mut running, &carry).await;
        gauges.set(&carry);
        tokio::select! {
            () = carry.deliver_now.notified() => {}
            _ = ticks.tick() => {}
        }
    }
}

/// Ends reporters that are not wanted any more or not as they are, and starts those that are
/// missing.
async fn follow(wanted: &[ReporterPlan], running: &mut Running, carry: &Arc<Carry>) {
    let gone = running.extract_if(|_, (plan, _)| !wanted.contains(plan));
    for (name, (_, task)) in gone.collect::<Vec<_>>() {
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
        if AssertUnwindSafe(life).catch_unwind().await.is_err() {
            log::error!("usage reporter {}: it panicked, and begins anew", plan.name);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}
