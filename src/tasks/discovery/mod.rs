//! Finds backends while the gateway runs: looks names up again when their addresses end, asks the
//! sources of `discovery`, and puts a new snapshot in place when the answers differ.

mod ask;
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
    ask::{Item, Outcome, ask, doubles},
    schedule::Schedule,
};
use crate::{
    config::{
        Plan,
        plan::{BackendPlan, SourcePlan},
    },
    runtime::{Carry, Live, Snapshot},
};

/// From one change of the backends to the next, at least.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a change waits for what it has brought up: the names of new backends.
const WAIT: Duration = Duration::from_secs(5);

/// Runs for ever. `first` is told when everything has been asked for once.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>, first: oneshot::Sender<()>) {
    let mut first = Some(first);
    let mut schedule = Schedule::default();
    let mut asked = FuturesUnordered::new();
    // When something was found out that is not in force yet.
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
            schedule.keep(items(&plan, &carry.found.backends(&plan)), now);
            doubles(&plan, &carry);
        }
        for item in schedule.take(now) {
            asked.push(look(item, Arc::clone(&plan), Arc::clone(&carry)));
        }
        let due = changed.map(|at| {
            let complete = if schedule.all_known() { at } else { at + WAIT };
            last.map_or(complete, |last| complete.max(last + PAUSE))
        });
        if due.is_some_and(|due| due <= now) {
            changed = None;
            if live.replace(&carry, |old| old.with_new_backends(&carry)).is_some() {
                last = Some(now);
            }
            continue;
        }
        if schedule.all_known() && changed.is_none() {
            first.take().map(|first| first.send(()));
        }
        let next = due.into_iter().chain(schedule.next()).min();
        let sleep: OptionFuture<_> = next.map(|at| tokio::time::sleep_until(at.into())).into();
        tokio::select! {
            Some((item, outcome)) = asked.next() => {
                schedule.done(&item, Instant::now() + outcome.again);
                if let Item::Source(source) = &item {
                    live.steady(|snapshot| show(source, outcome.answered, snapshot, &carry));
                }
                if outcome.news {
                    // Another list has other names.
                    stale = matches!(item, Item::Source(_));
                    changed = changed.or(Some(Instant::now()));
                }
            }
            Some(()) = sleep => {}
            () = carry.discover_now.notified() => stale = true,
        }
    }
}

/// Finds out what a plan that is not in force yet will need and that is not known, as far as that
/// is possible in a few seconds.
async fn learn(plan: &Arc<Plan>, carry: &Arc<Carry>) {
    let all = async {
        // Sources first: they tell of names.
        for sources in [true, false] {
            let backends = carry.found.backends(plan);
            let unknown = items(plan, &backends).filter(|item| match item {
                Item::Source(source) => sources && carry.found.text(source).is_none(),
                Item::Name(host) => !sources && !carry.found.knows(host),
            });
            join_all(unknown.map(|item| look(item, Arc::clone(plan), Arc::clone(carry)))).await;
        }
    };
    tokio::time::timeout(WAIT, all).await.ok();
}

async fn look(item: Item, plan: Arc<Plan>, carry: Arc<Carry>) -> (Item, Outcome) {
    let outcome = ask(&item, &plan, &carry).await;
    (item, outcome)
}

/// Shows how a source stands, if it is still one.
fn show(source: &SourcePlan, up: bool, snapshot: &Snapshot, carry: &Carry) {
    if snapshot.plan.discovery.sources.contains(source) {
        let told = i64::try_from(carry.found.told(source)).unwrap_or(i64::MAX);
        carry.metrics.discovery_up.with_label_values(&[&source.name]).set(i64::from(up));
        carry.metrics.discovery_backends.with_label_values(&[&source.name]).set(told);
    }
}

/// What there is to ask for.
fn items(plan: &Plan, backends: &[BackendPlan]) -> impl Iterator<Item = Item> {
    let names = backends.iter().filter(|b| b.literal().is_none());
    let names: Vec<_> = names.map(|b| Item::Name(b.dialled().0.to_owned())).collect();
    let sources = plan.discovery.sources.iter().cloned().map(Item::Source);
    sources.chain(names).collect::<Vec<_>>().into_iter()
}

/// Reloads: the generation that follows `live` by this plan.
pub async fn reload(plan: Plan, live: &Live, carry: &Arc<Carry>) -> Arc<Snapshot> {
    let plan = Arc::new(plan);
    carry.found.learning(true);
    learn(&plan, carry).await;
    let plan = Arc::unwrap_or_clone(plan);
    let next = live.replace(carry, |old| Some(Snapshot::build(plan, Some(old), carry)));
    carry.found.learning(false);
    let next = next.unwrap_or_else(|| live.load());
    carry.found.tidy(&next.plan, &next.backends);
    carry.discover_now.notify_one();
    next
}
