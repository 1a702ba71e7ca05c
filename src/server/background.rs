//! The background tasks, on one thread beside the requests.

use std::{net::TcpListener, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use pingora::{
    server::ShutdownWatch,
    services::{ServiceReadyNotifier, background::BackgroundService},
};
use tokio::sync::{Mutex, oneshot};

use crate::{
    admin,
    runtime::{Carry, Live, Receivers},
    tasks::{deadline, delivery, discovery, health, limits, load, operator, reconcile, reload},
};

/// Everything that runs beside the requests.
pub struct Background {
    live: Arc<Live>,
    carry: Arc<Carry>,
    /// The configuration file to watch.
    file: Option<PathBuf>,
    /// Taken when the service starts.
    inputs: Mutex<Option<Inputs>>,
}

/// What the tasks own from their start on.
pub struct Inputs {
    pub outlets: Receivers,
    pub operator: Option<TcpListener>,
    pub admin: Option<TcpListener>,
}

impl Background {
    pub fn new(live: Arc<Live>, carry: Arc<Carry>, file: Option<PathBuf>, inputs: Inputs) -> Self {
        Self { live, carry, file, inputs: Mutex::new(Some(inputs)) }
    }
}

#[async_trait]
impl BackgroundService for Background {
    /// The tasks ignore the shutdown signal: they are needed until the last stream has drained.
    async fn start_with_ready_notifier(&self, _: ShutdownWatch, ready: ServiceReadyNotifier) {
        let Some(Inputs { outlets, operator, admin }) = self.inputs.lock().await.take() else {
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
                log::error!("the metrics listener failed: {e}");
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
                log::error!("the admin listener failed: {e}");
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
