//! Writes parts of a turn for a backend.

use super::{
    LANGUAGE,
    blocks::{self, Block, Place},
    result,
};
use crate::dialect::hub::{
    Json, Losses, Part, Refused,
    request::{ReasoningPart, ToolCall, ToolKind},
};

/// Writes a part; `None`: it has no place there, or nothing in it.
///
/// # Errors
/// If it cannot be said in this language.
pub fn write(part: &Part, place: Place<'_>, losses: &mut Losses) -> Result<Option<Block>, Refused> {
    match part {
        Part::ToolCall(call) => Ok(Some(tool_use(call, place)?)),
        Part::ToolResult(result) => Ok(Some(result::write(result, place, losses)?)),
        Part::Reasoning(part) => {
            let block = reasoning(part, place.native).map(plain);
            Ok(block.map(|block| Block { thought: true, ..block }))
        }
        part => Ok(blocks::leaf(part, place, losses)?.map(plain)),
    }
}

fn plain(json: Json) -> Block {
    Block { json, result: None, call: None, thought: false }
}

/// Reasoning goes back to those who can read its state. A signature is never made up.
fn reasoning(part: &ReasoningPart, native: bool) -> Option<Json> {
    let ours = part.state.as_ref().filter(|state| state.language == LANGUAGE);
    if ours.is_none() && (!native || part.state.is_some()) {
        return None;
    }
    let value = ours.map_or("", |state| &state.value);
    Some(Json::written(|out| {
        out.object(|o| {
            if part.redacted {
                o.text_at("type", "redacted_thinking");
                o.text_at("data", value);
            } else {
                o.text_at("type", "thinking");
                o.text_at("thinking", part.text.as_deref().unwrap_or_default());
                o.text_at("signature", value);
            }
            blocks::rest(o, &part.ext);
        });
    }))
}

fn tool_use(call: &ToolCall, place: Place<'_>) -> Result<Block, Refused> {
    let refused = |why: &str| {
        Refused::new(place.turn, format!("the arguments of the call `{}` {why}", call.id))
    };
    if call.kind == ToolKind::Custom {
        return Err(refused("are free text, for which the backend's language has no tools"));
    }
    let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
    let input = Json::parse(arguments).ok().filter(Json::is_object);
    let input = input.ok_or_else(|| refused("are not a JSON object"))?;
    let id = blocks::call_id(&call.id, place.native);
    let json = Json::written(|out| {
        out.object(|o| {
            o.text_at("type", "tool_use");
            o.text_at("id", &id);
            o.text_at("name", &call.name);
            o.json_at("input", &input);
            blocks::cache(o, call.cache.as_ref());
            blocks::rest(o, &call.ext);
        });
    });
    Ok(Block { json, result: None, call: Some(id), thought: false })
}
