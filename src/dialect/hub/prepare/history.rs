//! The conversation: results of calls stand behind their calls, ids are such as the backend takes,
//! and parts of other vendors become text.

use std::collections::{HashMap, HashSet};

use crate::dialect::hub::{
    loss::{Losses, Refused},
    request::{Part, Request, Role, Text, ToolCall, ToolResult, Turn},
    target::{Target, Traits},
    tool_names,
};

/// Parts that stand for something that only their vendor has.
const REFERENCES: [&str; 3] = ["item_reference", "compaction", "program"];

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
    if request.turns.last().is_some_and(is_prefill) && !(to.prefill && target.quirks.continues) {
        let path = request.turns.last().map_or_else(String::new, |turn| turn.path.clone());
        let why = "the backend does not continue an answer that the request begins";
        return Err(Refused::new(path, why));
    }
    request.turns.retain(|turn| !turn.parts.is_empty());
    Ok(())
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
    let mut turns: Vec<Turn> = Vec::with_capacity(request.turns.len());
    let mut rest = std::mem::take(&mut request.turns).into_iter().peekable();
    // Results in the first turns have no call.
    let mut round: Vec<Turn> = Vec::new();
    let mut calls: Vec<ToolCall> = Vec::new();
    loop {
        let next = rest.next();
        let ends = next.as_ref().is_none_or(|turn| turn.role == Role::Assistant);
        if !ends {
            round.extend(next);
            continue;
        }
        // Neighbouring turns of the assistant are one as to their calls.
        if next.is_some() && round.is_empty() && !calls.is_empty() {
            calls.extend(calls_of(next.as_ref()));
            turns.extend(next);
            continue;
        }
        close_round(&mut turns, std::mem::take(&mut round), &calls, losses)?;
        calls = calls_of(next.as_ref());
        match next {
            Some(turn) => turns.push(turn),
            None => break,
        }
    }
    request.turns = turns;
    Ok(())
}

fn calls_of(turn: Option<&Turn>) -> Vec<ToolCall> {
    let parts = turn.map_or(&[][..], |turn| &turn.parts);
    let call = |part: &Part| match part {
        Part::ToolCall(call) => Some(call.clone()),
        _ => None,
    };
    parts.iter().filter_map(call).collect()
}

/// The turns between two of the assistant's.
fn close_round(
    turns: &mut Vec<Turn>,
    mut round: Vec<Turn>,
    calls: &[ToolCall],
    losses: &mut Losses,
) -> Result<(), Refused> {
    let mut results: Vec<ToolResult> = Vec::new();
    let mut path = None;
    for turn in &mut round {
        let here = turn.path.clone();
        let mut parts = Vec::with_capacity(turn.parts.len());
        for part in std::mem::take(&mut turn.parts) {
            match part {
                Part::ToolResult(result) => {
                    if !calls.iter().any(|call| call.id == result.call) {
                        let why = format!(
                            "it has the result of a call `{}` that the turn before does not make",
                            result.call
                        );
                        return Err(Refused::invalid(here, why));
                    }
                    path.get_or_insert_with(|| here.clone());
                    results.push(result);
                }
                part => parts.push(part),
            }
        }
        turn.parts = parts;
    }
    if calls.is_empty() {
        turns.extend(round);
        return Ok(());
    }
    let mut ordered = Vec::with_capacity(calls.len());
    for call in calls {
        let found = results.iter().position(|result| result.call == call.id);
        let result = match found {
            Some(at) => results.remove(at),
            None => {
                let path = turns.last().map_or_else(String::new, |turn| turn.path.clone());
                losses.add(
                    path,
                    format!("the call `{}` has no result; the model is told so", call.id),
                );
                missing(call)
            }
        };
        ordered.push(Part::ToolResult(result));
    }
    // A second result of the same call goes with the first.
    ordered.extend(results.into_iter().map(Part::ToolResult));
    match round.first_mut().filter(|turn| turn.role == Role::User) {
        Some(first) => {
            ordered.append(&mut first.parts);
            first.parts = ordered;
        }
        None => {
            let path = path.unwrap_or_default();
            let turn = Turn { role: Role::User, parts: ordered, path, ..Turn::default() };
            round.insert(0, turn);
        }
    }
    turns.extend(round);
    Ok(())
}

fn missing(call: &ToolCall) -> ToolResult {
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
    let mut used: HashSet<String> = HashSet::new();
    let mut current: HashMap<String, String> = HashMap::new();
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
                    let id = unique(&call.id, &mut used);
                    current.insert(std::mem::replace(&mut call.id, id.clone()), id);
                }
                Part::ToolResult(result) => {
                    if let Some(id) = current.get(&result.call) {
                        result.call.clone_from(id);
                    }
                }
                _ => {}
            }
        }
    }
}

fn unique(id: &str, used: &mut HashSet<String>) -> String {
    let plain = tool_names::allowed(id, 64, |_| false);
    let mut unique = plain.clone();
    let mut number = 2;
    while !used.insert(unique.clone()) {
        unique = format!("{plain}_{number}");
        number += 1;
    }
    unique
}
