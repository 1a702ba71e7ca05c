//! A client's connection on which the head of an answer is held back until a part of its body is
//! to be sent: until then another backend can take over, and the client gets one whole answer with
//! the head that belongs to it.
//!
//! Pingora writes a head as soon as it has come, and runs no hook of ours while it waits for a
//! backend. But it takes any session for a client's, and asks the session whether the client is
//! still there for as long as it waits. So the real session is put into one of ours, which passes
//! everything on, holds heads back, and sends comments while it is asked.
//!
//! It also ends an answer that is complete although its backend does not end it.

mod handle;

use std::{sync::atomic::Ordering, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, StatusCode};
use pingora::{
    Error, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
    protocols::{
        Digest,
        http::{
            HttpTask, ServerSession,
            custom::{CustomMessageWrite, server::Session as CustomSession},
        },
        l4::socket::SocketAddr,
    },
};
use pingora_proxy::Session;
use tokio::time::Instant;

pub use self::handle::DeferredHead;
use super::hooks::answer::{AnswerFilters, Outgoing};
use crate::base::lock;

/// Any bytes but none: `outbound` replaces them by the body.
const PLACEHOLDER: Bytes = Bytes::from_static(b" ");

/// Comments for a client that waits for a stream.
pub struct KeepAlive {
    /// How often.
    pub every: Duration,
    /// The head, if none has been sent before the first comment.
    pub head: Box<ResponseHeader>,
    /// What is sent.
    pub comment: Bytes,
}

/// The real session and what is held back from it.
struct Wrapper {
    /// Always there until this is dropped.
    session: Option<Box<ServerSession>>,
    home: DeferredHead,
    head: Option<Box<ResponseHeader>>,
    /// A part of an answer has been passed on.
    begun: bool,
    /// `None` once the content of the answer has begun.
    keep_alive: Option<(KeepAlive, Instant)>,
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        *lock(&self.home.0.session) = self.session.take();
    }
}

/// Holds the heads of answers to this request back from now on. `brief`: [`dissolve`] may end that before
/// anything is written.
pub fn defer(session: &mut Session, comments: Option<KeepAlive>, brief: bool) -> DeferredHead {
    let home = put_in(session, comments, false);
    home.0.used.store(!brief, Ordering::Relaxed);
    home
}

/// Puts the real session back if the wrapper was not needed after all. `false`: it stays.
pub fn dissolve(session: &mut Session, home: &DeferredHead) -> bool {
    if !home.is_spare() {
        return false;
    }
    abandon(session, home);
    session.downstream_session.set_proxy_tasks_enabled(false);
    true
}

/// Holds nothing back: for an answer that is on its way, and is to be ended before its backend ends
/// it, or of which a piece waits.
pub fn follow(session: &mut Session) -> DeferredHead {
    put_in(session, None, true)
}

fn put_in(session: &mut Session, keep_alive: Option<KeepAlive>, begun: bool) -> DeferredHead {
    let home = DeferredHead::default();
    // The simplest session there is; it is never asked anything.
    let nothing = Box::new(ServerSession::new_custom(Box::new(())));
    let mut real = std::mem::replace(&mut session.downstream_session, nothing);
    // Writes that can be taken up again where they were interrupted.
    real.set_proxy_tasks_enabled(true);
    let wrapper = Wrapper {
        session: Some(real),
        home: home.clone(),
        head: None,
        begun,
        keep_alive: keep_alive.map(|k| (Instant::now() + k.every, k)).map(|(at, k)| (k, at)),
    };
    *session.downstream_session = ServerSession::new_custom(Box::new(wrapper));
    home
}

/// Puts the real session back. A head that is still held back is forgotten.
///
/// # Errors
/// If the client does not take a comment of which it has been sent a part.
pub async fn release(session: &mut Session, home: &DeferredHead) -> Result<()> {
    abandon(session, home);
    finish_comment(&mut session.downstream_session).await?;
    finish_pending(&mut session.downstream_session, home).await
}

/// As [`release`], for one that will not be written to any more.
pub fn abandon(session: &mut Session, home: &DeferredHead) {
    // Dropping the wrapper returns the real session.
    *session.downstream_session = ServerSession::new_custom(Box::new(()));
    if let Some(real) = home.take() {
        session.downstream_session = real;
    }
}

async fn finish_comment(session: &mut ServerSession) -> Result<()> {
    if session.supports_proxy_task_api() && session.has_pending_downstream_proxy_tasks() {
        session.write_downstream_proxy_tasks().await?;
    }
    Ok(())
}

async fn finish_pending(session: &mut ServerSession, home: &DeferredHead) -> Result<()> {
    let rest = home.0.pending.take_rest();
    if rest.is_empty() { Ok(()) } else { session.write_response_body(rest, false).await }
}

impl Wrapper {
    fn real(&self) -> &ServerSession {
        self.session.as_deref().expect("it is taken only when this is dropped")
    }

    fn real_mut(&mut self) -> &mut ServerSession {
        self.session.as_deref_mut().expect("it is taken only when this is dropped")
    }

    fn opened(&self) -> bool {
        self.real().response_written().is_some_and(|head| !head.status.is_informational())
    }

    async fn comment(&mut self) -> Result<()> {
        let Some((keep_alive, _)) = &self.keep_alive else {
            return Ok(());
        };
        let comment = keep_alive.comment.clone();
        let head = (!self.opened()).then(|| keep_alive.head.clone());
        let real = self.real_mut();
        if real.supports_proxy_task_api() {
            head.into_iter()
                .for_each(|h| real.send_downstream_proxy_task(HttpTask::Header(h, false)));
            real.send_downstream_proxy_task(HttpTask::Body(Some(comment), false));
            return Ok(());
        }
        // HTTP/2, where a frame is handed over at once or not at all.
        if let Some(head) = head {
            real.write_response_header(head).await?;
        }
        real.write_response_body(comment, false).await
    }

    /// Comments go on while services are asked whether the answer may begin.
    async fn wait_for(&mut self, filters: &mut AnswerFilters, tasks: &[HttpTask]) -> Result<()> {
        let begins = tasks.iter().any(|task| match task {
            HttpTask::Body(piece, end) => *end || piece.as_ref().is_some_and(|p| !p.is_empty()),
            HttpTask::Header(_, end) => *end,
            _ => false,
        });
        while begins && filters.waits() {
            let Some((keep_alive, next)) = &mut self.keep_alive else { return Ok(()) };
            tokio::select! {
                () = filters.wait() => return Ok(()),
                () = tokio::time::sleep_until(*next) => {}
            }
            *next = Instant::now() + keep_alive.every;
            if !self.home.0.quiet.load(Ordering::Relaxed) {
                self.comment().await?;
                finish_comment(self.real_mut()).await?;
            }
        }
        Ok(())
    }

    /// Sends what has waited for long enough. By HTTP/1.1 it is queued only, as comments are. By HTTP/2
    /// a byte is handed over at once or not at all: wherever this is broken off, it is known what
    /// has gone out.
    async fn send_pending(&mut self) -> Result<()> {
        let piece = self.home.0.pending.leaving(Instant::now());
        if piece.is_empty() {
            return Ok(());
        }
        if self.real().supports_proxy_task_api() {
            self.home.0.pending.sent(piece.len());
            self.real_mut().send_downstream_proxy_task(HttpTask::Body(Some(piece), false));
            return Ok(());
        }
        for at in 0..piece.len() {
            self.real_mut().write_response_body(piece.slice(at..=at), false).await?;
            self.home.0.pending.sent(1);
        }
        Ok(())
    }

    async fn pass_heartbeat(&mut self) -> Result<()> {
        let Some((head, piece)) = lock(&self.home.0.heartbeat).take() else {
            return Ok(());
        };
        let opened = self.opened();
        let real = self.real_mut();
        if !opened {
            real.write_response_header(head).await.map_err(|e| e.into_down())?;
        }
        real.write_response_body(piece, false).await.map_err(|e| e.into_down())?;
        if let Some((keep_alive, next)) = &mut self.keep_alive {
            *next = Instant::now() + keep_alive.every;
        }
        Ok(())
    }

    /// Ends the answer with the bytes so far, whatever the state of its backend.
    async fn end(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let tasks = tasks.into_iter().filter_map(|task| match task {
            HttpTask::Header(head, _) => Some(HttpTask::Header(head, false)),
            HttpTask::Body(Some(piece), _) if !piece.is_empty() => {
                Some(HttpTask::Body(Some(piece), false))
            }
            _ => None,
        });
        let tasks: Vec<_> = tasks.collect();
        if !tasks.is_empty() {
            self.real_mut().response_duplex_vec(tasks).await?;
        }
        // What a head has promised must have come: else the connection cannot be used again.
        self.real_mut().finish_body().await.map_err(|e| e.into_down())?;
        Ok(true)
    }

    /// What scripts make of these. `over`: nothing follows them.
    async fn filtered(
        &self,
        filters: &mut AnswerFilters,
        mut tasks: Vec<HttpTask>,
        over: bool,
    ) -> Result<Outgoing> {
        if over {
            // What its backend does then does not matter.
            tasks.retain(|task| !matches!(task, HttpTask::Failed(_)));
            if !tasks.iter().any(HttpTask::is_end) {
                tasks.push(HttpTask::Done);
            }
        }
        filters.tasks(tasks, self.opened()).await
    }

    /// Writes what scripts make of a part of an answer that is not Pingora's.
    async fn write(&mut self, task: HttpTask) -> Result<()> {
        let Some(mut filters) = self.home.take_filters() else {
            return self.write_task(task).await;
        };
        let filtered = self.filtered(&mut filters, vec![task], false).await;
        *lock(&self.home.0.filters) = Some(filters);
        for task in filtered?.tasks {
            self.write_task(task).await?;
        }
        Ok(())
    }

    async fn write_task(&mut self, task: HttpTask) -> Result<()> {
        match task {
            HttpTask::Header(head, _) => self.real_mut().write_response_header(head).await,
            HttpTask::Body(Some(piece), end) if end || !piece.is_empty() => {
                self.real_mut().write_response_body(piece, end).await
            }
            _ => Ok(()),
        }
    }

    /// A part of the answer goes out: there are comments only while its content is waited for, and not
    /// soon after something else.
    fn rest(&mut self, sends: bool) {
        if !self.home.0.waits.load(Ordering::Relaxed) {
            self.keep_alive = None;
        } else if let (true, Some((keep_alive, next))) = (sends, &mut self.keep_alive) {
            *next = Instant::now() + keep_alive.every;
        }
    }

    /// What of these goes to the client now.
    fn pass(&mut self, tasks: Vec<HttpTask>) -> Vec<HttpTask> {
        if self.begun {
            let body =
                |task: &HttpTask| matches!(task, HttpTask::Body(Some(p), _) if !p.is_empty());
            self.rest(tasks.iter().any(body));
            return tasks;
        }
        let mut out = Vec::with_capacity(tasks.len() + 1);
        for task in tasks {
            match task {
                // It belongs to no answer yet; once a head has gone out it would stand in a body.
                HttpTask::Header(ref head, _) if is_interim(head) => {
                    if !self.opened() {
                        out.push(task);
                    }
                }
                HttpTask::Header(head, false) => self.head = Some(head),
                // One without a body, in place of any that is held back.
                HttpTask::Header(_, true) => {
                    self.head = None;
                    self.keep_alive = None;
                    self.begun = true;
                    out.push(task);
                }
                HttpTask::Body(ref piece, false) if piece.as_ref().is_none_or(Bytes::is_empty) => {}
                // The head of a failed answer stays here.
                HttpTask::Failed(_) => out.push(task),
                task => {
                    self.rest(true);
                    self.begun = true;
                    // With comments its own head was sent, and this one is too late; but scripts see it.
                    let too_late = self.opened() && !self.home.has_filters();
                    if let Some(head) = self.head.take().filter(|_| !too_late) {
                        out.push(HttpTask::Header(head, false));
                    }
                    out.push(task);
                }
            }
        }
        out
    }
}

/// Whether more heads follow this one: 101 is the last before another protocol.
fn is_interim(head: &ResponseHeader) -> bool {
    head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS
}

#[async_trait]
impl CustomSession for Wrapper {
    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.home.0.used.store(true, Ordering::Relaxed);
        finish_comment(self.real_mut()).await?;
        let home = self.home.clone();
        finish_pending(self.real_mut(), &home).await.map_err(|e| e.into_down())?;
        self.pass_heartbeat().await?;
        if let Some(mut filters) = self.home.take_filters() {
            let waited = self.wait_for(&mut filters, &tasks).await;
            *lock(&self.home.0.filters) = Some(filters);
            waited.map_err(|e| e.into_down())?;
        }
        let mut out = self.pass(tasks);
        let over = self.home.0.over.load(Ordering::Relaxed);
        if let Some(mut filters) = self.home.take_filters() {
            let filtered = self.filtered(&mut filters, out, over).await;
            *lock(&self.home.0.filters) = Some(filters);
            let Outgoing { tasks, stopped } = filtered?;
            out = tasks;
            if stopped {
                return self.end(out).await;
            }
        }
        if over {
            return self.end(out).await;
        }
        match out.first() {
            None => return Ok(false),
            Some(HttpTask::Failed(_)) => {
                if let HttpTask::Failed(error) = out.swap_remove(0) {
                    return Err(error);
                }
            }
            Some(_) => {}
        }
        self.real_mut().response_duplex_vec(out).await
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        loop {
            finish_comment(self.real_mut()).await.map_err(|e| e.into_down())?;
            let comment = self.keep_alive.as_ref().map(|(_, next)| *next);
            let Some(next) = comment.into_iter().chain(self.home.0.pending.at()).min() else {
                return self.real_mut().read_body_or_idle(no_body_expected).await;
            };
            tokio::select! {
                read = self.real_mut().read_body_or_idle(no_body_expected) => return read,
                () = tokio::time::sleep_until(next) => {}
            }
            self.send_pending().await.map_err(|e| e.into_down())?;
            if comment.is_none_or(|at| Instant::now() < at) {
                continue;
            }
            if let Some((keep_alive, next)) = &mut self.keep_alive {
                *next = Instant::now() + keep_alive.every;
            }
            if self.home.0.quiet.load(Ordering::Relaxed) {
                continue;
            }
            self.comment().await.map_err(|e| e.into_down())?;
        }
    }

    fn req_header(&self) -> &RequestHeader {
        self.real().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.real_mut().req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.real_mut().read_request_body().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.real_mut().drain_request_body().await
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.write(HttpTask::Header(head, end)).await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, _end: bool) -> Result<()> {
        self.real_mut().write_response_header_ref(head).await
    }

    async fn write_body(&mut self, piece: Bytes, end: bool) -> Result<()> {
        self.write(HttpTask::Body(Some(piece), end)).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.real_mut().write_response_trailers(trailers).await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.real().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.real().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.real().get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.real().request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.real().response_written()
    }

    async fn shutdown(&mut self, _code: u32, _why: &str) {
        self.real_mut().shutdown().await;
    }

    fn is_body_done(&mut self) -> bool {
        self.real_mut().is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.real_mut().finish_body().await
    }

    fn is_body_empty(&mut self) -> bool {
        self.real_mut().is_body_empty()
    }

    fn body_bytes_sent(&self) -> usize {
        self.real().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.real().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.real().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.real_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.real().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.real().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.real().to_h1_raw()
    }

    fn enable_retry_buffering(&mut self) {
        self.real_mut().enable_retry_buffering();
    }

    /// The gateway itself keeps the whole body.
    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let real = self.real();
        if real.retry_buffer_truncated() { Some(PLACEHOLDER) } else { real.get_retry_buffer() }
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    /// There are no messages beside requests and answers.
    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Error::e_explain(ErrorType::InternalError, "there is no such reader")
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Error::e_explain(ErrorType::InternalError, "there is no such writer")
    }
}
