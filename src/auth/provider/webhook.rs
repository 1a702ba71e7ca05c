//! `webhook`: an HTTP service that is asked about each key. It fails closed: only a 2xx answer with a
//! JSON object accepts a key.

use std::time::Duration;

use ::http::{HeaderName, HeaderValue, StatusCode};
use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::lookup::{KeyRecord, LookupKey, Provider};
use crate::{
    auth::credential::key_id,
    base::number::number,
    store::{StoreError, http},
};

/// An HTTP service.
pub struct Webhook {
    client: reqwest::Client,
    url: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    timeout: Duration,
}

impl Webhook {
    pub fn new(
        client: reqwest::Client,
        url: String,
        headers: Vec<(HeaderName, HeaderValue)>,
        timeout: Duration,
    ) -> Self {
        Self { client, url, headers, timeout }
    }

    async fn ask(&self, key: &str) -> Result<Option<Map<String, Value>>, StoreError> {
        let question = json!({"api_key": key, "timestamp": jiff::Timestamp::now().as_second()});
        let request = self.client.post(&self.url).timeout(self.timeout);
        let (status, body) =
            http::ask(request, &self.headers, question.to_string(), "the webhook").await?;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(None),
            status if !status.is_success() => {
                Err(StoreError::new(format!("the webhook answered {status}")))
            }
            status => match serde_json::from_slice(&body) {
                Ok(Value::Object(mut data)) => {
                    data.insert("_http_status".to_owned(), status.as_u16().into());
                    Ok(Some(data))
                }
                _ => Err(StoreError::new("the webhook's answer is not a JSON object")),
            },
        }
    }
}

#[async_trait]
impl Provider for Webhook {
    async fn find(&self, key: &LookupKey) -> Result<Option<KeyRecord>, StoreError> {
        let Some(data) = self.ask(&key.key).await? else {
            return Ok(None);
        };
        let code = data.get("code").cloned();
        let mut record = KeyRecord::new(data, || key_id(&key.digest));
        // With such services `{"code": 0}` means success. A script may read it differently.
        if code.is_some_and(|code| !code.is_null() && number(&code) != Some(0.0)) {
            record.terms = Err("`code` is not 0".to_owned());
        }
        Ok(Some(record))
    }
}
