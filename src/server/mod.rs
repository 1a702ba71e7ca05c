//! The composition root: starts the listeners, the background tasks and the gateway, and ends them
//! at a signal.

mod background;
mod clock;
mod drain;
mod listeners;
mod signals;
mod startup_log;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc};

use pingora::{
    server::{RunArgs, Server},
    services::background::background_service,
};

use self::{
    background::{Background, Inputs},
    listeners::Sockets,
    signals::{Pending, Signals},
};
use crate::{
    base::machine,
    config::{
        Plan,
        plan::{ProviderPlan, Source},
    },
    runtime::{Carry, Live, Snapshot},
    store,
    tasks::reload,
    telemetry::logger,
};

/// Runs a gateway until a signal stops it. `file` is watched for changes, if there is one.
///
/// # Errors
/// If an address cannot be listened on.
pub fn run(plan: Plan, file: Option<PathBuf>) -> io::Result<()> {
    store::tls::install_crypto();
    logger::start(reload::level(plan.log.level), plan.fixed.json_log);
    clock::check()?;
    let (fixed, uses_tls) = (plan.fixed.clone(), plan.uses_tls);
    machine::raise_open_files();
    let sockets = Sockets::bind(&fixed)?;

    let (carry, outlets) =
        Carry::new(fixed.keys_db.clone(), fixed.limits_db.clone(), fixed.spool.clone());
    carry.metrics.reload_success.set(1);
    let pending = Pending::collect(&carry)?;
    startup_log::write(&plan);
    open_keys(&plan, &carry)?;
    carry.usage.open(&plan.usage).map_err(io::Error::other)?;
    let spent = carry.stores.handle().block_on(carry.limits.ledger().load());
    spent.map_err(|e| io::Error::other(e.to_string()))?;
    let first = Snapshot::build(plan, None, &carry);
    carry.probe.set(first.plan.health_check.clone(), &first.endpoints);
    let live = Arc::new(Live::new(first));

    let mut server = Server::new_with_opt_and_conf(None, listeners::server_conf(uses_tls));
    server.bootstrap();
    let workers = listeners::workers(&server, &fixed, sockets.proxy, &live, &carry);
    let inputs = Inputs { outlets, operator: sockets.operator, admin: sockets.admin };
    let background = Background::new(Arc::clone(&live), Arc::clone(&carry), file, inputs);
    let background = server.add_service(background_service("tasks", background));
    for worker in workers {
        // Requests are accepted after the first probes.
        server.add_service(worker).add_dependency(&background);
    }
    server.run(RunArgs { shutdown_signal: Box::new(Signals::new(live, carry, pending)) });
    logger::flush();
    Ok(())
}

/// Opens the file with the keys of the admin API, if it is used: a problem with it is reported
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
