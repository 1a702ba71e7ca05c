//! Answers of the simulated model as one JSON document, and how they fail.

use std::time::Duration;

use serde_json::Value;

use super::{
    behaviour::Fail,
    chat,
    conn::{ClientGone, Conn, ConnectionAction, JSON},
    generation::Generation,
    language::Language,
    messages, metrics, refusal, responses,
};
use crate::base::lock;

impl Generation<'_> {
    /// Answers with one document.
    pub async fn answer_plain(&self, conn: &mut Conn) -> Result<ConnectionAction, ClientGone> {
        let call = self.call;
        let language = call.endpoint.language();
        let background = language == Language::Responses && self.body["background"] == true;
        let slot = self.acquire_slot(conn).await?;
        if !background {
            conn.wait(Duration::from_millis(self.decode_ms())).await?;
        }
        let generated = self.reply.len() * self.choices;
        call.generated(generated);
        match language {
            Language::Chat => {
                let (stats, behaviour) = (&call.shared.stats, &call.setting.behaviour);
                let load = metrics::header(call.received, stats, behaviour);
                self.deliver(conn, &load, chat::document(self, slot.cached, generated)).await
            }
            Language::Messages => {
                self.deliver(conn, "", messages::document(self, slot.cached, generated)).await
            }
            Language::Responses => {
                let response = responses::document(self, slot.cached, generated, self.finish());
                responses::store(self, &response);
                let begun = background.then(|| {
                    let time = Duration::from_millis(self.decode_ms());
                    lock(&call.shared.responses).delay(&self.id, time)
                });
                self.deliver(conn, "", begun.unwrap_or(response)).await
            }
        }
    }

    /// Sends the document, or as much of it as a failing server sends.
    pub async fn deliver(
        &self,
        conn: &mut Conn,
        headers: &str,
        body: Value,
    ) -> Result<ConnectionAction, ClientGone> {
        let body = body.to_string();
        let cut = match self.call.fail {
            Fail::ErrorEvent | Fail::ErrorEventAfterRole | Fail::ErrorEventMidStream => {
                return refusal::send(conn, (500, String::new(), refusal::dead())).await;
            }
            Fail::AfterHeaders | Fail::WedgeAfterHeaders => 0,
            // Cut before the content.
            Fail::BeforeContent | Fail::WedgeAfterRole => body.len().min(16),
            Fail::MidStream | Fail::Stall => body.len() / 2,
            _ => {
                let behaviour = &self.call.setting.behaviour;
                let kind = behaviour.kind(JSON);
                if behaviour.heartbeats > 0 {
                    conn.chunked_head(kind).await?;
                    let pause = Duration::from_millis(behaviour.heartbeat_ms);
                    conn.heartbeats(behaviour.heartbeats, "\n", pause).await?;
                    conn.chunk(&body).await?;
                    conn.write(b"0\r\n\r\n").await?;
                } else {
                    conn.answer(200, headers, kind, body.as_bytes()).await?;
                }
                self.call.count();
                return Ok(ConnectionAction::Keep);
            }
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        conn.write(head.as_bytes()).await?;
        conn.write(&body.as_bytes()[..cut]).await?;
        match self.call.fail {
            Fail::MidStream => Ok(ConnectionAction::Close),
            Fail::AfterHeaders | Fail::BeforeContent => Ok(ConnectionAction::Reset),
            _ => Err(conn.hang().await),
        }
    }
}
