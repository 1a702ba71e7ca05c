//! What a request asks of the model, whatever language it is in.

use serde_json::{Value, json};

use super::language::Endpoint;

/// What a request asks of the model.
pub struct Asked {
    /// The prompt, as JSON: what the prefix cache knows and prompt tokens are counted from.
    pub prompt: String,
    /// The most tokens of the answer.
    pub limit: Option<u64>,
    pub tools: Vec<Tool>,
    pub choice: ToolChoice,
    /// Several calls are allowed.
    pub parallel: bool,
    pub last: LastTurn,
    /// The schema of structured output.
    pub schema: Option<Value>,
    /// It wants reasoning before the answer, by a field of its language or by the word `think`.
    pub reasoning: bool,
}

/// A function that the model may call.
pub struct Tool {
    pub name: String,
    /// A JSON schema.
    pub parameters: Value,
}

/// Whether the model may call tools.
#[derive(Debug, PartialEq)]
pub enum ToolChoice {
    Auto,
    None,
    Required,
    Named(String),
}

/// What the conversation ends with.
#[derive(Debug, PartialEq)]
pub enum LastTurn {
    /// The last text of the user.
    User(String),
    /// The texts of all results that follow the model's last turn.
    ToolResult(String),
}

impl Asked {
    /// Reads the body of a request. `previous` are the turns that a stored response brings along.
    pub fn of(endpoint: Endpoint, body: &Value, previous: &[Value]) -> Self {
        let mut asked = match endpoint {
            Endpoint::Messages | Endpoint::CountTokens => messages(body),
            Endpoint::Responses | Endpoint::InputTokens => responses(body, previous),
            Endpoint::Chat | Endpoint::Completions | Endpoint::Embeddings | Endpoint::Tokenize => {
                chat(body)
            }
        };
        if endpoint == Endpoint::Completions {
            asked.tools.clear();
            asked.schema = None;
        }
        if let LastTurn::User(text) = &asked.last {
            asked.reasoning |= has_word(text, "think") && endpoint != Endpoint::Completions;
        }
        asked
    }

    /// The tools that the last text of the user names, each after the word `call`.
    pub fn marked(&self) -> Vec<&Tool> {
        let LastTurn::User(text) = &self.last else {
            return Vec::new();
        };
        let inside = |c: char| c.is_alphanumeric() || "_-.".contains(c);
        let words: Vec<&str> = text
            .split(|c| !inside(c))
            .map(|word| word.trim_matches(['.', '-']))
            .filter(|word| !word.is_empty())
            .collect();
        let pairs = words.windows(2).filter(|pair| pair[0].eq_ignore_ascii_case("call"));
        pairs.filter_map(|pair| self.tools.iter().find(|tool| tool.name == pair[1])).collect()
    }
}

fn chat(body: &Value) -> Asked {
    let prompt = ["messages", "prompt", "input"].iter().map(|k| &body[*k]).find(|v| !v.is_null());
    let none = Vec::new();
    let turns = body["messages"].as_array().unwrap_or(&none);
    let is_result = |turn: &&Value| turn["role"] == "tool" || turn["role"] == "function";
    let tools = body["tools"].as_array().into_iter().flatten();
    let format = &body["response_format"];
    Asked {
        prompt: prompt.map_or_else(String::new, Value::to_string),
        limit: body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64()),
        tools: tools
            .filter_map(|tool| named(&tool["function"], &tool["function"]["parameters"]))
            .collect(),
        choice: choice(&body["tool_choice"], &body["tool_choice"]["function"]["name"]),
        parallel: body["parallel_tool_calls"] != false,
        last: last_turn(turns, is_result, |turn| text_of(&turn["content"])),
        schema: schema(&format["type"], &format["json_schema"]["schema"]),
        reasoning: wanted(&body["reasoning_effort"])
            || body["chat_template_kwargs"]["enable_thinking"] == true,
    }
}

fn messages(body: &Value) -> Asked {
    let none = Vec::new();
    let turns = body["messages"].as_array().unwrap_or(&none);
    let results = |turn: &Value| -> Vec<String> {
        let blocks = turn["content"].as_array().into_iter().flatten();
        blocks
            .filter(|block| block["type"] == "tool_result")
            .map(|block| text_of(&block["content"]))
            .collect()
    };
    let system = &body["system"];
    let system = if system.is_null() { String::new() } else { system.to_string() };
    let tools = body["tools"].as_array().into_iter().flatten();
    let format = &body["output_config"]["format"];
    let thinking = body["thinking"]["type"].as_str();
    Asked {
        prompt: format!("{system}{}", body["messages"]),
        limit: body["max_tokens"].as_u64(),
        tools: tools
            .filter(|tool| tool["input_schema"].is_object())
            .filter_map(|tool| named(tool, &tool["input_schema"]))
            .collect(),
        choice: choice(&body["tool_choice"]["type"], &body["tool_choice"]["name"]),
        parallel: body["tool_choice"]["disable_parallel_tool_use"] != true,
        last: last_turn(
            turns,
            |turn| !results(turn).is_empty(),
            |turn| match results(turn) {
                none if none.is_empty() => text_of(&turn["content"]),
                texts => texts.join("\n"),
            },
        ),
        schema: schema(&format["type"], &format["schema"]),
        reasoning: matches!(thinking, Some("enabled" | "adaptive")),
    }
}

fn responses(body: &Value, previous: &[Value]) -> Asked {
    let input = input_items(&body["input"]);
    let is_result =
        |item: &&Value| item["type"].as_str().is_some_and(|t| t.ends_with("_call_output"));
    let instructions = &body["instructions"];
    let instructions =
        if instructions.is_null() { String::new() } else { instructions.to_string() };
    let all: Vec<&Value> = previous.iter().chain(&input).collect();
    let tools = body["tools"].as_array().into_iter().flatten();
    let format = &body["text"]["format"];
    Asked {
        prompt: format!("{instructions}{}", json!(all)),
        limit: body["max_output_tokens"].as_u64(),
        tools: tools
            .filter(|tool| tool["type"] == "function")
            .filter_map(|tool| named(tool, &tool["parameters"]))
            .collect(),
        choice: choice(&body["tool_choice"], &body["tool_choice"]["name"]),
        parallel: body["parallel_tool_calls"] != false,
        last: last_turn(&input, is_result, |item| {
            let content = if is_result(&item) { &item["output"] } else { &item["content"] };
            text_of(content)
        }),
        schema: schema(&format["type"], &format["schema"]),
        reasoning: wanted(&body["reasoning"]["effort"]),
    }
}

/// The items of a Responses request: a text is one message.
pub fn input_items(input: &Value) -> Vec<Value> {
    match input {
        Value::Array(items) => items.clone(),
        Value::String(text) => {
            let content = json!([{"type": "input_text", "text": text}]);
            vec![json!({"type": "message", "role": "user", "content": content})]
        }
        _ => Vec::new(),
    }
}

fn named(tool: &Value, parameters: &Value) -> Option<Tool> {
    let name = tool["name"].as_str()?.to_owned();
    Some(Tool { name, parameters: parameters.clone() })
}

fn choice(word: &Value, name: &Value) -> ToolChoice {
    if let Some(name) = name.as_str() {
        return ToolChoice::Named(name.to_owned());
    }
    match word.as_str() {
        Some("none") => ToolChoice::None,
        Some("required" | "any") => ToolChoice::Required,
        _ => ToolChoice::Auto,
    }
}

fn schema(kind: &Value, schema: &Value) -> Option<Value> {
    match kind.as_str() {
        Some("json_schema") => Some(schema.clone()),
        Some("json_object") => Some(json!({"type": "object"})),
        _ => None,
    }
}

fn wanted(effort: &Value) -> bool {
    effort.as_str().is_some_and(|word| word != "none")
}

/// What turns end with: the results after everything else, or the last text of the user.
fn last_turn<'a>(
    turns: &'a [Value],
    is_result: impl Fn(&&'a Value) -> bool,
    text: impl Fn(&'a Value) -> String,
) -> LastTurn {
    // Instructions in between are nobody's turn.
    let is_instruction = |turn: &&Value| turn["role"] == "system" || turn["role"] == "developer";
    let backwards = || turns.iter().rev().filter(|turn| !is_instruction(turn));
    let mut results: Vec<String> = backwards().take_while(&is_result).map(&text).collect();
    if results.is_empty() {
        let user = backwards().find(|turn| turn["role"] == "user");
        return LastTurn::User(user.map(text).unwrap_or_default());
    }
    results.reverse();
    LastTurn::ToolResult(results.join("\n"))
}

/// The text of a content: a string, or the texts of its parts.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphabetic()).any(|found| found.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(endpoint: Endpoint, body: &Value) -> Asked {
        Asked::of(endpoint, body, &[])
    }

    /// The same conversation in three languages.
    fn conversations(text: &str, result: Option<&str>) -> [(Endpoint, Value); 3] {
        let mut chat = vec![json!({"role": "user", "content": text})];
        let mut messages = chat.clone();
        let mut input = chat.clone();
        if let Some(result) = result {
            let call = json!({"id": "c", "type": "function", "function": {"name": "a.b-c", "arguments": "{}"}});
            chat.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
            chat.push(json!({"role": "tool", "tool_call_id": "c", "content": result}));
            let call = json!({"type": "tool_use", "id": "c", "name": "a.b-c", "input": {}});
            messages.push(json!({"role": "assistant", "content": [call]}));
            messages.push(json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": result}]},
                {"type": "text", "text": "a reminder"}]}));
            input.push(json!({"type": "function_call", "call_id": "c", "name": "a.b-c", "arguments": "{}"}));
            input.push(json!({"type": "function_call_output", "call_id": "c", "output": result}));
            let reminder = json!({"role": "system", "content": "call d"});
            chat.push(reminder.clone());
            messages.push(reminder);
            input.push(json!({"type": "message", "role": "developer", "content": "call d"}));
        }
        let schema = json!({"type": "object"});
        [
            (
                Endpoint::Chat,
                json!({"messages": chat, "tools": [
                {"type": "function", "function": {"name": "a.b-c", "parameters": schema}},
                {"type": "function", "function": {"name": "d", "parameters": schema}}]}),
            ),
            (
                Endpoint::Messages,
                json!({"messages": messages, "tools": [
                {"name": "a.b-c", "input_schema": schema}, {"name": "d", "input_schema": schema},
                {"type": "web_search_20250305", "name": "web_search"}]}),
            ),
            (
                Endpoint::Responses,
                json!({"input": input, "tools": [
                {"type": "function", "name": "a.b-c", "parameters": schema},
                {"type": "function", "name": "d", "parameters": schema}, {"type": "web_search"}]}),
            ),
        ]
    }

    #[test]
    fn all_languages_ask_the_same() {
        for (endpoint, body) in
            conversations("Please call a.b-c, then call `d`. Call nobody.", None)
        {
            let asked = asked(endpoint, &body);
            let names: Vec<&str> = asked.marked().iter().map(|tool| tool.name.as_str()).collect();
            assert_eq!(names, ["a.b-c", "d"], "{endpoint:?}");
            assert_eq!(asked.tools.len(), 2, "{endpoint:?}: only functions");
            assert!(!asked.reasoning && asked.parallel && asked.schema.is_none());
        }
        for (endpoint, body) in conversations("call d and Think!", Some("12C")) {
            let asked = asked(endpoint, &body);
            assert_eq!(asked.last, LastTurn::ToolResult("12C".to_owned()), "{endpoint:?}");
            assert!(asked.marked().is_empty(), "{endpoint:?}: it was called already");
            assert!(!asked.reasoning);
        }
        for (endpoint, body) in conversations("Think!", None) {
            assert!(asked(endpoint, &body).reasoning, "{endpoint:?}");
        }
        for (endpoint, body) in conversations("Rethinking", None) {
            assert!(!asked(endpoint, &body).reasoning, "{endpoint:?}");
        }
    }

    #[test]
    fn each_language_has_its_fields() {
        let schema = json!({"type": "string"});
        let chat = json!({"messages": [], "max_tokens": 5, "reasoning_effort": "low", "parallel_tool_calls": false,
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}});
        let messages = json!({"messages": [], "max_tokens": 5, "thinking": {"type": "adaptive"},
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
            "output_config": {"format": {"type": "json_schema", "schema": schema}}});
        let responses = json!({"input": "x", "max_output_tokens": 5, "reasoning": {"effort": "low"},
            "parallel_tool_calls": false, "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}});
        for (endpoint, body) in [
            (Endpoint::Chat, chat),
            (Endpoint::Messages, messages),
            (Endpoint::Responses, responses),
        ] {
            let asked = asked(endpoint, &body);
            assert_eq!(asked.limit, Some(5), "{endpoint:?}");
            assert_eq!(asked.choice, ToolChoice::Named("f".to_owned()), "{endpoint:?}");
            assert_eq!(asked.schema.as_ref(), Some(&schema), "{endpoint:?}");
            assert!(asked.reasoning && !asked.parallel, "{endpoint:?}");
        }
    }
}
