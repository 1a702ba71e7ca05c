//! The conversation: results of calls stand behind their calls, ids are such as the backend takes,
//! and parts of other vendors become text.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::dialect::hub::{
    loss::{Losses, Refused},
    request::{Part, Request, Role, Text, ToolKind, ToolResult, Turn},
    target::{Target, Traits},
    tool_names,
};

/// Parts that stand for something that only their vendor has.
const REFERENCES: [&str; 3] = ["item_reference", "compaction", "program"];

/// The longest id of a call that vendors take.
const LONGEST_ID: usize = 64;

/// Brings the turns into the backend's shape.
pub fn prepare(
    request: &mut Request,
    to: &Traits,
    target: &Target,
    losses: &mut Losses,
) -> Result<(), Refused> {
    read_opaque(request, to, losses)?;
    join_results(request, losses)?;
    if to.unique_call_ids {
        make_ids_unique(&mut request.turns);
    }
    // What is blank is not written for Messages, which takes no such texts.
    let written = |turn: &&Turn| to.name != "messages" || !is_blank(turn);
    let last = request.turns.iter().rfind(written);
    if last.is_none() && to.name == "messages" {
        let why = "at least one message with content is needed";
        return Err(Refused::invalid("messages", why));
    }
    if let Some(last) = last.filter(|turn| is_prefill(turn))
        && !(to.prefill && target.quirks.continues)
    {
        let why = "the backend does not continue an answer that the request begins";
        return Err(Refused::new(last.path.clone(), why));
    }
    request.turns.retain(|turn| !turn.parts.is_empty());
    Ok(())
}

/// Nothing is said in it.
fn is_blank(turn: &Turn) -> bool {
    turn.parts.iter().all(|part| matches!(part, Part::Text(text) if text.text.trim().is_empty()))
}

/// The client has begun the answer.
fn is_prefill(turn: &Turn) -> bool {
    turn.role == Role::Assistant
        && turn.parts.iter().any(|part| matches!(part, Part::Text(text) if !text.text.is_empty()))
        && !turn.parts.iter().any(|part| matches!(part, Part::ToolCall(_)))
}

/// What another vendor's tools have done stands there as text, as far as it can be read.
fn read_opaque(request: &mut Request, to: &Traits, losses: &mut Losses) -> Result<(), Refused> {
    for turn in &mut request.turns {
        let mut parts = Vec::with_capacity(turn.parts.len());
        for part in std::mem::take(&mut turn.parts) {
            match part {
                // Its tools are among those of the request.
                Part::Opaque(opaque)
                    if opaque.language != to.name && opaque.kind == "additional_tools" => {}
                Part::Opaque(opaque) if opaque.language != to.name => {
                    if REFERENCES.contains(&opaque.kind.as_str()) {
                        let why = format!("`{}` can only be read by its vendor", opaque.kind);
                        return Err(Refused::new(turn.path.clone(), why));
                    }
                    losses.add(
                        turn.path.clone(),
                        format!(
                            "`{}` is of another vendor: what can be read of it becomes text",
                            opaque.kind
                        ),
                    );
                    if !opaque.readable.is_empty() {
                        parts.push(Part::Text(Text::plain(opaque.readable)));
                    }
                }
                part => parts.push(part),
            }
        }
        turn.parts = parts;
    }
    Ok(())
}

/// All results of a turn's calls stand first in the turn behind it, in the order of the calls. A
/// call without a result gets one that says so; a result without a call is a mistake of the client.
fn join_results(request: &mut Request, losses: &mut Losses) -> Result<(), Refused> {
    let turns = std::mem::take(&mut request.turns);
    let mut rounds = Round::all(turns);
    // Of two calls with one id the later one is meant.
    let mut latest: HashMap<String, usize> = HashMap::new();
    let mut late = false;
    for at in 0..rounds.len() {
        late = false;
        latest.extend(rounds[at].calls.iter().map(|call| (call.id.clone(), at)));
        for (path, result) in rounds[at].take_results() {
            let Some(&of) = latest.get(&result.call) else {
                let why =
                    format!("it has the result of a call `{}` that was not made", result.call);
                return Err(Refused::invalid(path, why));
            };
            late = of != at;
            let round = &mut rounds[of];
            round.path.get_or_insert(path);
            round.results.entry(result.call.clone()).or_default().push_back(result);
        }
    }
    let mut turns = Vec::new();
    for round in rounds {
        round.close(&mut turns, losses);
    }
    // What stood last was the result of an earlier call, and stands behind that call now: the
    // answer is still the model's turn.
    let last = turns.iter().rfind(|turn| !turn.parts.is_empty());
    if late && let Some(last) = last.filter(|turn| turn.role == Role::Assistant) {
        let path = last.path.clone();
        let parts = vec![Part::Text(Text::plain("The result of the earlier call has come."))];
        turns.push(Turn { role: Role::User, parts, path, ..Turn::default() });
    }
    request.turns = turns;
    Ok(())
}

/// What the assistant says, and what stands between that and its next turn.
#[derive(Default)]
struct Round {
    /// Neighbouring turns of the assistant are one as to their calls.
    assistant: Vec<Turn>,
    others: Vec<Turn>,
    calls: Vec<Called>,
    /// By their calls.
    results: HashMap<String, VecDeque<ToolResult>>,
    /// Of the first result.
    path: Option<String>,
}

/// What a result has to know of its call.
struct Called {
    id: String,
    name: String,
    kind: ToolKind,
}

impl Round {
    /// The first one has no assistant, unless the conversation begins with one.
    fn all(turns: Vec<Turn>) -> Vec<Self> {
        let mut rounds = vec![Self::default()];
        for turn in turns {
            let assistant = turn.role == Role::Assistant;
            if assistant && rounds.last().is_none_or(|round| !round.others.is_empty()) {
                rounds.push(Self::default());
            }
            let Some(round) = rounds.last_mut() else { continue };
            if !assistant {
                round.others.push(turn);
                continue;
            }
            round.calls.extend(turn.parts.iter().filter_map(|part| match part {
                Part::ToolCall(call) => {
                    Some(Called { id: call.id.clone(), name: call.name.clone(), kind: call.kind })
                }
                _ => None,
            }));
            round.assistant.push(turn);
        }
        rounds
    }

    /// The results that stand in it, with the paths of their turns.
    fn take_results(&mut self) -> Vec<(String, ToolResult)> {
        let mut results = Vec::new();
        for turn in &mut self.others {
            let mut parts = Vec::with_capacity(turn.parts.len());
            for part in std::mem::take(&mut turn.parts) {
                match part {
                    Part::ToolResult(result) => results.push((turn.path.clone(), result)),
                    part => parts.push(part),
                }
            }
            turn.parts = parts;
        }
        results
    }

    fn close(mut self, turns: &mut Vec<Turn>, losses: &mut Losses) {
        turns.append(&mut self.assistant);
        if self.calls.is_empty() {
            return turns.append(&mut self.others);
        }
        // Calls with this id that are still to come.
        let mut left: HashMap<&str, usize> = HashMap::new();
        for call in &self.calls {
            *left.entry(&call.id).or_default() += 1;
        }
        let place = turns.last().map_or_else(String::new, |turn| turn.path.clone());
        let mut ordered = Vec::with_capacity(self.calls.len());
        for call in &self.calls {
            let more = left.get_mut(call.id.as_str()).is_some_and(|left| {
                *left -= 1;
                *left > 0
            });
            let results = self.results.remove(&call.id);
            let mut results = results.unwrap_or_default();
            let found = if more { results.pop_front() } else { results.pop_back() };
            ordered.push(Part::ToolResult(found.unwrap_or_else(|| {
                let why = format!("the call `{}` has no result; the model is told so", call.id);
                losses.add(place.clone(), why);
                missing(call)
            })));
            if more {
                self.results.insert(call.id.clone(), results);
            } else if !results.is_empty() {
                let path = self.path.clone().unwrap_or_default();
                let why =
                    format!("the call `{}` has several results: the last one counts", call.id);
                losses.add(path, why);
            }
        }
        match self.others.first_mut().filter(|turn| turn.role == Role::User) {
            Some(first) => {
                ordered.append(&mut first.parts);
                first.parts = ordered;
            }
            None => {
                let path = self.path.take().unwrap_or_default();
                let turn = Turn { role: Role::User, parts: ordered, path, ..Turn::default() };
                turns.push(turn);
            }
        }
        turns.append(&mut self.others);
    }
}

fn missing(call: &Called) -> ToolResult {
    ToolResult {
        call: call.id.clone(),
        name: Some(call.name.clone()),
        parts: vec![Part::Text(Text::plain("no result"))],
        plain: true,
        is_error: true,
        kind: call.kind,
        ..ToolResult::default()
    }
}

/// Engines repeat ids over turns (`call_0`, `functions.Bash:0`); some vendors take each once, and
/// only of letters, digits, `_` and `-`.
fn make_ids_unique(turns: &mut [Turn]) {
    let mut ids = Ids::default();
    // The new ids of a turn's calls, by the old one, in their order: results are in the same.
    let mut current: HashMap<String, VecDeque<String>> = HashMap::new();
    let mut before = Role::User;
    for turn in turns {
        // Neighbouring turns of the assistant are one as to their calls.
        if turn.role == Role::Assistant && before != Role::Assistant {
            current.clear();
        }
        before = turn.role;
        for part in &mut turn.parts {
            match part {
                Part::ToolCall(call) => {
                    let id = ids.unique(&call.id);
                    let old = std::mem::replace(&mut call.id, id.clone());
                    current.entry(old).or_default().push_back(id);
                }
                Part::ToolResult(result) => {
                    if let Some(id) = current.get_mut(&result.call).and_then(VecDeque::pop_front) {
                        result.call = id;
                    }
                }
                _ => {}
            }
        }
    }
}

/// Ids that are in use.
#[derive(Default)]
struct Ids {
    used: HashSet<String>,
    /// The number to try next, by what it is put behind.
    next: HashMap<String, usize>,
}

impl Ids {
    fn unique(&mut self, id: &str) -> String {
        let plain = tool_names::allowed(id, LONGEST_ID, |_| false);
        if self.used.insert(plain.clone()) {
            return plain;
        }
        let next = self.next.entry(plain.clone()).or_insert(2);
        loop {
            let suffix = format!("_{next}");
            *next += 1;
            let kept = plain.len().min(LONGEST_ID - suffix.len());
            let unique = format!("{}{suffix}", &plain[..kept]);
            if self.used.insert(unique.clone()) {
                return unique;
            }
        }
    }
}
