//! What a script returned, read.

use std::fmt;

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::base::Stage;

/// Longest message to a client, in characters.
const LONGEST: usize = 1000;

/// Most header fields, tags or backends that one script may name.
const MOST: usize = 100;

/// What a script wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The request is refused, or a stream ends.
    pub refusal: Option<Refusal>,
    /// Changes of header fields.
    pub headers: Vec<HeaderChange>,
    /// The body in place of the present one.
    pub body: Option<Value>,
    /// The status of the answer.
    pub status: Option<u16>,
    /// The answer to the request, instead of a backend's.
    pub answer: Option<Answer>,
    pub tags: Vec<String>,
    pub metadata: Map<String, Value>,
    pub tier: Option<String>,
    /// Limits of this caller alone.
    pub limits: Option<Value>,
    /// How many requests this one counts as.
    pub weight: Option<u64>,
    /// The models that the caller may use.
    pub models: Option<Vec<String>>,
    /// The backends that may be picked, the only ones.
    pub backends: Option<Vec<String>>,
    /// The model that is asked for in place of the client's.
    pub model: Option<String>,
    /// How a backend is picked.
    pub strategy: Option<String>,
    /// What binds the request to a backend.
    pub session: Option<String>,
    /// Fields of the usage record.
    pub record: Map<String, Value>,
    /// Fields that the stage does not know.
    pub unknown: Vec<String>,
}

/// Why a request is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    pub status: Option<u16>,
    pub message: Option<String>,
    pub code: Option<String>,
    /// Seconds.
    pub retry_after: Option<u64>,
}

impl Refusal {
    /// What can be used of the fields of a refusal.
    fn of(fields: &Map<String, Value>) -> Self {
        let mut refusal = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "message" | "reason" | "error" => {
                    let text = text(name, value.clone()).ok();
                    refusal.message = text.map(|text| text.chars().take(LONGEST).collect());
                }
                "code" => refusal.code = text(name, value.clone()).ok(),
                "retry_after" => refusal.retry_after = whole(name, value).ok(),
                "status" | "status_code" => refusal.status = status(name, value, 400).ok(),
                _ => {}
            }
        }
        refusal
    }
}

/// A header field that is set, or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange {
    pub name: HeaderName,
    /// `None`: it is removed.
    pub value: Option<HeaderValue>,
}

/// An answer that a script gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<HeaderChange>,
    /// Text as it is, anything else as JSON.
    pub body: Option<Value>,
}

/// What is wrong with what a script returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable(pub String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Verdict {
    /// Reads what a script of this stage returned. [`Stage::StreamEvent`] returns events, which are
    /// not read here unless they are tables with `stop`.
    ///
    /// # Errors
    /// Which field has a value that cannot be used.
    pub fn read(stage: Stage, returned: Value) -> Result<Self, Unusable> {
        let mut verdict = Self::default();
        match returned {
            Value::Bool(true) => {}
            Value::Bool(false) if stage.may_refuse() => {
                verdict.refusal = Some(Refusal::default());
            }
            Value::String(name) if stage == Stage::Route => verdict.backends = Some(vec![name]),
            Value::Object(fields) if stage == Stage::Usage => verdict.record = fields,
            Value::Object(fields) => verdict.fields(stage, fields)?,
            // An empty Lua table may be an empty list.
            Value::Array(empty) if empty.is_empty() => {}
            _ if stage == Stage::Complete => {}
            other => {
                let why = format!("a {} is not an answer in {}", kind(&other), stage.key());
                return Err(Unusable(why));
            }
        }
        Ok(verdict)
    }

    /// Whether it changes nothing.
    pub fn is_nothing(&self) -> bool {
        let Self { unknown: _, .. } = self;
        *self == Self { unknown: self.unknown.clone(), ..Self::default() }
    }

    fn fields(&mut self, stage: Stage, fields: Map<String, Value>) -> Result<(), Unusable> {
        let says_no = |name| stage.may_refuse() && fields.get(name) == Some(&Value::Bool(false));
        if says_no("allow") || says_no("continue") {
            // A refusal holds, whatever stands beside it.
            self.refusal = Some(Refusal::of(&fields));
            return Ok(());
        }
        let mut refusal = Refusal::default();
        for (name, value) in fields {
            match name.as_str() {
                "allow" | "continue" if stage.may_refuse() => _ = truth(&name, &value)?,
                "message" | "reason" | "error"
                    if stage.may_refuse() || stage == Stage::Error && name == "message" =>
                {
                    refusal.message = Some(text(&name, value)?.chars().take(LONGEST).collect());
                }
                "code" if stage.may_refuse() => refusal.code = Some(text(&name, value)?),
                "retry_after" if stage.may_refuse() => {
                    refusal.retry_after = Some(whole(&name, &value)?);
                }
                "status" | "status_code" => {
                    let least = if stage.may_refuse() { 400 } else { 200 };
                    let status = status(&name, &value, least)?;
                    refusal.status = Some(status);
                    self.status = (!stage.may_refuse()).then_some(status);
                }
                _ => self.field(stage, name, value)?,
            }
        }
        if stage == Stage::Error && refusal.message.is_some() {
            self.refusal = Some(refusal);
        }
        Ok(())
    }

    fn field(&mut self, stage: Stage, name: String, value: Value) -> Result<(), Unusable> {
        use Stage::{Auth, Error, RateLimit, Request, Response, Route, UpstreamRequest};
        match (name.as_str(), stage) {
            ("headers", Request | UpstreamRequest | Response | Error) => {
                self.headers = headers(value)?;
            }
            ("body", Request | UpstreamRequest | Response | Error) => self.body = Some(value),
            ("answer", Request | Auth) => self.answer = Some(Answer::read(value)?),
            ("tags", Request | Auth | RateLimit | Route) => self.tags = texts(&name, value)?,
            ("metadata", Request | Auth | RateLimit | Route) => {
                self.metadata = object(&name, value)?;
            }
            ("tier", Auth | RateLimit) => self.tier = Some(text(&name, value)?),
            ("limits", Auth | RateLimit) => {
                self.limits = Some(Value::Object(object(&name, value)?));
            }
            ("models", Auth) => self.models = Some(texts(&name, value)?),
            ("weight", RateLimit) => self.weight = Some(whole(&name, &value)?),
            ("backend", Route) => self.backends = Some(vec![text(&name, value)?]),
            ("backends", Route) => self.backends = Some(texts(&name, value)?),
            ("model", Route) => self.model = Some(text(&name, value)?),
            ("strategy", Route) => self.strategy = Some(text(&name, value)?),
            ("session", Route) => self.session = Some(text(&name, value)?),
            // Words of earlier versions that say nothing more than the others.
            ("modified", _) => {}
            _ if self.unknown.len() < MOST => self.unknown.push(name),
            _ => {}
        }
        Ok(())
    }
}

impl Answer {
    fn read(value: Value) -> Result<Self, Unusable> {
        let mut answer = Self { status: 200, ..Self::default() };
        for (name, value) in object("answer", value)? {
            match name.as_str() {
                "status" | "status_code" => {
                    answer.status = status("answer.status", &value, 200)?;
                }
                "headers" => answer.headers = headers(value)?,
                "body" => answer.body = Some(value),
                _ => return Err(Unusable(format!("`answer` has no field `{name}`"))),
            }
        }
        Ok(answer)
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "table",
    }
}

fn truth(name: &str, value: &Value) -> Result<bool, Unusable> {
    let wrong = || Unusable(format!("`{name}` is a {}, not true or false", kind(value)));
    value.as_bool().ok_or_else(wrong)
}

fn text(name: &str, value: Value) -> Result<String, Unusable> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(Unusable(format!("`{name}` is a {}, not a string", kind(&other)))),
    }
}

/// A number from 0 on; a fraction is rounded up.
fn whole(name: &str, value: &Value) -> Result<u64, Unusable> {
    let number = value.as_f64().filter(|number| (0.0..9e15).contains(number));
    let wrong = || Unusable(format!("`{name}` is not a number from 0 on"));
    Ok(number.ok_or_else(wrong)?.ceil() as u64)
}

fn status(name: &str, value: &Value, least: u16) -> Result<u16, Unusable> {
    let number = value.as_f64().filter(|number| number.fract() == 0.0);
    let wrong = || Unusable(format!("`{name}` is not a number between {least} and 599"));
    number
        .map(|number| number as u16)
        // Those without a body would have none.
        .filter(|status| (least..600).contains(status) && ![204, 205, 304].contains(status))
        .ok_or_else(wrong)
}

fn object(name: &str, value: Value) -> Result<Map<String, Value>, Unusable> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Array(empty) if empty.is_empty() => Ok(Map::new()),
        other => Err(Unusable(format!("`{name}` is a {}, not a table", kind(&other)))),
    }
}

fn texts(name: &str, value: Value) -> Result<Vec<String>, Unusable> {
    let items = match value {
        Value::Array(items) => items,
        Value::Object(empty) if empty.is_empty() => Vec::new(),
        Value::String(one) => vec![Value::String(one)],
        other => {
            return Err(Unusable(format!("`{name}` is a {}, not a list of strings", kind(&other))));
        }
    };
    if items.len() > MOST {
        return Err(Unusable(format!("`{name}` has more than {MOST} entries")));
    }
    items.into_iter().map(|item| text(name, item)).collect()
}

fn headers(value: Value) -> Result<Vec<HeaderChange>, Unusable> {
    let fields = object("headers", value)?;
    if fields.len() > MOST {
        return Err(Unusable(format!("`headers` has more than {MOST} fields")));
    }
    let mut changes = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        let wrong = |what: &str| Unusable(format!("`headers`: `{name}` {what}"));
        let field = HeaderName::try_from(name.as_str())
            .map_err(|_| wrong("is not the name of a header field"))?;
        let value = match value {
            Value::Null | Value::Bool(false) => None,
            value => {
                let text = text(&format!("headers.{name}"), value)?;
                Some(
                    HeaderValue::try_from(text)
                        .map_err(|_| wrong("has a value with a line break"))?,
                )
            }
        };
        changes.push(HeaderChange { name: field, value });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(stage: Stage, value: Value) -> Result<Verdict, String> {
        Verdict::read(stage, value).map_err(|e| e.0)
    }

    #[test]
    fn refusals_have_several_words() {
        for returned in [
            json!({"allow": false, "message": "no", "status": 402}),
            json!({"continue": false, "error": "no", "status_code": 402}),
            json!({"allow": false, "reason": "no", "status_code": 402.0}),
        ] {
            let refusal = read(Stage::Request, returned).unwrap().refusal.unwrap();
            assert_eq!((refusal.status, refusal.message.as_deref()), (Some(402), Some("no")));
        }
        let verdict = read(Stage::Auth, json!({"allow": true, "reason": "fine"})).unwrap();
        assert_eq!(verdict.refusal, None);
        assert!(verdict.is_nothing());
        assert!(read(Stage::Auth, json!(false)).unwrap().refusal.is_some());
        assert!(read(Stage::Response, json!(false)).is_err());
        let limited = json!({"allow": false, "retry_after": 1.2});
        assert_eq!(read(Stage::RateLimit, limited).unwrap().refusal.unwrap().retry_after, Some(2));
    }

    #[test]
    fn a_refusal_holds_whatever_stands_beside_it() {
        let odd = json!({"allow": false, "status": 302, "message": {}, "retry_after": -1, "x": 1});
        let refusal = read(Stage::RateLimit, odd).unwrap().refusal.unwrap();
        assert_eq!(refusal, Refusal::default());
    }

    #[test]
    fn a_backend_may_be_returned_by_its_name() {
        let one = Some(vec!["a".to_owned()]);
        assert_eq!(read(Stage::Route, json!("a")).unwrap().backends, one);
        assert_eq!(read(Stage::Route, json!({"backend": "a"})).unwrap().backends, one);
        assert_eq!(read(Stage::Route, json!({"backends": ["a"]})).unwrap().backends, one);
        assert!(read(Stage::Request, json!("a")).is_err());
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (returned, named) in [
            (json!({"headers": {"a b": "x"}}), "a b"),
            (json!({"headers": {"a": "x\ny"}}), "line break"),
            (json!({"headers": ["x"]}), "headers"),
            (json!({"status": 42}), "status"),
            (json!({"allow": "no"}), "allow"),
            (json!({"tags": [{}]}), "tags"),
            (json!({"answer": {"stauts": 200}}), "stauts"),
            (json!(7), "number"),
        ] {
            let why = read(Stage::Request, returned.clone()).unwrap_err();
            assert!(why.contains(named), "{returned}: {why}");
        }
        let verdict = read(Stage::Route, json!({"modle": "x", "model": "y"})).unwrap();
        assert_eq!((verdict.unknown, verdict.model), (vec!["modle".to_owned()], Some("y".into())));
    }

    #[test]
    fn header_fields_are_set_and_removed() {
        let headers = json!({"headers": {"X-A": 7, "X-B": false}});
        let changes = read(Stage::UpstreamRequest, headers).unwrap().headers;
        assert_eq!(
            changes,
            [
                HeaderChange {
                    name: HeaderName::from_static("x-a"),
                    value: Some(HeaderValue::from_static("7"))
                },
                HeaderChange { name: HeaderName::from_static("x-b"), value: None },
            ]
        );
    }

    #[test]
    fn fields_of_a_record_are_free() {
        let record = json!({"cost": 1.5, "discount": 0.8});
        assert_eq!(Value::Object(read(Stage::Usage, record.clone()).unwrap().record), record);
    }
}
