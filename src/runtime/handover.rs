//! What follows when a new snapshot has replaced the old one: names, gauges, memory of removed backends.

use std::{
    collections::{BTreeSet, HashSet},
    time::Instant,
};

use super::{carry::Carry, snapshot::Snapshot};

/// The most backends that one log line names.
const MOST_NAMED: usize = 20;

/// Completes the change from `old` to `next`, which new requests already get.
pub fn finish(old: &Snapshot, next: &Snapshot, carry: &Carry) {
    carry.drained.apply(&next.endpoints);
    let ids: HashSet<_> = next.endpoints.iter().map(|e| e.id).collect();
    // First the names, then the gauges: after this no endpoint writes the old gauges.
    old.endpoints.iter().filter(|e| !ids.contains(&e.id)).for_each(|e| e.retire());
    next.endpoints.iter().for_each(|e| e.activate());
    let (before, after) = (names(old), names(next));
    for removed in before.difference(&after) {
        carry.metrics.backend_up.remove_label_values(&[removed]).ok();
        carry.metrics.balance.forget(removed);
    }
    for removed in &old.plan.discovery.sources {
        if !next.plan.discovery.sources.iter().any(|s| s.name == removed.name) {
            carry.metrics.discovery_up.remove_label_values(&[&removed.name]).ok();
            carry.metrics.discovery_backends.remove_label_values(&[&removed.name]).ok();
        }
    }
    carry.ids.tidy(&ids, Instant::now());
    carry.discovered.tidy(&next.plan, &next.backends);
    let generation = next.generation;
    let (added, removed) = (list(after.difference(&before)), list(before.difference(&after)));
    if !added.is_empty() {
        log::info!("configuration {generation}: backends added: {added}");
    }
    if !removed.is_empty() {
        log::info!("configuration {generation}: backends removed: {removed}");
    }
    carry.probe_now.notify_one();
}

fn names(snapshot: &Snapshot) -> BTreeSet<String> {
    snapshot.endpoints.iter().map(|e| (*e.name).to_owned()).collect()
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.len().checked_sub(MOST_NAMED) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..MOST_NAMED].join(", ")),
    }
}
