//! What runs beside the requests: probes, searches for backends, reloads, deliveries, deadlines. Each task reads the
//! current snapshot at every turn, so that a reload reaches it.

pub mod deadline;
pub mod delivery;
pub mod discovery;
pub mod health;
pub mod limits;
pub mod load;
pub mod operator;
pub mod reconcile;
pub mod reload;
mod scrape;
