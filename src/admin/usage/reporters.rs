//! `/admin/v1/usage/reporters`.

use super::*;
use crate::usage::{Outbox, ReporterState as Doing, ReporterStatus};

/// How the delivery of usage records stands.
#[derive(Serialize, ToSchema)]
pub struct Reporters {
    /// By name.
    reporters: Vec<Reporter>,
    spool: Spool,
}

/// A place that records are delivered to.
#[derive(Serialize, ToSchema)]
pub struct Reporter {
    name: String,
    /// As in the configuration: `webhook`, `database`, `builtin`, `file`, `redis`.
    r#type: String,
    state: Doings,
    /// Records that it has not delivered.
    waiting: u64,
    /// The last attempt that failed; `null` if none has.
    last_failure: Option<LastFailure>,
    /// When the next attempt is made, RFC 3339; `null` unless it waits.
    #[schema(format = DateTime)]
    next_attempt: Option<String>,
}

/// What a reporter does: `waiting` after an attempt that failed, `disabled` because its receiver
/// wants no more.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Doings {
    Delivering,
    Waiting,
    Disabled,
}

/// An attempt that failed.
#[derive(Serialize, ToSchema)]
pub struct LastFailure {
    /// RFC 3339.
    #[schema(format = DateTime)]
    time: String,
    error: String,
}

/// Where records wait.
#[derive(Serialize, ToSchema)]
pub struct Spool {
    /// They wait on disk.
    durable: bool,
    /// Records that some reporter has not delivered, those that are not in the spool yet included.
    waiting: u64,
    /// Records that the spool has been given since it was made.
    end: u64,
    /// Its size on disk, what is kept for a replay included.
    bytes: i64,
    /// The part of it that some reporter still needs.
    waiting_bytes: i64,
    /// How much may wait.
    max_bytes: i64,
    /// There is no room for new records.
    full: bool,
}

impl Reporter {
    fn new(standing: &ReporterStatus, outbox: &Outbox) -> Self {
        let failure = standing.failure();
        Self {
            name: standing.name.clone(),
            r#type: standing.kind.to_owned(),
            state: match standing.state() {
                Doing::Delivering => Doings::Delivering,
                Doing::Waiting => Doings::Waiting,
                Doing::Disabled => Doings::Disabled,
            },
            waiting: outbox.spool().map_or(0, |spool| spool.behind(standing.next())),
            last_failure: failure
                .map(|(time, error)| LastFailure { time: format!("{time:.3}"), error }),
            next_attempt: standing.retry_at().map(|time| format!("{time:.3}")),
        }
    }
}

impl Spool {
    fn new(outbox: &Outbox, end: u64) -> Self {
        let metrics = outbox.metrics();
        Self {
            durable: outbox.durable(),
            waiting: outbox.waiting(),
            end,
            bytes: metrics.spool.bytes.get(),
            waiting_bytes: metrics.spool.waiting_bytes.get(),
            max_bytes: metrics.spool.max_bytes.get(),
            full: outbox.refuses(),
        }
    }
}

/// How the delivery of usage records stands: each reporter, and the spool in which they wait.
#[utoipa::path(get, path = "/admin/v1/usage/reporters", tag = "usage", responses(
    (status = 200, body = Reporters),
))]
pub async fn reporters(State(parts): State<Parts>) -> Json<Reporters> {
    let outbox = &parts.carry.usage;
    let end = outbox.spool().map_or(0, |spool| spool.end());
    let reporters =
        outbox.reporters().iter().map(|standing| Reporter::new(standing, outbox)).collect();
    Json(Reporters { reporters, spool: Spool::new(outbox, end) })
}
