//! Answers to inference requests: a rejection, or what the model generates.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    asked::Asked,
    behaviour::Fail,
    call::InferenceCall,
    chat,
    conn::{ClientGone, Conn, ConnectionAction},
    generation::Generation,
    language::{Endpoint, Language},
    messages,
    refusal::{self, Refusal},
    responses, text,
};
use crate::base::lock;

impl InferenceCall<'_> {
    /// Answers the request.
    pub async fn answer(
        &self,
        conn: &mut Conn,
        body: serde_json::Result<Value>,
    ) -> Result<ConnectionAction, ClientGone> {
        match self.fail {
            Fail::BeforeHeaders => return Ok(ConnectionAction::Reset),
            Fail::Wedge => return Err(conn.hang().await),
            _ => {}
        }
        let behaviour = &self.setting.behaviour;
        conn.announce(&interim(behaviour.interim));
        if let Some(refused) = refusal::failing(self.fail, &self.model, behaviour) {
            let (status, headers, body) = refusal::worded(self.endpoint, refused);
            let mut body = body.to_string();
            // White space after a JSON document is ignored by parsers.
            body.extend(std::iter::repeat_n(' ', behaviour.error_bytes.saturating_sub(body.len())));
            let pause = Duration::from_millis(behaviour.error_pause_ms);
            conn.answer_slowly(status, &headers, body.as_bytes(), pause).await?;
            return Ok(ConnectionAction::Keep);
        }
        let body = match body {
            Ok(body) => body,
            Err(e) => return refusal::send(conn, refusal::not_json(&e)).await,
        };
        if let Some(refused) = refusal::invalid(behaviour, self.endpoint, &body) {
            return refusal::send(conn, refused).await;
        }
        let previous = match self.previous(&body) {
            Ok(turns) => turns,
            Err(refused) => return refusal::send(conn, refused).await,
        };
        let asked = Asked::of(self.endpoint, &body, &previous);
        let prompt = text::prompt_tokens(asked.prompt.len());
        if let Some(refused) = refusal::too_long(behaviour.context_length, prompt, asked.limit) {
            return refusal::send(conn, refusal::worded(self.endpoint, refused)).await;
        }
        let ask = Generation::new(self, &body, asked, previous);
        match self.endpoint {
            Endpoint::Embeddings => self.embed(conn, &ask).await,
            Endpoint::CountTokens => ask.deliver(conn, "", messages::counted(&ask)).await,
            Endpoint::Tokenize => ask.deliver(conn, "", chat::counted(&ask)).await,
            Endpoint::InputTokens => ask.deliver(conn, "", responses::counted(&ask)).await,
            _ if body["stream"] == true => ask.answer_stream(conn).await,
            _ => ask.answer_plain(conn).await,
        }
    }

    /// The turns of the response that a request continues.
    fn previous(&self, body: &Value) -> Result<Vec<Value>, Refusal> {
        let id = body["previous_response_id"].as_str();
        match id.filter(|_| self.endpoint.language() == Language::Responses) {
            None => Ok(Vec::new()),
            Some(id) => {
                lock(&self.shared.responses).turns(id).ok_or_else(|| refusal::no_response(id))
            }
        }
    }

    async fn embed(
        &self,
        conn: &mut Conn,
        ask: &Generation<'_>,
    ) -> Result<ConnectionAction, ClientGone> {
        let _slot = ask.acquire_slot(conn).await?;
        let tokens = ask.prompt_tokens();
        let body = json!({
            "id": ask.id, "object": "list", "created": ask.created, "model": ask.model(),
            "data": [{"index": 0, "object": "embedding", "embedding": [0.1, -0.2, 0.3, 0.4]}],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0,
                      "prompt_tokens_details": null},
        });
        ask.deliver(conn, "", body).await
    }
}

/// `count` interim responses.
fn interim(count: usize) -> String {
    const HEADS: [&str; 2] = [
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n",
    ];
    HEADS.iter().cycle().take(count).copied().collect()
}
