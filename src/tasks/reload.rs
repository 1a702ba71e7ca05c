//! Reloads the configuration on SIGHUP, on request and when its file changes: completely or not at all.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::discovery;
use crate::{
    config::{self, choices::Level, plan::prompt_folder_contents},
    runtime::{Carry, Live, ReloadRequest},
    telemetry::logger,
};

/// How often the file is read. Reading it, instead of waiting for events of the file system, also notices
/// the symbolic links that Kubernetes moves when it replaces a ConfigMap.
const CHECK: Duration = Duration::from_secs(1);

/// Runs until the process ends.
pub async fn run(
    file: PathBuf,
    live: Arc<Live>,
    carry: Arc<Carry>,
    mut requests: mpsc::UnboundedReceiver<ReloadRequest>,
) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(e) => return log::error!("cannot listen for SIGHUP, reloading is off: {e}"),
    };
    let mut known: Contents = contents(&file, &live).into_iter().collect();
    let mut was_missing = false;
    loop {
        let (why, request) = tokio::select! {
            _ = hangup.recv() => (Some(" on SIGHUP"), None),
            request = requests.recv() => (Some(" by the admin API"), request),
            () = tokio::time::sleep(CHECK) => (None, None),
        };
        // Read before the reload: what is written meanwhile is another change.
        let found = contents(&file, &live);
        let missing = found.first().is_none_or(|(_, text)| text.is_none());
        let changed = |(path, text): &(PathBuf, Option<Vec<u8>>)| {
            known.get(path).is_some_and(|before| before != text)
        };
        let changed = found.iter().any(changed);
        if missing && !was_missing {
            log::warn!("{} cannot be read; the configuration in force stays", file.display());
        }
        was_missing = missing;
        // A missing file is probably being replaced.
        if why.is_some() || (!missing && changed) {
            log::info!("reloading {}{}", file.display(), why.unwrap_or(": it has changed"));
            let result = reload(&file, &live, &carry).await;
            if let Some(request) = request {
                request.send(result).ok();
            }
        }
        if !missing {
            known.extend(found);
        }
    }
}

type Contents = HashMap<PathBuf, Option<Vec<u8>>>;

/// The contents of the file, of the files that it names and of the folder of prompts; `None` for one that
/// cannot be read.
fn contents(file: &Path, live: &Live) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let snapshot = live.load();
    let named = snapshot.plan.files.iter().map(PathBuf::as_path);
    let all = std::iter::once(file).chain(named);
    let files = all.map(|path| (path.to_owned(), std::fs::read(path).ok()));
    let folder = snapshot.plan.prompts.folder.iter();
    files.chain(folder.map(|path| (path.clone(), prompt_folder_contents(path)))).collect()
}

/// Loads the file; the new generation, or all problems.
async fn reload(file: &Path, live: &Live, carry: &Arc<Carry>) -> Result<u64, Vec<String>> {
    let old = live.load();
    let refused = |why: Vec<String>| {
        carry.metrics.reload_success.set(0);
        for line in &why {
            log::error!("{}: {line}", file.display());
        }
        log::error!("the configuration in force stays");
        Err(why)
    };
    let plan = match config::load(file) {
        Ok(plan) => plan,
        Err(problems) => return refused(problems.iter().map(ToString::to_string).collect()),
    };
    let fixed = old.plan.fixed.differences(&plan.fixed);
    if !fixed.is_empty() {
        return refused(vec![format!("a change of {} needs a restart", fixed.join(", "))]);
    }
    if let Err(why) = carry.usage.open(&plan.usage) {
        return refused(vec![format!("usage.spool: {why}")]);
    }
    for warning in &plan.warnings {
        log::warn!("{}: {warning}", file.display());
    }
    logger::start(level(plan.log.level), false);
    let next = discovery::reload(plan, live, carry).await;
    carry.deliver_now.notify_one();
    let generation = next.generation;
    log::info!("configuration {generation} is in force");
    carry.metrics.reload_success.set(1);
    Ok(generation)
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
