//! Streamed answers of the simulated model, event by event, and how they fail.

use std::time::Duration;

use super::{
    behaviour::{Fail, StreamEnd},
    chat::ChatEvents,
    conn::{ClientGone, Conn, ConnectionAction},
    events::Events,
    generation::Generation,
    language::Language,
    messages::MessagesEvents,
    reply::{Finish, Step},
    responses::ResponsesEvents,
};

const HEARTBEAT: &str = ": heartbeat\n\n";
const EVENTS: &str = "text/event-stream; charset=utf-8";

/// A stream that is being written.
struct Stream<'a> {
    generation: &'a Generation<'a>,
    events: Box<dyn Events + 'a>,
    conn: &'a mut Conn,
}

impl Generation<'_> {
    /// Answers with a stream of events.
    pub async fn answer_stream(&self, conn: &mut Conn) -> Result<ConnectionAction, ClientGone> {
        let events: Box<dyn Events + '_> = match self.call.endpoint.language() {
            Language::Chat => Box::new(ChatEvents::new(self)),
            Language::Messages => Box::new(MessagesEvents::new(self)),
            Language::Responses => Box::new(ResponsesEvents::new(self)),
        };
        Stream { generation: self, events, conn }.write().await
    }
}

impl Stream<'_> {
    async fn write(mut self) -> Result<ConnectionAction, ClientGone> {
        let (behaviour, fail) =
            (&self.generation.call.setting.behaviour, self.generation.call.fail);
        self.conn.chunked_head(behaviour.kind(EVENTS)).await?;
        let pause = Duration::from_millis(behaviour.heartbeat_ms);
        self.conn.heartbeats(behaviour.heartbeats, HEARTBEAT, pause).await?;
        let silent =
            matches!(fail, Fail::AfterHeaders | Fail::WedgeAfterHeaders | Fail::ErrorEvent);
        let at_once = self.events.begins_at_once() && !silent;
        if at_once {
            self.open().await?;
        }
        let slot = self.generation.acquire_slot(self.conn).await?;
        match fail {
            Fail::AfterHeaders => return Ok(ConnectionAction::Close),
            Fail::WedgeAfterHeaders => return Err(self.conn.hang().await),
            Fail::ErrorEvent => return self.end_with_error().await,
            _ => {}
        }
        self.events.prefilled(slot.cached);
        if !at_once {
            self.open().await?;
        }
        match fail {
            Fail::BeforeContent => return Ok(ConnectionAction::Reset),
            Fail::WedgeAfterRole => return Err(self.conn.hang().await),
            Fail::ErrorEventAfterRole => return self.end_with_error().await,
            Fail::AbortBeforeContent => {
                self.step(Step::Token(0, ""), Some(Finish::Abort), 0).await?;
                return self.end(0).await;
            }
            _ => {}
        }
        self.content().await
    }

    async fn open(&mut self) -> Result<(), ClientGone> {
        for event in self.events.opening() {
            self.conn.chunk(&event).await?;
        }
        Ok(())
    }

    async fn content(&mut self) -> Result<ConnectionAction, ClientGone> {
        let call = self.generation.call;
        let behaviour = &call.setting.behaviour;
        let steps = self.generation.reply.steps();
        let half = steps.len() / 2;
        let breaks =
            behaviour.fail_after.map_or(half, |n| (n as usize).min(steps.len().saturating_sub(1)));
        for (i, step) in steps.iter().enumerate() {
            if i > 0 {
                self.conn.wait(Duration::from_millis(behaviour.inter_token_ms)).await?;
            }
            let generated = i as u64 + 1;
            if i == breaks {
                match call.fail {
                    Fail::MidStream => return Ok(ConnectionAction::Reset),
                    Fail::ErrorEventMidStream => return self.end_with_error().await,
                    Fail::Stall => return Err(self.conn.hang().await),
                    Fail::Abort => {
                        call.generated(self.generation.choices);
                        self.step(*step, Some(Finish::Abort), generated).await?;
                        return self.end(generated).await;
                    }
                    _ => {}
                }
            }
            call.generated(self.generation.choices);
            let finish = (i + 1 == steps.len()).then_some(self.generation.reply.finish);
            self.step(*step, finish, generated).await?;
        }
        self.end(steps.len() as u64).await
    }

    async fn step(
        &mut self,
        step: Step<'_>,
        finish: Option<Finish>,
        generated: u64,
    ) -> Result<(), ClientGone> {
        for event in self.events.step(step, finish, generated) {
            self.conn.chunk(&event).await?;
        }
        Ok(())
    }

    async fn end(&mut self, generated: u64) -> Result<ConnectionAction, ClientGone> {
        let behaviour = &self.generation.call.setting.behaviour;
        let pause = Duration::from_millis(behaviour.heartbeat_ms);
        self.conn.heartbeats(behaviour.late_heartbeats, HEARTBEAT, pause).await?;
        let mut rest = self.events.closing(generated);
        self.generation.call.count();
        rest.push(self.events.end().to_owned());
        self.done(&rest).await
    }

    async fn end_with_error(&mut self) -> Result<ConnectionAction, ClientGone> {
        let error = self.events.error();
        self.conn.chunk(&error).await?;
        self.done(&[self.events.end().to_owned()]).await
    }

    /// Writes the last events and the end of the stream at once.
    async fn done(&mut self, events: &[String]) -> Result<ConnectionAction, ClientGone> {
        let behaviour = &self.generation.call.setting.behaviour;
        let mut end = String::new();
        for event in events.iter().filter(|event| !event.is_empty()) {
            end.push_str(&format!("{:x}\r\n{event}\r\n", event.len()));
        }
        if behaviour.stream_end == StreamEnd::Whole {
            end.push_str("0\r\n\r\n");
        }
        self.conn.write(end.as_bytes()).await?;
        match behaviour.stream_end {
            StreamEnd::Whole if behaviour.close_after_stream => Ok(ConnectionAction::Close),
            StreamEnd::Whole => Ok(ConnectionAction::Keep),
            StreamEnd::Close => Ok(ConnectionAction::Close),
            StreamEnd::Reset => Ok(ConnectionAction::Reset),
            StreamEnd::Open => {
                self.conn.hang().await;
                Ok(ConnectionAction::Close)
            }
        }
    }
}
