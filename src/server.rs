//! The composition root: listeners, services, signals. The only file that knows every floor.

use std::{
    io,
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use pingora::{
    apps::HttpServerOptions,
    protocols::http::v2::server::{H2Options, default_h2_options},
    server::{
        RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch,
        configuration::ServerConf,
    },
    services::{
        ServiceReadyNotifier,
        background::{BackgroundService, background_service},
    },
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Mutex, oneshot},
};

use crate::{
    admin,
    base::machine,
    config::{
        Plan,
        plan::{ProviderPlan, Source},
    },
    gateway::Gateway,
    listener::{self, Listener},
    runtime::{Carry, Live, Outlets, Snapshot},
    store,
    tasks::{deadline, delivery, discovery, health, limits, load, operator, reconcile, reload},
    telemetry::logger,
};

/// How long the last records may take to be written, also when the end is wanted at once.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// The signal of a process that writes more to a file than it may.
const SIGXFSZ: i32 = 25;

/// How long records may still be delivered, and usage counted, after the last request has ended.
const LAST_DELIVERIES: Duration = Duration::from_secs(5);

/// Runs a gateway until it is told to stop. `file` is watched for changes, if there is one.
///
/// # Errors
/// If an address cannot be listened on.
pub fn run(plan: Plan, file: Option<PathBuf>) -> io::Result<()> {
    store::tls::install_crypto();
    logger::start(reload::level(plan.log.level), plan.fixed.json_log);
    a_clock_that_is_set()?;
    let fixed = plan.fixed.clone();
    machine::raise_open_files();
    // Clients cannot connect before the first probes have been made, only to be cut off again.
    let bound = listener::bind(fixed.listen)?;
    let operator = fixed.metrics_listen.map(listener::listen).transpose()?;
    let admin = fixed.admin.as_ref().map(|admin| listener::listen(admin.listen)).transpose()?;

    let (carry, outlets) =
        Carry::new(fixed.keys_db.clone(), fixed.limits_db.clone(), fixed.spool.clone());
    carry.metrics.reload_success.set(1);
    let told = Mutex::new(Some(signals(&carry)?));
    announce(&plan);
    open_keys(&plan, &carry)?;
    carry.usage.open(&plan.usage).map_err(io::Error::other)?;
    let spent = carry.stores.handle().block_on(carry.limits.ledger().load());
    spent.map_err(|e| io::Error::other(e.to_string()))?;
    let first = Snapshot::build(plan, None, &carry);
    carry.probe.set(first.plan.health_check.clone(), &first.endpoints);
    let live = Arc::new(Live::new(first));

    let mut server = Server::new_with_opt_and_conf(None, server_conf(fixed.threads));
    server.bootstrap();
    let gateway = Gateway::new(Arc::clone(&live), Arc::clone(&carry));
    let mut proxy = pingora_proxy::http_proxy(&server.configuration, gateway);
    let mut options = HttpServerOptions::default();
    options.h2c = fixed.h2c;
    proxy.server_options = Some(options);
    proxy.h2_options = Some(h2_options(live.load().plan.max_header_size));
    let tls = match &fixed.tls {
        None => None,
        Some((cert, key)) => Some(store::tls::listener(cert, key).map_err(io::Error::other)?),
    };
    let proxy = Listener::new(proxy, bound, tls, Arc::clone(&live), Arc::clone(&carry));
    let tasks = Tasks {
        live: Arc::clone(&live),
        carry: Arc::clone(&carry),
        file,
        once: Mutex::new(Some(Once { outlets, operator, admin })),
    };
    let tasks = server.add_service(background_service("tasks", tasks));
    let proxy = server.add_service(proxy);
    // Requests come when the first probes have been made.
    proxy.add_dependency(&tasks);
    server.run(RunArgs { shutdown_signal: Box::new(Signals { live, carry, told }) });
    logger::flush();
    Ok(())
}

/// Pingora panics when it writes the date of a response, and TLS when it looks at a certificate, while
/// the clock says a time before 1970; keys would be good that have expired.
///
/// # Errors
/// If it does.
fn a_clock_that_is_set() -> io::Result<()> {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(_) => Ok(()),
        Err(before) => Err(io::Error::other(format!(
            "the clock of this machine is {} s before 1970: set it (NTP, `date -s`), then start again",
            before.duration().as_secs().max(1)
        ))),
    }
}

fn announce(plan: &Plan) {
    let scheme = if plan.fixed.tls.is_some() { "https" } else { "http" };
    log::info!("llmproxy {} on {scheme}://{}", env!("CARGO_PKG_VERSION"), plan.fixed.listen);
    if let Some(address) = plan.fixed.metrics_listen {
        log::info!("metrics on http://{address}/metrics");
    }
    if let Some(admin) = &plan.fixed.admin {
        log::info!("admin API on http://{}/admin/v1/", admin.listen);
    }
    for warning in &plan.warnings {
        log::warn!("{warning}");
    }
    for backend in &plan.backends {
        log::info!("backend {} at {}, weight {}", backend.name, backend.url, backend.weight);
    }
    for source in &plan.discovery.sources {
        log::info!("more backends from discovery source {}", source.name);
    }
    if plan.auth.is_none() {
        log::info!("no auth: everybody may call");
    }
    if !plan.usage.is_on() {
        log::info!("no reporter: usage records are not made");
    }
}

/// Opens the file with the keys of the admin API, if it is used: what is wrong with it is told
/// before the first request.
fn open_keys(plan: &Plan, carry: &Carry) -> io::Result<()> {
    let builtin = |p: &ProviderPlan| matches!(p.source, Source::Builtin(_));
    let used = plan.auth.as_ref().is_some_and(|auth| auth.pipeline.iter().any(builtin));
    if !used && plan.fixed.admin.is_none() {
        return Ok(());
    }
    let opened = carry.stores.handle().block_on(carry.keys.open());
    opened.map(drop).map_err(|e| io::Error::other(e.to_string()))
}

/// As Pingora has them, with the limit of header fields that is configured at the start. HTTP/2
/// counts 32 bytes more for each field than `server.max_header_size` does.
fn h2_options(max_header_size: usize) -> H2Options {
    const ROOM: usize = 16 << 10;
    let mut options = default_h2_options();
    options.max_header_list_size(u32::try_from(max_header_size + ROOM).unwrap_or(u32::MAX));
    options
}

/// SIGTERM and SIGINT. They are kept from now on, until Pingora asks for them: it does so only after
/// the first requests may have come.
fn signals(carry: &Carry) -> io::Result<(Signal, Signal)> {
    let handle = carry.stores.handle();
    let _entered = handle.enter();
    // A file that may not grow (`ulimit -f`) is an error of that file, and no end of the process.
    drop(signal(SignalKind::from_raw(SIGXFSZ))?);
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

fn server_conf(threads: usize) -> ServerConf {
    ServerConf {
        threads,
        // With one thread there is nobody to steal from, and a simpler runtime will do.
        work_stealing: threads > 1,
        // Idle connections that may be kept, for each thread.
        upstream_keepalive_pool_size: 1024,
        ca_file: store::tls::ca_file(),
        // `gateway::failure` decides about attempts; this is only a stop for defects.
        max_retries: 1000,
        // `Signals` ends the process; Pingora's own grace periods are fixed at the start.
        grace_period_seconds: Some(7 * 24 * 3600),
        ..ServerConf::default()
    }
}

/// Everything that runs beside the requests, on one thread.
struct Tasks {
    live: Arc<Live>,
    carry: Arc<Carry>,
    file: Option<PathBuf>,
    once: Mutex<Option<Once>>,
}

/// What the tasks take over when they start.
struct Once {
    outlets: Outlets,
    operator: Option<TcpListener>,
    admin: Option<TcpListener>,
}

#[async_trait]
impl BackgroundService for Tasks {
    /// The tasks outlive the signal to stop: streams drain under their care.
    async fn start_with_ready_notifier(&self, _: ShutdownWatch, ready: ServiceReadyNotifier) {
        let Some(Once { outlets, operator, admin }) = self.once.lock().await.take() else {
            return;
        };
        let both = || (Arc::clone(&self.live), Arc::clone(&self.carry));
        let (live, carry) = both();
        let reload = async {
            if let Some(file) = &self.file {
                reload::run(file.clone(), live, carry, outlets.reloads).await;
            }
        };
        let (live, carry) = both();
        let operator = async {
            if let Some(listener) = operator
                && let Err(e) = operator::run(listener, live, carry).await
            {
                log::error!("the metrics listener broke: {e}");
            }
        };
        let (live, carry) = both();
        let delivery = delivery::run(live, carry);
        let (live, carry) = both();
        let (found, backends) = oneshot::channel();
        let health = health::run(live, carry, backends, || ready.notify_ready());
        let (live, carry) = both();
        let discovery = discovery::run(live, carry, found);
        let deadlines = deadline::run(Arc::clone(&self.carry));
        let (live, carry) = both();
        let plan = live.load().plan.fixed.admin.clone();
        let admin = async {
            if let Some((listener, plan)) = admin.zip(plan)
                && let Err(e) = admin::run(listener, &plan.token, live, carry).await
            {
                log::error!("the admin listener broke: {e}");
            }
        };
        let limits = limits::run(Arc::clone(&self.carry));
        let (live, carry) = both();
        let load = load::run(live, carry);
        let (live, carry) = both();
        let reconcile = reconcile::run(live, carry);
        tokio::join!(
            reload, operator, admin, delivery, discovery, health, deadlines, limits, load,
            reconcile
        );
    }
}

/// SIGTERM and SIGINT drain; a second one ends the process at once.
struct Signals {
    live: Arc<Live>,
    carry: Arc<Carry>,
    told: Mutex<Option<(Signal, Signal)>>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let Some((mut terminate, mut interrupt)) = self.told.lock().await.take() else {
            return std::future::pending().await;
        };
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        self.carry.draining.store(true, Ordering::Relaxed);
        let patience = self.live.load().plan.graceful_shutdown_timeout;
        let open = self.carry.metrics.in_flight.get();
        let (live, carry) = (Arc::clone(&self.live), Arc::clone(&self.carry));
        let hurry = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&hurry);
        // On threads of their own: Pingora's main thread sleeps through its grace period.
        std::thread::spawn(move || drain(&live, &carry, patience, &told));
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            hurry.store(true, Ordering::Relaxed);
        });
        log::info!("{name}: no new connections, {open} requests may go on for {patience:?}");
        ShutdownSignal::GracefulTerminate
    }
}

/// Waits for the requests under way, then for their records and counts, and ends the process.
fn drain(live: &Live, carry: &Carry, patience: Duration, hurry: &AtomicBool) {
    let wait = |longest: Duration, over: &dyn Fn() -> bool| {
        let end = Instant::now() + longest;
        while !over() && Instant::now() < end && !hurry.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let idle = || carry.metrics.in_flight.get() <= 0;
    wait(patience, &idle);
    if !idle() {
        let open = carry.metrics.in_flight.get();
        log::warn!("the time to drain is over, {open} requests are ended");
        carry.watches.end_all(Instant::now());
        wait(Duration::from_secs(3), &idle);
        if !idle() {
            let open = carry.metrics.in_flight.get();
            log::error!("{open} requests could not be ended; they have no usage record");
        }
    }
    let counting = || carry.metrics.counting.get();
    let pending = || carry.metrics.limits.pending.get();
    carry.usage.finish();
    wait(LAST_DELIVERIES, &|| {
        // What a request has left behind that ended just now goes back as well.
        if let Some(redis) = live.load().limits.redis() {
            redis.give_back();
        }
        let told = carry.limits.ledger().waiting() == 0 && counting() <= 0 && pending() <= 0;
        told && !carry.usage.busy()
    });
    if pending() > 0 {
        log::error!("Redis could not be told of {} requests that have ended", pending());
    }
    if carry.limits.ledger().waiting() > 0 {
        let lost = carry.limits.ledger().waiting();
        log::error!("what {lost} callers have spent last could not be written");
    }
    if counting() > 0 {
        log::error!("the usage of {} keys could not be counted", counting());
    }
    // In no hurry about this: the last records gather for a moment, and are written.
    let end = Instant::now() + LAST_WRITES;
    while carry.usage.unwritten() > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    carry.usage.flush();
    let (unwritten, waiting) = (carry.usage.unwritten(), carry.usage.waiting());
    if unwritten > 0 {
        log::error!("{unwritten} usage records could not be written to the spool; they are lost");
    }
    match waiting {
        0 => log::info!("stopped"),
        left if carry.usage.durable() => {
            log::info!("stopped; {left} usage records wait in the spool for the next start");
        }
        lost => log::error!("stopped; {lost} usage records could not be delivered"),
    }
    logger::flush();
    std::process::exit(0);
}
