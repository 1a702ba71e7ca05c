//! One backend at run time: what to send it and where it is.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use ::http::{Method, header::HOST};
use pingora::{
    connectors::L4Connect,
    upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy},
};
use pingora_load_balancing::{Backend, Extensions};
use reqwest::RequestBuilder;
use xxhash_rust::xxh3::xxh3_128;

use super::{
    load::{self, Reading},
    state::State,
};
use crate::{
    base::lock,
    config::{
        choices,
        plan::{BackendPlan, TimeoutPlan},
    },
    dialect::{self, Match},
    store::{
        dial::{Addresses, FirstReachable},
        http,
        proxy::Tunnel,
    },
    telemetry::{Metrics, metrics::SuccessMetrics},
};

/// A backend.
pub struct Endpoint {
    /// Identity of the backend; the same in every generation of the configuration that names it.
    pub id: u32,
    /// Its own name: that of its backend, with the address if there are several.
    pub name: String,
    /// Its backend, as configured.
    pub plan: BackendPlan,
    /// What lives through reloads.
    state: Arc<State>,
    /// Where it is, or the proxy that leads to it.
    pub address: SocketAddr,
    /// All places where it may be; the first is `address`.
    places: Arc<Addresses>,
    /// For asking what a client for all cannot be told: an address of several, where the URL must
    /// hold the name, or by way of a proxy.
    own_client: OnceLock<reqwest::Client>,
    /// Counters of its usual requests, by the number of the operation and stream.
    usual: Box<[OnceLock<SuccessMetrics>]>,
    /// Each of its places, and a connection's settings.
    peers: Box<[HttpPeer]>,
}

impl Endpoint {
    /// Makes an endpoint, called as its backend. `places` are where it may be, at least one; the
    /// others are for when the first cannot be reached.
    pub fn new(
        identity: Identity,
        plan: BackendPlan,
        places: &[SocketAddr],
        timeouts: &TimeoutPlan,
    ) -> Self {
        let (id, state) = identity;
        let addresses = Arc::new(Addresses::new(places.to_vec()));
        let peer = |place: &SocketAddr| {
            let mut peer = peer(*place, &plan, timeouts);
            let addresses = Arc::clone(&addresses);
            peer.options.custom_l4 =
                dialler(&plan, FirstReachable { addresses, timeout: timeouts.connect });
            if plan.proxy.is_some() {
                // Connections by way of a proxy are not those to the proxy.
                peer.group_key = BEHIND_PROXY | u64::from(id);
            }
            peer
        };
        Self {
            id,
            name: plan.name.clone(),
            address: places[0],
            peers: places.iter().map(peer).collect(),
            places: addresses,
            plan,
            state,
            own_client: OnceLock::new(),
            usual: (0..2 * dialect::operation_count()).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The place that is used now.
    pub fn place(&self) -> SocketAddr {
        self.places()[self.places.current()]
    }

    /// All places where it may be.
    pub fn places(&self) -> &[SocketAddr] {
        self.places.list()
    }

    /// Gives it a name of its own.
    #[must_use]
    pub fn called(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// It is in use from now on, under its name.
    pub fn enter(&self) {
        self.state.named(Some(&self.name));
    }

    /// It is not used any more: what its last requests find out is not to be seen in the metrics.
    pub fn leave(&self) {
        self.state.named(None);
    }

    /// The counters of usual requests to a path.
    pub fn usual(&self, found: &Match, stream: bool, metrics: &Metrics) -> Option<&SuccessMetrics> {
        let slot = self.usual.get(2 * found.number + usize::from(stream))?;
        let word = if stream { "true" } else { "false" };
        Some(slot.get_or_init(|| metrics.success(found.label(), word, &self.plan.name)))
    }

    /// What is known of it over all generations.
    pub(super) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Requests that are with it now.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight()
    }

    /// Counts the tokens of a request that it has answered.
    pub fn meter(&self, prompt: u64, completion: u64) {
        self.state.meter(prompt, completion);
    }

    /// Tokens of prompts and of answers that were metered at it, over all generations.
    pub fn metered(&self) -> [u64; 2] {
        self.state.metered()
    }

    /// Whether it gets no new requests, because an operator said so.
    pub fn draining(&self) -> bool {
        self.state.draining.load(Ordering::Relaxed)
    }

    /// Takes it out of use for new requests, or back in. Holds through reloads.
    pub fn drain(&self, on: bool) {
        self.state.draining.store(on, Ordering::Relaxed);
    }

    /// It has refused a connection. See [`State::refused`].
    pub fn refused(&self) -> bool {
        self.state.refused()
    }

    /// Whether it refuses connections. See [`State::is_refusing`].
    pub fn is_refusing(&self) -> bool {
        self.state.is_refusing()
    }

    /// It has accepted a connection.
    pub fn connected(&self) {
        self.state.connected();
    }

    /// It answers with what cannot be read. `true` the first time, to be logged once.
    pub fn unread(&self) -> bool {
        !self.state.unread.swap(true, Ordering::Relaxed)
    }

    /// What an answer of the engine says of its load (vLLM's `endpoint-load-metrics`).
    pub fn told_load(&self, header: &str, now: Instant) {
        if let Some(reading) = load::header(header) {
            self.state.told(reading, now);
        }
    }

    /// What its engine's metrics say of its load; whether they say anything.
    pub fn read_load(&self, metrics: &[u8], now: Instant) -> bool {
        let reading = load::metrics(metrics);
        if let Some(reading) = reading {
            self.state.told(reading, now);
        }
        reading.is_some()
    }

    /// What its engine has last said of its load, and when.
    pub fn load(&self) -> Option<(Reading, Instant)> {
        self.state.reading()
    }

    /// Brings the gauge of its open circuits up to date.
    pub fn show_circuits(&self) {
        self.state.show();
    }

    /// The peer to connect to.
    pub fn peer(&self) -> HttpPeer {
        self.peers[self.places.current()].clone()
    }

    /// A peer that shares no connection with any other request: for the attempt after a
    /// kept-alive connection was found dead. `unique` must not be zero and not repeat soon.
    pub fn fresh_peer(&self, unique: u64) -> HttpPeer {
        let mut peer = self.peer();
        peer.group_key = unique;
        peer.options.idle_timeout = Some(Duration::ZERO);
        peer
    }

    /// A request of our own to one of the engine's own paths, `/health` for instance. It goes to the
    /// address of this endpoint, wherever else the name leads.
    pub fn request(&self, client: &reqwest::Client, method: Method, path: &str) -> RequestBuilder {
        self.ask(client, method, &self.plan.base.own(path))
    }

    /// The same to an endpoint of the API, `/models` for instance.
    pub fn api_request(
        &self,
        client: &reqwest::Client,
        method: Method,
        path: &str,
    ) -> RequestBuilder {
        self.ask(client, method, &self.plan.base.endpoint(path))
    }

    fn ask(&self, client: &reqwest::Client, method: Method, target: &str) -> RequestBuilder {
        let plan = &self.plan;
        let url = || format!("{}{target}", plan.origin());
        let request = match &plan.proxy {
            Some(proxy) => {
                let own = || http::client_behind(proxy, self.places());
                self.own_client.get_or_init(own).request(method, url())
            }
            None if plan.literal().is_some() => client.request(method, url()),
            // The certificate is asked for by the name in the URL.
            None if plan.tls || self.places().len() > 1 => {
                let own = || http::client_at(&plan.host, self.places());
                self.own_client.get_or_init(own).request(method, url())
            }
            None => {
                let request = client.request(method, format!("http://{}{target}", self.place()));
                request.header(HOST, &plan.authority)
            }
        };
        plan.identity().fold(request, |request, (name, value)| request.header(name, value))
    }

    /// The backend as pingora-load-balancing knows it. Its address is a name tag made from the
    /// id, in the discard prefix 100::/64 (RFC 6666): two backends on one host stay two, and a
    /// backend keeps its health when its name leads elsewhere.
    pub fn backend(&self, weight: u32) -> Backend {
        let [a, b] = [(self.id >> 16) as u16, self.id as u16];
        let tag = SocketAddr::from((Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, a, b), 1));
        // Nothing is put into `ext`: it is copied with every choice.
        Backend { addr: tag.into(), weight: weight as usize, ext: Extensions::new() }
    }

    /// Whether each address of a backend is an endpoint of its own.
    pub fn each(plan: &BackendPlan) -> bool {
        plan.addresses == choices::Addresses::Each && plan.literal().is_none()
    }

    /// A name tag, no address, that is the same in every process that knows this backend, made of what its id
    /// stands for: its name, its URL, and its address where each is an endpoint of its own.
    pub fn lasting_tag(&self) -> Ipv6Addr {
        let BackendPlan { name, url, .. } = &self.plan;
        let own = if Self::each(&self.plan) { self.address.to_string() } else { String::new() };
        // None of these can have a zero in it.
        Ipv6Addr::from_bits(xxh3_128(format!("{name}\0{url}\0{own}").as_bytes()))
    }

    /// The id on the name tag of a backend made by [`Self::backend`].
    pub fn id_of(backend: &Backend) -> u32 {
        match backend.addr.as_inet() {
            Some(SocketAddr::V6(tag)) => {
                let [.., a, b] = tag.ip().segments();
                u32::from(a) << 16 | u32::from(b)
            }
            _ => 0,
        }
    }
}

/// Marks the group of connections of a backend behind a proxy; numbers that are used once are smaller.
const BEHIND_PROXY: u64 = 1 << 63;

/// A backend at a place, or behind the proxy there.
fn peer(place: SocketAddr, plan: &BackendPlan, timeouts: &TimeoutPlan) -> HttpPeer {
    let sni = if plan.tls { plan.host.clone() } else { String::new() };
    let mut peer = HttpPeer::new(place, plan.tls, sni);
    // No path that the gateway serves can be upgraded to another protocol.
    peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    peer.options.connection_timeout = timeouts.connect;
    peer.options.total_connection_timeout = timeouts.connect;
    peer.options.idle_timeout = Some(timeouts.upstream_idle);
    peer
}

/// How connections to a backend are made, where Pingora's own way is not enough.
fn dialler(plan: &BackendPlan, places: FirstReachable) -> Option<Arc<dyn L4Connect + Send + Sync>> {
    // A plain request goes to the proxy itself, with the whole URL in it.
    if let Some(proxy) = plan.proxy.as_ref().filter(|_| plan.tls) {
        let host = match plan.host.contains(':') {
            true => format!("[{}]", plan.host),
            false => plan.host.clone(),
        };
        return Some(Arc::new(Tunnel {
            proxy: places,
            target: format!("{host}:{}", plan.port),
            authorization: proxy.authorization.clone(),
        }));
    }
    let several = places.addresses.list().len() > 1;
    several.then(|| Arc::new(places) as Arc<dyn L4Connect + Send + Sync>)
}

/// Hands out the same id for the same backend over all reloads.
pub struct Ids {
    known: Mutex<Identities>,
    metrics: Metrics,
    /// From when the times of all of them are told.
    epoch: Instant,
}

#[derive(Default)]
struct Identities {
    known: HashMap<Key, Known>,
    last: u32,
}

/// Name, URL, and the address where each address of the backend is an endpoint of its own.
type Key = (String, String, Option<SocketAddr>);

struct Known {
    identity: Identity,
    /// When it was last part of a configuration.
    used: Instant,
}

/// The id of a backend, and what is known of it.
pub type Identity = (u32, Arc<State>);

/// How long a backend is remembered that has gone: name servers may tell now of some of the
/// addresses and now of others.
const REMEMBERED: Duration = Duration::from_secs(600);

impl Ids {
    /// None are known yet.
    pub fn new(metrics: &Metrics) -> Self {
        Self { known: Mutex::default(), metrics: metrics.clone(), epoch: Instant::now() }
    }

    /// The id of the backend with this name and URL, and what is known of it.
    pub fn of(&self, plan: &BackendPlan) -> Identity {
        self.of_address(plan, None)
    }

    /// The same for one of its addresses.
    pub fn of_address(&self, plan: &BackendPlan, address: Option<SocketAddr>) -> Identity {
        let ids = &mut *lock(&self.known);
        let last = &mut ids.last;
        let known = ids.known.entry((plan.name.clone(), plan.url.to_string(), address));
        let known = known.or_insert_with(|| {
            *last += 1;
            let state = State::new(&plan.name, self.epoch, &self.metrics);
            Known { identity: (*last, Arc::new(state)), used: Instant::now() }
        });
        known.identity.clone()
    }

    /// Forgets what is not in use any more, `now` or for a while: `current` are the ids in use.
    pub fn tidy(&self, current: &HashSet<u32>, now: Instant) {
        lock(&self.known).known.retain(|_, known| {
            if current.contains(&known.identity.0) {
                known.used = now;
            }
            // Requests under way hold their backend's state.
            Arc::strong_count(&known.identity.1) > 1
                || now.saturating_duration_since(known.used) < REMEMBERED
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::config::load_text;

    #[test]
    fn what_has_gone_is_forgotten_after_a_while_and_its_id_is_not_used_again() {
        let text = "backends: [{url: \"http://engines:80\"}]";
        let loaded = load_text(text, std::path::Path::new("."), &|_| None);
        let plan = loaded.plan.unwrap().backends.remove(0);
        let at = |n: u8| Some(SocketAddr::from(([10, 0, 0, n], 80)));
        let (ids, start) = (Ids::new(&Metrics::new()), Instant::now());
        let id = |n| ids.of_address(&plan, at(n)).0;
        assert_eq!((id(1), id(2), id(1)), (1, 2, 1));
        let held = ids.of_address(&plan, at(3));
        ids.tidy(&HashSet::from([1]), start);
        assert_eq!(id(2), 2, "it may come back soon");
        let later = start + REMEMBERED + Duration::from_secs(1);
        ids.tidy(&HashSet::from([1]), later);
        assert_eq!((id(1), id(2)), (1, 4), "the one in use stays");
        assert_eq!(id(3), held.0, "a request was with it");
    }
}
