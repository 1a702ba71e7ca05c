//! What all handlers share.

use std::sync::Arc;

use crate::runtime::{Carry, Live};

#[derive(Clone)]
pub struct AdminState {
    pub live: Arc<Live>,
    pub carry: Arc<Carry>,
}
