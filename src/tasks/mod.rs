//! Background tasks: probes, discovery, reloads, delivery, deadlines. Each task reads the current
//! snapshot in every turn, so that it follows a reload.

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
