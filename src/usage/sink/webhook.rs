//! The webhook sink: records by POST, as JSON.

use async_trait::async_trait;

use super::{Failure, Sink};
use crate::{config::plan::WebhookPlan, store::http, usage::Entry};

/// Sends records to one URL.
pub struct Webhook {
    client: reqwest::Client,
    plan: WebhookPlan,
}

impl Webhook {
    /// A sink for the configured URL.
    pub fn new(client: reqwest::Client, plan: WebhookPlan) -> Self {
        Self { client, plan }
    }
}

#[async_trait]
impl Sink for Webhook {
    async fn deliver(&self, records: &[Entry]) -> Result<(), Failure> {
        let body = records[0].json.clone();
        let mut request = self
            .client
            .post(&self.plan.url)
            .timeout(self.plan.timeout)
            .header(::http::header::CONTENT_TYPE, "application/json")
            .body(body);
        for (name, value) in &self.plan.headers {
            request = request.header(name, value);
        }
        // The URL may hold a token in its query: errors are told without it.
        match request.send().await {
            Ok(answer) => {
                let status = answer.status();
                // Read to its end, so that the connection can be used again.
                answer.bytes().await.ok();
                match status.is_success() {
                    true => Ok(()),
                    false => Err(Failure::away(format!("answered {status}"))),
                }
            }
            Err(e) => Err(Failure::away(format!("cannot be reached: {}", http::cause(e)))),
        }
    }
}
