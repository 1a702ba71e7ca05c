//! Tools, and the choice among them: read from a request, and written for a backend.

use serde_json::value::RawValue;

use super::{
    members::{join, list, object, required, rest, take, text, write_inner, write_outer},
    words::LANGUAGE,
};
use crate::dialect::hub::{
    Json, Losses, Object, Refused, Request, Writer,
    request::{CustomTool, Function, Tool, ToolChoice, ToolKind, VendorTool},
    target::Quirks,
};

/// Takes the tools and the choice out of a request.
///
/// # Errors
/// If something is not of its type.
pub fn read(from: &mut Object<'_>, request: &mut Request) -> Result<(), Refused> {
    if let Some(raw) = from.take("tools") {
        for (at, raw) in list(raw, "tools")?.into_iter().enumerate() {
            request.tools.push(tool(raw, format!("tools[{at}]"))?);
        }
    }
    if let Some(raw) = from.take("functions") {
        request.client.functions = true;
        for (at, raw) in list(raw, "functions")?.into_iter().enumerate() {
            let path = format!("functions[{at}]");
            let mut function = function(&mut object(raw, &path)?, &path)?;
            function.ext.language = LANGUAGE;
            request.tools.push(Tool::Function(function));
        }
    }
    request.tool_choice = match from.take("tool_choice") {
        Some(raw) => Some(choice(raw)?),
        None => from.take("function_call").map(legacy_choice).transpose()?,
    };
    Ok(())
}

fn tool(raw: &RawValue, path: String) -> Result<Tool, Refused> {
    let mut from = object(raw, &path)?;
    let kind = required(&mut from, "type", &path)?;
    match kind.as_str() {
        "function" => {
            let (mut inner, at) = part(&mut from, "function", &path)?;
            let mut tool = function(&mut inner, &at)?;
            tool.path = path;
            tool.cache = from.json("cache_control");
            tool.ext = rest(from, Some(("function", inner)));
            Ok(Tool::Function(tool))
        }
        "custom" => {
            let (mut inner, at) = part(&mut from, "custom", &path)?;
            Ok(Tool::Custom(CustomTool {
                name: required(&mut inner, "name", &at)?,
                description: text(&mut inner, "description", &at)?,
                format: inner.json("format"),
                path,
                ext: rest(from, Some(("custom", inner))),
            }))
        }
        _ => Ok(Tool::Vendor(VendorTool {
            language: LANGUAGE,
            kind,
            name: from.text("name"),
            json: Json::of(raw),
            path,
        })),
    }
}

/// An inner object that must be there, and its path.
fn part<'a>(
    from: &mut Object<'a>,
    name: &str,
    path: &str,
) -> Result<(Object<'a>, String), Refused> {
    let path = join(path, name);
    let raw = from.take(name).ok_or_else(|| Refused::invalid(path.clone(), "It is missing"))?;
    Ok((object(raw, &path)?, path))
}

fn function(from: &mut Object<'_>, path: &str) -> Result<Function, Refused> {
    Ok(Function {
        name: required(from, "name", path)?,
        description: text(from, "description", path)?,
        parameters: from.json("parameters"),
        strict: take(from, "strict", path, "true or false")?,
        path: path.to_owned(),
        ..Function::default()
    })
}

fn choice(raw: &RawValue) -> Result<ToolChoice, Refused> {
    const PATH: &str = "tool_choice";
    let other = || ToolChoice::Other { language: LANGUAGE, json: Json::of(raw) };
    if let Ok(word) = serde_json::from_str::<String>(raw.get()) {
        return Ok(match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            // The second is Mistral's.
            "required" | "any" => ToolChoice::Required,
            _ => return Err(Refused::invalid(PATH, "It is none of auto, none, required")),
        });
    }
    let mut from = object(raw, PATH)?;
    match from.text("type").as_deref() {
        Some("function") => {
            let (mut inner, path) = part(&mut from, "function", PATH)?;
            let name = required(&mut inner, "name", &path)?;
            Ok(ToolChoice::Named { name, kind: ToolKind::Function })
        }
        Some("custom") => {
            let (mut inner, path) = part(&mut from, "custom", PATH)?;
            let name = required(&mut inner, "name", &path)?;
            Ok(ToolChoice::Named { name, kind: ToolKind::Custom })
        }
        Some("allowed_tools") => {
            let (mut inner, path) = part(&mut from, "allowed_tools", PATH)?;
            let required = inner.text("mode").as_deref() == Some("required");
            let tools = inner
                .take("tools")
                .ok_or_else(|| Refused::invalid(join(&path, "tools"), "It is missing"))?;
            let name = |raw: &&RawValue| {
                let mut tool = Object::parse(raw.get()).ok()?;
                let kind = tool.text("type")?;
                Object::parse(tool.take(&kind)?.get()).ok()?.text("name")
            };
            let names: Option<Vec<_>> = list(tools, &path)?.iter().map(name).collect();
            Ok(match names {
                Some(names) => ToolChoice::Allowed { names, required, json: Json::of(raw) },
                None => other(),
            })
        }
        _ => Ok(other()),
    }
}

fn legacy_choice(raw: &RawValue) -> Result<ToolChoice, Refused> {
    match raw.get() {
        "\"auto\"" => return Ok(ToolChoice::Auto),
        "\"none\"" => return Ok(ToolChoice::None),
        _ => {}
    }
    let name = required(&mut object(raw, "function_call")?, "name", "function_call")?;
    Ok(ToolChoice::Named { name, kind: ToolKind::Function })
}

/// Writes the tools and the choice. Servers that do not know OpenAI's newest words are given only
/// the tools that are allowed.
pub fn write(out: &mut Writer, request: &Request, quirks: &Quirks, losses: &mut Losses) {
    let mut only = None;
    let mut choice = request.tool_choice.clone();
    if let (Some(ToolChoice::Allowed { names, required, .. }), false) = (&choice, quirks.developer)
    {
        only = Some(names.clone());
        choice = Some(if *required { ToolChoice::Required } else { ToolChoice::Auto });
    }
    let allowed = |tool: &&Tool| match (&only, tool) {
        (Some(names), Tool::Function(function)) => names.contains(&function.name),
        (Some(names), Tool::Custom(custom)) => names.contains(&custom.name),
        _ => true,
    };
    let tools: Vec<&Tool> = request.tools.iter().filter(allowed).collect();
    if tools.is_empty() && request.ext.language != LANGUAGE {
        return;
    }
    if !tools.is_empty() {
        out.array_at("tools", |out| {
            for tool in tools {
                write_tool(out, tool, quirks, losses);
            }
        });
    }
    if let Some(choice) = choice {
        if quirks.refuses.iter().any(|name| name == "tool_choice") {
            if choice != ToolChoice::Auto {
                losses.add("tool_choice", "the backend does not take it");
            }
        } else {
            write_choice(out, &choice, request, losses);
        }
    }
    if let Some(parallel) = request.parallel_tools {
        if quirks.refuses.iter().any(|name| name == "parallel_tool_calls") {
            losses.add("parallel_tool_calls", "the backend does not take it");
        } else {
            out.raw_at("parallel_tool_calls", parallel);
        }
    }
}

fn write_tool(out: &mut Writer, tool: &Tool, quirks: &Quirks, losses: &mut Losses) {
    match tool {
        Tool::Function(function) => out.object(|out| {
            out.text_at("type", "function");
            out.object_at("function", |out| {
                out.text_at("name", &function.name);
                out.maybe_text_at("description", function.description.as_deref());
                out.maybe_json_at("parameters", function.parameters.as_ref());
                if !quirks.refuses.iter().any(|name| name == "strict") {
                    out.maybe_raw_at("strict", function.strict);
                } else if function.strict == Some(true) {
                    losses.add("strict", "the backend does not take it");
                }
                write_inner(out, &function.ext, "function");
            });
            match &function.cache {
                Some(cache) if quirks.cache_control => out.json_at("cache_control", cache),
                Some(_) => losses.add("cache_control", "the backend reads no marks for caches"),
                None => {}
            }
            write_outer(out, &function.ext);
        }),
        Tool::Custom(custom) => out.object(|out| {
            out.text_at("type", "custom");
            out.object_at("custom", |out| {
                out.text_at("name", &custom.name);
                out.maybe_text_at("description", custom.description.as_deref());
                let own = custom.ext.language == LANGUAGE;
                match &custom.format {
                    Some(format) if own => out.json_at("format", format),
                    Some(format) => write_format(out, format),
                    None => {}
                }
                write_inner(out, &custom.ext, "custom");
            });
            write_outer(out, &custom.ext);
        }),
        Tool::Vendor(vendor) if vendor.language == LANGUAGE => out.raw(vendor.json.as_str()),
        Tool::Vendor(vendor) => {
            losses.add(&vendor.path, "the backend's language has no such tool");
        }
    }
}

/// Responses has the grammar's members beside its type, Chat in an object.
fn write_format(out: &mut Writer, format: &Json) {
    let Some(mut from) = format.object().filter(|o| o.text("type").as_deref() == Some("grammar"))
    else {
        return out.json_at("format", format);
    };
    from.take("type");
    out.object_at("format", |out| {
        out.text_at("type", "grammar");
        out.object_at("grammar", |out| out.members(&from.rest()));
    });
}

fn write_choice(out: &mut Writer, choice: &ToolChoice, request: &Request, losses: &mut Losses) {
    match choice {
        ToolChoice::Auto => out.text_at("tool_choice", "auto"),
        ToolChoice::None => out.text_at("tool_choice", "none"),
        ToolChoice::Required => out.text_at("tool_choice", "required"),
        ToolChoice::Named { name, kind } => {
            out.name("tool_choice");
            named(out, name, *kind);
        }
        ToolChoice::Allowed { names, required, .. } => out.object_at("tool_choice", |out| {
            out.text_at("type", "allowed_tools");
            out.object_at("allowed_tools", |out| {
                out.text_at("mode", if *required { "required" } else { "auto" });
                out.array_at("tools", |out| {
                    for name in names {
                        named(out, name, kind_of(name, request));
                    }
                });
            });
        }),
        ToolChoice::Other { language: LANGUAGE, json } => out.json_at("tool_choice", json),
        ToolChoice::Other { .. } => {
            losses.add("tool_choice", "the backend's language has no such choice");
        }
    }
}

fn kind_of(name: &str, request: &Request) -> ToolKind {
    let custom = |tool: &Tool| matches!(tool, Tool::Custom(custom) if custom.name == name);
    if request.tools.iter().any(custom) { ToolKind::Custom } else { ToolKind::Function }
}

fn named(out: &mut Writer, name: &str, kind: ToolKind) {
    let kind = match kind {
        ToolKind::Function => "function",
        ToolKind::Custom => "custom",
    };
    out.object(|out| {
        out.text_at("type", kind);
        out.object_at(kind, |out| out.text_at("name", name));
    });
}
