//! One backend at run time: what to send it and where it is.

use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use http::{Method, header::AUTHORIZATION};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora_load_balancing::{Backend, Extensions};
use reqwest::RequestBuilder;

use super::{
    load::{self, Reading},
    prefix::Memories,
    state::State,
};
use crate::{
    base::lock,
    config::plan::{BackendPlan, TimeoutPlan},
    dialect::{self, Route},
    telemetry::{Metrics, metrics::Usual},
};

/// A backend.
pub struct Endpoint {
    /// Identity of the backend; the same in every generation of the configuration that names it.
    pub id: u32,
    /// As configured.
    pub plan: BackendPlan,
    /// What lives through reloads.
    state: Arc<State>,
    /// Where its name leads; `None` until it was resolved.
    address: ArcSwapOption<SocketAddr>,
    /// Counters of its usual requests, by [`dialect::index`] and stream.
    usual: [OnceLock<Usual>; 2 * dialect::INFERENCE_ROUTES],
    /// A connection's settings, for an address yet to be filled in.
    template: HttpPeer,
}

impl Endpoint {
    /// Makes an endpoint. A literal address is used at once; a name waits for [`Self::resolve`].
    pub fn new(identity: Identity, plan: BackendPlan, timeouts: &TimeoutPlan) -> Self {
        let (id, state) = identity;
        let literal = plan.host.parse().ok().map(|ip| Arc::new(SocketAddr::new(ip, plan.port)));
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut template = HttpPeer::new(
            nowhere,
            plan.tls,
            if plan.tls { plan.host.clone() } else { String::new() },
        );
        // No path that the gateway serves can be upgraded to another protocol.
        template.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        template.options.connection_timeout = timeouts.connect;
        template.options.total_connection_timeout = timeouts.connect;
        template.options.idle_timeout = Some(timeouts.upstream_idle);
        Self {
            id,
            plan,
            state,
            address: ArcSwapOption::new(literal),
            usual: Default::default(),
            template,
        }
    }

    /// The counters of usual requests to a path.
    pub fn usual(&self, route: &Route, stream: bool, metrics: &Metrics) -> Option<&Usual> {
        let slot = self.usual.get(2 * dialect::index(route)? + usize::from(stream))?;
        let word = if stream { "true" } else { "false" };
        Some(slot.get_or_init(|| metrics.usual(route.path, word, &self.plan.name)))
    }

    /// What is known of it over all generations.
    pub(super) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Requests that are with it now.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight()
    }

    /// Whether it gets no new requests, because an operator said so.
    pub fn draining(&self) -> bool {
        self.state.draining.load(Ordering::Relaxed)
    }

    /// Takes it out of use for new requests, or back in. Holds through reloads.
    pub fn drain(&self, on: bool) {
        self.state.draining.store(on, Ordering::Relaxed);
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

    /// The peer to connect to; `None` while the name does not resolve.
    pub fn peer(&self) -> Option<HttpPeer> {
        let address = self.address.load();
        let mut peer = self.template.clone();
        peer._address = (**address.as_ref()?).into();
        Some(peer)
    }

    /// A peer that shares no connection with any other request: for the attempt after a
    /// kept-alive connection was found dead. `unique` must not be zero and not repeat soon.
    pub fn fresh_peer(&self, unique: u64) -> Option<HttpPeer> {
        let mut peer = self.peer()?;
        peer.group_key = unique;
        peer.options.idle_timeout = Some(Duration::ZERO);
        Some(peer)
    }

    /// Takes over where the name led in an earlier generation.
    pub fn adopt(&self, earlier: &Self) {
        if self.address.load().is_none() {
            self.address.store(earlier.address.load_full());
        }
    }

    /// A request of our own to the backend: `path` stands below its prefix.
    pub fn request(&self, client: &reqwest::Client, method: Method, path: &str) -> RequestBuilder {
        let scheme = if self.plan.tls { "https" } else { "http" };
        let authority = self.plan.authority.to_str().unwrap_or_default();
        let url = format!("{scheme}://{authority}{}{path}", self.plan.prefix);
        let request = client.request(method, url);
        match &self.plan.authorization {
            Some(key) => request.header(AUTHORIZATION, key),
            None => request,
        }
    }

    /// Looks the name up again. Keeps the last address when the name server fails.
    ///
    /// # Errors
    /// Why there is no address.
    pub async fn resolve(&self) -> Result<(), String> {
        let (host, port) = (self.plan.host.as_str(), self.plan.port);
        if host.parse::<std::net::IpAddr>().is_ok() {
            return Ok(());
        }
        let found = tokio::net::lookup_host((host, port)).await;
        let known = self.address.load_full();
        let addresses: Vec<SocketAddr> = match found {
            Ok(addresses) => addresses.collect(),
            Err(_) if known.is_some() => return Ok(()),
            Err(e) => return Err(format!("cannot resolve {host}: {e}")),
        };
        // Stay with the address in use while the name still leads there.
        if known.is_some_and(|known| addresses.contains(&known)) {
            return Ok(());
        }
        let first = addresses.first().ok_or_else(|| format!("{host} has no address"))?;
        self.address.store(Some(Arc::new(*first)));
        Ok(())
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

/// Hands out the same id for the same backend over all reloads.
pub struct Ids {
    known: Mutex<HashMap<(String, String), Identity>>,
    metrics: Metrics,
    /// From when the times of all of them are told.
    epoch: Instant,
    /// What pools remember.
    pub memories: Memories,
}

/// The id of a backend, and what is known of it.
pub type Identity = (u32, Arc<State>);

impl Ids {
    /// None are known yet.
    pub fn new(metrics: &Metrics) -> Self {
        let (known, memories) = (Mutex::default(), Memories::default());
        Self { known, metrics: metrics.clone(), epoch: Instant::now(), memories }
    }

    /// The id of the backend with this name and URL, and what is known of it.
    pub fn of(&self, plan: &BackendPlan) -> Identity {
        let mut known = lock(&self.known);
        let next = known.len() as u32 + 1;
        let name = (plan.name.clone(), plan.url.clone());
        let state = || Arc::new(State::new(&plan.name, self.epoch, &self.metrics));
        known.entry(name).or_insert_with(|| (next, state())).clone()
    }
}
