//! Faults of backends, and fleets of backends to inject them into.

use llmproxy::sim::{Behaviour, Fail, Sim};

use super::{eventually, sim_with};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing listens.
    Refuse,
    /// The connection is reset before a response.
    Reset,
    DieAfterHeaders,
    DieBeforeContent,
    DieMidStream,
    /// The first event of a stream is an error. A response that is no stream is 500, also below.
    ErrorFirst,
    ErrorAfterRole,
    ErrorMidStream,
    AbortBeforeContent,
    AbortMidStream,
    /// 503: the queue is full.
    Busy,
    /// 503: too many requests wait for prefill.
    Backlog,
    /// 503: paused.
    Paused,
    /// 503: scaling.
    Scaling,
    /// 500.
    Dead,
    /// 429 with `Retry-After`.
    TooMany,
    /// 404 for the model.
    NoModel,
    WedgeBeforeHeaders,
    WedgeAfterHeaders,
    WedgeBeforeContent,
    WedgeMidStream,
    /// The first token is delayed by `slow_ms`.
    Slow,
}

impl Fault {
    pub const ALL: [Self; 22] = [
        Self::Refuse,
        Self::Reset,
        Self::DieAfterHeaders,
        Self::DieBeforeContent,
        Self::DieMidStream,
        Self::ErrorFirst,
        Self::ErrorAfterRole,
        Self::ErrorMidStream,
        Self::AbortBeforeContent,
        Self::AbortMidStream,
        Self::Busy,
        Self::Backlog,
        Self::Paused,
        Self::Scaling,
        Self::Dead,
        Self::TooMany,
        Self::NoModel,
        Self::WedgeBeforeHeaders,
        Self::WedgeAfterHeaders,
        Self::WedgeBeforeContent,
        Self::WedgeMidStream,
        Self::Slow,
    ];

    /// Injects the fault into a backend. The `fail_` members of its behaviour select the requests
    /// that it hits. Only [`heal`] ends `Refuse`.
    pub async fn befall(self, sim: &Sim) {
        if self == Self::Refuse {
            return sim.refuse().await.unwrap();
        }
        sim.change(|behaviour| behaviour.fail = self.fail());
    }

    fn fail(self) -> Fail {
        match self {
            Self::Refuse => Fail::None,
            Self::Reset => Fail::BeforeHeaders,
            Self::DieAfterHeaders => Fail::AfterHeaders,
            Self::DieBeforeContent => Fail::BeforeContent,
            Self::DieMidStream => Fail::MidStream,
            Self::ErrorFirst => Fail::ErrorEvent,
            Self::ErrorAfterRole => Fail::ErrorEventAfterRole,
            Self::ErrorMidStream => Fail::ErrorEventMidStream,
            Self::AbortBeforeContent => Fail::AbortBeforeContent,
            Self::AbortMidStream => Fail::Abort,
            Self::Busy => Fail::Busy,
            Self::Backlog => Fail::Backlog,
            Self::Paused => Fail::Paused,
            Self::Scaling => Fail::Scaling,
            Self::Dead => Fail::Error,
            Self::TooMany => Fail::TooMany,
            Self::NoModel => Fail::NoModel,
            Self::WedgeBeforeHeaders => Fail::Wedge,
            Self::WedgeAfterHeaders => Fail::WedgeAfterHeaders,
            Self::WedgeBeforeContent => Fail::WedgeAfterRole,
            Self::WedgeMidStream => Fail::Stall,
            Self::Slow => Fail::Slow,
        }
    }

    /// Whether the backend stops sending, so that only a timeout detects the fault.
    pub fn is_silence(self) -> bool {
        use Fault::{WedgeAfterHeaders, WedgeBeforeContent, WedgeBeforeHeaders, WedgeMidStream};
        [WedgeBeforeHeaders, WedgeAfterHeaders, WedgeBeforeContent, WedgeMidStream].contains(&self)
    }

    /// Whether a stream fails after content was sent, so that no other backend can take over.
    pub fn is_after_content(self) -> bool {
        use Fault::{AbortMidStream, DieMidStream, ErrorMidStream, WedgeMidStream};
        [DieMidStream, ErrorMidStream, AbortMidStream, WedgeMidStream].contains(&self)
    }
}

/// Removes every fault of a backend.
pub fn heal(sim: &Sim) {
    sim.change(|behaviour| behaviour.fail = Fail::None);
    sim.listen().unwrap();
}

/// Starts `n` backends with the same behaviour.
pub async fn fleet(n: usize, change: impl Fn(&mut Behaviour)) -> Vec<Sim> {
    let mut sims = Vec::with_capacity(n);
    for _ in 0..n {
        sims.push(sim_with(&change).await);
    }
    sims
}

pub fn urls(sims: &[Sim]) -> Vec<String> {
    sims.iter().map(Sim::url).collect()
}

/// How often each backend received the request with this id.
pub fn tries_of(sims: &[Sim], request_id: &str) -> Vec<usize> {
    sims.iter().map(|sim| sim.stats().tries_of(request_id)).collect()
}

/// Waits until no backend has an open request.
pub async fn at_rest(sims: &[Sim]) {
    eventually("every request has ended at the backends", async || {
        sims.iter().all(|sim| sim.stats().open() == 0)
    })
    .await;
}
