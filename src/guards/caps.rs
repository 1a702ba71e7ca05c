//! The most that a request may ask for.

use super::finding::{Finding, Refused};
use crate::{
    base::Rejection,
    config::{choices::CapAction, plan::CapsPlan},
    dialect::texts::RequestImage,
    wire::{
        edit::Edit,
        json::{self, Member},
    },
};

/// The names of a limit of tokens, in all languages.
const MAX_TOKENS: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];

/// A cap on a number: its name, the members of a body that it is about, and the most.
struct Cap {
    name: &'static str,
    members: &'static [&'static str],
    most: u64,
}

/// What a request gets.
#[derive(Default)]
pub struct Capped {
    pub edits: Vec<Edit>,
    pub findings: Vec<Finding>,
}

/// Applies caps to a body. `limit` is the name under which the language takes a limit of tokens, where a
/// request has none; `None`: the operation generates nothing.
///
/// # Errors
/// If the request asks for more than an entry allows, and the entry does not clamp it.
pub fn cap(
    entries: &[&CapsPlan],
    body: &[u8],
    images: &[RequestImage],
    limit: Option<&str>,
) -> Result<Capped, Box<Refused>> {
    let members: Vec<Member> = json::members(body, 0).map_while(Result::ok).collect();
    let mut capped = Capped::default();
    let most = |of: fn(&CapsPlan) -> Option<u64>| entries.iter().filter_map(|e| of(e)).min();
    // The strictest entry of each cap counts; one that refuses takes precedence over one that clamps.
    for entry in entries {
        for cap in numbers(entry) {
            let clamps = entry.action == CapAction::Clamp;
            number(&cap, clamps, body, &members, &mut capped)?;
        }
    }
    if let Some(name) = limit
        && let Some(most) = most(|entry| entry.max_tokens)
        && !members.iter().any(|m| is_any(m, body, &MAX_TOKENS) && !is_null(m, body))
    {
        add(name, most, body, &members, &mut capped);
    }
    if entries.iter().any(|entry| !entry.logprobs) {
        let clamps = entries.iter().all(|entry| entry.logprobs || entry.action == CapAction::Clamp);
        logprobs(clamps, body, &members, &mut capped)?;
    }
    let lists = ["tools", "functions"];
    let tools: usize = members
        .iter()
        .filter(|member| is_any(member, body, &lists))
        .map(|member| json::elements(&body[member.value.clone()]).count())
        .sum();
    at_most("tools", tools as u64, most(|entry| entry.tools))?;
    at_most("images", images.len() as u64, most(|entry| entry.images))?;
    let largest = images.iter().filter_map(|image| image.bytes).max().unwrap_or(0);
    at_most("image_bytes", largest, most(|entry| entry.image_bytes))?;
    // Of several edits of one member the last one counts: each is at most what those before it left.
    capped.edits.reverse();
    capped.edits.sort_by_key(|edit| (edit.range.start, edit.range.end));
    capped.edits.dedup_by(|a, b| a.range == b.range && !a.range.is_empty());
    Ok(capped)
}

fn numbers(entry: &CapsPlan) -> impl Iterator<Item = Cap> {
    let cap = |name, members, most: Option<u64>| most.map(|most| Cap { name, members, most });
    [
        cap("n", &["n", "best_of"], entry.n),
        cap("max_tokens", &MAX_TOKENS, entry.max_tokens),
        cap("top_logprobs", &["top_logprobs", "prompt_logprobs", "logprobs"], entry.top_logprobs),
    ]
    .into_iter()
    .flatten()
}

fn is_any(member: &Member, body: &[u8], names: &[&str]) -> bool {
    names.iter().any(|name| member.is(body, name))
}

fn is_null(member: &Member, body: &[u8]) -> bool {
    body[member.value.clone()] == *b"null"
}

/// A number, also one within quotes, which some engines take.
fn number_of(value: &[u8]) -> Option<f64> {
    let text = match value.first()? {
        b'"' => json::unescape(&value[1..value.len() - 1])?,
        _ => String::from_utf8(value.to_vec()).ok()?,
    };
    text.trim().parse().ok()
}

/// Bounds a number of the body. Clamping entries remember the least most of each member.
fn number(
    cap: &Cap,
    clamps: bool,
    body: &[u8],
    members: &[Member],
    capped: &mut Capped,
) -> Result<(), Box<Refused>> {
    for member in members.iter().filter(|member| is_any(member, body, cap.members)) {
        // vLLM takes -1 for all that there are.
        let over = number_of(&body[member.value.clone()])
            .is_some_and(|n| n > cap.most as f64 || n < 0.0 || n.is_nan());
        if !over {
            continue;
        }
        if !clamps {
            return Err(refused(cap.name, cap.most));
        }
        let edit =
            Edit { range: member.value.clone(), with: cap.most.to_string().into_bytes().into() };
        let lower = |edit: &Edit| number_of(&edit.with).is_none_or(|n| n > cap.most as f64);
        match capped.edits.iter_mut().find(|other| other.range == edit.range) {
            Some(other) if lower(other) => *other = edit,
            Some(_) => {}
            None => capped.edits.push(edit),
        }
        note(cap.name, capped);
    }
    Ok(())
}

/// Adds a member with a number, in the place of a null or at the end.
fn add(name: &str, most: u64, body: &[u8], members: &[Member], capped: &mut Capped) {
    let nulls = members.iter().filter(|m| is_any(m, body, &MAX_TOKENS));
    let nulls: Vec<_> = nulls.filter(|m| m.is(body, name)).collect();
    let number = most.to_string().into_bytes();
    if let Some(null) = nulls.last() {
        capped.edits.push(Edit { range: null.value.clone(), with: number.into() });
    } else {
        let Some(end) = body.iter().rposition(|byte| *byte == b'}') else { return };
        let comma = if members.is_empty() { "" } else { "," };
        capped.edits.push(Edit::insert(end, format!("{comma}\"{name}\":{most}").into_bytes()));
    }
    note("max_tokens", capped);
}

/// Removes the wish for logprobs.
fn logprobs(
    clamps: bool,
    body: &[u8],
    members: &[Member],
    capped: &mut Capped,
) -> Result<(), Box<Refused>> {
    let names = ["logprobs", "top_logprobs", "prompt_logprobs"];
    let wanted = |m: &Member| {
        is_any(m, body, &names) && !matches!(&body[m.value.clone()], b"null" | b"false")
    };
    if !members.iter().any(wanted) {
        return Ok(());
    }
    if !clamps {
        let message = "Invalid 'logprobs': they are not available here";
        return Err(rejected("logprobs", message));
    }
    for member in members.iter().filter(|m| wanted(m)) {
        capped.edits.retain(|edit| edit.range != member.value);
        let edit = Edit { range: member.value.clone(), with: b"null"[..].into() };
        capped.edits.push(edit);
    }
    note("logprobs", capped);
    Ok(())
}

fn at_most(name: &'static str, count: u64, most: Option<u64>) -> Result<(), Box<Refused>> {
    match most.filter(|most| count > *most) {
        Some(most) => Err(refused(name, most)),
        None => Ok(()),
    }
}

fn note(name: &str, capped: &mut Capped) {
    let finding = Finding { guard: "caps", kind: name.to_owned(), action: "clamp", count: 1 };
    if !capped.findings.contains(&finding) {
        capped.findings.push(finding);
    }
}

fn refused(name: &'static str, most: u64) -> Box<Refused> {
    let message = match name {
        "image_bytes" => format!("An image is larger than the limit of {most} bytes"),
        "images" | "tools" => format!("The request has more {name} than the limit of {most}"),
        _ => format!("Invalid '{name}': at most {most} is allowed here"),
    };
    rejected(name, &message)
}

fn rejected(name: &'static str, message: &str) -> Box<Refused> {
    let finding = Finding { guard: "caps", kind: name.to_owned(), action: "refuse", count: 1 };
    let rejection = Rejection::cap_exceeded(name, message);
    Box::new(Refused { rejection, findings: vec![finding] })
}
