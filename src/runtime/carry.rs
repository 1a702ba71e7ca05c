//! What survives a reload: health, counters, connections, waiting usage records.

use std::{
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
    },
};

use pingora::connectors::http::Connector;
use pingora_load_balancing::{Backend, HealthRegistry};
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    buffers::Buffers, connections::Connections, discovery::DiscoveryState, drained::Drained,
    explain::RecentTraces, owners::Owners, watch::Watches,
};
use crate::{
    auth::{KeyStore, Resources},
    balance::{Endpoint, Probe, endpoint::BackendIds, health},
    limit,
    lua::ScriptStore,
    store::{self, Stores},
    telemetry::Metrics,
    usage::Outbox,
};

/// A request for a reload; it is answered with the new generation, or with all problems of the file.
pub type ReloadRequest = oneshot::Sender<Result<u64, Vec<String>>>;

/// The receiving ends of the channels in [`Carry`].
pub struct Receivers {
    pub reloads: mpsc::UnboundedReceiver<ReloadRequest>,
}

/// The parts of a gateway that survive reloads.
pub struct Carry {
    pub metrics: Metrics,
    /// Health of the backends.
    pub health: Arc<HealthRegistry>,
    pub probe: Arc<Probe>,
    /// Wakes the task that probes, because the configuration has changed.
    pub probe_now: Notify,
    pub ids: BackendIds,
    /// Backends from discovery sources, and the addresses of names.
    pub discovered: DiscoveryState,
    pub drained: Drained,
    /// Wakes the task that discovers backends, because the configuration has changed.
    pub discover_now: Notify,
    /// For the gateway's own requests to backends.
    pub client: reqwest::Client,
    /// Connections to backends for hedged requests. Made when the first one needs it.
    pub connector: LazyLock<Connector>,
    /// For requests to other servers than backends.
    pub outside: reqwest::Client,
    /// Redis and SQL connections.
    pub stores: Stores,
    /// The values of the scripts' `store`, if they are kept in this process.
    pub scripts: Arc<ScriptStore>,
    /// The keys of the admin API.
    pub keys: Arc<KeyStore>,
    /// Requests a reload.
    pub reload: mpsc::UnboundedSender<ReloadRequest>,
    /// The state of the limits: what is taken, held and spent.
    pub limits: Arc<limit::Shared>,
    /// Usage records on their way to the reporters.
    pub usage: Outbox,
    /// Wakes the task that delivers them, because the configuration has changed.
    pub deliver_now: Notify,
    /// Traces of the last requests. Written by the gateway, read by the admin API.
    pub explains: RecentTraces,
    /// Which backends have stored which responses. Made when the first one is stored.
    pub owners: LazyLock<Owners>,
    /// Deadlines of the requests in flight.
    pub watches: Arc<Watches>,
    /// Connections of clients.
    pub connections: Arc<Connections>,
    /// The memory of request bodies.
    pub buffers: Arc<Buffers>,
    /// Requests that have ended, and whose `on_complete` scripts still run.
    pub completing: AtomicUsize,
    /// The process is about to end: `/ready` reports it.
    pub draining: AtomicBool,
    /// Source of the connection groups of [`Endpoint::fresh_peer`].
    pub unique: AtomicU64,
}

/// Idle connections that are kept for hedged requests, for each thread.
const IDLE_CONNECTIONS: usize = 128;

impl Carry {
    /// `keys_db` is the file of the admin API's keys, `limits_db` the file of what was spent, `spool`
    /// the folder of usage records.
    pub fn new(
        keys_db: PathBuf,
        limits_db: PathBuf,
        spool: Option<PathBuf>,
    ) -> (Arc<Self>, Receivers) {
        let client = store::http::client();
        let probe = Arc::new(Probe::new(client.clone()));
        // A backend keeps its health when its weight changes.
        let key = |backend: &Backend| u64::from(Endpoint::id_of(backend));
        let registry = Arc::new(HealthRegistry::with_equivalence(key));
        registry.set_health_check(Box::new(health::SharedProbe(Arc::clone(&probe))));
        let metrics = Metrics::new();
        let (reload, reloads) = mpsc::unbounded_channel();
        let limits = Arc::new(limit::Shared::new(limits_db, &metrics));
        let ids = BackendIds::new(&metrics);
        let usage = metrics.usage.clone();
        let connections = Arc::new(Connections::new(metrics.connections.clone()));
        let buffers = Arc::new(Buffers::new(metrics.buffered.clone()));
        let carry = Self {
            metrics,
            health: registry,
            probe,
            probe_now: Notify::new(),
            ids,
            discovered: DiscoveryState::default(),
            drained: Drained::default(),
            discover_now: Notify::new(),
            client,
            connector: LazyLock::new(|| {
                Connector::new(Some(store::tls::connector(IDLE_CONNECTIONS)))
            }),
            outside: store::http::outside(),
            stores: Stores::default(),
            scripts: Arc::default(),
            keys: Arc::new(KeyStore::new(keys_db)),
            reload,
            limits,
            usage: Outbox::new(spool, usage),
            deliver_now: Notify::new(),
            explains: RecentTraces::default(),
            owners: LazyLock::new(Owners::default),
            watches: Arc::default(),
            connections,
            buffers,
            completing: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            unique: AtomicU64::new(1),
        };
        (Arc::new(carry), Receivers { reloads })
    }
}

impl Carry {
    /// What auth providers are built with.
    pub fn resources(&self) -> Resources<'_> {
        Resources {
            stores: &self.stores,
            client: &self.outside,
            keys: &self.keys,
            metrics: &self.metrics,
        }
    }
}
