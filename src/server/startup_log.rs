//! What the gateway logs about itself at the start.

use crate::config::Plan;

/// Logs the addresses, the configuration's warnings, the backends, and what is switched off.
pub fn write(plan: &Plan) {
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
        log::info!("discovery source {} adds backends", source.name);
    }
    if plan.auth.is_none() {
        log::info!("no auth: requests need no API key");
    }
    if !plan.usage.is_on() {
        log::info!("no reporter: no usage records are written");
    }
}
