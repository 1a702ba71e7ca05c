//! The state that all connections of one simulated server share.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::Semaphore;

use super::{
    behaviour::{Behaviour, Fail},
    cache,
    stats::Stats,
    stored::StoredResponses,
};
use crate::base::lock;

pub(super) struct ServerState {
    pub(super) setting: Mutex<Arc<ActiveBehaviour>>,
    pub(super) cache: Mutex<cache::PrefixCache>,
    /// Responses that can be retrieved.
    pub(super) responses: Mutex<StoredResponses>,
    pub(super) stats: Stats,
    /// After SIGTERM: connections stay open and nothing more is written to them.
    pub(super) silent: Arc<AtomicBool>,
}

/// The behaviour in force, with the counters that restart with each change of it.
pub(super) struct ActiveBehaviour {
    pub(super) behaviour: Behaviour,
    /// One permit for each request that the engine works on.
    pub(super) slots: Arc<Semaphore>,
    failed: AtomicU64,
}

impl ActiveBehaviour {
    pub(super) fn new(behaviour: Behaviour) -> Self {
        let slots = match behaviour.max_running {
            0 => Semaphore::MAX_PERMITS,
            bound => bound,
        };
        Self { behaviour, slots: Arc::new(Semaphore::new(slots)), failed: AtomicU64::new(0) }
    }

    /// The successor; requests keep their slots if the number of slots stays.
    pub(super) fn next(&self, behaviour: Behaviour) -> Self {
        let same = behaviour.max_running == self.behaviour.max_running;
        let mut next = Self::new(behaviour);
        if same {
            next.slots = Arc::clone(&self.slots);
        }
        next
    }

    /// How the request with this number fails; a failure is counted.
    pub(super) fn fail(&self, number: u64, model: &str, body: &[u8]) -> Fail {
        let behaviour = &self.behaviour;
        let meant = behaviour.fail != Fail::None
            && number.is_multiple_of(behaviour.fail_every.max(1))
            && (behaviour.fail_model.is_empty() || behaviour.fail_model == model)
            && (behaviour.fail_word.is_empty()
                || memchr::memmem::find(body, behaviour.fail_word.as_bytes()).is_some());
        if meant {
            let before = self.failed.fetch_add(1, Ordering::Relaxed);
            if behaviour.fail_first == 0 || before < behaviour.fail_first {
                return behaviour.fail;
            }
        }
        Fail::None
    }
}

impl ServerState {
    pub(super) fn setting(&self) -> Arc<ActiveBehaviour> {
        Arc::clone(&lock(&self.setting))
    }

    pub(super) fn set(&self, behaviour: Behaviour) {
        let mut setting = lock(&self.setting);
        *setting = Arc::new(setting.next(behaviour));
    }
}
