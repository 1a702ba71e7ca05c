//! `/admin/v1/usage/reporters`.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    admin::state::AdminState,
    usage::{Outbox, ReporterState as Delivery, ReporterStatus},
};

/// The state of the delivery of usage records.
#[derive(Serialize, ToSchema)]
pub struct Reporters {
    /// By name.
    reporters: Vec<Reporter>,
    spool: Spool,
}

/// A destination of records.
#[derive(Serialize, ToSchema)]
pub struct Reporter {
    name: String,
    /// As in the configuration: `webhook`, `database`, `builtin`, `file`, `redis`.
    r#type: String,
    state: ReporterState,
    /// Records that it has not delivered yet.
    waiting: u64,
    /// The last failed attempt; `null` if there is none.
    last_failure: Option<LastFailure>,
    /// The time of the next attempt, RFC 3339; `null` unless the state is `waiting`.
    #[schema(format = DateTime)]
    next_attempt: Option<String>,
}

/// What a reporter does: `waiting` after a failed attempt, `disabled` because its receiver accepts
/// no more records.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReporterState {
    Delivering,
    Waiting,
    Disabled,
}

/// A failed attempt.
#[derive(Serialize, ToSchema)]
pub struct LastFailure {
    /// RFC 3339.
    #[schema(format = DateTime)]
    time: String,
    error: String,
}

/// The spool, in which records wait.
#[derive(Serialize, ToSchema)]
pub struct Spool {
    /// Whether it is on disk.
    durable: bool,
    /// Records that some reporter has not delivered, including those that are not written to the
    /// spool yet.
    waiting: u64,
    /// Records written to the spool since it was created.
    end: u64,
    /// Its size on disk, including what is kept for a replay.
    bytes: i64,
    /// The part of it that some reporter still needs.
    waiting_bytes: i64,
    /// The limit of `waiting_bytes`.
    max_bytes: i64,
    /// Whether new records are refused.
    full: bool,
}

impl Reporter {
    fn new(standing: &ReporterStatus, outbox: &Outbox) -> Self {
        let failure = standing.failure();
        Self {
            name: standing.name.clone(),
            r#type: standing.kind.to_owned(),
            state: match standing.state() {
                Delivery::Delivering => ReporterState::Delivering,
                Delivery::Waiting => ReporterState::Waiting,
                Delivery::Disabled => ReporterState::Disabled,
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

/// Show the delivery of usage records: each reporter, and the spool.
#[utoipa::path(get, path = "/admin/v1/usage/reporters", tag = "usage", responses(
    (status = 200, body = Reporters),
))]
pub async fn reporters(State(state): State<AdminState>) -> Json<Reporters> {
    let outbox = &state.carry.usage;
    let end = outbox.spool().map_or(0, |spool| spool.end());
    let reporters =
        outbox.reporters().iter().map(|standing| Reporter::new(standing, outbox)).collect();
    Json(Reporters { reporters, spool: Spool::new(outbox, end) })
}
