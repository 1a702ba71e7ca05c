//! Authentication and authorization: a pipeline of providers that know keys, and the decision about
//! each key, by a Lua script or by the default rules.
//!
//! A request passes in two steps. [`Auth::identify`] looks up the key in the providers before the body
//! is read, so that a client without a key cannot make the gateway buffer a body. [`Auth::decide`]
//! runs the rules or scripts, which may need the model.
//!
//! When a request has ended, [`Auth::count`] counts its usage against the key's quota and balance.

mod cache;
mod count_job;
pub mod credential;
pub mod decision;
pub mod keystore;
mod pipeline;
pub mod provider;
mod resources;
mod tally;
mod warn_once;

pub use credential::Credential;
pub use decision::RequestView;
pub use keystore::KeyStore;
pub use pipeline::{Auth, IdentifiedKey};
pub use resources::Resources;
