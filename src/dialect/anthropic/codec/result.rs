//! Writes the result of a call for a backend.

use super::{
    LANGUAGE,
    blocks::{self, Block, Place},
};
use crate::dialect::hub::{Json, Losses, Part, Refused, Writer, request::ToolResult};

/// Writes a result.
///
/// # Errors
/// If one of its parts cannot be said.
pub fn write(result: &ToolResult, place: Place<'_>, losses: &mut Losses) -> Result<Block, Refused> {
    let id = blocks::call_id(&result.call, place.native);
    let content = content(result, place, losses)?;
    let json = Json::written(|out| {
        out.object(|o| {
            o.text_at("type", "tool_result");
            o.text_at("tool_use_id", &id);
            match &content {
                Some(content) => o.json_at("content", content),
                // The vendor refuses a failure of which nothing is said.
                None if result.is_error && !place.native => o.text_at("content", "error"),
                None => {}
            }
            failed(o, result);
            blocks::cache(o, result.cache.as_ref());
            if result.ext.language == LANGUAGE {
                o.members(&result.ext.members);
                let stale = |name: &str| name == "is_error" && result.is_error;
                for (name, value) in &result.ext.defaults {
                    if !stale(name) {
                        o.json_at(name, value);
                    }
                }
            }
        });
    });
    Ok(Block { json, result: Some(id), call: None, thought: false })
}

fn failed(out: &mut Writer, result: &ToolResult) {
    if result.is_error {
        out.raw_at("is_error", true);
    }
}

fn content(
    result: &ToolResult,
    place: Place<'_>,
    losses: &mut Losses,
) -> Result<Option<Json>, Refused> {
    if let (true, [Part::Text(text)]) = (result.plain, &result.parts[..]) {
        let blank = !place.native && text.text.trim().is_empty();
        return Ok((!blank).then(|| Json::text(&text.text)));
    }
    let mut all = Vec::with_capacity(result.parts.len());
    for part in &result.parts {
        all.extend(blocks::leaf(part, place, losses)?);
    }
    if all.is_empty() && (result.plain || !place.native) {
        return Ok(None);
    }
    Ok(Some(Json::written(|out| {
        out.array(|list| all.iter().for_each(|json| list.raw(json.as_str())));
    })))
}
