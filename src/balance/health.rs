//! Active probes, as a health check of pingora-load-balancing.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Instant,
};

use ::http::header::CONNECTION;
use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use pingora::{Error, ErrorType, Result};
use pingora_load_balancing::{Backend, health_check::HealthCheck};

use super::endpoint::Endpoint;
use crate::{base::lock, config::plan::HealthPlan, store::http};

/// Probes backends as the current plan says.
pub struct Probe {
    client: reqwest::Client,
    plan: ArcSwapOption<HealthPlan>,
    /// The endpoints of the current configuration, by id.
    endpoints: ArcSwap<HashMap<u32, Arc<Endpoint>>>,
    /// Why the last probe of a backend failed, by id.
    failures: Mutex<HashMap<u32, String>>,
    /// Ids of the endpoints that were probed before.
    probed: Mutex<HashSet<u32>>,
    /// Since when endpoints refuse connections, by id.
    refusing: Mutex<HashMap<u32, Instant>>,
}

thread_local! {
    /// Whether the probe that this thread has just finished was the first of its backend.
    /// pingora-load-balancing asks for the threshold right after the probe, on the same thread, and
    /// does not say for which backend.
    static WAS_FIRST: Cell<bool> = const { Cell::new(false) };
}

impl Probe {
    /// A probe without a plan: every backend passes.
    pub fn new(client: reqwest::Client) -> Self {
        Self {
            client,
            plan: ArcSwapOption::empty(),
            endpoints: ArcSwap::default(),
            failures: Mutex::default(),
            probed: Mutex::default(),
            refusing: Mutex::default(),
        }
    }

    /// Probes these backends by this plan from now on.
    pub fn set(&self, plan: Option<HealthPlan>, endpoints: &[Arc<Endpoint>]) {
        let by_id = endpoints.iter().map(|e| (e.id, Arc::clone(e))).collect();
        self.endpoints.store(Arc::new(by_id));
        // A backend that was removed and comes back is new.
        let mut probed = lock(&self.probed);
        probed.retain(|id| endpoints.iter().any(|e| e.id == *id));
        drop(probed);
        lock(&self.failures).retain(|id, _| endpoints.iter().any(|e| e.id == *id));
        lock(&self.refusing).retain(|id, _| endpoints.iter().any(|e| e.id == *id));
        self.plan.store(plan.map(Into::into));
    }

    fn endpoint(&self, backend: &Backend) -> Option<Arc<Endpoint>> {
        self.endpoints.load().get(&Endpoint::id_of(backend)).cloned()
    }

    fn name(&self, backend: &Backend) -> String {
        self.endpoint(backend).map_or_else(|| "?".to_owned(), |e| (*e.name).to_owned())
    }

    /// Endpoints whose probes find no listener, and since when.
    pub fn refusing(&self) -> Vec<(u32, Instant)> {
        lock(&self.refusing).iter().map(|(id, since)| (*id, *since)).collect()
    }

    /// Each probe opens its own connection: a stopping server accepts no new ones but may still answer
    /// on those that it has.
    async fn probe(&self, endpoint: &Endpoint, plan: &HealthPlan) -> Result<(), String> {
        let request = endpoint.request(&self.client, plan.method.clone(), &plan.path);
        let request = request.header(CONNECTION, "close").timeout(plan.timeout);
        let sent = request.send().await;
        match &sent {
            Err(e) if http::is_refused(e) => {
                lock(&self.refusing).entry(endpoint.id).or_insert_with(Instant::now);
            }
            _ => _ = lock(&self.refusing).remove(&endpoint.id),
        }
        let response = sent.map_err(http::cause)?;
        let status = response.status().as_u16();
        response.bytes().await.map_err(http::cause)?;
        if status == plan.expected_status {
            return Ok(());
        }
        Err(format!("{} answered {status}, not {}", plan.path, plan.expected_status))
    }
}

/// The probe as pingora-load-balancing runs it, shared with the reload that changes its plan.
pub struct SharedProbe(pub Arc<Probe>);

#[async_trait]
impl HealthCheck for SharedProbe {
    async fn check(&self, target: &Backend) -> Result<()> {
        let (Some(plan), Some(endpoint)) = (self.0.plan.load_full(), self.0.endpoint(target))
        else {
            return Ok(());
        };
        let result = match endpoint.plan.probed {
            true => self.0.probe(&endpoint, &plan).await,
            false => Ok(()),
        };
        let first = {
            let mut probed = lock(&self.0.probed);
            probed.insert(endpoint.id)
        };
        WAS_FIRST.set(first);
        result.map_err(|why| {
            log::debug!("probe of {} failed: {why}", endpoint.name);
            let mut failures = lock(&self.0.failures);
            failures.insert(endpoint.id, why.clone());
            Error::explain(ErrorType::Custom("probe failed"), why)
        })
    }

    async fn health_status_change(&self, target: &Backend, healthy: bool) {
        let name = self.0.name(target);
        if healthy {
            log::info!("backend {name} is up");
        } else {
            let failures = lock(&self.0.failures);
            let why = failures.get(&Endpoint::id_of(target)).map_or("", String::as_str);
            log::warn!("backend {name} is down: {why}");
        }
    }

    fn backend_summary(&self, target: &Backend) -> String {
        format!("backend {}", self.0.name(target))
    }

    /// The first probe of a backend decides at once: there is no earlier result to outweigh.
    fn health_threshold(&self, success: bool) -> usize {
        let plan = self.0.plan.load();
        match plan.as_ref() {
            Some(plan) if !WAS_FIRST.replace(false) => {
                if success {
                    plan.healthy_threshold
                } else {
                    plan.unhealthy_threshold
                }
            }
            _ => 1,
        }
    }
}
