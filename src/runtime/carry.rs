//! What outlives a reload: health, counters, connections, records that wait.

use std::{
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use pingora::connectors::http::Connector;
use pingora_load_balancing::{Backend, HealthRegistry};
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    Explains, Snapshot,
    buffers::Buffers,
    connections::Connections,
    discovery::{Drained, Found},
    watch::Watches,
};
use crate::{
    auth::{KeyStore, Resources},
    balance::{Endpoint, Probe, endpoint::Ids, health},
    limit,
    store::{self, Stores},
    telemetry::Metrics,
    usage::Outbox,
};

/// Asks for a reload; told the new generation, or everything that is wrong with the file.
pub type ReloadRequest = oneshot::Sender<Result<u64, Vec<String>>>;

/// Where what requests and operators put in comes out again.
pub struct Outlets {
    /// Wishes for a reload.
    pub reloads: mpsc::UnboundedReceiver<ReloadRequest>,
}

/// The lasting parts of a gateway.
pub struct Carry {
    /// All metrics.
    pub metrics: Metrics,
    /// Health of the backends.
    pub health: Arc<HealthRegistry>,
    /// How they are probed.
    pub probe: Arc<Probe>,
    /// Wakes the task that probes: the configuration has changed.
    pub probe_now: Notify,
    /// Identities of the backends.
    pub ids: Ids,
    /// Where they are.
    pub found: Found,
    /// Those that get no new requests.
    pub drained: Drained,
    /// Wakes the task that finds backends: the configuration has changed.
    pub discover_now: Notify,
    /// For asking backends what is not a client's request.
    pub client: reqwest::Client,
    /// Connections to backends for requests that are tried at two of them at the same time. Made
    /// when the first one needs it.
    pub connector: LazyLock<Connector>,
    /// For everything outside of the fleet.
    pub outside: reqwest::Client,
    /// Redis and SQL connections.
    pub stores: Stores,
    /// The keys of the admin API.
    pub keys: Arc<KeyStore>,
    /// Asks the task that reloads to do so now.
    pub reload: mpsc::UnboundedSender<ReloadRequest>,
    /// Limits: what is taken and held, and what was spent.
    pub limits: Arc<limit::Shared>,
    /// Usage records on their way.
    pub usage: Outbox,
    /// Wakes the task that delivers them: the configuration has changed.
    pub deliver_now: Notify,
    /// The ways of the last requests. Written by the gateway, read by the admin API.
    pub explains: Explains,
    /// Deadlines of the requests under way.
    pub watches: Arc<Watches>,
    /// Connections of clients.
    pub connections: Arc<Connections>,
    /// The memory of request bodies.
    pub buffers: Arc<Buffers>,
    /// The process is about to end: `/ready` says so.
    pub draining: AtomicBool,
    /// For connections that must not be shared.
    pub unique: AtomicU64,
}

/// Idle connections that are kept for requests that are tried at two backends, for each thread.
const KEPT: usize = 128;

impl Carry {
    /// Starts with nothing known. `keys_db` is the file of the admin API's keys, `limits_db` that
    /// of what was spent, `spool` the folder of usage records.
    pub fn new(
        keys_db: PathBuf,
        limits_db: PathBuf,
        spool: Option<PathBuf>,
    ) -> (Arc<Self>, Outlets) {
        let client = store::http::client();
        let probe = Arc::new(Probe::new(client.clone()));
        // A backend keeps its health when its weight changes.
        let key = |backend: &Backend| u64::from(Endpoint::id_of(backend));
        let registry = Arc::new(HealthRegistry::with_equivalence(key));
        registry.set_health_check(Box::new(health::Shared(Arc::clone(&probe))));
        let metrics = Metrics::new();
        let (reload, reloads) = mpsc::unbounded_channel();
        let limits = Arc::new(limit::Shared::new(limits_db, &metrics));
        let ids = Ids::new(&metrics);
        let usage = metrics.usage.clone();
        let connections = Arc::new(Connections::new(metrics.connections.clone()));
        let buffers = Arc::new(Buffers::new(metrics.buffered.clone()));
        let carry = Self {
            metrics,
            health: registry,
            probe,
            probe_now: Notify::new(),
            ids,
            found: Found::default(),
            drained: Drained::default(),
            discover_now: Notify::new(),
            client,
            connector: LazyLock::new(|| Connector::new(Some(store::tls::connector(KEPT)))),
            outside: store::http::outside(),
            stores: Stores::default(),
            keys: Arc::new(KeyStore::new(keys_db)),
            reload,
            limits,
            usage: Outbox::new(spool, usage),
            deliver_now: Notify::new(),
            explains: Explains::default(),
            watches: Arc::default(),
            connections,
            buffers,
            draining: AtomicBool::new(false),
            unique: AtomicU64::new(1),
        };
        (Arc::new(carry), Outlets { reloads })
    }
}

impl Carry {
    /// What auth providers are made with.
    pub fn resources(&self) -> Resources<'_> {
        Resources {
            stores: &self.stores,
            client: &self.outside,
            keys: &self.keys,
            metrics: &self.metrics,
        }
    }

    /// Whether new traffic is welcome.
    ///
    /// # Errors
    /// Why not, in two words.
    pub fn ready(&self, snapshot: &Snapshot) -> Result<(), &'static str> {
        match () {
            () if self.draining.load(Ordering::Relaxed) => Err("draining\n"),
            () if self.usage.refuses() => Err("no room for usage records\n"),
            () if !snapshot.ready() => Err("no healthy backend\n"),
            () => Ok(()),
        }
    }
}
