//! `/admin/v1/usage`: usage records and sums over them, and how their delivery stands.

mod export;
mod reporters;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

pub use self::{export::*, reporters::*};
use super::{
    Parts,
    answer::{ErrorBody, Params, Refusal},
};
use crate::{
    base::Outcome,
    config::plan::Destination,
    store::StoreError,
    usage::store::{Column, Filter, PageCursor, Store, Sums, moment},
};

const PATH: &str = "/admin/v1/usage";

/// Parameters that say which records, and others. (serde cannot read numbers from parameters of a
/// structure within another.)
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($more:tt)* }) => {
        $(#[$about])*
        #[derive(Deserialize, utoipa::IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $name {
            /// Only requests that came at this moment or later: RFC 3339 (a `+` is written `%2B`), or
            /// a date, which begins at midnight, UTC.
            from: Option<String>,
            /// Only requests that came before this moment.
            to: Option<String>,
            /// Only requests of this user.
            user_id: Option<String>,
            /// Only requests with this key, by its identity.
            key_id: Option<String>,
            /// Only requests with keys of this name.
            key_name: Option<String>,
            /// Only requests of this team.
            team: Option<String>,
            /// Only requests for this model.
            model: Option<String>,
            /// Only requests that ended so.
            #[param(value_type = Option<String>,
                pattern = "^(complete|client_aborted|upstream_error|rejected)$")]
            outcome: Option<Outcome>,
            /// Only requests with this `X-Request-Id`.
            request_id: Option<String>,
            /// Only requests that this backend answered, by its URL.
            backend: Option<String>,
            /// Only streams, or only others.
            stream: Option<bool>,
            $($more)*
        }

        impl $name {
            fn filter(&self) -> Result<Filter, Refusal> {
                let equal = [
                    (Column::UserId, self.user_id.as_deref()),
                    (Column::KeyId, self.key_id.as_deref()),
                    (Column::KeyName, self.key_name.as_deref()),
                    (Column::Team, self.team.as_deref()),
                    (Column::Model, self.model.as_deref()),
                    (Column::Outcome, self.outcome.map(Outcome::word)),
                    (Column::RequestId, self.request_id.as_deref()),
                    (Column::Backend, self.backend.as_deref()),
                ];
                let given = |(column, text): (Column, Option<&str>)| Some((column, text?.to_owned()));
                Ok(Filter {
                    from: time("from", self.from.as_deref())?,
                    to: time("to", self.to.as_deref())?,
                    equal: equal.into_iter().filter_map(given).collect(),
                    stream: self.stream,
                })
            }
        }
    };
}
use choice;

choice! {
    /// Which records, and what is wanted of them.
    Asked {
        /// Sums by what the records have in common: `key`, `user`, `team`, `model`, `day` (UTC), or
        /// several of them with commas between them.
        group_by: Option<String>,
        /// Items wanted, 1 to 1000; 100 without this.
        #[serde(default = "usual")]
        #[param(minimum = 1, maximum = 1000)]
        limit: u32,
        /// `next` of the page before.
        cursor: Option<String>,
    }
}

fn usual() -> u32 {
    100
}

/// A page of records, from the newest on, or of sums.
#[derive(Serialize, ToSchema)]
pub struct UsagePage {
    /// The records, as reporters deliver them; absent with `group_by`.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<Map<String, Value>>>,
    /// The sums, in the order of what they are sums by; only with `group_by`.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Group>>,
    /// The `cursor` of the next page; `null` on the last one.
    next: Option<String>,
}

/// Sums over the records that have the same in common. Sums of more than 9223372036854775807 are told
/// as that.
#[derive(Serialize, ToSchema)]
pub struct Group {
    /// With `group_by=key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    /// With `group_by=user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    /// With `group_by=team`.
    #[serde(skip_serializing_if = "Option::is_none")]
    team: Option<String>,
    /// With `group_by=model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// With `group_by=day`.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    requests: i64,
    /// Requests whose `outcome` is not `complete`.
    errors: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    total_tokens: i64,
    /// As far as engines tell.
    cached_tokens: i64,
    /// As far as engines tell.
    reasoning_tokens: i64,
    /// `null` if no model of them has a price.
    cost: Option<f64>,
}

impl Group {
    fn new(sums: Sums) -> Self {
        let value = |column: Column| {
            let found = sums.group.iter().find(|(c, _)| *c == column);
            found.map(|(_, value)| value.clone())
        };
        Self {
            key_id: value(Column::KeyId),
            user_id: value(Column::UserId),
            team: value(Column::Team),
            model: value(Column::Model),
            day: value(Column::Day),
            requests: sums.requests,
            errors: sums.errors,
            prompt_tokens: sums.prompt_tokens,
            completion_tokens: sums.completion_tokens,
            total_tokens: sums.total_tokens,
            cached_tokens: sums.cached_tokens,
            reasoning_tokens: sums.reasoning_tokens,
            cost: sums.cost,
        }
    }
}

fn invalid(why: impl Into<String>) -> Refusal {
    Refusal::new(PATH, 400, "invalid_value", why)
}

fn time(name: &str, text: Option<&str>) -> Result<Option<i64>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let why = || format!("`{name}` is neither a date nor a time as in `2026-11-21T12:00:00Z`");
    moment(text).map(Some).ok_or_else(|| invalid(why()))
}

/// The columns of `group_by`.
fn groups(text: Option<&str>) -> Result<Vec<Column>, Refusal> {
    let mut columns = Vec::new();
    for word in text.iter().flat_map(|text| text.split(',')) {
        let column = Column::grouping(word.trim()).ok_or_else(|| {
            invalid(format!(
                "`group_by` does not know `{word}`: it may be key, user, team, model, day"
            ))
        })?;
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    Ok(columns)
}

/// The store of the configuration as it is now.
fn store(parts: &Parts) -> Result<Store, Refusal> {
    let snapshot = parts.live.load();
    let usage = &snapshot.plan.usage;
    let reporter = usage.store.and_then(|at| usage.reporters.get(at));
    match reporter.map(|reporter| &reporter.to) {
        Some(Destination::Database(table)) => Ok(Store::new(table, &parts.carry.stores)),
        _ => {
            let hint = "there is no table to ask: add a reporter of type `builtin` or `database` to \
                        `usage.reporters`, and see `usage.store`";
            Err(Refusal::new(PATH, 404, "usage_store_off", hint))
        }
    }
}

/// What the database says goes to the log: it may tell of the inside.
fn failed(why: &StoreError) -> Refusal {
    log::error!("admin: the usage store: {why}");
    Refusal::new(PATH, 503, "store_failed", "the usage store cannot be asked now")
}

/// Usage records, from the newest on; or with `group_by` sums over them. Records are seen when their
/// reporter has delivered them, usually within a second.
#[utoipa::path(get, path = "/admin/v1/usage", tag = "usage", params(Asked), responses(
    (status = 200, body = UsagePage), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 503, body = ErrorBody),
))]
pub async fn list(
    State(parts): State<Parts>,
    Params(asked): Params<Asked>,
) -> Result<Json<UsagePage>, Refusal> {
    if !(1..=1000).contains(&asked.limit) {
        return Err(invalid("`limit` is not between 1 and 1000"));
    }
    let (filter, by, limit) =
        (asked.filter()?, groups(asked.group_by.as_deref())?, asked.limit as usize);
    let cursor = asked.cursor.as_deref().map(|text| {
        PageCursor::decode(text, &by).ok_or_else(|| invalid("`cursor` is not of a page like this"))
    });
    let cursor = cursor.transpose()?;
    let store = store(&parts)?;
    if by.is_empty() {
        let found = store.records(&filter, cursor.as_ref(), limit).await;
        let page = found.map_err(|why| failed(&why))?;
        let next = page.next.as_ref().map(PageCursor::encode);
        return Ok(Json(UsagePage { records: Some(page.items), groups: None, next }));
    }
    let found = store.sums(&filter, &by, cursor.as_ref(), limit).await;
    let page = found.map_err(|why| failed(&why))?;
    let next = page.next.as_ref().map(PageCursor::encode);
    let groups = page.items.into_iter().map(Group::new).collect();
    Ok(Json(UsagePage { records: None, groups: Some(groups), next }))
}
