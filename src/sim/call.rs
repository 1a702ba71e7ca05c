//! One inference request to the simulated server, and its place in the engine.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    behaviour::Fail,
    cache,
    conn::{ClientGone, Conn},
    language::Endpoint,
    server_state::{ActiveBehaviour, ServerState},
    stats::{CountGuard, ReceivedRequest, add},
    text,
};
use crate::base::lock;

/// One inference request.
pub struct InferenceCall<'a> {
    pub endpoint: Endpoint,
    pub received: &'a ReceivedRequest,
    pub model: String,
    pub fail: Fail,
    pub setting: &'a ActiveBehaviour,
    pub shared: &'a ServerState,
}

/// A slot of the engine, held until the answer ends.
pub struct EngineSlot<'a> {
    _permit: OwnedSemaphorePermit,
    _blocks: CountGuard<'a>,
    /// Tokens of the prompt that were in the prefix cache.
    pub cached: u64,
}

impl<'a> InferenceCall<'a> {
    /// Waits for a slot of the engine, and then as long as the prefill of the prompt takes.
    pub async fn acquire_slot(
        &self,
        conn: &mut Conn,
        prompt: &str,
        salt: Option<&str>,
        choices: u64,
    ) -> Result<EngineSlot<'a>, ClientGone> {
        let stats = &self.shared.stats;
        let behaviour = &self.setting.behaviour;
        let slots = Arc::clone(&self.setting.slots);
        let permit = if let Ok(permit) = Arc::clone(&slots).try_acquire_owned() {
            permit
        } else {
            let _waiting = CountGuard::new(&stats.waiting, 1);
            conn.until(slots.acquire_owned()).await?.map_err(|_| ClientGone)?
        };
        let bytes = prompt.len();
        let blocks = CountGuard::new(&stats.blocks, bytes.div_ceil(cache::BLOCK) as u64);
        let mut known = 0;
        let mut chain = Vec::new();
        if behaviour.prefix_cache > 0 {
            chain = cache::chain(&self.model, salt, prompt);
            known = lock(&self.shared.cache).known(&chain);
            add(&stats.queried_tokens, text::prompt_tokens(bytes));
            add(&stats.cached_tokens, known as u64 * cache::BLOCK_TOKENS);
        }
        let unknown = (bytes - known * cache::BLOCK) as u64;
        let slow = if self.fail == Fail::Slow { behaviour.slow_ms } else { 0 };
        let prefill = behaviour.prefill_ms_per_kb * unknown / 1024;
        conn.wait(Duration::from_millis(behaviour.first_token_ms + prefill + slow)).await?;
        if !chain.is_empty() {
            lock(&self.shared.cache).keep(&chain, behaviour.prefix_cache);
        }
        // Each choice is a request of its own to vLLM's engine.
        add(&stats.prompt_tokens, text::prompt_tokens(bytes) * choices);
        let cached = known as u64 * cache::BLOCK_TOKENS;
        Ok(EngineSlot { _permit: permit, _blocks: blocks, cached })
    }

    /// Counts generated tokens, whether or not the client still waits for them.
    pub fn generated(&self, tokens: u64) {
        add(&self.shared.stats.generated_tokens, tokens);
    }

    /// Counts a complete answer.
    pub fn count(&self) {
        if !matches!(self.fail, Fail::Abort | Fail::AbortBeforeContent) {
            self.shared.stats.completed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
