//! Where backends are, as far as is known now, and the endpoints that follow from it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{Carry, Snapshot};
use crate::{
    balance::Endpoint,
    base::lock,
    config::{
        Plan,
        plan::{BackendPlan, DiscoveryMode, SourcePlan, TimeoutPlan},
        raw::Addresses,
    },
    store::dns,
};

/// Names that one line of the log tells at most.
const TOLD: usize = 20;

/// What name servers and sources have told.
#[derive(Default)]
pub struct Found(Mutex<Known>);

#[derive(Default)]
struct Known {
    names: HashMap<String, Name>,
    lists: HashMap<String, List>,
    /// What was complained of last, by name or source.
    complaints: HashMap<String, String>,
    /// A plan that is not in force yet is finding its backends.
    learning: bool,
}

/// Where a name leads.
#[derive(Default)]
struct Name {
    addresses: Vec<IpAddr>,
    /// Those of the other family, for backends that are one server at all of them.
    further: Vec<IpAddr>,
    /// The name servers have said that there is nothing, where there had been addresses.
    doubted: bool,
}

/// What a source told.
struct List {
    source: SourcePlan,
    text: Arc<str>,
    backends: Vec<BackendPlan>,
    /// It has told an empty list since.
    doubted: bool,
}

/// What has become of a list that a source told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is what was known.
    Same,
    /// It has changed something.
    News,
    /// It is empty where there had been backends, for the first time: it does not count yet.
    Doubted,
}

impl Found {
    /// Takes in what the name servers say of a name; whether anything has changed. That there are
    /// no addresses any more counts when they say it twice: a word too many in a name server that
    /// starts must not cost all backends.
    pub fn name(&self, host: &str, answer: &dns::Resolution) -> bool {
        let known = &mut *lock(&self.0);
        let name = known.names.entry(host.to_owned()).or_default();
        if answer.addresses.is_empty() && !name.addresses.is_empty() && !name.doubted {
            name.doubted = true;
            return false;
        }
        name.doubted = false;
        let set = |list: &[IpAddr]| list.iter().copied().collect::<BTreeSet<_>>();
        let mut changed = false;
        let now = [&answer.addresses, &answer.extra_ipv6];
        for (known, now) in [&mut name.addresses, &mut name.further].into_iter().zip(now) {
            if set(known) != set(now) {
                known.clone_from(now);
                changed = true;
            }
        }
        changed
    }

    /// Takes in what a source told. An empty list counts when it is told twice, as with names: a
    /// service that starts, or a file that is written anew, must not cost all backends.
    pub fn list(&self, source: &SourcePlan, text: &str, backends: Vec<BackendPlan>) -> Taken {
        let known = &mut *lock(&self.0);
        let earlier = known.lists.get_mut(&source.name);
        let taken = match &earlier {
            Some(list) if list.backends == backends => Taken::Same,
            _ => Taken::News,
        };
        if let Some(list) = earlier
            && taken == Taken::News
            && backends.is_empty()
            && !list.doubted
        {
            list.doubted = true;
            return Taken::Doubted;
        }
        let list = List { source: source.clone(), text: text.into(), backends, doubted: false };
        known.lists.insert(source.name.clone(), list);
        taken
    }

    /// A source has told what it told before.
    pub fn same(&self, source: &SourcePlan) {
        if let Some(list) = lock(&self.0).lists.get_mut(&source.name) {
            list.doubted = false;
        }
    }

    /// What a source told last, if it is still asked in the same way.
    pub fn text(&self, source: &SourcePlan) -> Option<Arc<str>> {
        let known = lock(&self.0);
        let list = known.lists.get(&source.name)?;
        (list.source == *source).then(|| Arc::clone(&list.text))
    }

    /// How many backends a source told of last.
    pub fn told(&self, source: &SourcePlan) -> usize {
        lock(&self.0).lists.get(&source.name).map_or(0, |list| list.backends.len())
    }

    /// Whether it is known where a name leads, or that it leads nowhere.
    pub fn knows(&self, host: &str) -> bool {
        lock(&self.0).names.contains_key(host)
    }

    /// Whether a complaint about something is another one than the last; `None`: all is well.
    pub fn complaint(&self, about: &str, what: Option<&str>) -> bool {
        let complaints = &mut lock(&self.0).complaints;
        match what {
            None => complaints.remove(about).is_some(),
            Some(what) => {
                complaints.insert(about.to_owned(), what.to_owned()).as_deref() != Some(what)
            }
        }
    }

    /// Whether a plan that is not in force yet is finding its backends: nothing is forgotten.
    pub fn learning(&self, on: bool) {
        lock(&self.0).learning = on;
    }

    /// Forgets what a plan and its backends do not name.
    pub fn tidy(&self, plan: &Plan, backends: &[BackendPlan]) {
        let hosts: HashSet<_> = backends.iter().map(|b| b.dialled().0).collect();
        let known = &mut *lock(&self.0);
        if known.learning {
            return;
        }
        let named = |about: &str| about.strip_prefix("name ").is_none_or(|n| hosts.contains(n));
        known.complaints.retain(|about, _| named(about));
        known.names.retain(|host, _| hosts.contains(host.as_str()));
        let sources = &plan.discovery.sources;
        known.lists.retain(|name, _| sources.iter().any(|s| s.name == *name));
    }

    /// All backends: those of the file and those that sources tell of, each name once.
    pub fn backends(&self, plan: &Plan) -> Vec<BackendPlan> {
        let known = lock(&self.0);
        let lists: Vec<&[BackendPlan]> = plan
            .discovery
            .sources
            .iter()
            .filter_map(|source| known.lists.get(&source.name))
            .map(|list| list.backends.as_slice())
            .collect();
        match plan.discovery.mode {
            DiscoveryMode::Merge => merge(std::iter::once(&*plan.backends).chain(lists)),
            DiscoveryMode::First => {
                let first = lists.into_iter().find(|list| !list.is_empty());
                first.unwrap_or(&plan.backends).to_vec()
            }
        }
    }

    /// Names of backends that stand more than once, in the file and in lists that go together.
    pub fn doubles(&self, plan: &Plan) -> Vec<String> {
        if plan.discovery.mode == DiscoveryMode::First {
            return Vec::new();
        }
        let known = lock(&self.0);
        let lists = plan.discovery.sources.iter().filter_map(|s| known.lists.get(&s.name));
        let all = plan.backends.iter().chain(lists.flat_map(|list| &list.backends));
        let mut names = HashSet::new();
        let doubles = all.filter(|b| !names.insert(b.name.as_str()));
        doubles.map(|b| b.name.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The places of a backend; `before` is where it was. Where each address counts each is an
    /// endpoint; otherwise the first is where the backend is, and the others stand in for it.
    fn places(&self, backend: &BackendPlan, before: Option<SocketAddr>) -> Vec<SocketAddr> {
        if let Some(literal) = backend.literal() {
            return vec![literal];
        }
        let known = lock(&self.0);
        let (host, port) = backend.dialled();
        let Some(name) = known.names.get(host) else {
            return Vec::new();
        };
        let place = |ip: &IpAddr| SocketAddr::new(*ip, port);
        let mut places: Vec<_> = name.addresses.iter().map(place).collect();
        if backend.addresses == Addresses::One {
            places.extend(name.further.iter().map(place));
            // Stay where the backend is while the name still leads there.
            if let Some(at) = before.and_then(|before| places.iter().position(|p| *p == before)) {
                places[..=at].rotate_right(1);
            }
            return places;
        }
        places.sort_unstable();
        places.dedup();
        places
    }
}

/// The first of each name.
fn merge<'a>(lists: impl Iterator<Item = &'a [BackendPlan]>) -> Vec<BackendPlan> {
    let mut names = HashSet::new();
    lists.flatten().filter(|b| names.insert(b.name.as_str())).cloned().collect()
}

/// The endpoints of these backends, in their order. Those of `earlier` that are as they were stay.
pub fn endpoints(
    backends: &[BackendPlan],
    timeouts: &TimeoutPlan,
    carry: &Carry,
    earlier: Option<&Snapshot>,
) -> Vec<Arc<Endpoint>> {
    let before: HashMap<u32, &Arc<Endpoint>> =
        earlier.iter().flat_map(|e| &e.endpoints).map(|e| (e.id, e)).collect();
    let same_timeouts = earlier.is_some_and(|e| e.plan.timeouts == *timeouts);
    let mut endpoints = Vec::with_capacity(backends.len());
    for backend in backends {
        let each = Endpoint::each(backend);
        let known = (!each).then(|| before.get(&carry.ids.of(backend).0)).flatten();
        let places = carry.found.places(backend, known.map(|e| e.place()));
        let groups = if each { places.chunks(1) } else { places.chunks(places.len().max(1)) };
        let several = groups.len() > 1;
        for group in groups {
            let place = group[0];
            let name = match several {
                false => backend.name.clone(),
                true => format!("{}@{place}", backend.name),
            };
            let identity = carry.ids.of_address(backend, each.then_some(place));
            let same = before.get(&identity.0).filter(|e| {
                let as_it_was = (&e.name, &e.plan) == (&name, backend) && alike(e.places(), group);
                same_timeouts && as_it_was
            });
            endpoints.push(match same {
                Some(endpoint) => Arc::clone(endpoint),
                None => {
                    let endpoint = Endpoint::new(identity, backend.clone(), group, timeouts);
                    Arc::new(endpoint.called(name))
                }
            });
        }
    }
    endpoints
}

/// Whether two lists hold the same addresses: which of them is used is the endpoint's business.
fn alike(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|place| other.contains(place))
}

/// Backends that get no new requests, by name: also those of their addresses that are yet to come.
#[derive(Default)]
pub struct Drained(Mutex<HashSet<String>>);

impl Drained {
    /// Drains a backend, or takes it back, with all of its endpoints in `snapshot`, which must be
    /// asked for under the lock.
    pub fn set(&self, name: &str, on: bool, snapshot: impl FnOnce() -> Arc<Snapshot>) {
        let mut names = lock(&self.0);
        if on {
            names.insert(name.to_owned());
        } else {
            names.remove(name);
        }
        for endpoint in snapshot().endpoints.iter().filter(|e| e.plan.name == name) {
            endpoint.drain(on);
        }
    }

    /// Whether a backend is drained.
    pub fn contains(&self, name: &str) -> bool {
        lock(&self.0).contains(name)
    }

    fn apply(&self, next: &Snapshot) {
        let names = lock(&self.0);
        for endpoint in next.endpoints.iter().filter(|e| names.contains(&e.plan.name)) {
            endpoint.drain(true);
        }
    }
}

/// What is to be done when `next` has taken the place of `old`.
pub(super) fn took_over(old: &Snapshot, next: &Snapshot, carry: &Carry) {
    carry.drained.apply(next);
    let names = |snapshot: &Snapshot| -> BTreeSet<String> {
        snapshot.endpoints.iter().map(|e| e.name.clone()).collect()
    };
    let ids: HashSet<_> = next.endpoints.iter().map(|e| e.id).collect();
    // First the names, then the gauges: nobody writes the old ones any more.
    old.endpoints.iter().filter(|e| !ids.contains(&e.id)).for_each(|e| e.leave());
    next.endpoints.iter().for_each(|e| e.enter());
    let (before, after) = (names(old), names(next));
    for gone in before.difference(&after) {
        carry.metrics.backend_up.remove_label_values(&[gone]).ok();
        carry.metrics.balance.forget(gone);
    }
    for gone in &old.plan.discovery.sources {
        if !next.plan.discovery.sources.iter().any(|s| s.name == gone.name) {
            carry.metrics.discovery_up.remove_label_values(&[&gone.name]).ok();
            carry.metrics.discovery_backends.remove_label_values(&[&gone.name]).ok();
        }
    }
    carry.ids.tidy(&ids, Instant::now());
    carry.found.tidy(&next.plan, &next.backends);
    let generation = next.generation;
    let (came, went) = (told(after.difference(&before)), told(before.difference(&after)));
    if !came.is_empty() {
        log::info!("configuration {generation}: new backends: {came}");
    }
    if !went.is_empty() {
        log::info!("configuration {generation}: backends that have gone: {went}");
    }
    carry.probe_now.notify_one();
}

fn told<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.len().checked_sub(TOLD) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..TOLD].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::config::{load_text, plan::listed};

    fn plan(text: &str) -> Plan {
        let loaded = load_text(text, Path::new("."), &|_| None);
        loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems))
    }

    fn answer(last: &[u8]) -> dns::Resolution {
        let addresses = last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect();
        dns::Resolution { addresses, ttl: Duration::from_secs(1), ..dns::Resolution::default() }
    }

    #[test]
    fn an_order_is_no_change_and_no_answer_counts_when_it_is_said_twice() {
        let found = Found::default();
        assert!(found.name("a", &answer(&[1, 2])));
        assert!(!found.name("a", &answer(&[2, 1])));
        assert!(!found.name("a", &answer(&[])));
        assert!(!found.name("a", &answer(&[1, 2])), "it was a word too many");
        assert!(!found.name("a", &answer(&[])));
        assert!(found.name("a", &answer(&[])));
        assert!(!found.name("a", &answer(&[])));
    }

    #[test]
    fn an_empty_list_counts_when_it_is_told_twice_in_a_row() {
        let text = "discovery: {sources: [{name: x, type: file, file: {path: x}}]}\n";
        let plan = plan(text);
        let source = &plan.discovery.sources[0];
        let found = Found::default();
        let tell = |text: &str| {
            let taken = found.list(source, text, listed(text, source).unwrap().backends);
            (taken, found.told(source))
        };
        let one = "[{name: a, url: \"http://x\"}]";
        assert_eq!(tell(one), (Taken::News, 1));
        assert_eq!(tell("[]"), (Taken::Doubted, 1));
        // It was a word too many.
        found.same(source);
        assert_eq!(tell("[]"), (Taken::Doubted, 1));
        assert_eq!(tell(&format!("{one}\n")), (Taken::Same, 1));
        assert_eq!(tell("[]"), (Taken::Doubted, 1));
        assert_eq!(tell("[]"), (Taken::News, 0));
        assert_eq!(tell("[]"), (Taken::Same, 0));
        // Of a source that has told nothing yet there is nothing to lose.
        let found = Found::default();
        assert_eq!(found.list(source, "[]", Vec::new()), Taken::News);
    }

    #[test]
    fn each_address_is_a_place_or_one_of_them_is() {
        let text = "backends:\n\
            - {name: e, url: \"http://n:80\"}\n\
            - {name: o, url: \"https://n\"}\n\
            - {name: l, url: \"http://127.0.0.1:80\"}\n";
        let plan = plan(text);
        let found = Found::default();
        let places = |i: usize, before: Option<&str>| {
            let places = found.places(&plan.backends[i], before.map(|b| b.parse().unwrap()));
            places.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(places(0, None), Vec::<String>::new());
        assert_eq!(places(2, None), ["127.0.0.1:80"]);
        found.name("n", &answer(&[3, 1, 2]));
        assert_eq!(places(0, None), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        let all = ["10.0.0.3:443", "10.0.0.1:443", "10.0.0.2:443"];
        assert_eq!(places(1, None), all);
        assert_eq!(places(1, Some("10.0.0.9:443")), all);
        let stays = ["10.0.0.2:443", "10.0.0.3:443", "10.0.0.1:443"];
        assert_eq!(places(1, Some("10.0.0.2:443")), stays);
        let mut both = answer(&[1]);
        both.extra_ipv6 = vec!["2001:db8::1".parse().unwrap()];
        assert!(found.name("n", &both));
        assert_eq!(places(1, None), ["10.0.0.1:443", "[2001:db8::1]:443"]);
        assert_eq!(places(0, None), ["10.0.0.1:80"], "one host, not two servers");
    }

    #[test]
    fn sources_are_merged_or_the_first_that_has_any_counts() {
        let text = "backends: [{name: a, url: \"http://file\"}]\n\
            discovery:\n  mode: MODE\n  sources:\n\
            \x20 - {name: x, type: file, file: {path: x}}\n\
            \x20 - {name: y, type: file, file: {path: y}}\n";
        let names = |mode: &str, x: &str, y: &str| {
            let plan = plan(&text.replace("MODE", mode));
            let found = Found::default();
            for (source, text) in plan.discovery.sources.iter().zip([x, y]) {
                found.list(source, text, listed(text, source).unwrap().backends);
            }
            let backends = found.backends(&plan);
            backends.iter().map(|b| format!("{} {}", b.name, b.host)).collect::<Vec<_>>()
        };
        let (x, y) = (
            "[{name: a, url: \"http://x\"}, {name: b, url: \"http://x\"}]",
            "[{name: b, url: \"http://y\"}, {name: c, url: \"http://y\"}]",
        );
        assert_eq!(names("merge", x, y), ["a file", "b x", "c y"]);
        assert_eq!(names("first", x, y), ["a x", "b x"]);
        assert_eq!(names("first", "[]", y), ["b y", "c y"]);
        assert_eq!(names("first", "[]", "[]"), ["a file"]);
    }
}
