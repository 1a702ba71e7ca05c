//! The metrics of the process: its version and its resource usage.

use prometheus::{IntGaugeVec, Opts, Registry};

use super::register;

/// Registers `llmproxy_build_info{version}`, which is always 1, and on Linux the usual `process_...` metrics,
/// which are read at each scrape.
pub fn register(r: &Registry) {
    let info = Opts::new("llmproxy_build_info", "The running version; always 1");
    let info = register::register(r, IntGaugeVec::new(info, &["version"]));
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    #[cfg(target_os = "linux")]
    {
        let process = prometheus::process_collector::ProcessCollector::for_self();
        // Names are constants of the crate: none is registered twice.
        if let Err(e) = r.register(Box::new(process)) {
            log::warn!("the process_... metrics are not available: {e}");
        }
    }
}
