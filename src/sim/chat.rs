//! Inference requests: which are refused, and how the others come to their turn.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::base::lock;

use super::{
    Fail, Seen, Setting, Shared,
    ask::Ask,
    cache,
    conn::{Conn, Gone},
    control::After,
    refusal::{self, Refusal},
    stats::{Counted, add},
    text,
};

/// One inference request and what it comes to.
pub struct Call<'a> {
    /// The path.
    pub path: &'a str,
    /// The request.
    pub seen: &'a Seen,
    /// The model that it is for.
    pub model: String,
    /// How it fails.
    pub fail: Fail,
    /// How the server behaves.
    pub setting: &'a Setting,
    /// The server.
    pub shared: &'a Shared,
}

/// A place in the engine, held until the answer ends.
pub struct Turn<'a> {
    _place: OwnedSemaphorePermit,
    _blocks: Counted<'a>,
    /// Tokens of the prompt that were in the prefix cache.
    pub cached: u64,
}

impl Call<'_> {
    /// Answers the request.
    pub async fn answer(
        &self,
        conn: &mut Conn,
        body: serde_json::Result<Value>,
    ) -> Result<After, Gone> {
        match self.fail {
            Fail::BeforeHeaders => return Ok(After::Reset),
            Fail::Wedge => return Err(conn.hang().await),
            _ => {}
        }
        let behaviour = &self.setting.behaviour;
        conn.announce(&interim(behaviour.interim));
        if let Some((status, headers, body)) = refusal::failing(self.fail, &self.model, behaviour) {
            let mut body = body.to_string();
            // White space after a document is part of none.
            body.extend(std::iter::repeat_n(' ', behaviour.error_bytes.saturating_sub(body.len())));
            let pause = Duration::from_millis(behaviour.error_pause_ms);
            conn.answer_slowly(status, &headers, body.as_bytes(), pause).await?;
            return Ok(After::Keep);
        }
        let body = match body {
            Ok(body) => body,
            Err(e) => return refuse(conn, refusal::not_json(&e)).await,
        };
        if let Some(refusal) = refusal::invalid(behaviour, self.path, &body) {
            return refuse(conn, refusal).await;
        }
        let ask = Ask::new(self, &body);
        if self.path == "/v1/embeddings" {
            return self.embed(conn, &ask).await;
        }
        if body["stream"] == true { ask.stream(conn).await } else { ask.whole(conn).await }
    }

    /// Waits for a place in the engine, and there for the prompt to be read.
    pub async fn turn(&self, conn: &mut Conn, ask: &Ask<'_>) -> Result<Turn<'_>, Gone> {
        let stats = &self.shared.stats;
        let behaviour = &self.setting.behaviour;
        let places = Arc::clone(&self.setting.places);
        let place = if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            place
        } else {
            let _waiting = Counted::new(&stats.waiting, 1);
            conn.until(places.acquire_owned()).await?.map_err(|_| Gone)?
        };
        let bytes = ask.prompt.len();
        let blocks = Counted::new(&stats.blocks, bytes.div_ceil(cache::BLOCK) as u64);
        let mut known = 0;
        let mut chain = Vec::new();
        if behaviour.prefix_cache > 0 {
            chain = cache::chain(&self.model, ask.salt.as_deref(), &ask.prompt);
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
        add(&stats.prompt_tokens, text::prompt_tokens(bytes) * ask.choices);
        let cached = known as u64 * cache::BLOCK_TOKENS;
        Ok(Turn { _place: place, _blocks: blocks, cached })
    }

    async fn embed(&self, conn: &mut Conn, ask: &Ask<'_>) -> Result<After, Gone> {
        let _turn = self.turn(conn, ask).await?;
        let tokens = text::prompt_tokens(ask.prompt.len());
        let body = json!({
            "id": ask.id, "object": "list", "created": ask.created, "model": ask.model(),
            "data": [{"index": 0, "object": "embedding", "embedding": [0.1, -0.2, 0.3, 0.4]}],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0,
                      "prompt_tokens_details": null},
        });
        ask.deliver(conn, "", body).await
    }

    /// Counts tokens that were generated, whether or not the reader still waits for them.
    pub fn generated(&self, tokens: u64) {
        add(&self.shared.stats.generated_tokens, tokens);
    }

    /// Counts an answer that has been given.
    pub fn count(&self) {
        if !matches!(self.fail, Fail::Abort | Fail::AbortBeforeContent) {
            self.shared.stats.completed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// So many heads that are followed by others.
fn interim(count: usize) -> String {
    const HEADS: [&str; 2] = [
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n",
    ];
    HEADS.iter().cycle().take(count).copied().collect()
}

/// Answers with an error.
pub async fn refuse(conn: &mut Conn, refusal: Refusal) -> Result<After, Gone> {
    let (status, headers, body) = refusal;
    conn.answer(status, &headers, super::control::JSON, body.to_string().as_bytes()).await?;
    Ok(After::Keep)
}
