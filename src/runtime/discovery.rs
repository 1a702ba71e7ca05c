//! The state of discovery: the addresses of names, and the backends that sources list.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use crate::{
    base::lock,
    config::{
        Plan,
        choices::{Addresses, DiscoveryMode},
        plan::{BackendPlan, SourcePlan},
    },
    store::dns,
};

/// What name servers and sources have answered.
#[derive(Default)]
pub struct DiscoveryState(Mutex<Known>);

#[derive(Default)]
struct Known {
    names: HashMap<String, Name>,
    lists: HashMap<String, SourceList>,
    /// The last logged problem of each subject.
    problems: HashMap<String, String>,
    /// A reload is discovering the backends of its plan.
    reloading: bool,
}

/// The addresses of a name.
#[derive(Default)]
struct Name {
    addresses: Vec<IpAddr>,
    /// Those of the other address family, for backends that are one server at all addresses.
    further: Vec<IpAddr>,
    /// The last answer was empty although there had been addresses.
    unconfirmed: bool,
}

/// The list of a source.
struct SourceList {
    source: SourcePlan,
    text: Arc<str>,
    backends: Vec<BackendPlan>,
    /// The last answer was an empty list.
    unconfirmed: bool,
}

/// What a list from a source has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListUpdate {
    Unchanged,
    Changed,
    /// The list is empty for the first time, where there had been backends: it is not applied yet.
    Unconfirmed,
}

impl DiscoveryState {
    /// Records the addresses of a name; whether anything has changed. An empty answer is only applied
    /// when it comes twice in a row: a wrong answer of a name server that is starting must not remove
    /// all backends.
    pub fn update_name(&self, host: &str, answer: &dns::Resolution) -> bool {
        let known = &mut *lock(&self.0);
        let name = known.names.entry(host.to_owned()).or_default();
        if answer.addresses.is_empty() && !name.addresses.is_empty() && !name.unconfirmed {
            name.unconfirmed = true;
            return false;
        }
        name.unconfirmed = false;
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

    /// Records the list of a source. An empty list is only applied when it comes twice in a row, as with
    /// names: a service that is starting, or a file that is being rewritten, must not remove all
    /// backends.
    pub fn update_list(
        &self,
        source: &SourcePlan,
        text: &str,
        backends: Vec<BackendPlan>,
    ) -> ListUpdate {
        let known = &mut *lock(&self.0);
        let earlier = known.lists.get_mut(&source.name);
        let update = match &earlier {
            Some(list) if list.backends == backends => ListUpdate::Unchanged,
            _ => ListUpdate::Changed,
        };
        if let Some(list) = earlier
            && update == ListUpdate::Changed
            && backends.is_empty()
            && !list.unconfirmed
        {
            list.unconfirmed = true;
            return ListUpdate::Unconfirmed;
        }
        let list =
            SourceList { source: source.clone(), text: text.into(), backends, unconfirmed: false };
        known.lists.insert(source.name.clone(), list);
        update
    }

    /// Notes that a source has answered the same text as before.
    pub fn confirm_list(&self, source: &SourcePlan) {
        if let Some(list) = lock(&self.0).lists.get_mut(&source.name) {
            list.unconfirmed = false;
        }
    }

    /// The last text of a source, if its configuration has not changed.
    pub fn last_text(&self, source: &SourcePlan) -> Option<Arc<str>> {
        let known = lock(&self.0);
        let list = known.lists.get(&source.name)?;
        (list.source == *source).then(|| Arc::clone(&list.text))
    }

    /// How many backends a source listed last.
    pub fn listed_count(&self, source: &SourcePlan) -> usize {
        lock(&self.0).lists.get(&source.name).map_or(0, |list| list.backends.len())
    }

    /// Whether name servers have answered for a name, even with no address.
    pub fn knows_name(&self, host: &str) -> bool {
        lock(&self.0).names.contains_key(host)
    }

    /// Records the problem of a subject, `None` if it has none; whether that has changed.
    pub fn problem_changed(&self, subject: &str, problem: Option<&str>) -> bool {
        let problems = &mut lock(&self.0).problems;
        match problem {
            None => problems.remove(subject).is_some(),
            Some(problem) => {
                problems.insert(subject.to_owned(), problem.to_owned()).as_deref() != Some(problem)
            }
        }
    }

    /// While a reload discovers the backends of its plan, nothing is forgotten.
    pub fn set_reloading(&self, on: bool) {
        lock(&self.0).reloading = on;
    }

    /// Forgets what neither a plan nor its backends name.
    pub fn tidy(&self, plan: &Plan, backends: &[BackendPlan]) {
        let hosts: HashSet<_> = backends.iter().map(|b| b.dialled().0).collect();
        let known = &mut *lock(&self.0);
        if known.reloading {
            return;
        }
        let named = |subject: &str| subject.strip_prefix("name ").is_none_or(|n| hosts.contains(n));
        known.problems.retain(|subject, _| named(subject));
        known.names.retain(|host, _| hosts.contains(host.as_str()));
        let sources = &plan.discovery.sources;
        known.lists.retain(|name, _| sources.iter().any(|s| s.name == *name));
    }

    /// All backends: those of the file and those of the sources, each name once.
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

    /// Names that several backends of the file and of merged lists have.
    pub fn duplicates(&self, plan: &Plan) -> Vec<String> {
        if plan.discovery.mode == DiscoveryMode::First {
            return Vec::new();
        }
        let known = lock(&self.0);
        let lists = plan.discovery.sources.iter().filter_map(|s| known.lists.get(&s.name));
        let all = plan.backends.iter().chain(lists.flat_map(|list| &list.backends));
        let mut names = HashSet::new();
        let duplicates = all.filter(|b| !names.insert(b.name.as_str()));
        duplicates.map(|b| b.name.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The addresses of a backend; `before` is the one that it used. With `addresses: each`, each is an
    /// endpoint; otherwise the first one is used, and the others replace it when it is unreachable.
    pub(super) fn addresses(
        &self,
        backend: &BackendPlan,
        before: Option<SocketAddr>,
    ) -> Vec<SocketAddr> {
        if let Some(literal) = backend.literal() {
            return vec![literal];
        }
        let known = lock(&self.0);
        let (host, port) = backend.dialled();
        let Some(name) = known.names.get(host) else {
            return Vec::new();
        };
        let address = |ip: &IpAddr| SocketAddr::new(*ip, port);
        let mut addresses: Vec<_> = name.addresses.iter().map(address).collect();
        if backend.addresses == Addresses::One {
            addresses.extend(name.further.iter().map(address));
            // Keep the address in use while the name still has it.
            if let Some(at) = before.and_then(|before| addresses.iter().position(|a| *a == before))
            {
                addresses[..=at].rotate_right(1);
            }
            return addresses;
        }
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

/// The first of each name.
fn merge<'a>(lists: impl Iterator<Item = &'a [BackendPlan]>) -> Vec<BackendPlan> {
    let mut names = HashSet::new();
    lists.flatten().filter(|b| names.insert(b.name.as_str())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::config::{load_text, plan::read_list};

    fn plan(text: &str) -> Plan {
        let loaded = load_text(text, Path::new("."), &|_| None);
        loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems))
    }

    fn answer(last: &[u8]) -> dns::Resolution {
        let addresses = last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect();
        dns::Resolution { addresses, ttl: Duration::from_secs(1), ..dns::Resolution::default() }
    }

    #[test]
    fn an_order_is_no_change_and_an_empty_answer_counts_when_it_comes_twice() {
        let state = DiscoveryState::default();
        assert!(state.update_name("a", &answer(&[1, 2])));
        assert!(!state.update_name("a", &answer(&[2, 1])));
        assert!(!state.update_name("a", &answer(&[])));
        assert!(!state.update_name("a", &answer(&[1, 2])), "the empty answer was not repeated");
        assert!(!state.update_name("a", &answer(&[])));
        assert!(state.update_name("a", &answer(&[])));
        assert!(!state.update_name("a", &answer(&[])));
    }

    #[test]
    fn an_empty_list_counts_when_it_comes_twice_in_a_row() {
        let text = "discovery: {sources: [{name: x, type: file, file: {path: x}}]}\n";
        let plan = plan(text);
        let source = &plan.discovery.sources[0];
        let state = DiscoveryState::default();
        let list = |text: &str| {
            let update = state.update_list(source, text, read_list(text, source).unwrap().backends);
            (update, state.listed_count(source))
        };
        let one = "[{name: a, url: \"http://x\"}]";
        assert_eq!(list(one), (ListUpdate::Changed, 1));
        assert_eq!(list("[]"), (ListUpdate::Unconfirmed, 1));
        // The empty list is not repeated.
        state.confirm_list(source);
        assert_eq!(list("[]"), (ListUpdate::Unconfirmed, 1));
        assert_eq!(list(&format!("{one}\n")), (ListUpdate::Unchanged, 1));
        assert_eq!(list("[]"), (ListUpdate::Unconfirmed, 1));
        assert_eq!(list("[]"), (ListUpdate::Changed, 0));
        assert_eq!(list("[]"), (ListUpdate::Unchanged, 0));
        // A first list needs no confirmation: there is nothing to lose.
        let state = DiscoveryState::default();
        assert_eq!(state.update_list(source, "[]", Vec::new()), ListUpdate::Changed);
    }

    #[test]
    fn each_address_is_an_endpoint_or_all_are_one() {
        let text = "backends:\n\
            - {name: e, url: \"http://n:80\"}\n\
            - {name: o, url: \"https://n\"}\n\
            - {name: l, url: \"http://127.0.0.1:80\"}\n";
        let plan = plan(text);
        let state = DiscoveryState::default();
        let addresses = |i: usize, before: Option<&str>| {
            let addresses = state.addresses(&plan.backends[i], before.map(|b| b.parse().unwrap()));
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(addresses(0, None), Vec::<String>::new());
        assert_eq!(addresses(2, None), ["127.0.0.1:80"]);
        state.update_name("n", &answer(&[3, 1, 2]));
        assert_eq!(addresses(0, None), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        let all = ["10.0.0.3:443", "10.0.0.1:443", "10.0.0.2:443"];
        assert_eq!(addresses(1, None), all);
        assert_eq!(addresses(1, Some("10.0.0.9:443")), all);
        let stays = ["10.0.0.2:443", "10.0.0.3:443", "10.0.0.1:443"];
        assert_eq!(addresses(1, Some("10.0.0.2:443")), stays);
        let mut both = answer(&[1]);
        both.extra_ipv6 = vec!["2001:db8::1".parse().unwrap()];
        assert!(state.update_name("n", &both));
        assert_eq!(addresses(1, None), ["10.0.0.1:443", "[2001:db8::1]:443"]);
        assert_eq!(addresses(0, None), ["10.0.0.1:80"], "one host, not two servers");
    }

    #[test]
    fn sources_are_merged_or_the_first_that_has_any_counts() {
        let text = "backends: [{name: a, url: \"http://file\"}]\n\
            discovery:\n  mode: MODE\n  sources:\n\
            \x20 - {name: x, type: file, file: {path: x}}\n\
            \x20 - {name: y, type: file, file: {path: y}}\n";
        let names = |mode: &str, x: &str, y: &str| {
            let plan = plan(&text.replace("MODE", mode));
            let state = DiscoveryState::default();
            for (source, text) in plan.discovery.sources.iter().zip([x, y]) {
                state.update_list(source, text, read_list(text, source).unwrap().backends);
            }
            let backends = state.backends(&plan);
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
