//! What all answers have in common on their way, whatever the languages: one beginning, one end,
//! parts one behind the other, names as the client knows them, and the right reason for the end.

use std::collections::{HashMap, HashSet};

use super::{
    codec::{Exchange, RenamedTool, Undo},
    event::{Event, PartKind, Start, StopReason},
    fault::{Class, StreamFault},
    json::Object,
    request::ToolKind,
    serial::Serial,
    tool_names,
};

/// Makes the events of a decoder fit for an encoder.
pub struct Normal {
    serial: Serial,
    /// Tools that have another name or kind at the backend, by their names there.
    undo: HashMap<String, RenamedTool>,
    started: bool,
    over: bool,
    /// The engine broke the answer off: what it has counted may still come.
    aborted: bool,
    /// The answer's id, which ids of calls are made from.
    id: String,
    /// Choices with a call.
    called: HashSet<u32>,
    /// Choices that have ended.
    stopped: HashSet<u32>,
    /// Arguments of calls of tools that take free text, and were sent as functions: they are unpacked
    /// once they are whole. By choice and part.
    custom: HashMap<(u32, u32), String>,
    scratch: Vec<Event>,
}

impl Normal {
    /// For one answer.
    pub fn new(exchange: &Exchange) -> Self {
        Self {
            serial: Serial::default(),
            undo: undo(&exchange.undo),
            started: false,
            over: false,
            aborted: false,
            id: String::new(),
            called: HashSet::new(),
            stopped: HashSet::new(),
            custom: HashMap::new(),
            scratch: Vec::new(),
        }
    }

    /// The answer has ended, well or not.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes an event of the decoder, and gives those that go to the encoder.
    pub fn take(&mut self, event: Event, out: &mut Vec<Event>) {
        if self.over {
            return;
        }
        match &event {
            // It is said once, however often the backend says it.
            Event::Start(_) if self.started => return,
            Event::Start(_) | Event::Ping | Event::Fault(_) => {}
            _ if !self.started => self.pass(Event::Start(Start::default()), out),
            _ => {}
        }
        let mut ordered = std::mem::take(&mut self.scratch);
        if self.serial.take(event, &mut ordered).is_err() {
            let message =
                "The backend writes too many parts of its answer, or too many at the same time";
            ordered.push(Event::Fault(StreamFault::new(Class::Server, message)));
        }
        for event in ordered.drain(..) {
            self.pass(event, out);
        }
        self.scratch = ordered;
    }

    /// The body has ended.
    pub fn finish(&mut self, out: &mut Vec<Event>) {
        if !self.over {
            self.take(Event::Fault(StreamFault::cut()), out);
        }
    }

    fn pass(&mut self, event: Event, out: &mut Vec<Event>) {
        if self.over {
            return;
        }
        match event {
            Event::Start(start) => {
                self.started = true;
                self.id.clone_from(&start.id);
                out.push(Event::Start(start));
            }
            Event::PartStart { choice, part, kind } => {
                let kind = self.part(choice, part, kind);
                out.push(Event::PartStart { choice, part, kind });
            }
            Event::Arguments { choice, part, text } => match self.custom.get_mut(&(choice, part)) {
                Some(arguments) => *arguments += &text,
                None => out.push(Event::Arguments { choice, part, text }),
            },
            Event::PartStop { choice, part } => {
                if let Some(arguments) = self.custom.remove(&(choice, part)) {
                    let text = input(arguments);
                    out.push(Event::Arguments { choice, part, text });
                }
                out.push(Event::PartStop { choice, part });
            }
            Event::Stop { reason: StopReason::Aborted, .. } => self.aborted = true,
            Event::End if self.aborted => {
                let message = "The engine broke the answer off";
                self.end(Event::Fault(StreamFault::new(Class::Server, message)), out);
            }
            event if self.aborted && !matches!(event, Event::Usage(_) | Event::Fault(_)) => {}
            Event::Stop { choice, .. } if self.stopped.contains(&choice) => {}
            Event::Stop { choice, reason } => {
                self.stopped.insert(choice);
                let reason = self.reason(choice, reason);
                out.push(Event::Stop { choice, reason });
            }
            Event::End if self.stopped.is_empty() => {
                self.end(Event::Fault(StreamFault::cut()), out);
            }
            Event::End | Event::Fault(_) => self.end(event, out),
            event => out.push(event),
        }
    }

    fn end(&mut self, event: Event, out: &mut Vec<Event>) {
        self.over = true;
        out.push(event);
    }

    /// A call has its name and kind of the client's request, and an id.
    fn part(&mut self, choice: u32, part: u32, kind: PartKind) -> PartKind {
        let PartKind::ToolCall { mut id, mut name, mut kind, mut namespace } = kind else {
            return kind;
        };
        self.called.insert(choice);
        if id.is_empty() {
            id = tool_names::call_id(&self.id, choice, part);
        }
        if let Some(tool) = self.undo.get(&name).cloned() {
            let RenamedTool { name: client, namespace: group, custom, .. } = tool;
            (name, namespace) = (client, group);
            if custom {
                kind = ToolKind::Custom;
                self.custom.insert((choice, part), String::new());
            }
        }
        PartKind::ToolCall { id, name, kind, namespace }
    }

    /// Engines say `stop` although calls were made, or that there is a call where there is none. A
    /// limit wins: a call that was cut off must not look as if it could be run.
    fn reason(&self, choice: u32, reason: StopReason) -> StopReason {
        match (reason, self.called.contains(&choice)) {
            (StopReason::EndTurn | StopReason::Other(_), true) => StopReason::ToolUse,
            (StopReason::ToolUse, false) => StopReason::EndTurn,
            (reason, _) => reason,
        }
    }
}

/// Of two tools that have one name at the backend the first is meant.
fn undo(undo: &Undo) -> HashMap<String, RenamedTool> {
    let tools = undo.tools.iter().rev();
    tools.map(|tool| (tool.sent.clone(), tool.clone())).collect()
}

/// The text in `{"input":"..."}`, or what has come of it; what is no such object is the text itself.
fn input(arguments: String) -> String {
    let read = |text: &str| {
        let object = Object::parse(text).ok()?;
        object.text("input")
    };
    read(&arguments).or_else(|| cut_input(&arguments)).unwrap_or(arguments)
}

/// The beginning of the text in an object that was cut off within it.
fn cut_input(arguments: &str) -> Option<String> {
    let mut rest = arguments;
    for token in ["{", "\"input\"", ":", "\""] {
        rest = rest.trim_start().strip_prefix(token)?;
    }
    let mut escaped = false;
    let end = rest.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    let text = &rest[..end.unwrap_or(rest.len())];
    // A character may be cut within its escapes, of which there are up to two: `\ud83d\ude00`.
    (0..12).find_map(|less| {
        let text = text.get(..text.len().checked_sub(less)?)?;
        serde_json::from_str(&format!("\"{text}\"")).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(exchange: &Exchange, events: Vec<Event>) -> Vec<Event> {
        let (mut normal, mut out) = (Normal::new(exchange), Vec::new());
        for event in events {
            normal.take(event, &mut out);
        }
        normal.finish(&mut out);
        normal.finish(&mut out);
        out
    }

    fn call(name: &str) -> Event {
        let kind = PartKind::ToolCall {
            id: String::new(),
            name: name.into(),
            kind: ToolKind::Function,
            namespace: None,
        };
        Event::PartStart { choice: 0, part: 0, kind }
    }

    fn arguments(text: &str) -> Event {
        Event::Arguments { choice: 0, part: 0, text: text.into() }
    }

    fn stop(reason: StopReason) -> Event {
        Event::Stop { choice: 0, reason }
    }

    #[test]
    fn an_answer_begins_and_ends_once() {
        let start = || Event::Start(Start { id: "a".into(), ..Start::default() });
        let out = run(
            &Exchange::default(),
            vec![start(), start(), stop(StopReason::EndTurn), Event::End, Event::End, Event::Ping],
        );
        assert_eq!(out, [start(), stop(StopReason::EndTurn), Event::End]);
        for cut in [
            vec![],
            vec![start()],
            vec![start(), Event::End],
            vec![start(), stop(StopReason::EndTurn)],
            vec![start(), stop(StopReason::Aborted), Event::End],
        ] {
            let out = run(&Exchange::default(), cut);
            assert!(matches!(out.last(), Some(Event::Fault(_))), "{out:?}");
        }
    }

    #[test]
    fn a_call_that_was_made_is_the_reason_but_a_limit_wins() {
        for (said, meant) in [
            (StopReason::EndTurn, StopReason::ToolUse),
            (StopReason::MaxTokens, StopReason::MaxTokens),
            (StopReason::Filter, StopReason::Filter),
        ] {
            let out = run(&Exchange::default(), vec![call("f"), stop(said), Event::End]);
            assert!(out.contains(&stop(meant)), "{out:?}");
        }
    }

    #[test]
    fn a_call_that_was_not_made_is_no_reason() {
        let events = vec![stop(StopReason::ToolUse), Event::End];
        let out = run(&Exchange::default(), events);
        assert!(out.contains(&stop(StopReason::EndTurn)), "{out:?}");
        // A call of one choice is none of another.
        let other = Event::Stop { choice: 1, reason: StopReason::ToolUse };
        let events = vec![call("f"), stop(StopReason::ToolUse), other, Event::End];
        let out = run(&Exchange::default(), events);
        assert!(out.contains(&stop(StopReason::ToolUse)), "{out:?}");
        let end = Event::Stop { choice: 1, reason: StopReason::EndTurn };
        assert!(out.contains(&end), "{out:?}");
    }

    #[test]
    fn free_text_that_was_cut_off_is_text() {
        let whole = r#" { "input" : "a\nb \\ \" ä \ud83d\ude00" , "x" : 1 }"#;
        let text = "a\nb \\ \" ä \u{1f600}";
        let begins = whole.find(": \"").unwrap() + 3;
        for end in (0..=whole.len()).filter(|end| whole.is_char_boundary(*end)) {
            let got = input(whole[..end].to_owned());
            match end < begins {
                true => assert_eq!(got, whole[..end]),
                false => assert!(text.starts_with(&got), "{got:?} of {:?}", &whole[..end]),
            }
        }
        assert_eq!(input(whole.to_owned()), text);
        assert_eq!(input(r#"{"input":"a\nb"#.to_owned()), "a\nb");
        assert_eq!(input(r#"{"input":"a","x":"#.to_owned()), "a");
        assert_eq!(input(r#"{"other":"a"}"#.to_owned()), r#"{"other":"a"}"#);
        assert_eq!(input("plain".to_owned()), "plain");
    }

    #[test]
    fn an_answer_of_endless_parts_ends_with_a_fault() {
        let parts = |part| Event::PartStart { choice: 0, part, kind: PartKind::Refusal };
        let out = run(&Exchange::default(), (0..200_000).map(parts).collect());
        assert!(matches!(out.last(), Some(Event::Fault(_))), "{:?}", out.last());
        assert!(out.len() < 2000);
    }

    #[test]
    fn tools_have_the_clients_names_again() {
        let tool = RenamedTool {
            sent: "apply_patch_x".into(),
            name: "apply.patch".into(),
            namespace: Some("n".into()),
            custom: true,
        };
        let exchange = Exchange { undo: Undo { tools: vec![tool] }, ..Exchange::default() };
        let out = run(
            &exchange,
            vec![
                call("apply_patch_x"),
                arguments("{\"inp"),
                arguments("ut\":\"a\\nb\"}"),
                Event::PartStop { choice: 0, part: 0 },
                stop(StopReason::EndTurn),
                Event::End,
            ],
        );
        let Event::PartStart { kind: PartKind::ToolCall { id, name, kind, namespace }, .. } =
            &out[1]
        else {
            panic!("{out:?}")
        };
        assert!(id.starts_with("call_") && id.len() == 29);
        assert_eq!(
            (name.as_str(), *kind, namespace.as_deref()),
            ("apply.patch", ToolKind::Custom, Some("n"))
        );
        assert_eq!(out[2], arguments("a\nb"));
    }
}
