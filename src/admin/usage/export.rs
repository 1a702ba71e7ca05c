//! `/admin/v1/usage/export`.

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures::stream;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::filter::{failed, store, usage_query};
use crate::{
    admin::{
        error::{ApiError, ErrorBody},
        extract::Params,
        state::AdminState,
    },
    usage::store::schema,
};

/// Records of one query.
const PAGE: usize = 1000;

usage_query! {
    /// The records, and their format.
    ExportQuery {
        /// `csv` (the default): a header line, and a line for each record; `jsonl`: a JSON object
        /// on each line.
        #[serde(default)]
        #[param(inline)]
        format: Format,
    }
}

/// The format of an export.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Csv,
    Jsonl,
}

/// Download the selected usage records as a file, newest first.
///
/// The file is sent while it is read from the database; if that fails midway, the connection is
/// closed before the end of the response.
///
/// In CSV a text that begins with `=`, `+`, `-`, `@`, a tab, a line break or `'` has an extra `'`
/// in front of it: a spreadsheet would read it as a formula, and clients choose some of the texts.
/// Numbers, and all of `jsonl`, are unchanged.
#[utoipa::path(get, path = "/admin/v1/usage/export", tag = "usage", params(ExportQuery), responses(
    (status = 200, content((String = "text/csv"), (String = "application/x-ndjson"))),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody),
))]
pub async fn export(
    State(state): State<AdminState>,
    Params(query): Params<ExportQuery>,
) -> Result<Response, ApiError> {
    let (filter, format) = (query.filter()?, query.format);
    let store = store(&state)?;
    // Read before the head of the response is sent, so that it can still be an error.
    let first = store.records(&filter, None, PAGE).await.map_err(|why| failed(&why))?;
    let head = text(format, true, &first.items);
    let rest = stream::try_unfold(first.next, move |next| {
        let (store, filter) = (store.clone(), filter.clone());
        async move {
            let Some(cursor) = next else { return Ok(None) };
            match store.records(&filter, Some(&cursor), PAGE).await {
                Ok(page) => Ok(Some((text(format, false, &page.items), page.next))),
                Err(why) => {
                    log::error!("admin: an export of usage records was aborted: {why}");
                    Err(std::io::Error::other("the usage store failed"))
                }
            }
        }
    });
    let all = stream::StreamExt::chain(stream::once(async { Ok(head) }), rest);
    let (kind, name) = match format {
        Format::Csv => ("text/csv; charset=utf-8", "usage.csv"),
        Format::Jsonl => ("application/x-ndjson", "usage.jsonl"),
    };
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    Ok((headers, Body::from_stream(all)).into_response())
}

fn text(format: Format, first: bool, records: &[Map<String, Value>]) -> Bytes {
    if format == Format::Jsonl {
        let line = |record: &Map<String, Value>| serde_json::to_string(record).unwrap_or_default();
        return records.iter().map(|record| line(record) + "\n").collect::<String>().into();
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut write = |fields: Vec<String>| {
        if let Err(e) = writer.write_record(fields) {
            // Writing to memory does not fail.
            log::error!("admin: {e}");
        }
    };
    if first {
        write(schema::field_names().map(str::to_owned).collect());
    }
    for record in records {
        write(schema::field_names().map(|name| cell(record.get(name))).collect());
    }
    writer.into_inner().unwrap_or_default().into()
}

/// The characters that begin a formula in a spreadsheet, and the mark that prevents it, so that a
/// text with the mark can be read in only one way.
const MARKED: [char; 8] = ['=', '+', '-', '@', '\t', '\r', '\n', '\''];

/// Objects and lists as JSON, nothing for `null`.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) if text.starts_with(MARKED) => format!("'{text}"),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn csv_quotes_what_has_to_be_quoted() {
        let record =
            json!({"record_id": "r", "user_id": "a,\"b\"\nc", "tags": ["x", "y"], "cost": 0.5});
        let record = record.as_object().unwrap().clone();
        let told = text(Format::Csv, true, std::slice::from_ref(&record));
        let told = std::str::from_utf8(&told).unwrap();
        assert!(
            told.starts_with("record_id,version,process,sequence,request_id,user_id,"),
            "{told}"
        );
        assert!(told.contains("\nr,,,,,\"a,\"\"b\"\"\nc\",,"), "{told}");
        assert!(told.contains(",\"[\"\"x\"\",\"\"y\"\"]\","), "{told}");
        assert!(text(Format::Csv, false, &[]).is_empty());
        let lines = text(Format::Jsonl, true, &[record.clone(), record]);
        assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 2);
    }

    #[test]
    fn no_text_in_csv_is_a_formula() {
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1"] {
            assert_eq!(cell(Some(&json!(formula))), format!("'{formula}"));
        }
        for plain in ["", "a=1", "1-1", " =1", "\u{7528}"] {
            assert_eq!(cell(Some(&json!(plain))), plain);
        }
        assert_eq!(cell(Some(&json!(-1.5))), "-1.5");
    }
}
