//! Who may call: a pipeline of providers that know keys, and the decision about each key, by a Lua
//! script or by the default rules.
//!
//! A request goes through in two steps. [`Auth::identify`] asks the providers who the caller is,
//! before anything of the body is read, so that nobody can make the gateway take in a body without
//! a key. [`Auth::decide`] runs the rules or scripts, which may want to know the model.
//!
//! When a request has ended, [`Auth::count`] counts what it has used of its key's quota and balance.

mod cache;
pub mod credential;
pub mod decision;
pub mod keystore;
mod pipeline;
pub mod provider;
mod tally;

pub use credential::Credential;
pub use decision::Call;
pub use keystore::KeyStore;
pub use pipeline::{Auth, Found, Resources};
pub use provider::Used;
