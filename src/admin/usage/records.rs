//! `/admin/v1/usage`: records, and sums over them.

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::filter::{failed, invalid, store, usage_query};
use crate::{
    admin::{
        error::{ApiError, ErrorBody},
        extract::Params,
        state::AdminState,
    },
    usage::store::{Column, PageCursor, Sums},
};

usage_query! {
    /// The records, or sums over them.
    UsageQuery {
        /// Sums for each `key`, `user`, `team`, `model` or `day` (UTC), or for a combination of
        /// them, separated by commas.
        group_by: Option<String>,
        /// Items of a page, 1 to 1000; 100 by default.
        #[serde(default = "default_limit")]
        #[param(minimum = 1, maximum = 1000)]
        limit: u32,
        /// The `next` of the previous page.
        cursor: Option<String>,
    }
}

fn default_limit() -> u32 {
    100
}

/// A page of records, newest first, or of sums.
#[derive(Serialize, ToSchema)]
pub struct UsagePage {
    /// The records, as reporters deliver them; not present with `group_by`.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<Map<String, Value>>>,
    /// The sums, ordered by the fields of `group_by`; only with `group_by`.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Group>>,
    /// The `cursor` of the next page; `null` on the last one.
    next: Option<String>,
}

/// Sums over the records of one group. A sum above 9223372036854775807 is reported as that number.
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
    /// Of the engines that report them.
    cached_tokens: i64,
    /// Of the engines that report them.
    cache_write_tokens: i64,
    /// Of the engines that report them.
    reasoning_tokens: i64,
    /// Of the engines that report them.
    audio_prompt_tokens: i64,
    /// Of the engines that report them.
    audio_completion_tokens: i64,
    /// `null` if no model of the group has a price.
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
            cache_write_tokens: sums.cache_write_tokens,
            reasoning_tokens: sums.reasoning_tokens,
            audio_prompt_tokens: sums.audio_prompt_tokens,
            audio_completion_tokens: sums.audio_completion_tokens,
            cost: sums.cost,
        }
    }
}

/// The columns of `group_by`.
fn groups(text: Option<&str>) -> Result<Vec<Column>, ApiError> {
    let mut columns = Vec::new();
    for word in text.iter().flat_map(|text| text.split(',')) {
        let column = Column::grouping(word.trim()).ok_or_else(|| {
            invalid(format!(
                "`group_by` cannot be `{word}`; it is one or more of key, user, team, model, day"
            ))
        })?;
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    Ok(columns)
}

/// List usage records, newest first, or with `group_by` sums over them.
///
/// A record is visible when its reporter has delivered it, usually within a second.
#[utoipa::path(get, path = "/admin/v1/usage", tag = "usage", params(UsageQuery), responses(
    (status = 200, body = UsagePage), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 503, body = ErrorBody),
))]
pub async fn list(
    State(state): State<AdminState>,
    Params(query): Params<UsageQuery>,
) -> Result<Json<UsagePage>, ApiError> {
    if !(1..=1000).contains(&query.limit) {
        return Err(invalid("`limit` is not between 1 and 1000"));
    }
    let (filter, by, limit) =
        (query.filter()?, groups(query.group_by.as_deref())?, query.limit as usize);
    let cursor = query.cursor.as_deref().map(|text| {
        PageCursor::decode(text, &by)
            .ok_or_else(|| invalid("`cursor` does not belong to this query"))
    });
    let cursor = cursor.transpose()?;
    let store = store(&state)?;
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
