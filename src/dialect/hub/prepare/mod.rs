//! A request on its way from one language to another: what the other cannot say is dropped with a
//! warning or refused, and what it says in another way is brought into its shape. What comes out
//! only has to be written down.

mod history;
mod limits;
mod reasoning;
mod refused;
#[cfg(test)]
mod tests;
mod tools;

use super::{
    codec::{Codec, Outgoing, Undo},
    json::Json,
    loss::{Losses, Refused},
    request::{Extension, MediaSource, Part, Request, SystemText, ToolResult, Turn},
    target::{Target, Traits},
};

/// Translates a request that was read from one language into another, for one backend.
///
/// # Errors
/// What the other language cannot say and must not be left out silently; with `target.strict` also
/// everything that would otherwise be dropped.
pub fn translate(
    request: Request,
    from: &Traits,
    to: &dyn Codec,
    target: &Target,
) -> Result<Outgoing, Refused> {
    let (request, undo, mut losses) = prepare(request, from, to.traits(), target)?;
    let body = to.write(&request, target, &mut losses)?;
    let body = refused::leave_out(body, target, &mut losses)?;
    match losses.refusal().filter(|_| target.strict) {
        Some(refusal) => Err(refusal),
        None => Ok(Outgoing { body, losses, undo }),
    }
}

/// A request without the state of issuers that the backend is not, in its own language.
///
/// # Errors
/// None in practice: what was read can be written.
pub fn unwrap(
    mut request: Request,
    codec: &dyn Codec,
    target: &Target,
) -> Result<Outgoing, Refused> {
    let mut losses = Losses::default();
    let traits = codec.traits();
    reasoning::prepare(&mut request, traits, traits, target, &mut losses);
    let body = codec.write(&request, target, &mut losses)?;
    Ok(Outgoing { body, losses, undo: Undo::default() })
}

/// How the block begins in which Claude Code says who pays; Anthropic takes it out of the prompt.
const ATTRIBUTION: &str = "x-anthropic-billing-header";

/// Brings a request into the shape of another language.
///
/// # Errors
/// As [`translate`], as far as it is known before anything is written.
pub fn prepare(
    mut request: Request,
    from: &Traits,
    to: &Traits,
    target: &Target,
) -> Result<(Request, Undo, Losses), Refused> {
    let mut losses = Losses::default();
    refuse_foreign_state(&request)?;
    refuse_nothing(&request, from, to)?;
    if from.name == "messages" && to.name != from.name {
        request.system.retain(|text| !text.text.starts_with(ATTRIBUTION));
    }
    limits::choices(&mut request, from, to, target, &mut losses)?;
    let undo = tools::prepare(&mut request, to, target, &mut losses)?;
    reasoning::prepare(&mut request, from, to, target, &mut losses);
    history::prepare(&mut request, to, target, &mut losses)?;
    limits::sampling(&mut request, from, to, target, &mut losses);
    drop_extensions(&mut request, to, &mut losses);
    Ok((request, undo, losses))
}

/// What refers to state that only a vendor has.
fn refuse_foreign_state(request: &Request) -> Result<(), Refused> {
    if let Some(path) = request.stateful.first() {
        let why = "no backend of this model has the state that it refers to: only a backend that \
                   speaks the request's own language can have it";
        return Err(Refused::new(path.clone(), why));
    }
    let file = |part: &Part| match part {
        Part::Image(media) | Part::Audio(media) | Part::Video(media) | Part::File(media) => {
            matches!(media.source, MediaSource::FileId(_))
        }
        _ => false,
    };
    for turn in &request.turns {
        let inner = turn.parts.iter().any(|part| match part {
            Part::ToolResult(result) => result.parts.iter().any(file),
            part => file(part),
        });
        if inner {
            let why = "it refers to a file by an id, which only the vendor that keeps it can read";
            return Err(Refused::new(turn.path.clone(), why));
        }
    }
    Ok(())
}

/// A request of Responses may have no input, where it goes on from what is stored; one in another
/// language asks for nothing then.
fn refuse_nothing(request: &Request, from: &Traits, to: &Traits) -> Result<(), Refused> {
    let instructed = !request.system.is_empty() && to.name != "messages";
    if from.name != "responses" || to.name == from.name || !request.turns.is_empty() || instructed {
        return Ok(());
    }
    let why =
        "it is empty, and the request refers to no stored response: write what is to be answered";
    Err(Refused::invalid("input", why))
}

/// Members that mean nothing to anyone else, and whose absence changes nothing. Where `background` is
/// true it has been refused before.
const HARMLESS: [&str; 7] =
    ["background", "client_metadata", "include", "truncation", "id", "status", "stream_options"];

/// Members that have no word in the hub belong to the language that they came in.
fn drop_extensions(request: &mut Request, to: &Traits, losses: &mut Losses) {
    let mut dropper = Dropper { to, losses };
    dropper.drop("", &mut request.ext);
    dropper.drop("reasoning", &mut request.reasoning.ext);
    for system in &mut request.system {
        dropper.system(system);
    }
    for turn in &mut request.turns {
        dropper.turn(turn);
    }
    for tool in &mut request.tools {
        match tool {
            super::request::Tool::Function(function) => {
                let path = function.path.clone();
                dropper.drop(&path, &mut function.ext);
                dropper.cache(&mut function.cache);
            }
            super::request::Tool::Custom(custom) => {
                let path = custom.path.clone();
                dropper.drop(&path, &mut custom.ext);
            }
            super::request::Tool::Vendor(_) => {}
        }
    }
}

struct Dropper<'a> {
    to: &'a Traits,
    losses: &'a mut Losses,
}

impl Dropper<'_> {
    fn drop(&mut self, path: &str, ext: &mut Extension) {
        if ext.language == self.to.name {
            return;
        }
        ext.defaults.clear();
        let said: Vec<String> = ext.said().map(str::to_owned).collect();
        ext.members.clear();
        for name in said {
            if HARMLESS.contains(&name.as_str()) {
                continue;
            }
            let path = if path.is_empty() { name } else { format!("{path}.{name}") };
            self.losses.add(path, "the backend's language has no such field");
        }
    }

    fn cache(&mut self, cache: &mut Option<Json>) {
        if !self.to.cache_marks && cache.take().is_some() {
            self.losses.add("cache_control", "the backend's language has no marks for its cache");
        }
    }

    fn system(&mut self, system: &mut SystemText) {
        self.drop("system", &mut system.ext);
        self.cache(&mut system.cache);
    }

    fn turn(&mut self, turn: &mut Turn) {
        let path = turn.path.clone();
        self.drop(&path, &mut turn.ext);
        for part in &mut turn.parts {
            self.part(&path, part);
        }
    }

    fn part(&mut self, path: &str, part: &mut Part) {
        match part {
            Part::Text(text) => {
                self.drop(path, &mut text.ext);
                self.cache(&mut text.cache);
            }
            Part::Image(media) | Part::Audio(media) | Part::Video(media) | Part::File(media) => {
                self.drop(path, &mut media.ext);
                self.cache(&mut media.cache);
            }
            Part::ToolCall(call) => {
                self.drop(path, &mut call.ext);
                self.cache(&mut call.cache);
            }
            Part::ToolResult(result) => self.result(path, result),
            Part::Reasoning(reasoning) => self.drop(path, &mut reasoning.ext),
            Part::Search(search) => {
                self.drop(path, &mut search.ext);
                self.cache(&mut search.cache);
            }
            Part::Refusal(_) | Part::Opaque(_) => {}
        }
    }

    fn result(&mut self, path: &str, result: &mut ToolResult) {
        self.drop(path, &mut result.ext);
        self.cache(&mut result.cache);
        for part in &mut result.parts {
            self.part(path, part);
        }
    }
}
