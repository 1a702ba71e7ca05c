//! Writes tools for a backend.

use std::borrow::Cow;

use super::{LANGUAGE, blocks, read::is_ours};
use crate::dialect::hub::{
    Json, Losses, Refused, Request, Target,
    request::{Function, Tool, ToolChoice},
};

/// The schema of a tool that takes nothing.
const NOTHING: &str = r#"{"type":"object","properties":{}}"#;

/// The tools for a backend: with a choice among some of them, only those.
///
/// # Errors
/// If one cannot be written, or none of those is there.
pub fn write(
    request: &Request,
    target: &Target,
    losses: &mut Losses,
) -> Result<Vec<Json>, Refused> {
    let native = is_ours(&request.ext);
    let allowed = match &request.tool_choice {
        Some(ToolChoice::Allowed { names, .. }) => Some(names),
        _ => None,
    };
    let mut out = Vec::with_capacity(request.tools.len());
    for tool in &request.tools {
        let name = match tool {
            Tool::Function(function) => Some(&function.name),
            Tool::Custom(custom) => Some(&custom.name),
            Tool::Vendor(vendor) => vendor.name.as_ref(),
        };
        if allowed.is_some_and(|allowed| name.is_none_or(|name| !allowed.contains(name))) {
            continue;
        }
        match tool {
            Tool::Function(tool) => out.push(function(tool, native, target, losses)),
            Tool::Vendor(tool) if tool.language == LANGUAGE => out.push(tool.json.clone()),
            Tool::Vendor(tool) => {
                losses.add(&tool.path, format!("the backend has no tool `{}`", tool.kind));
            }
            Tool::Custom(tool) => {
                let why = "the backend's language has no tools that take free text";
                return Err(Refused::new(&tool.path, why));
            }
        }
    }
    if allowed.is_some() && out.is_empty() {
        return Err(Refused::new("tool_choice", "none of the allowed tools is among the tools"));
    }
    Ok(out)
}

fn function(tool: &Function, native: bool, target: &Target, losses: &mut Losses) -> Json {
    let mut strict = tool.strict;
    if !native {
        strict = strict.filter(|strict| *strict);
        if strict.is_some() && target.facts.schemas == Some(false) {
            losses.add(format!("{}.strict", tool.path), "the model takes no schema for its answer");
            strict = None;
        }
    }
    Json::written(|out| {
        out.object(|o| {
            o.text_at("name", &tool.name);
            o.maybe_text_at("description", tool.description.as_deref());
            match (&tool.parameters, native) {
                (Some(schema), true) => o.json_at("input_schema", schema),
                (None, true) => {}
                (schema, false) => o.raw_at("input_schema", rooted(schema.as_ref())),
            }
            o.maybe_raw_at("strict", strict);
            blocks::cache(o, tool.cache.as_ref());
            blocks::rest(o, &tool.ext);
        });
    })
}

/// A schema whose root says that it is an object, as the vendor demands.
fn rooted(schema: Option<&Json>) -> Cow<'_, str> {
    let Some(schema) = schema.filter(|schema| schema.is_object()) else {
        return Cow::Borrowed(NOTHING);
    };
    match schema.object() {
        Some(members) if members.members().next().is_none() => Cow::Borrowed(NOTHING),
        Some(members) if !members.has("type") => {
            Cow::Owned(format!(r#"{{"type":"object",{}"#, &schema.as_str()[1..]))
        }
        _ => Cow::Borrowed(schema.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_have_an_object_at_their_root() {
        for (schema, written) in [
            (None, NOTHING),
            (Some("{}"), NOTHING),
            (Some("true"), NOTHING),
            (
                Some(r#"{"properties":{"type":{}}}"#),
                r#"{"type":"object","properties":{"type":{}}}"#,
            ),
            (Some(r#"{"type":"object","x":1.50}"#), r#"{"type":"object","x":1.50}"#),
        ] {
            let schema = schema.map(|schema| Json::parse(schema).unwrap());
            assert_eq!(rooted(schema.as_ref()), written);
        }
    }
}
