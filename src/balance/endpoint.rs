//! One backend at run time: its addresses, its connections and what is known of it.

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
    state::BackendState,
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
        tls,
    },
    telemetry::{Metrics, metrics::SuccessMetrics},
};

pub struct Endpoint {
    /// Identity of the backend; the same in every generation of the configuration that names it.
    pub id: u32,
    /// The name of its backend; with the address if the backend has several endpoints.
    pub name: Arc<str>,
    /// The configuration of its backend.
    pub plan: BackendPlan,
    /// Survives reloads.
    state: Arc<BackendState>,
    /// Its first address, or that of the proxy in front of it.
    pub address: SocketAddr,
    /// All its addresses; the first is `address`.
    addresses: Arc<Addresses>,
    /// For requests that a shared client cannot make: to one of several addresses with the name in the
    /// URL, or through a proxy.
    own_client: OnceLock<reqwest::Client>,
    /// Counters of its usual requests: two for each operation, the second for streams.
    usual: Box<[OnceLock<SuccessMetrics>]>,
    /// A peer for each address.
    peers: Box<[HttpPeer]>,
}

impl Endpoint {
    /// An endpoint with the name of its backend. `addresses` has at least one; the others are used when
    /// the first cannot be reached.
    pub fn new(
        identity: Identity,
        plan: BackendPlan,
        addresses: &[SocketAddr],
        timeouts: &TimeoutPlan,
    ) -> Self {
        let (id, state) = identity;
        let known = Arc::new(Addresses::new(addresses.to_vec()));
        let peer = |address: &SocketAddr| {
            let mut peer = peer(*address, &plan, timeouts);
            let reachable =
                FirstReachable { addresses: Arc::clone(&known), timeout: timeouts.connect };
            peer.options.custom_l4 = dialler(&plan, reachable);
            if plan.proxy.is_some() {
                // Connections through a proxy must not be mixed with connections to the proxy.
                peer.group_key ^= BEHIND_PROXY | u64::from(id);
            }
            peer
        };
        Self {
            id,
            name: plan.name.as_str().into(),
            address: addresses[0],
            peers: addresses.iter().map(peer).collect(),
            addresses: known,
            plan,
            state,
            own_client: OnceLock::new(),
            usual: (0..2 * dialect::operation_count()).map(|_| OnceLock::new()).collect(),
        }
    }

    pub fn current_address(&self) -> SocketAddr {
        self.addresses()[self.addresses.current()]
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        self.addresses.list()
    }

    /// Gives it a name different from its backend's.
    #[must_use]
    pub fn with_name(self, name: String) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Puts it into use, under its name.
    pub fn activate(&self) {
        self.state.set_name(Some(&self.name));
    }

    /// Takes it out of use: what its last requests report no longer changes its metrics.
    pub fn retire(&self) {
        self.state.set_name(None);
    }

    /// The counters of usual requests of an operation.
    pub fn usual(&self, found: &Match, stream: bool, metrics: &Metrics) -> Option<&SuccessMetrics> {
        let slot = self.usual.get(2 * found.number + usize::from(stream))?;
        let word = if stream { "true" } else { "false" };
        Some(slot.get_or_init(|| metrics.success(found.label(), word, &self.plan.name)))
    }

    pub(super) fn state(&self) -> &Arc<BackendState> {
        &self.state
    }

    /// The recent average time to first token, in milliseconds; `None`: not known.
    pub fn latency_ms(&self) -> Option<f64> {
        self.state.latency().map(|micros| f64::from(micros) / 1000.0)
    }

    pub fn in_flight(&self) -> usize {
        self.state.in_flight()
    }

    /// Adds the tokens of an answered request.
    pub fn meter(&self, prompt: u64, completion: u64) {
        self.state.meter(prompt, completion);
    }

    /// Metered tokens of prompts and of completions, across reloads.
    pub fn metered(&self) -> [u64; 2] {
        self.state.metered()
    }

    /// Whether an operator drains it: it gets no new requests.
    pub fn draining(&self) -> bool {
        self.state.draining.load(Ordering::Relaxed)
    }

    /// Starts or stops draining. Survives reloads.
    pub fn drain(&self, on: bool) {
        self.state.draining.store(on, Ordering::Relaxed);
    }

    /// Counts a refused connection. See [`BackendState::refused`].
    pub fn refused(&self) -> bool {
        self.state.refused()
    }

    /// See [`BackendState::is_refusing`].
    pub fn is_refusing(&self) -> bool {
        self.state.is_refusing()
    }

    /// See [`BackendState::connected`].
    pub fn connected(&self) {
        self.state.connected();
    }

    /// Whether this is its first unreadable answer, which is logged.
    pub fn is_first_unreadable(&self) -> bool {
        !self.state.unreadable_logged.swap(true, Ordering::Relaxed)
    }

    /// Notes that it has no tokenizer to ask. `true` if that was not known.
    pub fn has_no_tokenizer(&self, now: Instant) -> bool {
        self.state.has_no_tokenizer(now)
    }

    /// Whether its tokenizer may be asked: it has not said lately that there is none.
    pub fn may_tokenize(&self, now: Instant) -> bool {
        self.state.may_tokenize(now)
    }

    /// Records the load that a header of an answer reports (vLLM's `endpoint-load-metrics`).
    pub fn record_load_header(&self, header: &str, now: Instant) {
        if let Some(reading) = load::header(header) {
            self.state.record_load(reading, now);
        }
    }

    /// Records the load that the engine's metrics report; `false` if they report none.
    pub fn record_load_metrics(&self, metrics: &[u8], now: Instant) -> bool {
        let reading = load::metrics(metrics);
        if let Some(reading) = reading {
            self.state.record_load(reading, now);
        }
        reading.is_some()
    }

    /// The last reading of its load, and the time of the reading.
    pub fn load(&self) -> Option<(Reading, Instant)> {
        self.state.reading()
    }

    /// Updates the gauge of its open circuits.
    pub fn update_circuit_gauge(&self) {
        self.state.update_gauge();
    }

    /// The peer to connect to.
    pub fn peer(&self) -> HttpPeer {
        self.peers[self.addresses.current()].clone()
    }

    /// A peer that shares no connection with any other request: for the attempt after a kept-alive
    /// connection was dead. `unique` must not be zero or repeat soon.
    pub fn fresh_peer(&self, unique: u64) -> HttpPeer {
        let mut peer = self.peer();
        peer.group_key = unique;
        peer.options.idle_timeout = Some(Duration::ZERO);
        peer
    }

    /// A request of the gateway itself to one of the engine's own paths, `/health` for instance. It goes
    /// to the address of this endpoint, even if the name has others.
    pub fn request(&self, client: &reqwest::Client, method: Method, path: &str) -> RequestBuilder {
        self.build_request(client, method, &self.plan.base.own(path))
    }

    /// The same to a path of the API, `/models` for instance.
    pub fn api_request(
        &self,
        client: &reqwest::Client,
        method: Method,
        path: &str,
    ) -> RequestBuilder {
        self.build_request(client, method, &self.plan.base.endpoint(path))
    }

    fn build_request(
        &self,
        client: &reqwest::Client,
        method: Method,
        target: &str,
    ) -> RequestBuilder {
        let plan = &self.plan;
        let url = || format!("{}{target}", plan.origin());
        let request = match (&plan.trust, &plan.proxy) {
            (Some(own), proxy) => {
                // The host of the URL is the name in the handshake.
                let name = own.server_name().unwrap_or(&plan.host);
                let client = || http::client_trusting(own, name, self.addresses(), proxy.as_ref());
                let client = self.own_client.get_or_init(client);
                match own.server_name() {
                    None => client.request(method, url()),
                    Some(name) => {
                        let url = format!("https://{name}:{}{target}", plan.port);
                        client.request(method, url).header(HOST, &plan.authority)
                    }
                }
            }
            (None, Some(proxy)) => {
                let own = || http::client_behind(proxy, self.addresses());
                self.own_client.get_or_init(own).request(method, url())
            }
            (None, None) if plan.literal().is_some() => client.request(method, url()),
            // The certificate is checked against the name in the URL.
            (None, None) if plan.tls || self.addresses().len() > 1 => {
                let own = || http::client_at(&plan.host, self.addresses());
                self.own_client.get_or_init(own).request(method, url())
            }
            (None, None) => {
                let request =
                    client.request(method, format!("http://{}{target}", self.current_address()));
                request.header(HOST, &plan.authority)
            }
        };
        plan.identity().fold(request, |request, (name, value)| request.header(name, value))
    }

    /// The backend as pingora-load-balancing knows it. Its address is a tag made from the id, in the
    /// discard prefix 100::/64 (RFC 6666): two backends on one host stay two, and a backend keeps its
    /// health when its name resolves to another address.
    pub fn backend(&self, weight: u32) -> Backend {
        let [a, b] = [(self.id >> 16) as u16, self.id as u16];
        let tag = SocketAddr::from((Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, a, b), 1));
        // `ext` stays empty: it is copied with every pick.
        Backend { addr: tag.into(), weight: weight as usize, ext: Extensions::new() }
    }

    /// Whether each address of a backend is an endpoint of its own.
    pub fn each(plan: &BackendPlan) -> bool {
        plan.addresses == choices::Addresses::Each && plan.literal().is_none()
    }

    /// A tag in the form of an address that is the same in every process that knows this backend: a hash
    /// of its name, its URL, and its address where each address is an endpoint of its own.
    pub fn stable_tag(&self) -> Ipv6Addr {
        let BackendPlan { name, url, .. } = &self.plan;
        let own = if Self::each(&self.plan) { self.address.to_string() } else { String::new() };
        // None of these can have a zero in it.
        Ipv6Addr::from_bits(xxh3_128(format!("{name}\0{url}\0{own}").as_bytes()))
    }

    /// The id in the tag of a backend made by [`Self::backend`].
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

/// Marks the connection group of a backend behind a proxy; the numbers of [`Endpoint::fresh_peer`] are
/// smaller.
const BEHIND_PROXY: u64 = 1 << 63;

/// A backend at an address, or behind the proxy there.
fn peer(address: SocketAddr, plan: &BackendPlan, timeouts: &TimeoutPlan) -> HttpPeer {
    let sni = if plan.tls { plan.host.clone() } else { String::new() };
    let mut peer = HttpPeer::new(address, plan.tls, sni);
    // No path of the gateway can be upgraded to another protocol.
    peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    peer.options.connection_timeout = timeouts.connect;
    peer.options.total_connection_timeout = timeouts.connect;
    peer.options.idle_timeout = Some(timeouts.upstream_idle);
    if plan.tls {
        peer.options.ca = tls::peer_certificates();
    }
    if let Some(own) = &plan.trust {
        own.secure(&mut peer);
    }
    peer
}

/// How connections to a backend are made, where Pingora's own dialling is not enough.
fn dialler(
    plan: &BackendPlan,
    reachable: FirstReachable,
) -> Option<Arc<dyn L4Connect + Send + Sync>> {
    // A request without TLS goes to the proxy itself, with an absolute URL.
    if let Some(proxy) = plan.proxy.as_ref().filter(|_| plan.tls) {
        let host = match plan.host.contains(':') {
            true => format!("[{}]", plan.host),
            false => plan.host.clone(),
        };
        return Some(Arc::new(Tunnel {
            proxy: reachable,
            target: format!("{host}:{}", plan.port),
            authorization: proxy.authorization.clone(),
        }));
    }
    let several = reachable.addresses.list().len() > 1;
    several.then(|| Arc::new(reachable) as Arc<dyn L4Connect + Send + Sync>)
}

/// Assigns ids to backends; a backend keeps its id across reloads.
pub struct BackendIds {
    known: Mutex<Identities>,
    metrics: Metrics,
    /// Times of all backends count from here.
    epoch: Instant,
}

#[derive(Default)]
struct Identities {
    known: HashMap<Key, KnownBackend>,
    last: u32,
}

/// Name, URL, and the address where each address of the backend is an endpoint of its own.
type Key = (String, String, Option<SocketAddr>);

struct KnownBackend {
    identity: Identity,
    /// When it was last part of a configuration.
    used: Instant,
}

/// The id of a backend, and its state.
pub type Identity = (u32, Arc<BackendState>);

/// How long a removed backend is remembered: name servers may return different addresses at different
/// times.
const REMEMBERED: Duration = Duration::from_secs(600);

impl BackendIds {
    pub fn new(metrics: &Metrics) -> Self {
        Self { known: Mutex::default(), metrics: metrics.clone(), epoch: Instant::now() }
    }

    /// The identity of the backend with this name and URL.
    pub fn get(&self, plan: &BackendPlan) -> Identity {
        self.get_address(plan, None)
    }

    /// The same for one of its addresses.
    pub fn get_address(&self, plan: &BackendPlan, address: Option<SocketAddr>) -> Identity {
        let ids = &mut *lock(&self.known);
        let last = &mut ids.last;
        let known = ids.known.entry((plan.name.clone(), plan.url.to_string(), address));
        let known = known.or_insert_with(|| {
            *last += 1;
            let state = BackendState::new(&plan.name, self.epoch, &self.metrics);
            KnownBackend { identity: (*last, Arc::new(state)), used: Instant::now() }
        });
        known.identity.clone()
    }

    /// Forgets backends that were not in use for a while; `current` are the ids in use.
    pub fn tidy(&self, current: &HashSet<u32>, now: Instant) {
        lock(&self.known).known.retain(|_, known| {
            if current.contains(&known.identity.0) {
                known.used = now;
            }
            // Requests in flight hold the state of their backend.
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
        let (ids, start) = (BackendIds::new(&Metrics::new()), Instant::now());
        let id = |n| ids.get_address(&plan, at(n)).0;
        assert_eq!((id(1), id(2), id(1)), (1, 2, 1));
        let held = ids.get_address(&plan, at(3));
        ids.tidy(&HashSet::from([1]), start);
        assert_eq!(id(2), 2, "it may come back soon");
        let later = start + REMEMBERED + Duration::from_secs(1);
        ids.tidy(&HashSet::from([1]), later);
        assert_eq!((id(1), id(2)), (1, 4), "the one in use stays");
        assert_eq!(id(3), held.0, "a request held it");
    }
}
