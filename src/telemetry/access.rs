//! The access log: one line for each request, as text or JSON.

use std::{net::IpAddr, time::Duration};

use super::logger;
use crate::base::TokenCounts;

/// The fields of a line.
pub struct Line<'a> {
    pub request_id: &'a str,
    pub client: Option<IpAddr>,
    pub method: &'a str,
    pub path: &'a str,
    pub status: u16,
    pub model: &'a str,
    pub backend: &'a str,
    pub stream: bool,
    pub outcome: &'a str,
    pub tokens: TokenCounts,
    pub duration: Duration,
    /// From the arrival of the request to the first byte of the response body.
    pub first_token: Option<Duration>,
    /// The caller's key, masked.
    pub key: Option<&'a str>,
    /// The user of the key; empty if unknown.
    pub user: &'a str,
    /// Attempts beyond the first.
    pub retries: u32,
    /// The fault, if any.
    pub fault: Option<&'a str>,
}

/// Writes the line.
pub fn write(line: &Line<'_>, json: bool) {
    let text = if json { line.json() } else { line.text() };
    log::info!(target: logger::ACCESS, "{text}");
}

impl Line<'_> {
    fn text(&self) -> String {
        use std::fmt::Write;
        let mut out = String::with_capacity(256);
        // Paths and models come from clients: `{:?}` keeps a line one line.
        let _ = match self.client {
            Some(address) => write!(out, "{address}"),
            None => write!(out, "-"),
        };
        let _ = write!(
            out,
            " {} \"{} {}\" {} {:.1}ms id={} model={:?} backend={:?} stream={} outcome={} tokens={}+{}",
            self.key.unwrap_or("-"),
            self.method,
            self.path.escape_debug(),
            self.status,
            millis(self.duration),
            self.request_id,
            self.model,
            self.backend,
            self.stream,
            self.outcome,
            self.tokens.prompt,
            self.tokens.completion,
        );
        if !self.user.is_empty() {
            let _ = write!(out, " user={:?}", self.user);
        }
        if let Some(first) = self.first_token {
            let _ = write!(out, " ttft={:.1}ms", millis(first));
        }
        if self.retries > 0 {
            let _ = write!(out, " retries={}", self.retries);
        }
        if let Some(fault) = self.fault {
            let _ = write!(out, " fault={fault}");
        }
        out
    }

    fn json(&self) -> String {
        serde_json::json!({
            "ts": logger::timestamp(),
            "level": "info",
            "target": logger::ACCESS,
            "request_id": self.request_id,
            "client": self.client,
            "api_key": self.key,
            "user_id": self.user,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "model": self.model,
            "backend": self.backend,
            "stream": self.stream,
            "outcome": self.outcome,
            "prompt_tokens": self.tokens.prompt,
            "completion_tokens": self.tokens.completion,
            "duration_ms": millis(self.duration),
            "ttft_ms": self.first_token.map(millis),
            "retries": self.retries,
            "fault": self.fault,
        })
        .to_string()
    }
}

/// Milliseconds, with one decimal.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_path_stays_on_its_line() {
        let line = Line {
            request_id: "r",
            client: Some(IpAddr::from([127, 0, 0, 1])),
            method: "GET",
            path: "/x\"\n2026 ERROR forged",
            status: 404,
            model: "m\nn",
            backend: "",
            stream: false,
            outcome: "rejected",
            tokens: TokenCounts::default(),
            duration: Duration::from_micros(1500),
            first_token: None,
            key: None,
            user: "u\nu",
            retries: 0,
            fault: None,
        };
        assert!(!line.text().contains('\n'));
        assert!(line.text().contains("404 1.5ms id=r"));
        let json: serde_json::Value = serde_json::from_str(&line.json()).unwrap();
        assert_eq!(json["path"], "/x\"\n2026 ERROR forged");
    }
}
