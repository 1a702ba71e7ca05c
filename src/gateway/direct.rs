//! One exchange with one backend, apart from Pingora's proxying.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::header;
use pingora::{
    Error, ErrorType,
    http::{RequestHeader, ResponseHeader},
    protocols::http::client::HttpSession,
    upstreams::peer::{HttpPeer, Peer},
};

use super::fault;
use crate::{balance::Endpoint, base::FaultKind, runtime::Carry};

/// Bytes of an answer that are waited for before it is passed on.
const LONGEST: usize = 4 * 1024 * 1024;

/// A piece of a body; `None` at its end.
pub type Piece = Result<Option<Bytes>, FaultKind>;

/// A request that is to be made.
pub struct Exchange {
    /// For connections and counters.
    pub carry: Arc<Carry>,
    /// Its backend.
    pub endpoint: Arc<Endpoint>,
    /// The backend's address.
    pub peer: HttpPeer,
    /// Its head.
    pub request: Box<RequestHeader>,
    /// Its body.
    pub body: Bytes,
    /// How long the first byte of the answer's body may take once there is a connection.
    pub first_byte: Option<Duration>,
    /// How long each later piece may take.
    pub between_chunks: Option<Duration>,
}

/// What became of it.
pub struct Finished {
    /// The answer.
    pub result: Result<Response, FaultKind>,
    /// A kept-alive connection was found dead, and a new one was made.
    pub again: bool,
}

/// A backend's answer.
pub struct Response {
    /// Its head.
    pub head: ResponseHeader,
    /// When that response.
    pub head_at: Instant,
    /// When the first byte of the body response.
    pub first_at: Option<Instant>,
    /// The body, or the beginning of a long one.
    pub body: Bytes,
    /// The rest of a long one.
    pub rest: Option<Rest>,
}

/// The rest of a long answer.
pub struct Rest {
    http: HttpSession,
    between_chunks: Option<Duration>,
}

impl Rest {
    /// Reads the next piece. The connection is not used again.
    pub async fn read(&mut self) -> Piece {
        let deadline = self.between_chunks.map(|wait| Instant::now() + wait);
        let piece =
            timed(deadline, FaultKind::ChunkTimeout, self.http.read_response_body()).await?;
        piece.map_err(|e| kind(&e))
    }
}

impl Exchange {
    /// Sends the request and reads its answer. A connection that is given up by dropping this is
    /// closed.
    pub async fn run(mut self) -> Finished {
        let mut again = false;
        loop {
            let (mut http, reused) = match self.carry.connector.get_http_session(&self.peer).await {
                Ok(got) => got,
                Err(e) => {
                    let kind = fault::unreachable(&e, &self.endpoint);
                    return Finished { result: Err(kind), again };
                }
            };
            let result = self.talk(&mut http).await;
            let silent = http.response_header().is_none();
            match result {
                Err(FaultKind::Broken) if reused && silent && !again => {
                    again = true;
                    let kind = FaultKind::StaleConnection;
                    let word = kind.word();
                    self.carry.metrics.retries.with_label_values(&[word]).inc();
                    let unique = self.carry.unique.fetch_add(1, Ordering::Relaxed);
                    self.peer = self.endpoint.fresh_peer(unique);
                }
                Err(kind) => return Finished { result: Err(kind), again },
                Ok((response, true)) => {
                    if !again {
                        let idle = self.peer.idle_timeout();
                        self.carry.connector.release_http_session(http, &self.peer, idle).await;
                    }
                    return Finished { result: Ok(response), again };
                }
                Ok((mut response, false)) => {
                    response.rest = Some(Rest { http, between_chunks: self.between_chunks });
                    return Finished { result: Ok(response), again };
                }
            }
        }
    }

    /// Whether the answer has come as a whole is said beside it.
    async fn talk(&self, http: &mut HttpSession) -> Result<(Response, bool), FaultKind> {
        let deadline = self.first_byte.map(|wait| Instant::now() + wait);
        let late = FaultKind::FirstByteTimeout;
        let head = timed(deadline, late, self.send(http)).await?.map_err(|e| kind(&e))?;
        let length = head.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        let mut response = Response {
            head,
            head_at: Instant::now(),
            first_at: None,
            body: Bytes::new(),
            rest: None,
        };
        let mut body = BytesMut::with_capacity(length.unwrap_or_default().min(LONGEST));
        loop {
            let (deadline, late) = match response.first_at {
                None => (deadline, late),
                Some(_) => {
                    let wait = self.between_chunks.map(|wait| Instant::now() + wait);
                    (wait, FaultKind::ChunkTimeout)
                }
            };
            let piece = timed(deadline, late, http.read_response_body()).await?;
            match piece.map_err(|e| kind(&e))? {
                Some(piece) => {
                    response.first_at.get_or_insert_with(Instant::now);
                    body.extend_from_slice(&piece);
                }
                None => {
                    response.body = body.freeze();
                    return Ok((response, true));
                }
            }
            if body.len() > LONGEST {
                response.body = body.freeze();
                return Ok((response, false));
            }
        }
    }

    /// Sends the request, and reads the head of its answer.
    async fn send(&self, http: &mut HttpSession) -> Result<ResponseHeader, Box<Error>> {
        http.write_request_header(self.request.clone()).await?;
        http.write_request_body(self.body.clone(), true).await?;
        http.finish_request_body().await?;
        loop {
            http.read_response_header().await?;
            match http.response_header() {
                Some(head) if head.status.is_informational() => {}
                Some(head) => return Ok(head.clone()),
                None => return Error::e_explain(ErrorType::ConnectionClosed, "no answer"),
            }
        }
    }
}

fn kind(error: &Error) -> FaultKind {
    match error.etype() {
        ErrorType::InvalidHTTPHeader => FaultKind::Protocol,
        _ => FaultKind::Broken,
    }
}

async fn timed<T>(
    deadline: Option<Instant>,
    late: FaultKind,
    what: impl Future<Output = T>,
) -> Result<T, FaultKind> {
    match deadline {
        Some(at) => tokio::time::timeout_at(at.into(), what).await.map_err(|_| late),
        None => Ok(what.await),
    }
}
