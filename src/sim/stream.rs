//! Streamed answers of the simulated model, event by event as vLLM writes them.

use std::time::Duration;

use serde_json::Value;

use super::{
    behaviour::{Fail, StreamEnd},
    conn::{ClientGone, Conn, ConnectionAction},
    generation::{FINGERPRINT, Generation},
    refusal, text,
};

const DONE: &str = "data: [DONE]\n\n";
const HEARTBEAT: &str = ": heartbeat\n\n";
const EVENTS: &str = "text/event-stream; charset=utf-8";

impl Generation<'_> {
    /// Answers with a stream of events.
    pub async fn answer_stream(&self, conn: &mut Conn) -> Result<ConnectionAction, ClientGone> {
        let behaviour = &self.call.setting.behaviour;
        conn.chunked_head(behaviour.kind(EVENTS)).await?;
        let pause = Duration::from_millis(behaviour.heartbeat_ms);
        conn.heartbeats(behaviour.heartbeats, HEARTBEAT, pause).await?;
        let slot = self.acquire_slot(conn).await?;
        match self.call.fail {
            Fail::AfterHeaders => return Ok(ConnectionAction::Close),
            Fail::WedgeAfterHeaders => return Err(conn.hang().await),
            Fail::ErrorEvent => return self.end_with_error(conn).await,
            _ => {}
        }
        if self.chat {
            for index in 0..self.choices {
                conn.chunk(&self.first_event(index)).await?;
            }
        }
        match self.call.fail {
            Fail::BeforeContent => return Ok(ConnectionAction::Reset),
            Fail::WedgeAfterRole => return Err(conn.hang().await),
            Fail::ErrorEventAfterRole => return self.end_with_error(conn).await,
            Fail::AbortBeforeContent => {
                self.events(conn, &self.delta(""), Some("abort"), 0).await?;
                return self.end(conn, slot.cached, 0).await;
            }
            _ => {}
        }
        self.content_events(conn, slot.cached).await
    }

    async fn content_events(
        &self,
        conn: &mut Conn,
        cached: u64,
    ) -> Result<ConnectionAction, ClientGone> {
        let behaviour = &self.call.setting.behaviour;
        let deltas = self.deltas();
        let half = deltas.len() / 2;
        let breaks =
            behaviour.fail_after.map_or(half, |n| (n as usize).min(deltas.len().saturating_sub(1)));
        for (i, delta) in deltas.iter().enumerate() {
            if i > 0 {
                conn.wait(Duration::from_millis(behaviour.inter_token_ms)).await?;
            }
            let generated = i as u64 + 1;
            if i == breaks {
                match self.call.fail {
                    Fail::MidStream => return Ok(ConnectionAction::Reset),
                    Fail::ErrorEventMidStream => return self.end_with_error(conn).await,
                    Fail::Stall => return Err(conn.hang().await),
                    Fail::Abort => {
                        self.call.generated(self.choices);
                        self.events(conn, delta, Some("abort"), generated).await?;
                        return self.end(conn, cached, generated).await;
                    }
                    _ => {}
                }
            }
            self.call.generated(self.choices);
            let finish = (i + 1 == deltas.len()).then(|| self.finish_reason());
            self.events(conn, delta, finish, generated).await?;
        }
        self.end(conn, cached, deltas.len() as u64).await
    }

    /// Sends one event for each choice.
    async fn events(
        &self,
        conn: &mut Conn,
        delta: &str,
        finish: Option<&str>,
        generated: u64,
    ) -> Result<(), ClientGone> {
        for index in 0..self.choices {
            conn.chunk(&self.event(index, delta, finish, generated)).await?;
        }
        Ok(())
    }

    async fn end(
        &self,
        conn: &mut Conn,
        cached: u64,
        generated: u64,
    ) -> Result<ConnectionAction, ClientGone> {
        let behaviour = &self.call.setting.behaviour;
        let pause = Duration::from_millis(behaviour.heartbeat_ms);
        conn.heartbeats(behaviour.late_heartbeats, HEARTBEAT, pause).await?;
        let generated = generated * self.choices;
        let mut rest = String::new();
        if self.include_usage {
            let mut details = match self.prompt_details(cached) {
                Value::Null => String::new(),
                details => format!(r#","prompt_tokens_details":{details}"#),
            };
            if let Some((name, value)) = self.reasoning() {
                details.push_str(&format!(r#","{name}":{value}"#));
            }
            let event = self.document("", &self.usage(generated, &details), true);
            rest.push_str(&format!("{:x}\r\n{event}\r\n", event.len()));
        }
        self.call.count();
        self.done(conn, &rest).await
    }

    /// Writes `before`, `[DONE]` and the end of the stream at once.
    async fn done(&self, conn: &mut Conn, before: &str) -> Result<ConnectionAction, ClientGone> {
        let behaviour = &self.call.setting.behaviour;
        let last = if behaviour.stream_end == StreamEnd::Whole { "0\r\n\r\n" } else { "" };
        let end = format!("{before}{:x}\r\n{DONE}\r\n{last}", DONE.len());
        conn.write(end.as_bytes()).await?;
        match behaviour.stream_end {
            StreamEnd::Whole if behaviour.close_after_stream => Ok(ConnectionAction::Close),
            StreamEnd::Whole => Ok(ConnectionAction::Keep),
            StreamEnd::Close => Ok(ConnectionAction::Close),
            StreamEnd::Reset => Ok(ConnectionAction::Reset),
            StreamEnd::Open => {
                conn.hang().await;
                Ok(ConnectionAction::Close)
            }
        }
    }

    async fn end_with_error(&self, conn: &mut Conn) -> Result<ConnectionAction, ClientGone> {
        conn.chunk(&format!("data: {}\n\n", refusal::dead())).await?;
        self.done(conn, "").await
    }

    /// One event: everything except the choices is the same in all of them.
    fn document(&self, choices: &str, tail: &str, fingerprint: bool) -> String {
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        let model = Value::from(self.model());
        let fingerprint = if fingerprint {
            format!(r#","system_fingerprint":"{FINGERPRINT}""#)
        } else {
            String::new()
        };
        format!(
            "data: {{\"id\":\"{}\",\"object\":\"{object}\",\"created\":{},\"model\":{model},\"choices\":[{choices}]{tail}{fingerprint}}}\n\n",
            self.id, self.created
        )
    }

    fn first_event(&self, index: u64) -> String {
        let choice = format!(
            r#"{{"index":{index},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}"#
        );
        let mut tail = self.running_usage(0);
        tail.push_str(r#","prompt_token_ids":null,"prompt_text":null"#);
        self.document(&choice, &tail, false)
    }

    fn event(&self, index: u64, delta: &str, finish: Option<&str>, generated: u64) -> String {
        let (reason, stop) = match finish {
            Some(reason) => (format!("\"{reason}\""), r#","stop_reason":null"#),
            None => ("null".to_owned(), if self.chat { "" } else { r#","stop_reason":null"# }),
        };
        let choice = if self.chat {
            format!(
                r#"{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":{reason}{stop},"token_ids":null}}"#
            )
        } else {
            format!(
                r#"{{"index":{index},"text":{delta},"logprobs":null,"finish_reason":{reason}{stop},"prompt_token_ids":null,"token_ids":null}}"#
            )
        };
        // vLLM moves the fingerprint to the usage chunk when there is one.
        self.document(
            &choice,
            &self.running_usage(generated),
            finish.is_some() && !self.include_usage,
        )
    }

    /// The usage of one choice so far, for requests that want it in every event.
    fn running_usage(&self, generated: u64) -> String {
        if self.continuous {
            self.usage(generated, r#","completion_tokens_details":null"#)
        } else {
            String::new()
        }
    }

    fn usage(&self, generated: u64, details: &str) -> String {
        let prompt = text::prompt_tokens(self.prompt.len());
        let write = |count| self.call.setting.behaviour.usage_numbers.write(count);
        format!(
            r#","usage":{{"prompt_tokens":{},"total_tokens":{},"completion_tokens":{}{details}}}"#,
            write(prompt),
            write(prompt + generated),
            write(generated)
        )
    }
}
