//! Reloads the configuration on SIGHUP and when its file changes: whole, or not at all.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use super::health;
use crate::{
    config::{self, raw::Level},
    runtime::{Carry, Live, Snapshot},
    telemetry::logger,
};

/// How often the file is looked at. Asking for its content, and not for events of the file
/// system, also sees the symbolic links move by which Kubernetes replaces a ConfigMap.
const LOOK: Duration = Duration::from_secs(1);

/// Runs for ever.
pub async fn run(file: PathBuf, live: Arc<Live>, carry: Arc<Carry>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(e) => return log::error!("cannot listen for SIGHUP, reloading is off: {e}"),
    };
    let mut known = std::fs::read(&file).ok();
    let mut missed = false;
    loop {
        let asked = tokio::select! {
            got = hangup.recv() => got.is_some(),
            () = tokio::time::sleep(LOOK) => false,
        };
        let found = std::fs::read(&file).ok();
        if found.is_none() && !missed {
            log::warn!("{} cannot be read; the configuration in force stays", file.display());
        }
        missed = found.is_none();
        // A file that is gone for the moment is being replaced.
        if asked || (found.is_some() && found != known) {
            log::info!(
                "reloading {}{}",
                file.display(),
                if asked { " on SIGHUP" } else { ": it has changed" }
            );
            reload(&file, &live, &carry).await;
            known = found;
        }
    }
}

async fn reload(file: &Path, live: &Live, carry: &Carry) {
    let old = live.load();
    let plan = match config::load(file) {
        Ok(plan) => plan,
        Err(problems) => {
            carry.metrics.reload_success.set(0);
            log::error!("{} is not valid; the configuration in force stays:", file.display());
            for problem in problems {
                log::error!("{}: {problem}", file.display());
            }
            return;
        }
    };
    let fixed = old.plan.fixed.differences(&plan.fixed);
    if !fixed.is_empty() {
        carry.metrics.reload_success.set(0);
        return log::error!(
            "{}: a change of {} needs a restart; the configuration in force stays",
            file.display(),
            fixed.join(", ")
        );
    }
    let next = Snapshot::build(plan, old.generation + 1, carry);
    for endpoint in &next.endpoints {
        if let Some(earlier) = old.endpoints.iter().find(|e| e.id == endpoint.id) {
            endpoint.adopt(earlier);
        }
    }
    tokio::time::timeout(Duration::from_secs(5), health::resolve(&next)).await.ok();
    carry.probe.set(next.plan.health_check.clone(), &next.endpoints);
    logger::start(level(next.plan.log.level), false);
    for gone in &old.endpoints {
        if !next.endpoints.iter().any(|e| e.plan.name == gone.plan.name) {
            carry.metrics.backend_up.remove_label_values(&[&gone.plan.name]).ok();
        }
    }
    log::info!("configuration {} is in force", next.generation);
    live.swap(next);
    carry.metrics.reload_success.set(1);
    carry.probe_now.notify_one();
}

/// The level as the `log` crate knows it.
pub fn level(level: Level) -> log::LevelFilter {
    match level {
        Level::Error => log::LevelFilter::Error,
        Level::Warn => log::LevelFilter::Warn,
        Level::Info => log::LevelFilter::Info,
        Level::Debug => log::LevelFilter::Debug,
        Level::Trace => log::LevelFilter::Trace,
    }
}
