//! Discovers backends while the gateway runs: resolves names again when their addresses expire, queries
//! the sources of `discovery`, and installs a new snapshot when the answers have changed.

mod query;
mod schedule;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    future::{OptionFuture, join_all},
    stream::{FuturesUnordered, StreamExt},
};
use tokio::sync::oneshot;

use self::{
    query::{Query, QueryOutcome, log_duplicates},
    schedule::Schedule,
};
use crate::{
    config::{
        Plan,
        plan::{BackendPlan, SourcePlan},
    },
    runtime::{Carry, Live, Snapshot},
};

/// The shortest time between two changes of the backends.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a change waits for the addresses of new backends.
const WAIT: Duration = Duration::from_secs(5);

/// Runs until the process ends. `completed` is sent when every query has completed once.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>, completed: oneshot::Sender<()>) {
    let mut completed = Some(completed);
    let mut schedule = Schedule::default();
    let mut running = FuturesUnordered::new();
    // When the first change was found that is not in force yet.
    let mut changed: Option<Instant> = None;
    let mut last: Option<Instant> = None;
    let mut plan = Arc::clone(&live.load().plan);
    let mut stale = true;
    loop {
        let now = Instant::now();
        if std::mem::take(&mut stale) {
            let before = std::mem::replace(&mut plan, Arc::clone(&live.load().plan));
            if before.discovery.dns_servers != plan.discovery.dns_servers {
                schedule = Schedule::default();
            }
            schedule.keep(queries(&plan, &carry.discovered.backends(&plan)), now);
            log_duplicates(&plan, &carry);
        }
        for query in schedule.take(now) {
            running.push(run_query(query, Arc::clone(&plan), Arc::clone(&carry)));
        }
        let due = changed.map(|at| {
            let complete = if schedule.all_completed() { at } else { at + WAIT };
            last.map_or(complete, |last| complete.max(last + PAUSE))
        });
        if due.is_some_and(|due| due <= now) {
            changed = None;
            if live.replace(&carry, |old| old.with_new_backends(&carry)).is_some() {
                last = Some(now);
            }
            continue;
        }
        if schedule.all_completed() && changed.is_none() {
            completed.take().map(|completed| completed.send(()));
        }
        let next = due.into_iter().chain(schedule.next()).min();
        let sleep: OptionFuture<_> = next.map(|at| tokio::time::sleep_until(at.into())).into();
        tokio::select! {
            Some((query, outcome)) = running.next() => {
                schedule.done(&query, Instant::now() + outcome.next_after);
                if let Query::Source(source) = &query {
                    live.while_current(|snapshot| {
                        update_gauges(source, outcome.answered, snapshot, &carry);
                    });
                }
                if outcome.changed {
                    // A changed list may have other names to resolve.
                    stale = matches!(query, Query::Source(_));
                    changed = changed.or(Some(Instant::now()));
                }
            }
            Some(()) = sleep => {}
            () = carry.discover_now.notified() => stale = true,
        }
    }
}

/// Runs the queries of a plan that is not in force yet whose answers are unknown, for at most [`WAIT`].
async fn prepare(plan: &Arc<Plan>, carry: &Arc<Carry>) {
    let all = async {
        // Sources first: they list the backends whose names are resolved.
        for sources in [true, false] {
            let backends = carry.discovered.backends(plan);
            let unknown = queries(plan, &backends).filter(|query| match query {
                Query::Source(source) => sources && carry.discovered.last_text(source).is_none(),
                Query::Name(host) => !sources && !carry.discovered.knows_name(host),
            });
            join_all(unknown.map(|query| run_query(query, Arc::clone(plan), Arc::clone(carry))))
                .await;
        }
    };
    tokio::time::timeout(WAIT, all).await.ok();
}

async fn run_query(query: Query, plan: Arc<Plan>, carry: Arc<Carry>) -> (Query, QueryOutcome) {
    let outcome = query::run(&query, &plan, &carry).await;
    (query, outcome)
}

/// Updates the gauges of a source, if it is still configured.
fn update_gauges(source: &SourcePlan, up: bool, snapshot: &Snapshot, carry: &Carry) {
    if snapshot.plan.discovery.sources.contains(source) {
        let count = i64::try_from(carry.discovered.listed_count(source)).unwrap_or(i64::MAX);
        carry.metrics.discovery_up.with_label_values(&[&source.name]).set(i64::from(up));
        carry.metrics.discovery_backends.with_label_values(&[&source.name]).set(count);
    }
}

/// The queries of a plan with these backends.
fn queries(plan: &Plan, backends: &[BackendPlan]) -> impl Iterator<Item = Query> {
    let names = backends.iter().filter(|b| b.literal().is_none());
    let names: Vec<_> = names.map(|b| Query::Name(b.dialled().0.to_owned())).collect();
    let sources = plan.discovery.sources.iter().cloned().map(Query::Source);
    sources.chain(names).collect::<Vec<_>>().into_iter()
}

/// Installs the generation of a new plan.
pub async fn reload(plan: Plan, live: &Live, carry: &Arc<Carry>) -> Arc<Snapshot> {
    let plan = Arc::new(plan);
    carry.discovered.set_reloading(true);
    prepare(&plan, carry).await;
    let plan = Arc::unwrap_or_clone(plan);
    let next = live.replace(carry, |old| Some(Snapshot::build(plan, Some(old), carry)));
    carry.discovered.set_reloading(false);
    let next = next.unwrap_or_else(|| live.load());
    carry.discovered.tidy(&next.plan, &next.backends);
    carry.discover_now.notify_one();
    next
}
