//! What the simulated model generates: reasoning, text and calls, token by token.

use super::{
    asked::{Asked, LastTurn, Tool, ToolChoice},
    behaviour::{Behaviour, ToolUse},
    schema, text,
};

/// The most characters of a tool's result that an answer repeats.
const REPEATED: usize = 2000;

/// An answer.
pub struct Reply {
    pub parts: Vec<Part>,
    pub finish: Finish,
    /// A token without text ends it, as it does where a model itself stops.
    eos: bool,
}

/// A stretch of an answer that is of one kind.
pub struct Part {
    pub kind: PartKind,
    pub tokens: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartKind {
    Reasoning,
    Text,
    /// A call of a tool, and how many calls are before it; the tokens are its arguments.
    Call {
        name: String,
        number: usize,
    },
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    /// It has as many tokens as the request allows.
    Length,
    Calls,
    Abort,
}

/// One token. The number is that of its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The name of the tool that is called.
    Name(usize),
    Token(usize, &'a str),
    /// The end, which has no text.
    Eos,
}

impl Part {
    fn new(kind: PartKind, tokens: Vec<String>) -> Self {
        Self { kind, tokens }
    }

    /// The whole text, or the whole arguments.
    pub fn text(&self) -> String {
        self.tokens.concat()
    }

    fn is_call(&self) -> bool {
        matches!(self.kind, PartKind::Call { .. })
    }

    /// Its tokens, with the one that names a tool.
    fn len(&self) -> u64 {
        self.tokens.len() as u64 + u64::from(self.is_call())
    }
}

impl Reply {
    /// The answer to a request.
    pub fn to(asked: &Asked, behaviour: &Behaviour) -> Self {
        let mut parts = Vec::new();
        if asked.reasoning || behaviour.reasoning {
            parts.push(Part::new(PartKind::Reasoning, text::pieces(text::REASONING)));
        }
        let calls = calls(asked, behaviour.tool_use);
        let called = !calls.is_empty();
        for (number, tool) in calls.into_iter().enumerate() {
            let arguments = schema::spaced(&schema::instance(&tool.parameters));
            let kind = PartKind::Call { name: tool.name.clone(), number };
            parts.push(Part::new(kind, text::pieces(&arguments)));
        }
        let mut eos = true;
        if !called {
            let tokens = match (&asked.schema, &asked.last) {
                (Some(schema), _) => text::pieces(&schema::instance(schema).to_string()),
                (None, LastTurn::ToolResult(result)) => {
                    let result: String = result.chars().take(REPEATED).collect();
                    text::pieces(&format!("The tool said: {result}"))
                }
                (None, LastTurn::User(_)) => {
                    eos = false;
                    // No more than are wanted: `tokens` may be without a bound.
                    let wanted = behaviour.tokens.min(asked.limit.unwrap_or(u64::MAX));
                    (0..wanted).map(|at| text::token(at).to_owned()).collect()
                }
            };
            parts.push(Part::new(PartKind::Text, tokens));
        }
        let finish = if called { Finish::Calls } else { Finish::Stop };
        Self { parts, finish, eos }.cut(asked.limit)
    }

    /// An answer of which nothing is generated.
    pub fn nothing() -> Self {
        let parts = vec![Part::new(PartKind::Text, Vec::new())];
        Self { parts, finish: Finish::Stop, eos: false }
    }

    fn cut(mut self, limit: Option<u64>) -> Self {
        let Some(limit) = limit else { return self };
        // A text without a last token would go on.
        if self.len() + u64::from(!self.eos) <= limit {
            return self;
        }
        let mut left = limit;
        for part in &mut self.parts {
            let named = u64::from(part.is_call());
            part.tokens.truncate(left.saturating_sub(named) as usize);
            if left == 0 && named == 1 {
                // Not even its name is generated.
                part.kind = PartKind::Text;
            }
            left = left.saturating_sub(part.len());
        }
        self.parts.retain(|part| part.len() > 0);
        self.eos = false;
        self.finish = Finish::Length;
        self
    }

    /// Its tokens.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(Part::len).sum::<u64>() + u64::from(self.eos)
    }

    /// Its tokens of reasoning.
    pub fn reasoning_len(&self) -> u64 {
        let reasoning = self.parts.iter().filter(|part| part.kind == PartKind::Reasoning);
        reasoning.map(Part::len).sum()
    }

    /// The whole text of a kind; `None` if there is no such part.
    pub fn text_of(&self, kind: &PartKind) -> Option<String> {
        let parts: Vec<String> =
            self.parts.iter().filter(|part| part.kind == *kind).map(Part::text).collect();
        (!parts.is_empty()).then(|| parts.concat())
    }

    /// The tokens, one by one.
    pub fn steps(&self) -> Vec<Step<'_>> {
        let mut steps = Vec::with_capacity(self.len() as usize);
        for (number, part) in self.parts.iter().enumerate() {
            steps.extend(part.is_call().then_some(Step::Name(number)));
            steps.extend(part.tokens.iter().map(|token| Step::Token(number, token)));
        }
        steps.extend(self.eos.then_some(Step::Eos));
        steps
    }
}

/// The tools that the model calls. It never calls one when it has just been given a result, so that a
/// client's loop ends.
fn calls(asked: &Asked, tool_use: ToolUse) -> Vec<&Tool> {
    if matches!(asked.last, LastTurn::ToolResult(_)) {
        return Vec::new();
    }
    let marked = asked.marked();
    let first = asked.tools.first();
    let mut calls = match &asked.choice {
        ToolChoice::None => Vec::new(),
        ToolChoice::Named(name) => asked.tools.iter().filter(|t| t.name == *name).take(1).collect(),
        _ if !marked.is_empty() => marked,
        ToolChoice::Required => first.into_iter().collect(),
        ToolChoice::Auto if tool_use == ToolUse::Always => first.into_iter().collect(),
        ToolChoice::Auto => Vec::new(),
    };
    if !asked.parallel {
        calls.truncate(1);
    }
    calls
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::sim::language::Endpoint;

    fn reply(text: &str, more: serde_json::Value, behaviour: &Behaviour) -> Reply {
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
        let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
        let mut body = json!({"messages": [{"role": "user", "content": text}], "tools": [tool("a"), tool("b")]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Reply::to(&Asked::of(Endpoint::Chat, &body, &[]), behaviour)
    }

    fn names(reply: &Reply) -> Vec<&str> {
        let name = |part: &'_ Part| matches!(part.kind, PartKind::Call { .. });
        let parts = reply.parts.iter().filter(|part| name(part));
        parts
            .map(|part| match &part.kind {
                PartKind::Call { name, .. } => name.as_str(),
                _ => "",
            })
            .collect()
    }

    #[test]
    fn tools_are_called_when_they_are_asked_for() {
        let asked = Behaviour { tool_use: ToolUse::Asked, ..Behaviour::default() };
        let always = Behaviour::default();
        let required = json!({"tool_choice": "required"});
        let named = json!({"tool_choice": {"type": "function", "function": {"name": "b"}}});
        for (text, more, behaviour, expected) in [
            ("x", json!({}), &asked, &[] as &[&str]),
            ("x", json!({}), &always, &["a"]),
            ("call b", json!({}), &asked, &["b"]),
            ("call b", json!({}), &always, &["b"]),
            ("call b, call a and call b", json!({}), &asked, &["b", "a", "b"]),
            ("call b, call a", json!({"parallel_tool_calls": false}), &asked, &["b"]),
            ("call c", json!({}), &asked, &[]),
            ("x", required.clone(), &asked, &["a"]),
            ("call b", required, &asked, &["b"]),
            ("call a", named, &asked, &["b"]),
            ("call a", json!({"tool_choice": "none"}), &always, &[]),
        ] {
            let reply = reply(text, more.clone(), behaviour);
            assert_eq!(names(&reply), expected, "{text} {more}");
            assert_eq!(reply.finish == Finish::Calls, !expected.is_empty());
        }
    }

    #[test]
    fn an_answer_without_tools_has_the_tokens_of_the_behaviour() {
        let none = json!({"tools": []});
        let whole = reply("x", none.clone(), &Behaviour { tokens: 3, ..Behaviour::default() });
        assert_eq!((whole.len(), whole.finish), (3, Finish::Stop));
        let cut = json!({"tools": [], "max_tokens": 3});
        let cut = reply("x", cut, &Behaviour { tokens: 3, ..Behaviour::default() });
        assert_eq!((cut.len(), cut.finish), (3, Finish::Length));
        let thought = reply("think", none, &Behaviour { tokens: 3, ..Behaviour::default() });
        assert_eq!(thought.len(), 3 + thought.reasoning_len());
    }

    proptest! {
        #[test]
        fn no_answer_is_longer_than_allowed(limit in 0_u64..60, think: bool, call: bool, result: bool) {
            let text = format!("{} {}", if think { "think" } else { "" }, if call { "call a, call b" } else { "" });
            let mut more = json!({"max_tokens": limit});
            if result {
                more["messages"] = json!([{"role": "tool", "content": "twelve degrees"}]);
            }
            let behaviour = Behaviour { tool_use: ToolUse::Asked, ..Behaviour::default() };
            let whole = reply(&text, json!({"messages": more.get("messages").cloned().unwrap_or_else(|| json!([{"role": "user", "content": text}]))}), &behaviour);
            let cut = reply(&text, more, &behaviour);
            prop_assert!(cut.len() <= limit);
            prop_assert_eq!(cut.len(), cut.steps().len() as u64);
            prop_assert_eq!(cut.finish == Finish::Length, limit < whole.len() + u64::from(!whole.eos));
            // What is left is a beginning of the whole.
            let whole = whole.steps();
            prop_assert_eq!(&cut.steps()[..], &whole[..cut.len() as usize]);
        }
    }
}
