//! Reads a client's request.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    members::{self, number, object, take, text},
    read_messages, tools,
    words::LANGUAGE,
};
use crate::dialect::hub::{
    Extension, Json, Object, Refused, Request,
    request::{Format, Sampling},
};

/// Reads a request.
///
/// # Errors
/// If something is not of the type that Chat gives it.
pub fn request(body: &str) -> Result<Request, Refused> {
    let mut from = Object::parse(body)
        .map_err(|error| Refused::invalid("", format!("The body is no JSON object: {error}")))?;
    let mut defaults = defaults(&from);
    let mut request = Request {
        model: text(&mut from, "model", "")?,
        stream: boolean(&mut from, "stream")?.unwrap_or(false),
        parallel_tools: boolean(&mut from, "parallel_tool_calls")?,
        verbosity: text(&mut from, "verbosity", "")?,
        max_output: limit(&mut from)?,
        sampling: sampling(&mut from)?,
        stop: stop(&mut from)?,
        choices: count(&mut from, "n")?,
        logprobs: logprobs(&mut from)?,
        modalities: modalities(&mut from)?,
        metadata: from.json("metadata"),
        user: user(&mut from)?,
        cache_key: text(&mut from, "prompt_cache_key", "")?,
        service_tier: text(&mut from, "service_tier", "")?,
        store: boolean(&mut from, "store")?,
        ..Request::default()
    };
    request.reasoning.effort = text(&mut from, "reasoning_effort", "")?;
    tools::read(&mut from, &mut request)?;
    let messages =
        from.take("messages").ok_or_else(|| Refused::invalid("messages", "It is missing"))?;
    read_messages::read(messages, &mut request)?;
    let mut inner = Vec::new();
    if let Some(raw) = from.take("response_format") {
        request.format = Some(format(raw, &mut inner)?);
    }
    if let Some(raw) = from.take("stream_options") {
        let mut options = object(raw, "stream_options")?;
        let usage = take(&mut options, "include_usage", "stream_options", "true or false")?;
        request.client.usage = usage.unwrap_or(false);
        inner.extend(members::prefixed("stream_options", options));
    }
    let mut rest = from.rest();
    let known: HashSet<&str> = defaults.iter().map(|(name, _)| name.as_str()).collect();
    rest.retain(|(name, _)| !known.contains(name.as_str()));
    rest.extend(inner);
    // A name that is older than the one in use says nothing more.
    defaults.retain(|(name, value)| {
        name != "user" || value.as_text() == request.user || value.as_str() == "null"
    });
    request.ext = Extension { defaults, ..Extension::new(LANGUAGE, rest) };
    Ok(request)
}

/// Members that say what holds without them, and those that say in another form what has a place
/// in the hub.
fn defaults(from: &Object<'_>) -> Vec<(String, Json)> {
    let same = |name: &str, value: &str| match name {
        "stream" | "logprobs" => value == "false",
        "stop" => value.starts_with('"'),
        "user" => true,
        _ => false,
    };
    let kept =
        from.members().filter(|(name, value)| value.get() == "null" || same(name, value.get()));
    kept.map(|(name, value)| (name.to_owned(), Json::of(value))).collect()
}

fn boolean(from: &mut Object<'_>, name: &str) -> Result<Option<bool>, Refused> {
    take(from, name, "", "true or false")
}

fn count(from: &mut Object<'_>, name: &str) -> Result<Option<u64>, Refused> {
    take(from, name, "", "a whole number that is not negative")
}

/// Of two names of the limit the newer one counts.
fn limit(from: &mut Object<'_>) -> Result<Option<u64>, Refused> {
    let old = count(from, "max_tokens")?;
    Ok(count(from, "max_completion_tokens")?.or(old))
}

/// Of two names of the user the newer one counts.
fn user(from: &mut Object<'_>) -> Result<Option<String>, Refused> {
    let old = text(from, "user", "")?;
    Ok(text(from, "safety_identifier", "")?.or(old))
}

fn sampling(from: &mut Object<'_>) -> Result<Sampling, Refused> {
    Ok(Sampling {
        temperature: number(from, "temperature")?,
        top_p: number(from, "top_p")?,
        top_k: number(from, "top_k")?,
        frequency_penalty: number(from, "frequency_penalty")?,
        presence_penalty: number(from, "presence_penalty")?,
        seed: number(from, "seed")?,
        logit_bias: from.json("logit_bias"),
    })
}

fn stop(from: &mut Object<'_>) -> Result<Vec<String>, Refused> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stop {
        One(String),
        Many(Vec<String>),
    }
    let stop = take(from, "stop", "", "a string or a list of strings")?;
    Ok(match stop {
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
        None => Vec::new(),
    })
}

/// `logprobs: false` is what no word means.
fn logprobs(from: &mut Object<'_>) -> Result<Option<u64>, Refused> {
    let wanted = boolean(from, "logprobs")?.unwrap_or(false);
    if !wanted {
        return Ok(None);
    }
    Ok(Some(count(from, "top_logprobs")?.unwrap_or(0)))
}

fn modalities(from: &mut Object<'_>) -> Result<Vec<String>, Refused> {
    let all: Option<Vec<String>> = take(from, "modalities", "", "a list of strings")?;
    Ok(all.into_iter().flatten().filter(|form| form != "text").collect())
}

/// The form of the answer. What of a schema's object has no word in the hub goes to `rest`.
fn format(raw: &RawValue, rest: &mut Vec<(String, Json)>) -> Result<Format, Refused> {
    const PATH: &str = "response_format";
    let other = || Format::Other { language: LANGUAGE, json: Json::of(raw) };
    let mut from = object(raw, PATH)?;
    match members::required(&mut from, "type", PATH)?.as_str() {
        "text" => Ok(Format::Text),
        "json_object" => Ok(Format::JsonObject),
        "json_schema" => {
            let path = members::join(PATH, "json_schema");
            let inner = from
                .take("json_schema")
                .ok_or_else(|| Refused::invalid(path.clone(), "It is missing"))?;
            let mut inner = object(inner, &path)?;
            // Without one, any JSON will do.
            let Some(schema) = inner.json("schema") else { return Ok(other()) };
            let format = Format::Schema {
                name: text(&mut inner, "name", &path)?,
                description: text(&mut inner, "description", &path)?,
                schema,
                strict: take(&mut inner, "strict", &path, "true or false")?,
            };
            rest.extend(members::prefixed(&path, inner));
            Ok(format)
        }
        _ => Ok(other()),
    }
}
