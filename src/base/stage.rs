//! The stages of a request at which scripts run.

/// A stage. Their order is that of a request's walk, except for [`Stage::Error`], which may follow any
/// of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The request has been read; its key is known, and not decided about.
    Request,
    /// The key may make the request by all other rules.
    Auth,
    /// Before the request is admitted by its limits.
    RateLimit,
    /// Before the first backend is picked.
    Route,
    /// Before each attempt is sent.
    UpstreamRequest,
    /// The head of an answer, or a plain answer as a whole.
    Response,
    /// Each event of a stream.
    StreamEvent,
    /// The gateway's own error response.
    Error,
    /// Before the usage record is written.
    Usage,
    /// After the end.
    Complete,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Request,
        Self::Auth,
        Self::RateLimit,
        Self::Route,
        Self::UpstreamRequest,
        Self::Response,
        Self::StreamEvent,
        Self::Error,
        Self::Usage,
        Self::Complete,
    ];

    /// Its key in the configuration, which is also its name in messages and metrics.
    pub fn key(self) -> &'static str {
        match self {
            Self::Request => "on_request",
            Self::Auth => "on_auth",
            Self::RateLimit => "rate_limit",
            Self::Route => "on_route",
            Self::UpstreamRequest => "on_upstream_request",
            Self::Response => "on_response",
            Self::StreamEvent => "on_stream_event",
            Self::Error => "on_error",
            Self::Usage => "on_usage",
            Self::Complete => "on_complete",
        }
    }

    /// The stage with this key.
    pub fn of_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.key() == key)
    }

    /// Whether its scripts can refuse a request.
    pub fn may_refuse(self) -> bool {
        matches!(
            self,
            Self::Request | Self::Auth | Self::RateLimit | Self::Route | Self::UpstreamRequest
        )
    }

    /// Whether its scripts may call other services: they run before a backend is asked.
    pub fn may_call_services(self) -> bool {
        matches!(self, Self::Request | Self::Auth | Self::RateLimit | Self::Route)
    }
}

/// A set of stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages(u16);

impl Stages {
    /// Adds one.
    pub fn insert(&mut self, stage: Stage) {
        self.0 |= 1 << stage as u16;
    }

    /// Whether this one is in it.
    #[inline]
    pub fn has(self, stage: Stage) -> bool {
        self.0 & (1 << stage as u16) != 0
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}
