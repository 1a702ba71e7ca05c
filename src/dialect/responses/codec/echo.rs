//! Members of the request that the response object repeats. Typed clients want them all.

use crate::dialect::hub::{Json, Object, Writer};

/// The members, and what stands for those that the client has not sent.
const MEMBERS: [(&str, &str); 19] = [
    ("background", "false"),
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("max_tool_calls", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("previous_response_id", "null"),
    ("prompt_cache_key", "null"),
    ("reasoning", r#"{"effort":null,"summary":null}"#),
    ("safety_identifier", "null"),
    // Nothing is kept of an answer that was translated, so that this one is not the vendor's.
    ("store", "false"),
    ("temperature", "1.0"),
    ("text", TEXT),
    ("tool_choice", "\"auto\""),
    ("tools", "[]"),
    ("top_logprobs", "0"),
    ("top_p", "1.0"),
    ("truncation", "\"disabled\""),
    ("user", "null"),
];

const TEXT: &str = r#"{"format":{"type":"text"}}"#;

/// What a response to this request repeats.
pub(super) fn of(request: &Object<'_>) -> Vec<(String, Json)> {
    let said = |name: &str| {
        let raw = request.get(name).filter(|raw| raw.get() != "null")?;
        let json = Json::of(raw);
        Some(match name {
            "text" => with_defaults(&json, TEXT),
            "reasoning" => with_defaults(&json, r#"{"effort":null,"summary":null}"#),
            _ => json,
        })
    };
    let tier = said("service_tier").map(|tier| ("service_tier".to_owned(), tier));
    let member = |(name, default): &(&str, &str)| {
        let value = said(name).unwrap_or_else(|| Json::written(|out| out.raw(default)));
        ((*name).to_owned(), value)
    };
    MEMBERS.iter().map(member).chain(tier).collect()
}

/// An object with the members that it lacks.
fn with_defaults(json: &Json, defaults: &str) -> Json {
    let (Some(object), Ok(defaults)) = (json.object(), Object::parse(defaults)) else {
        return json.clone();
    };
    Json::written(|out: &mut Writer| {
        out.object(|o| {
            let missing = defaults.members().filter(|(name, _)| !object.has(name));
            for (name, value) in object.members().chain(missing) {
                o.name(name).raw(value.get());
            }
        });
    })
}
