//! Every word that a script sees at a stage, and every field that it may return: the reference, from which
//! the documentation, the definitions for editors and the fixtures of `llmproxy lua test` are made.

use crate::base::Stage::{
    self, Auth, Complete, Error, RateLimit, Request, Response, Route, StreamEvent, UpstreamRequest,
    Usage,
};

/// A field of a table.
#[derive(Clone, Copy, Debug)]
pub struct FieldWord {
    pub name: &'static str,
    /// In LuaLS's notation; `?` at its end: it may be absent.
    pub kind: &'static str,
    pub doc: &'static str,
}

/// A global of some stages.
#[derive(Clone, Copy, Debug)]
pub struct GlobalWord {
    pub name: &'static str,
    pub stages: &'static [Stage],
    /// In LuaLS's notation; `""`: a table with `fields`.
    pub kind: &'static str,
    pub doc: &'static str,
    pub fields: &'static [FieldWord],
}

/// A field that a stage's script may return.
#[derive(Clone, Copy, Debug)]
pub struct ReturnWord {
    pub name: &'static str,
    pub stages: &'static [Stage],
    pub kind: &'static str,
    pub doc: &'static str,
    /// A value of it, as JSON.
    pub example: &'static str,
}

const fn field(name: &'static str, kind: &'static str, doc: &'static str) -> FieldWord {
    FieldWord { name, kind, doc }
}

const EARLY: &[Stage] = &[Request, Auth, RateLimit, Route];

const REFUSING: &[Stage] = &[Request, Auth, RateLimit, Route, UpstreamRequest];

/// The globals of the stages.
pub const GLOBALS: &[GlobalWord] = &[
    GlobalWord {
        name: "request",
        stages: &Stage::ALL,
        kind: "",
        doc: "The client's request; in `on_upstream_request` what is about to be sent.",
        fields: &[
            field("id", "string", "Its id, as in `X-Request-Id`."),
            field("method", "string", "`POST`."),
            field("path", "string", "The path that the client asked for."),
            field("operation", "string", "The path without variable parts."),
            field("language", "string", "`chat`, `messages` or `responses`: the client's API."),
            field("model", "string?", "The model, as the client names it."),
            field("stream", "boolean", "Whether a stream is asked for."),
            field("client_ip", "string?", "The client's address."),
            field("ip", "string?", "The same, as scripts of `auth` know it."),
            field(
                "headers",
                "table<string, string>",
                "Header fields; names are not case-sensitive. Without a backend's credentials in `on_upstream_request`.",
            ),
            field(
                "body",
                "table",
                "The body, decoded; an empty table if it is not JSON. Decoded only for scripts that mention it.",
            ),
            field("user_id", "string", "The user of the key; empty if unknown."),
            field("api_key", "string", "The caller's key; empty if there is none."),
            field("tags", "string[]", "Tags of the caller and of earlier scripts."),
            field("backend_url", "string?", "The backend, once one is chosen."),
        ],
    },
    GlobalWord {
        name: "principal",
        stages: &Stage::ALL,
        kind: "",
        doc: "The caller, as far as it is known; without authentication an empty table.",
        fields: &[
            field("key_id", "string", "Identity of the key, never the key itself."),
            field("user_id", "string", "May be empty."),
            field("name", "string", "Name of the key; may be empty."),
            field("team", "string", "May be empty."),
            field("tier", "string", "May be empty."),
            field("metadata", "table", "Further data of the key, and what scripts added."),
            field("tags", "string[]", "Tags of the caller and of earlier scripts."),
        ],
    },
    GlobalWord {
        name: "key_info",
        stages: &Stage::ALL,
        kind: "table",
        doc: "The key's data as its provider has it, for instance `total_quota`.",
        fields: &[],
    },
    GlobalWord {
        name: "metadata",
        stages: &Stage::ALL,
        kind: "table",
        doc: "The caller's metadata with that of earlier scripts; in `on_usage` also `backend_url`, `latency_ms`, `is_stream`.",
        fields: &[],
    },
    GlobalWord {
        name: "client",
        stages: &Stage::ALL,
        kind: "",
        doc: "Where the request came from.",
        fields: &[field("ip", "string", "The address; empty if unknown.")],
    },
    GlobalWord {
        name: "timestamp",
        stages: &Stage::ALL,
        kind: "integer",
        doc: "The present second since 1970.",
        fields: &[],
    },
    GlobalWord {
        name: "standard_checks",
        stages: &[Auth],
        kind: "",
        doc: "What was checked before: all are `true`, because others were refused.",
        fields: &[
            field("key_valid", "boolean", ""),
            field("status_active", "boolean", ""),
            field("not_expired", "boolean", ""),
            field("ip_allowed", "boolean", ""),
            field("quota_available", "boolean", ""),
        ],
    },
    GlobalWord {
        name: "limits",
        stages: &[RateLimit],
        kind: "",
        doc: "A list of the limits that apply to the request.",
        fields: &[
            field("rule", "string", "`per_key.requests_per_minute`."),
            field("scope", "string", "`global`, `per_key`, `per_user`, ..."),
            field("counts", "string", "`requests_per_minute`, `tokens_per_minute`, ..."),
            field("limit", "number", "As the rule states it."),
            field("remaining", "integer", "What is left before this request."),
            field("wanted", "integer", "What this request takes."),
            field("reset_seconds", "number", "Until nothing is taken."),
        ],
    },
    GlobalWord {
        name: "rate_limit_status",
        stages: &[RateLimit],
        kind: "",
        doc: "The same in three numbers; what is not limited has a very large number left.",
        fields: &[
            field("global_remaining", "integer", "Requests left of the global limits."),
            field("key_remaining", "integer", "Requests left of the key's limits."),
            field("concurrent_count", "integer", "Requests that run now."),
        ],
    },
    GlobalWord {
        name: "current_time",
        stages: &[RateLimit],
        kind: "",
        doc: "The time in the gateway's time zone (`TZ`).",
        fields: &[
            field("year", "integer", ""),
            field("month", "integer", ""),
            field("day", "integer", ""),
            field("hour", "integer", "0 to 23."),
            field("minute", "integer", ""),
            field("second", "integer", ""),
            field("weekday", "integer", "0 (Sunday) to 6."),
            field("timestamp", "integer", "Seconds since 1970."),
        ],
    },
    GlobalWord {
        name: "candidates",
        stages: &[Route],
        kind: "",
        doc: "A list of the backends that serve the model.",
        fields: &[
            field("name", "string", ""),
            field("url", "string", ""),
            field("healthy", "boolean", "Whether it could be picked now."),
            field("weight", "integer", ""),
            field("in_flight", "integer", "Requests that it has from this gateway."),
            field("active_connections", "integer", "The same, as version 0.5 named it."),
            field("latency_ms", "number?", "Its recent time to first token."),
            field("tier", "integer", "0, or the number of the fallback."),
            field("draining", "boolean", ""),
            field("score", "number?", "The strategy's score; lower is better."),
            field("barred", "string?", "Why it cannot be picked: `unhealthy`, `open`, `busy`, ..."),
            field("load", "table?", "The engine's own: `waiting`, `running`, `kv_cache`."),
        ],
    },
    GlobalWord {
        name: "backends",
        stages: &[Route],
        kind: "table<string, table>",
        doc: "The same backends by their names.",
        fields: &[],
    },
    GlobalWord {
        name: "upstream",
        stages: &[UpstreamRequest],
        kind: "",
        doc: "Where the request is about to be sent.",
        fields: &[
            field("name", "string", "The backend."),
            field("url", "string", ""),
            field("model", "string", "The model's name there."),
            field("language", "string", "The language of the request there."),
            field("attempt", "integer", "1, 2 for the first retry, ..."),
        ],
    },
    GlobalWord {
        name: "response",
        stages: &[Response, Usage, Complete],
        kind: "",
        doc: "The answer. In `on_usage` and `on_complete` only `status_code`, and in `on_usage` `body`.",
        fields: &[
            field("status", "integer?", ""),
            field("status_code", "integer", ""),
            field("headers", "table<string, string>?", "Names are not case-sensitive."),
            field(
                "body",
                "table|string?",
                "A plain answer, decoded; text if it is not JSON; an empty table for a stream.",
            ),
            field("latency_ms", "integer?", "Since the request arrived."),
            field("backend_url", "string?", ""),
        ],
    },
    GlobalWord {
        name: "latency_ms",
        stages: &[Response],
        kind: "integer",
        doc: "Since the request arrived.",
        fields: &[],
    },
    GlobalWord {
        name: "backend_url",
        stages: &[Response],
        kind: "string",
        doc: "The backend that answered.",
        fields: &[],
    },
    GlobalWord {
        name: "event",
        stages: &[StreamEvent],
        kind: "",
        doc: "One event of the stream, in the client's language.",
        fields: &[
            field(
                "type",
                "string",
                "`content`, `reasoning`, `tool_calls`, `finish`, `usage`, `error` or `other`.",
            ),
            field("name", "string?", "The `event` field of the event, where the language has one."),
            field("content", "string?", "Text of the answer."),
            field("reasoning", "string?", "Text of the reasoning."),
            field("tool_calls", "any?", "A part of a tool call, as the language has it."),
            field("finish_reason", "string?", "Why the answer ends."),
            field("usage", "table?", "Counts, as the language has them."),
            field("raw", "table", "The whole document of the event."),
        ],
    },
    GlobalWord {
        name: "error",
        stages: &[Error],
        kind: "",
        doc: "The error, which can still be called to raise one.",
        fields: &[
            field(
                "type",
                "string",
                "`auth_error`, `rate_limit`, `backend_error`, `timeout`, `invalid_request` or `gateway_error`.",
            ),
            field("message", "string", ""),
            field("status_code", "integer", ""),
            field("status", "integer", "The same."),
            field("code", "string", "The gateway's code, for instance `rate_limit_exceeded`."),
            field("side", "string", "`client`, `gateway` or `backend`."),
            field("backend_url", "string", "The last backend that was tried; may be empty."),
            field("retry_count", "integer", "Attempts after the first."),
            field("retry_after", "integer?", "Seconds."),
        ],
    },
    GlobalWord {
        name: "error_message",
        stages: &[Error],
        kind: "string",
        doc: "`error.message`.",
        fields: &[],
    },
    GlobalWord {
        name: "usage",
        stages: &[Usage],
        kind: "",
        doc: "What the engine counted.",
        fields: &[
            field("prompt_tokens", "integer", ""),
            field("completion_tokens", "integer", ""),
            field("total_tokens", "integer", ""),
            field("cached_tokens", "integer?", ""),
            field("cache_write_tokens", "integer?", ""),
            field("reasoning_tokens", "integer?", ""),
            field("audio_prompt_tokens", "integer?", ""),
            field("audio_completion_tokens", "integer?", ""),
            field("cost", "number?", "By the price table."),
            field("source", "string", "`final`, `partial` or `none`."),
        ],
    },
    GlobalWord {
        name: "record",
        stages: &[Usage],
        kind: "",
        doc: "The usage record so far.",
        fields: RECORD,
    },
    GlobalWord {
        name: "result",
        stages: &[Complete],
        kind: "",
        doc: "The usage record as it was written.",
        fields: RECORD,
    },
];

const RECORD: &[FieldWord] = &[
    field("request_id", "string", ""),
    field("model", "string", "As the client named it."),
    field("response_model", "string?", "As the backend named it."),
    field("backend_url", "string", ""),
    field("endpoint", "string", ""),
    field("status_code", "integer", ""),
    field("outcome", "string", "`complete`, `client_aborted`, `upstream_error` or `rejected`."),
    field("is_stream", "boolean", ""),
    field("latency_ms", "integer", ""),
    field("ttft_ms", "integer?", ""),
    field("queue_ms", "integer?", ""),
    field("tries", "integer", ""),
    field("usage", "table", "As the global `usage` of `on_usage`."),
    field("custom", "table?", "What `on_usage` added."),
];

/// What scripts may return in a table. `nil` changes nothing at every stage.
pub const RETURNS: &[ReturnWord] = &[
    ReturnWord {
        name: "allow",
        stages: REFUSING,
        kind: "boolean",
        doc: "`false` refuses the request.",
        example: "false",
    },
    ReturnWord {
        name: "continue",
        stages: REFUSING,
        kind: "boolean",
        doc: "The same, as version 0.5 named it.",
        example: "false",
    },
    ReturnWord {
        name: "message",
        stages: &[Request, Auth, RateLimit, Route, UpstreamRequest, Error],
        kind: "string",
        doc: "The sentence of a refusal; in `on_error` that of the error.",
        example: "\"no\"",
    },
    ReturnWord {
        name: "reason",
        stages: REFUSING,
        kind: "string",
        doc: "The same as `message`.",
        example: "\"no\"",
    },
    ReturnWord {
        name: "status",
        stages: &[Request, Auth, RateLimit, Route, UpstreamRequest, Response, Error],
        kind: "integer",
        doc: "The status of a refusal (400 to 599; 403 by default, 429 in `rate_limit`), or of the answer.",
        example: "451",
    },
    ReturnWord {
        name: "status_code",
        stages: &[Request, Auth, RateLimit, Route, UpstreamRequest, Response, Error],
        kind: "integer",
        doc: "The same as `status`.",
        example: "451",
    },
    ReturnWord {
        name: "code",
        stages: REFUSING,
        kind: "string",
        doc: "The error code of a refusal; `refused_by_hook` by default.",
        example: "\"too_late\"",
    },
    ReturnWord {
        name: "retry_after",
        stages: REFUSING,
        kind: "number",
        doc: "Seconds, for `Retry-After`; 60 by default in `rate_limit`.",
        example: "60",
    },
    ReturnWord {
        name: "headers",
        stages: &[Request, UpstreamRequest, Response, Error],
        kind: "table<string, string|number|false>",
        doc: "Header fields that are set; `false` removes one. Those of framing and `Host` stay.",
        example: "{\"x-a\": \"1\", \"x-b\": false}",
    },
    ReturnWord {
        name: "body",
        stages: &[Request, UpstreamRequest, Response, Error],
        kind: "table",
        doc: "The whole body as it shall be. What did not change keeps its bytes.",
        example: "{\"model\": \"m\"}",
    },
    ReturnWord {
        name: "answer",
        stages: &[Request, Auth],
        kind: "{status: integer?, headers: table?, body: table|string?}",
        doc: "The answer to the request in place of a backend's. It is given after the key was allowed.",
        example: "{\"status\": 200, \"body\": {}}",
    },
    ReturnWord {
        name: "tags",
        stages: EARLY,
        kind: "string[]",
        doc: "Tags that are added, for conditions and records.",
        example: "[\"night\"]",
    },
    ReturnWord {
        name: "metadata",
        stages: EARLY,
        kind: "table",
        doc: "Fields that are added to the record's metadata.",
        example: "{\"centre\": 7}",
    },
    ReturnWord {
        name: "tier",
        stages: &[Auth, RateLimit],
        kind: "string",
        doc: "The tier of the caller for this request.",
        example: "\"gold\"",
    },
    ReturnWord {
        name: "limits",
        stages: &[Auth, RateLimit],
        kind: "table",
        doc: "Limits of this caller for this request, with the keys of a key's own limits.",
        example: "{\"requests_per_minute\": 5}",
    },
    ReturnWord {
        name: "models",
        stages: &[Auth],
        kind: "string[]",
        doc: "The models that the caller may use, names or prefixes with `*`.",
        example: "[\"qwen-*\"]",
    },
    ReturnWord {
        name: "weight",
        stages: &[RateLimit],
        kind: "integer",
        doc: "How many requests this one counts as.",
        example: "5",
    },
    ReturnWord {
        name: "backend",
        stages: &[Route],
        kind: "string",
        doc: "The only backend that may be picked. A script may also return just its name.",
        example: "\"one\"",
    },
    ReturnWord {
        name: "backends",
        stages: &[Route],
        kind: "string[]",
        doc: "The only backends that may be picked.",
        example: "[\"one\", \"two\"]",
    },
    ReturnWord {
        name: "model",
        stages: &[Route],
        kind: "string",
        doc: "The model that is asked for in place of the client's, which the client still sees.",
        example: "\"large\"",
    },
    ReturnWord {
        name: "strategy",
        stages: &[Route],
        kind: "string",
        doc: "How a backend is picked, as in `routing.load_balance_strategy`; not `prefix_affinity`.",
        example: "\"least_load\"",
    },
    ReturnWord {
        name: "session",
        stages: &[Route],
        kind: "string",
        doc: "Requests with the same text go to the same backend.",
        example: "\"user-7\"",
    },
    ReturnWord {
        name: "stop",
        stages: &[StreamEvent],
        kind: "string",
        doc: "Ends the stream here, with an error event that has this text.",
        example: "\"enough\"",
    },
];

/// The globals of a stage.
pub fn globals(stage: Stage) -> impl Iterator<Item = &'static GlobalWord> {
    GLOBALS.iter().filter(move |word| word.stages.contains(&stage))
}

/// What a stage's scripts may return.
pub fn returns(stage: Stage) -> impl Iterator<Item = &'static ReturnWord> {
    RETURNS.iter().filter(move |word| word.stages.contains(&stage))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::hooks::Verdict;

    #[test]
    fn every_documented_return_is_read() {
        for stage in Stage::ALL.into_iter().filter(|stage| *stage != StreamEvent) {
            for word in returns(stage) {
                let value: Value = serde_json::from_str(word.example).unwrap();
                let returned = Value::Object(Map::from_iter([(word.name.to_owned(), value)]));
                let verdict = Verdict::read(stage, returned).unwrap_or_else(|e| {
                    panic!("{} {}: {e}", stage.key(), word.name);
                });
                assert!(verdict.unknown.is_empty(), "{} {}", stage.key(), word.name);
            }
        }
    }

    #[test]
    fn what_is_not_documented_is_unknown() {
        for stage in [Request, Auth, RateLimit, Route, UpstreamRequest, Response, Error] {
            for word in RETURNS.iter().filter(|word| !word.stages.contains(&stage)) {
                let value: Value = serde_json::from_str(word.example).unwrap();
                let returned = Value::Object(Map::from_iter([(word.name.to_owned(), value)]));
                let verdict = Verdict::read(stage, returned).unwrap();
                assert_eq!(verdict.unknown, [word.name], "{}", stage.key());
            }
        }
    }
}
