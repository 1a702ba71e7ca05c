//! Puts parts one behind the other. Backends may write two calls in turn; clients are written for
//! one open block at a time.

use std::collections::{HashMap, VecDeque};

use super::event::{Event, PartKind};

/// Bytes of text that wait for an open part to close, at most.
const MOST_WAITING: usize = 4 << 20;

/// Parts of one choice, at most.
pub const MOST_PARTS: u32 = 1024;

/// Puts parts one behind the other, for each choice: what belongs to another part than the open
/// one waits until that has closed.
#[derive(Default)]
pub struct Serial {
    open: Vec<Open>,
}

/// What is open in one choice.
#[derive(Default)]
struct Open {
    part: Option<u32>,
    /// The parts that wait, in the order in which they came.
    order: VecDeque<u32>,
    /// What waits of each.
    waiting: HashMap<u32, Vec<Event>>,
    bytes: usize,
}

/// More parts than are allowed, or more was waiting.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMuch;

impl Serial {
    /// Takes an event, and gives those that can go out now.
    ///
    /// # Errors
    /// If too much would have to wait, or the choice has too many parts.
    pub fn take(&mut self, event: Event, out: &mut Vec<Event>) -> Result<(), TooMuch> {
        let Some((choice, part)) = place(&event) else {
            if let Event::Stop { choice, .. } = &event {
                self.flush(*choice, out);
            }
            if matches!(event, Event::End) {
                (0..self.open.len() as u32).for_each(|choice| self.flush(choice, out));
            }
            out.push(event);
            return Ok(());
        };
        if part >= MOST_PARTS {
            return Err(TooMuch);
        }
        let open = self.choice(choice);
        match open.part {
            None => {
                open.part = (!matches!(event, Event::PartStop { .. })).then_some(part);
                out.push(event);
                Ok(())
            }
            Some(current) if current == part => {
                let closes = matches!(event, Event::PartStop { .. });
                out.push(event);
                if closes {
                    open.part = None;
                    open.release(out);
                }
                Ok(())
            }
            Some(_) => open.wait(part, event),
        }
    }

    /// A choice is over: what waits goes out, each part whole.
    fn flush(&mut self, choice: u32, out: &mut Vec<Event>) {
        let open = self.choice(choice);
        while let Some(part) = open.part.take() {
            out.push(Event::PartStop { choice, part });
            open.release(out);
        }
    }

    fn choice(&mut self, choice: u32) -> &mut Open {
        let at = (choice as usize).min(1023);
        if self.open.len() <= at {
            self.open.resize_with(at + 1, Open::default);
        }
        &mut self.open[at]
    }
}

impl Open {
    fn wait(&mut self, part: u32, event: Event) -> Result<(), TooMuch> {
        self.bytes += 64 + weight(&event);
        if self.bytes > MOST_WAITING {
            return Err(TooMuch);
        }
        let queue = self.waiting.entry(part).or_default();
        if queue.is_empty() {
            self.order.push_back(part);
        }
        queue.push(event);
        Ok(())
    }

    /// The next part that waits becomes the open one, and so on while they are whole.
    fn release(&mut self, out: &mut Vec<Event>) {
        while self.part.is_none() {
            let Some(part) = self.order.pop_front() else { return };
            self.part = Some(part);
            for event in self.waiting.remove(&part).unwrap_or_default() {
                self.bytes -= (64 + weight(&event)).min(self.bytes);
                if matches!(event, Event::PartStop { .. }) {
                    self.part = None;
                }
                out.push(event);
            }
        }
    }
}

/// The choice and the part that an event belongs to.
fn place(event: &Event) -> Option<(u32, u32)> {
    match event {
        Event::PartStart { choice, part, .. }
        | Event::Text { choice, part, .. }
        | Event::Reasoning { choice, part, .. }
        | Event::Arguments { choice, part, .. }
        | Event::State { choice, part, .. }
        | Event::Citation { choice, part, .. }
        | Event::Refusal { choice, part, .. }
        | Event::PartStop { choice, part } => Some((*choice, *part)),
        Event::Start(_)
        | Event::Usage(_)
        | Event::Stop { .. }
        | Event::End
        | Event::Fault(_)
        | Event::Ping
        | Event::Opaque { .. } => None,
    }
}

fn weight(event: &Event) -> usize {
    match event {
        Event::Text { text, logprobs, .. } => {
            text.len() + logprobs.as_ref().map_or(0, |json| json.as_str().len())
        }
        Event::Reasoning { text, .. }
        | Event::Arguments { text, .. }
        | Event::Refusal { text, .. } => text.len(),
        Event::State { state, .. } => state.value.len(),
        Event::Citation { citation, .. } => citation.json.as_str().len(),
        Event::Opaque { json, .. }
        | Event::PartStart { kind: PartKind::Opaque { json, .. }, .. } => json.as_str().len(),
        Event::PartStart { kind: PartKind::ToolCall { id, name, .. }, .. } => id.len() + name.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dialect::hub::{Json, PartKind, StopReason, event::Citation, stopwatch::Stopwatch};

    fn start(part: u32) -> Event {
        Event::PartStart { choice: 0, part, kind: PartKind::Text { phase: None } }
    }

    fn text(part: u32, text: &str) -> Event {
        Event::Text { choice: 0, part, text: text.into(), logprobs: None }
    }

    fn stop(part: u32) -> Event {
        Event::PartStop { choice: 0, part }
    }

    fn end() -> Event {
        Event::Stop { choice: 0, reason: StopReason::EndTurn }
    }

    fn run(events: Vec<Event>) -> Vec<Event> {
        let (mut serial, mut out) = (Serial::default(), Vec::new());
        for event in events {
            serial.take(event, &mut out).unwrap();
        }
        out
    }

    #[test]
    fn a_part_that_is_not_open_waits() {
        let out = run(vec![
            start(0),
            start(1),
            text(1, "b"),
            text(0, "a"),
            stop(1),
            stop(0),
            start(2),
            end(),
        ]);
        assert_eq!(
            out,
            [
                start(0),
                text(0, "a"),
                stop(0),
                start(1),
                text(1, "b"),
                stop(1),
                start(2),
                stop(2),
                end()
            ]
        );
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut serial = Serial::default();
        let mut out = Vec::new();
        serial.take(start(0), &mut out).unwrap();
        serial.take(start(1), &mut out).unwrap();
        let large = text(1, &"x".repeat(MOST_WAITING));
        assert_eq!(serial.take(large, &mut out), Err(TooMuch));
    }

    #[test]
    fn what_waits_is_weighed_by_all_that_it_holds() {
        let json = Json::text(&"x".repeat(MOST_WAITING));
        let kind = PartKind::Opaque { language: "chat", kind: String::new(), json: json.clone() };
        let citation = Citation { language: "chat", json: json.clone(), url: None, title: None };
        for event in [
            Event::PartStart { choice: 0, part: 1, kind },
            Event::Citation { choice: 0, part: 1, citation },
            Event::Text { choice: 0, part: 1, text: String::new(), logprobs: Some(json) },
        ] {
            let (mut serial, mut out) = (Serial::default(), Vec::new());
            serial.take(start(0), &mut out).unwrap();
            assert_eq!(serial.take(event, &mut out), Err(TooMuch));
        }
    }

    #[test]
    fn a_choice_has_so_many_parts_and_they_wait_cheaply() {
        let began = Stopwatch::start();
        let (mut serial, mut out) = (Serial::default(), Vec::new());
        serial.take(start(0), &mut out).unwrap();
        (1..MOST_PARTS).for_each(|part| serial.take(start(part), &mut out).unwrap());
        for round in 0..20 {
            for part in 1..MOST_PARTS {
                serial.take(text(part, &round.to_string()), &mut out).unwrap();
            }
        }
        assert_eq!(serial.take(start(MOST_PARTS), &mut out), Err(TooMuch));
        serial.take(end(), &mut out).unwrap();
        assert_eq!(out.len(), MOST_PARTS as usize * 22 - 20 + 1);
        assert!(began.time().as_secs() < 2, "{:?}", began.time());
    }

    proptest! {
        #[test]
        fn parts_never_overlap_and_lose_nothing(
            order in proptest::collection::vec(0u32..4, 0..60),
        ) {
            // Each part: start, three texts, stop, in any interleaving of the parts.
            let mut steps = [0u32; 4];
            let mut events = Vec::new();
            for part in order.iter().copied().chain((0..4).flat_map(|part| [part; 5])) {
                let step = steps[part as usize];
                steps[part as usize] += 1;
                events.push(match step {
                    0 => start(part),
                    1..=3 => text(part, &format!("{part}.{step} ")),
                    4 => stop(part),
                    _ => continue,
                });
            }
            events.push(end());
            let out = run(events.clone());
            let mut open = None;
            for event in &out {
                match event {
                    Event::PartStart { part, .. } => {
                        prop_assert_eq!(open, None);
                        open = Some(*part);
                    }
                    Event::PartStop { part, .. } => {
                        prop_assert_eq!(open, Some(*part));
                        open = None;
                    }
                    Event::Text { part, .. } => prop_assert_eq!(open, Some(*part)),
                    _ => {}
                }
            }
            let of = |all: &[Event], wanted: u32| -> String {
                let texts = all.iter().filter_map(|event| match event {
                    Event::Text { part, text, .. } if *part == wanted => Some(text.as_str()),
                    _ => None,
                });
                texts.collect()
            };
            for part in 0..4 {
                prop_assert_eq!(of(&out, part), of(&events, part));
            }
        }
    }
}
