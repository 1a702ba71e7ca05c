//! Writes which tool is to be called.

use super::{LANGUAGE, read::is_ours};
use crate::dialect::hub::{
    Json, Object, Refused, Request, Writer,
    request::{ToolChoice, ToolKind},
};

/// `tool_choice`.
#[derive(Default)]
pub struct Choice {
    pub json: Option<Json>,
    /// The model has to call a tool.
    pub forced: bool,
}

/// The choice for a backend that gets some tools, or none.
///
/// # Errors
/// If it cannot be said.
pub fn write(request: &Request, some_tools: bool) -> Result<Choice, Refused> {
    let native = is_ours(&request.ext);
    let one_at_a_time = request.parallel_tools == Some(false);
    let said = request.tool_choice.as_ref();
    if !some_tools && !native {
        return match said {
            None | Some(ToolChoice::Auto | ToolChoice::None) => Ok(Choice::default()),
            Some(_) => Err(Refused::new("tool_choice", "there is no tool that could be called")),
        };
    }
    let (kind, name) = match said {
        None if one_at_a_time => ("auto", None),
        None => return Ok(Choice::default()),
        Some(ToolChoice::Auto) => ("auto", None),
        Some(ToolChoice::None) => ("none", None),
        Some(ToolChoice::Required) => ("any", None),
        Some(ToolChoice::Named { kind: ToolKind::Custom, .. }) => {
            return Err(Refused::new("tool_choice", "the backend's language has no custom tools"));
        }
        Some(ToolChoice::Named { name, .. }) => ("tool", Some(name.as_str())),
        // The others have been left out of the tools.
        Some(ToolChoice::Allowed { names, required, .. }) => match (required, &names[..]) {
            (true, [one]) => ("tool", Some(one.as_str())),
            (true, _) => ("any", None),
            (false, _) => ("auto", None),
        },
        Some(ToolChoice::Other { language, json }) if *language == LANGUAGE => {
            return Ok(Choice { json: Some(json.clone()), forced: false });
        }
        Some(ToolChoice::Other { .. }) => {
            let why = "the backend's language has no such choice";
            return Err(Refused::new("tool_choice", why));
        }
    };
    let rest = request.ext.of(LANGUAGE).iter().find(|(name, _)| name == "tool_choice");
    let rest = rest.and_then(|(_, rest)| rest.object()).map(Object::rest).unwrap_or_default();
    let json = Json::written(|out| {
        out.object(|o| {
            o.text_at("type", kind);
            o.maybe_text_at("name", name);
            parallel(o, request, native, kind);
            o.members(&rest);
        });
    });
    Ok(Choice { json: Some(json), forced: matches!(kind, "any" | "tool") })
}

/// Several calls are what the vendor allows if nothing is said.
fn parallel(out: &mut Writer, request: &Request, native: bool, kind: &str) {
    match request.parallel_tools {
        Some(true) if native => out.raw_at("disable_parallel_tool_use", false),
        Some(false) if native || kind != "none" => out.raw_at("disable_parallel_tool_use", true),
        _ => {}
    }
}
