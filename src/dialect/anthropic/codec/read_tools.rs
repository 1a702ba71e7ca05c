//! Reads a client's tools, and which of them it wants to be called.

use serde_json::value::RawValue;

use super::{LANGUAGE, fields::Fields};
use crate::dialect::hub::{
    Json, Refused, Request,
    request::{Function, Tool, ToolChoice, ToolKind, VendorTool},
};

/// Reads the tools.
///
/// # Errors
/// If a member is missing or of the wrong type.
pub fn tools(fields: &mut Fields<'_>, request: &mut Request) -> Result<(), Refused> {
    let Some(list) = fields.list("tools")? else { return Ok(()) };
    if list.is_empty() {
        fields.says("tools", "[]");
    }
    for (path, raw) in list {
        request.tools.push(tool(path, raw)?);
    }
    Ok(())
}

fn tool(path: String, raw: &RawValue) -> Result<Tool, Refused> {
    let mut tool = Fields::new(raw, path)?;
    let kind = tool.text("type")?;
    if let Some(kind) = kind.as_deref().filter(|kind| *kind != "custom") {
        return Ok(Tool::Vendor(VendorTool {
            language: LANGUAGE,
            kind: kind.to_owned(),
            name: tool.peek("name"),
            json: Json::of(raw),
            path: tool.path().to_owned(),
        }));
    }
    if kind.is_some() {
        tool.says("type", "\"custom\"");
    }
    Ok(Tool::Function(Function {
        name: tool.needed("name")?,
        description: tool.text("description")?,
        parameters: tool.object("input_schema")?,
        strict: tool.flag("strict", None)?,
        cache: tool.json("cache_control"),
        path: tool.path().to_owned(),
        ext: tool.rest(),
        ..Function::default()
    }))
}

/// Reads which tool is to be called.
///
/// # Errors
/// If a member is missing or of the wrong type.
pub fn choice(fields: &mut Fields<'_>, request: &mut Request) -> Result<(), Refused> {
    let path = fields.at("tool_choice");
    let Some(raw) = fields.take("tool_choice") else { return Ok(()) };
    let mut choice = Fields::new(raw, path)?;
    let kind = choice.needed("type")?;
    let disabled = choice.flag("disable_parallel_tool_use", None)?;
    request.parallel_tools = disabled.map(|disabled| !disabled);
    request.tool_choice = Some(match kind.as_str() {
        "auto" => ToolChoice::Auto,
        "none" => ToolChoice::None,
        "any" => ToolChoice::Required,
        "tool" => ToolChoice::Named { name: choice.needed("name")?, kind: ToolKind::Function },
        _ => {
            request.tool_choice =
                Some(ToolChoice::Other { language: LANGUAGE, json: Json::of(raw) });
            return Ok(());
        }
    });
    if let Some(rest) = choice.leftover() {
        request.ext.members.push(("tool_choice".to_owned(), rest));
    }
    Ok(())
}
