//! The webhook sink: POSTs records as JSON, signed according to Standard Webhooks.

use std::{fmt::Write as _, time::Duration};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::delivery::{DeliveryError, Sink};
use crate::{
    config::plan::{SigningKey, WebhookPlan},
    store::http::cause,
    usage::spool::Entry,
    wire::headers::retry_after,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Bytes of a response that are read so that its connection can be reused.
const MOST: usize = 64 * 1024;

/// Posts records to one URL.
pub struct WebhookSink {
    client: reqwest::Client,
    plan: WebhookPlan,
    /// Header fields of every request.
    headers: HeaderMap,
}

impl WebhookSink {
    pub fn new(client: reqwest::Client, plan: WebhookPlan) -> Self {
        let json = HeaderValue::from_static("application/json");
        let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, json)]);
        for (name, value) in &plan.headers {
            headers.insert(name, value.clone());
        }
        Self { client, plan, headers }
    }

    /// The header fields of one request.
    fn headers(&self, id: &str, now: Timestamp, body: &[u8]) -> HeaderMap {
        let mut headers = self.headers.clone();
        let timestamp = now.as_second();
        // The id comes from a record and may not be a valid header value.
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert(IDEMPOTENCY_KEY, id.clone());
            headers.insert(ID, id);
        }
        headers.insert(TIMESTAMP, timestamp.into());
        if !self.plan.keys.is_empty()
            && let Ok(signature) = signatures(&self.plan.keys, id, timestamp, body).try_into()
        {
            headers.insert(SIGNATURE, signature);
        }
        headers
    }
}

#[async_trait]
impl Sink for WebhookSink {
    async fn deliver(&self, records: &[Entry]) -> Result<(), DeliveryError> {
        let body = body(records, self.plan.batch_size > 1);
        let headers = self.headers(&message_id(records), Timestamp::now(), &body);
        let request = self.client.post(self.plan.url.expose()).timeout(self.plan.timeout);
        // The query of the URL may hold a token: errors never contain the URL.
        match request.headers(headers).body(body).send().await {
            Ok(mut response) => {
                let verdict = judge(response.status(), response.headers(), Timestamp::now());
                let mut read = 0;
                while read < MOST
                    && let Ok(Some(piece)) = response.chunk().await
                {
                    read += piece.len();
                }
                verdict
            }
            Err(e) => Err(DeliveryError::unavailable(format!("cannot be reached: {}", cause(e)))),
        }
    }
}

/// What a response means. Redirects are not followed and count as unavailable.
fn judge(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Result<(), DeliveryError> {
    let why = format!("answered {status}");
    match status.as_u16() {
        200..=299 => Ok(()),
        410 => Err(DeliveryError::Gone { why }),
        400 | 413 | 415 | 422 => Err(DeliveryError::Refused { why }),
        _ => {
            let retry_after = retry_after(headers, || now).filter(|pause| *pause > Duration::ZERO);
            Err(DeliveryError::Unavailable { why, retry_after })
        }
    }
}

/// The record itself, or an array of all records.
fn body(records: &[Entry], array: bool) -> Bytes {
    if let ([record], false) = (records, array) {
        return record.json.clone();
    }
    let size: usize = records.iter().map(|record| record.json.len() + 1).sum();
    let mut body = Vec::with_capacity(size + 1);
    for (i, record) in records.iter().enumerate() {
        body.push(if i == 0 { b'[' } else { b',' });
        body.extend_from_slice(&record.json);
    }
    body.push(b']');
    body.into()
}

/// The id of a request: that of its record, or a digest of the ids of several records, which is the same
/// for the same records and no others.
fn message_id(records: &[Entry]) -> String {
    #[derive(Deserialize)]
    struct RecordIdOnly<'a> {
        record_id: &'a str,
    }
    let id_of = |entry: &Entry| {
        let parsed: Result<RecordIdOnly<'_>, _> = serde_json::from_slice(&entry.json);
        parsed.map_or_else(|_| format!("index_{}", entry.index), |n| n.record_id.to_owned())
    };
    match records {
        [] => String::new(),
        [one] => id_of(one),
        several => {
            let mut digest = Sha256::new();
            several.iter().for_each(|record| Digest::update(&mut digest, id_of(record)));
            let digest = digest.finalize();
            let digest = u128::from_be_bytes(std::array::from_fn(|i| digest[i]));
            format!("batch_{digest:032x}")
        }
    }
}

/// The signatures with all keys, separated by spaces: `v1,` and the HMAC-SHA256 of id, timestamp and
/// body in base64.
fn signatures(keys: &[SigningKey], id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut header = String::new();
    for key in keys {
        let mac = Hmac::<Sha256>::new_from_slice(&key.0);
        let mut mac = mac.expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        let gap = if header.is_empty() { "" } else { " " };
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        // Writing to a String cannot fail.
        write!(header, "{gap}v1,{signature}").ok();
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, json: &'static str) -> Entry {
        Entry { index, time: 0, json: Bytes::from_static(json.as_bytes()) }
    }

    /// The example of Standard Webhooks' own libraries.
    #[test]
    fn signs_as_standard_webhooks_says() {
        let key = SigningKey(BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap());
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let body = br#"{"test": 2432232314}"#;
        let signed = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signatures(std::slice::from_ref(&key), id, 1_614_265_330, body), signed);
        let two = signatures(&[SigningKey(b"other".to_vec()), key], id, 1_614_265_330, body);
        let (other, same) = two.split_once(' ').unwrap();
        assert!(other.starts_with("v1,") && other != signed);
        assert_eq!(same, signed);
    }

    #[test]
    fn a_single_record_is_sent_as_it_is() {
        let one = [entry(7, r#"{"record_id":"rec_a", "n":1}"#)];
        assert_eq!(body(&one, false).as_ptr(), one[0].json.as_ptr(), "not copied");
        assert_eq!(body(&one, true), r#"[{"record_id":"rec_a", "n":1}]"#);
        assert_eq!(message_id(&one), "rec_a");
        assert_eq!(message_id(&[entry(7, "damaged")]), "index_7");
    }

    #[test]
    fn several_records_are_an_array_with_a_lasting_id() {
        let two = [entry(0, r#"{"record_id":"rec_a"}"#), entry(1, r#"{"record_id":"rec_b"}"#)];
        assert_eq!(body(&two, true), r#"[{"record_id":"rec_a"},{"record_id":"rec_b"}]"#);
        let id = message_id(&two);
        assert!(id.starts_with("batch_") && id.len() == 38, "{id}");
        assert_eq!(message_id(&two), id);
        let other = [two[0].clone(), entry(9, r#"{"record_id":"rec_c"}"#)];
        assert_ne!(message_id(&other), id);
    }

    #[test]
    fn answers_are_told_apart() {
        let now: Timestamp = "1994-11-06T08:49:30Z".parse().unwrap();
        let mut headers = HeaderMap::new();
        let judged = |status: u16, headers: &HeaderMap| {
            judge(StatusCode::from_u16(status).unwrap(), headers, now)
        };
        assert_eq!(judged(202, &headers), Ok(()));
        assert!(matches!(judged(410, &headers), Err(DeliveryError::Gone { .. })));
        for status in [400, 413, 415, 422] {
            assert!(
                matches!(judged(status, &headers), Err(DeliveryError::Refused { .. })),
                "{status}"
            );
        }
        for status in [302, 401, 404, 408, 429, 500, 503] {
            let away = judged(status, &headers);
            assert!(
                matches!(away, Err(DeliveryError::Unavailable { retry_after: None, .. })),
                "{status}"
            );
        }
        headers.insert(header::RETRY_AFTER, "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
        let Err(DeliveryError::Unavailable { retry_after, why }) = judged(503, &headers) else {
            panic!()
        };
        assert_eq!(retry_after, Some(Duration::from_secs(7)));
        assert_eq!(why, "answered 503 Service Unavailable");
    }
}
