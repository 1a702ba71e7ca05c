//! The proxy: Pingora's `ProxyHttp`, one delegating line for each phase. A phase is a file.

mod admission;
mod affinity;
mod attempt;
mod attempts;
mod auth;
mod body;
mod cors;
mod count;
mod ctx;
mod deferred_head;
mod direct;
mod early;
mod end;
mod ending;
mod failure;
mod fault;
mod heartbeat;
mod hedge;
mod hooks;
mod inbound;
mod logging;
mod models;
mod outbound;
mod pacing;
mod passing;
mod peer;
mod pending;
mod receive;
mod reply;
mod request;
mod request_limits;
mod response;
mod retry;
mod settlement;
mod stop;
mod stored;
mod timeline;
mod translate;
mod translated;
mod wait;

use std::{os::fd::RawFd, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use pingora::{
    Error, Result,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    protocols::Digest,
    upstreams::peer::HttpPeer,
};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use self::ctx::Ctx;
use crate::runtime::{Carry, Live};

/// The gateway as Pingora sees it.
pub struct Gateway {
    live: Arc<Live>,
    carry: Arc<Carry>,
}

impl Gateway {
    /// Serves by the current snapshot.
    pub fn new(live: Arc<Live>, carry: Arc<Carry>) -> Self {
        Self { live, carry }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    /// Boxed: Pingora moves it through several futures, each of which has room for it.
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Self::CTX {
        Box::new(Ctx::new(self.live.load(), Arc::clone(&self.carry)))
    }

    /// Answers pass as they are: no compression.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        early::filter(session, ctx)
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        request::filter(session, ctx).await
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        peer::choose(session, ctx).await
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        fd: RawFd,
        digest: Option<&Digest>,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        peer::connected(session, reused, fd, digest, ctx)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        outbound::headers(request, ctx)?;
        outbound::hooked(request, ctx).await
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        outbound::body(body, end_of_stream, ctx)
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        response::arrived(response, ctx);
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        response::headers(session, response, ctx)
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<std::time::Duration>> {
        passing::filter(session, body, end_of_stream, ctx).map(|()| None)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        error: Box<Error>,
    ) -> Box<Error> {
        failure::connect(session, error, ctx)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Self::CTX,
        reused: bool,
    ) -> Box<Error> {
        failure::proxying(session, error, ctx, reused)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        failure::last(session, error, ctx).await
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Self::CTX) {
        logging::finish(session, error, ctx).await;
    }

    /// Without the query: clients put keys there.
    fn request_summary(&self, session: &Session, ctx: &Self::CTX) -> String {
        let header = session.req_header();
        format!("request {}: {} {}", ctx.request.id, header.method, header.uri.path())
    }

    /// The access line has every failure, with the request it belongs to.
    fn suppress_error_log(&self, session: &Session, ctx: &Self::CTX, error: &Error) -> bool {
        log::debug!("{}: {error}", self.request_summary(session, ctx));
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        ctx: &Self::CTX,
        error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        log::debug!("request {}: trying again after: {error}", ctx.request.id);
        true
    }
}
