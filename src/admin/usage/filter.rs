//! What the endpoints below `/admin/v1/usage` share: the selection of records, and the table.

use crate::{
    admin::{error::ApiError, state::AdminState},
    config::plan::Destination,
    store::StoreError,
    usage::store::{Store, moment},
};

const PATH: &str = "/admin/v1/usage";

/// A query with the parameters that select records, and more. (A macro, because serde cannot read
/// numbers from query parameters of a flattened structure.)
macro_rules! usage_query {
    ($(#[$about:meta])* $name:ident { $($more:tt)* }) => {
        $(#[$about])*
        #[derive(serde::Deserialize, utoipa::IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $name {
            /// Only requests received at this time or later: RFC 3339 (write `%2B` for `+`), or a
            /// date, which begins at midnight UTC.
            from: Option<String>,
            /// Only requests received before this time.
            to: Option<String>,
            /// Only requests of this user.
            user_id: Option<String>,
            /// Only requests with the key of this id.
            key_id: Option<String>,
            /// Only requests with a key of this name.
            key_name: Option<String>,
            /// Only requests of this team.
            team: Option<String>,
            /// Only requests for this model.
            model: Option<String>,
            /// Only requests with this outcome.
            #[param(value_type = Option<String>,
                pattern = "^(complete|client_aborted|upstream_error|rejected)$")]
            outcome: Option<$crate::base::Outcome>,
            /// Only requests with this `X-Request-Id`.
            request_id: Option<String>,
            /// Only requests that the backend with this URL answered.
            backend: Option<String>,
            /// `true`: only streams; `false`: only the others.
            stream: Option<bool>,
            $($more)*
        }

        impl $name {
            fn filter(
                &self,
            ) -> Result<$crate::usage::store::Filter, $crate::admin::error::ApiError> {
                use $crate::{
                    admin::usage::filter::time,
                    base::Outcome,
                    usage::store::{Column, Filter},
                };
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
pub(super) use usage_query;

pub fn invalid(why: impl Into<String>) -> ApiError {
    ApiError::new(PATH, 400, "invalid_value", why)
}

pub fn time(name: &str, text: Option<&str>) -> Result<Option<i64>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let why = || format!("`{name}` is neither a date nor a time like `2026-11-21T12:00:00Z`");
    moment(text).map(Some).ok_or_else(|| invalid(why()))
}

/// The table that the configuration in force names.
///
/// # Errors
/// If it names none.
pub fn store(state: &AdminState) -> Result<Store, ApiError> {
    let snapshot = state.live.load();
    let usage = &snapshot.plan.usage;
    let reporter = usage.store.and_then(|at| usage.reporters.get(at));
    match reporter.map(|reporter| &reporter.to) {
        Some(Destination::Database(table)) => Ok(Store::new(table, &state.carry.stores)),
        _ => {
            let hint = "there is no table of usage records: add a reporter of type `builtin` or `database` to \
                        `usage.reporters`, and see `usage.store`";
            Err(ApiError::new(PATH, 404, "usage_store_off", hint))
        }
    }
}

/// The error of the database goes to the log only: it may hold internal details.
pub fn failed(why: &StoreError) -> ApiError {
    log::error!("admin: the usage store: {why}");
    ApiError::new(PATH, 503, "store_failed", "the usage store does not answer")
}
