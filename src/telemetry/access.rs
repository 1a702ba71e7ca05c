//! The access log: one line for each request, as text or JSON.

use std::{io::Write, net::IpAddr, time::Duration};

use jiff::Timestamp;

use super::logger;
use crate::base::{AccessField, TokenCounts, render};

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

/// Writes the line of a request that has ended now, with these fields; none stand for all.
pub fn write(line: &Line<'_>, fields: &[AccessField], json: bool, now: Timestamp) {
    let stamp = |out: &mut Vec<u8>| {
        // A line of JSON has the time inside.
        if !json {
            render::timestamp(out, now);
            out.extend_from_slice(b" ACCESS ");
        }
    };
    logger::access(stamp, |out| match (fields, json) {
        ([], true) => line.write_json(out, now),
        ([], false) => line.write_text(out),
        (_, true) => line.write_chosen_json(out, fields, now),
        (_, false) => line.write_chosen_text(out, fields, now),
    });
}

impl Line<'_> {
    fn write_text(&self, out: &mut Vec<u8>) {
        let mut line = Fields(out);
        match self.client {
            Some(address) => line.address(address),
            None => line.raw("-"),
        }
        line.text(" ", self.key.unwrap_or("-"));
        line.text(" \"", self.method);
        line.raw(" ");
        // Paths and models come from clients: escaped, a line stays one line.
        line.escaped(self.path);
        line.number("\" ", self.status);
        line.millis(" ", self.duration);
        line.text("ms id=", self.request_id);
        line.debug(" model=", self.model);
        line.debug(" backend=", self.backend);
        line.raw(if self.stream { " stream=true" } else { " stream=false" });
        line.text(" outcome=", self.outcome);
        line.number(" tokens=", self.tokens.prompt);
        line.number("+", self.tokens.completion);
        if !self.user.is_empty() {
            line.debug(" user=", self.user);
        }
        if let Some(first) = self.first_token {
            line.millis(" ttft=", first);
            line.raw("ms");
        }
        if self.retries > 0 {
            line.number(" retries=", self.retries);
        }
        if let Some(fault) = self.fault {
            line.text(" fault=", fault);
        }
    }

    fn write_json(&self, out: &mut Vec<u8>, now: Timestamp) {
        let mut line = Fields(out);
        line.raw("{\"ts\":\"");
        render::timestamp(line.0, now);
        line.raw("\",\"level\":\"info\",\"target\":\"access\"");
        line.string(",\"request_id\":", self.request_id);
        match self.client {
            Some(address) => {
                line.raw(",\"client\":\"");
                line.address(address);
                line.raw("\"");
            }
            None => line.raw(",\"client\":null"),
        }
        line.string_or_null(",\"api_key\":", self.key);
        line.string(",\"user_id\":", self.user);
        line.string(",\"method\":", self.method);
        line.string(",\"path\":", self.path);
        line.number(",\"status\":", self.status);
        line.string(",\"model\":", self.model);
        line.string(",\"backend\":", self.backend);
        line.raw(if self.stream { ",\"stream\":true" } else { ",\"stream\":false" });
        line.string(",\"outcome\":", self.outcome);
        line.number(",\"prompt_tokens\":", self.tokens.prompt);
        line.number(",\"completion_tokens\":", self.tokens.completion);
        line.millis(",\"duration_ms\":", self.duration);
        match self.first_token {
            Some(first) => line.millis(",\"ttft_ms\":", first),
            None => line.raw(",\"ttft_ms\":null"),
        }
        line.number(",\"retries\":", self.retries);
        line.string_or_null(",\"fault\":", self.fault);
        line.raw("}");
    }

    fn write_chosen_json(&self, out: &mut Vec<u8>, fields: &[AccessField], now: Timestamp) {
        for (at, field) in fields.iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"{\"" } else { b",\"" });
            out.extend_from_slice(field.word().as_bytes());
            out.extend_from_slice(b"\":");
            self.write_value(&mut Fields(out), *field, now);
        }
        out.push(b'}');
    }

    /// `name=value`, where texts from clients are quoted.
    fn write_chosen_text(&self, out: &mut Vec<u8>, fields: &[AccessField], now: Timestamp) {
        for (at, field) in fields.iter().enumerate() {
            if at > 0 {
                out.push(b' ');
            }
            out.extend_from_slice(field.word().as_bytes());
            out.push(b'=');
            self.write_value(&mut Fields(out), *field, now);
        }
    }

    /// The value of a field as JSON.
    fn write_value(&self, line: &mut Fields<'_>, field: AccessField, now: Timestamp) {
        match field {
            AccessField::Ts => {
                line.raw("\"");
                render::timestamp(line.0, now);
                line.raw("\"");
            }
            AccessField::RequestId => line.string("", self.request_id),
            AccessField::Client => match self.client {
                Some(address) => {
                    line.raw("\"");
                    line.address(address);
                    line.raw("\"");
                }
                None => line.raw("null"),
            },
            AccessField::ApiKey => line.string_or_null("", self.key),
            AccessField::UserId => line.string("", self.user),
            AccessField::Method => line.string("", self.method),
            AccessField::Path => line.string("", self.path),
            AccessField::Status => line.number("", self.status),
            AccessField::Model => line.string("", self.model),
            AccessField::Backend => line.string("", self.backend),
            AccessField::Stream => line.raw(if self.stream { "true" } else { "false" }),
            AccessField::Outcome => line.string("", self.outcome),
            AccessField::PromptTokens => line.number("", self.tokens.prompt),
            AccessField::CompletionTokens => line.number("", self.tokens.completion),
            AccessField::DurationMs => line.millis("", self.duration),
            AccessField::TtftMs => match self.first_token {
                Some(first) => line.millis("", first),
                None => line.raw("null"),
            },
            AccessField::Retries => line.number("", self.retries),
            AccessField::Fault => line.string_or_null("", self.fault),
        }
    }
}

/// Writes fields, each with what stands before it.
struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    #[inline]
    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    #[inline]
    fn text(&mut self, before: &str, text: &str) {
        self.raw(before);
        self.raw(text);
    }

    #[inline]
    fn number(&mut self, before: &str, number: impl itoa::Integer) {
        self.raw(before);
        render::integer(self.0, number);
    }

    #[inline]
    fn debug(&mut self, before: &str, text: &str) {
        self.raw(before);
        render::debug(self.0, text);
    }

    #[inline]
    fn string(&mut self, before: &str, text: &str) {
        self.raw(before);
        render::json_string(self.0, text);
    }

    fn string_or_null(&mut self, before: &str, text: Option<&str>) {
        match text {
            Some(text) => self.string(before, text),
            None => self.text(before, "null"),
        }
    }

    /// As `escape_debug`, which escapes `'` as well.
    fn escaped(&mut self, text: &str) {
        if render::is_plain(text) && memchr::memchr(b'\'', text.as_bytes()).is_none() {
            self.raw(text);
        } else {
            // Writing to memory does not fail.
            let _ = write!(self.0, "{}", text.escape_debug());
        }
    }

    fn address(&mut self, address: IpAddr) {
        let IpAddr::V4(v4) = address else {
            let _ = write!(self.0, "{address}");
            return;
        };
        let [first, rest @ ..] = v4.octets();
        render::integer(self.0, first);
        for octet in rest {
            self.number(".", octet);
        }
    }

    /// Milliseconds, with one decimal.
    fn millis(&mut self, before: &str, time: Duration) {
        self.raw(before);
        let tenths = (time.as_secs_f64() * 10_000.0).round();
        if tenths < 1e15 {
            let tenths = tenths as u64;
            render::integer(self.0, tenths / 10);
            self.number(".", tenths % 10);
        } else {
            let _ = write!(self.0, "{:.1}", tenths / 10.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*};

    use super::*;

    impl Line<'_> {
        fn text(&self) -> String {
            let mut out = Vec::new();
            self.write_text(&mut out);
            String::from_utf8(out).unwrap()
        }

        fn json(&self) -> String {
            let mut out = Vec::new();
            self.write_json(&mut out, Timestamp::UNIX_EPOCH);
            String::from_utf8(out).unwrap()
        }

        fn chosen(&self, fields: &[AccessField], json: bool) -> String {
            let mut out = Vec::new();
            match json {
                true => self.write_chosen_json(&mut out, fields, Timestamp::UNIX_EPOCH),
                false => self.write_chosen_text(&mut out, fields, Timestamp::UNIX_EPOCH),
            }
            String::from_utf8(out).unwrap()
        }

        /// The same by the formatting of the standard library.
        fn formatted(&self) -> String {
            let client = self.client.map_or("-".to_owned(), |address| address.to_string());
            let user = format!(" user={:?}", self.user);
            let first = self.first_token.map(|t| format!(" ttft={:.1}ms", millis(t)));
            let retries = format!(" retries={}", self.retries);
            let fault = self.fault.map(|fault| format!(" fault={fault}"));
            let rest = [
                Some(user).filter(|_| !self.user.is_empty()),
                first,
                Some(retries).filter(|_| self.retries > 0),
                fault,
            ];
            format!(
                "{client} {} \"{} {}\" {} {:.1}ms id={} model={:?} backend={:?} stream={} outcome={} \
                 tokens={}+{}{}",
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
                rest.into_iter().flatten().collect::<String>(),
            )
        }

        /// The same by serde.
        fn serialized(&self) -> String {
            serde_json::json!({
                "ts": "1970-01-01T00:00:00.000Z",
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

    const ALL: [AccessField; 18] = [
        AccessField::Ts,
        AccessField::RequestId,
        AccessField::Client,
        AccessField::ApiKey,
        AccessField::UserId,
        AccessField::Method,
        AccessField::Path,
        AccessField::Status,
        AccessField::Model,
        AccessField::Backend,
        AccessField::Stream,
        AccessField::Outcome,
        AccessField::PromptTokens,
        AccessField::CompletionTokens,
        AccessField::DurationMs,
        AccessField::TtftMs,
        AccessField::Retries,
        AccessField::Fault,
    ];

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[ -~]{0,30}", "[a-z/']{0,30}", any::<String>()]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn lines_are_those_of_the_libraries(
            texts in prop::array::uniform6(text()),
            client in option::of(any::<IpAddr>()),
            (status, stream, retries, prompt, completion) in any::<(u16, bool, u32, u64, u64)>(),
            (key, fault) in (option::of(text()), option::of(text())),
            // Up to 317 years, and any.
            duration in prop_oneof![(0u64..10_000_000_000_000_000_000).prop_map(Duration::from_nanos), any::<Duration>()],
            first in option::of((0u64..100_000_000_000).prop_map(Duration::from_nanos)),
        ) {
            let [request_id, method, path, model, backend, user] = &texts;
            let line = Line {
                request_id, client, method, path, status, model, backend, stream,
                outcome: "complete",
                tokens: TokenCounts { prompt, completion, ..TokenCounts::default() },
                duration,
                first_token: first,
                key: key.as_deref(),
                user,
                retries: retries % 3,
                fault: fault.as_deref(),
            };
            prop_assert_eq!(line.text(), line.formatted());
            if duration < Duration::from_secs(10_000_000_000) {
                prop_assert_eq!(line.json(), line.serialized());
                let all = |json| line.chosen(&ALL, json);
                let mut whole: serde_json::Map<_, _> = serde_json::from_str(&line.json()).unwrap();
                whole.retain(|name, _| name != "level" && name != "target");
                prop_assert_eq!(serde_json::from_str::<serde_json::Map<_, _>>(&all(true)).unwrap(), whole);
                prop_assert!(!all(false).contains(char::is_control), "{:?}", all(false));
            }
        }
    }

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
