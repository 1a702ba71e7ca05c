//! Tools, and which of them are to be called, to the hub and back.

use serde_json::value::RawValue;

use super::{node::Node, parts, traits::NAME};
use crate::dialect::hub::{
    Extension, Json, Losses, Object, Refused, Request, Writer,
    request::{CustomTool, Function, Tool, ToolChoice, ToolKind, VendorTool},
};

/// The member of the first tool of a group that has the group's other members.
const GROUP: &str = "@group";

/// The member of a tool that takes free text and is of a group: the group's name.
pub(super) const NAMESPACE: &str = "@namespace";

/// The member of a tool that an item adds.
pub(super) const ADDED: &str = "@added";

/// Reads a list of tools, groups flattened.
///
/// # Errors
/// If a tool is of no type, or has no name where it must have one.
pub(super) fn read(list: Vec<&RawValue>, path: &str) -> Result<Vec<Tool>, Refused> {
    let mut tools = Vec::with_capacity(list.len());
    for (at, raw) in list.into_iter().enumerate() {
        let node = Node::new(raw, format!("{path}[{at}]"))?;
        let Some(kind) = node.peek("type") else {
            return Err(Refused::invalid(node.at("type"), "must be the name of a type of tools"));
        };
        match kind.as_str() {
            "function" => tools.push(Tool::Function(function(node, None)?)),
            "custom" => tools.push(Tool::Custom(custom(node)?)),
            "namespace" => group(raw, node, &mut tools)?,
            _ => tools.push(vendor(raw, kind, node)),
        }
    }
    Ok(tools)
}

fn vendor(raw: &RawValue, kind: String, node: Node<'_>) -> Tool {
    let name = node.peek("name");
    Tool::Vendor(VendorTool { language: NAME, kind, name, json: Json::of(raw), path: node.path })
}

fn function(mut node: Node<'_>, namespace: Option<&str>) -> Result<Function, Refused> {
    node.take("type");
    let parameters = node.json("parameters");
    if parameters.as_ref().is_some_and(|schema| !schema.is_object()) {
        return Err(Refused::invalid(node.at("parameters"), "must be an object"));
    }
    Ok(Function {
        name: node.required("name")?,
        description: node.text("description")?,
        parameters,
        strict: node.flag("strict")?,
        namespace: namespace.map(str::to_owned),
        cache: None,
        path: node.path.clone(),
        ext: Extension::new(NAME, node.rest()),
    })
}

fn custom(mut node: Node<'_>) -> Result<CustomTool, Refused> {
    node.take("type");
    Ok(CustomTool {
        name: node.required("name")?,
        description: node.text("description")?,
        format: node.json("format"),
        path: node.path.clone(),
        ext: Extension::new(NAME, node.rest()),
    })
}

/// Its tools stand for themselves; the first one keeps what the group says.
fn group(raw: &RawValue, mut node: Node<'_>, tools: &mut Vec<Tool>) -> Result<(), Refused> {
    let first = tools.len();
    let name = node.required("name")?;
    let list = node.list("tools")?.unwrap_or_default();
    for (at, raw) in list.iter().enumerate() {
        let inner = Node::new(raw, format!("{}[{at}]", node.at("tools")))?;
        match inner.peek("type").as_deref() {
            Some("custom") => {
                let mut tool = custom(inner)?;
                tool.ext.members.push((NAMESPACE.to_owned(), Json::text(&name)));
                tools.push(Tool::Custom(tool));
            }
            Some("function") => tools.push(Tool::Function(function(inner, Some(&name))?)),
            _ => return Err(Refused::invalid(inner.at("type"), "must be `function` or `custom`")),
        }
    }
    node.take("type");
    if list.is_empty() {
        tools.push(vendor(raw, "namespace".to_owned(), Node::new(raw, node.path.clone())?));
        return Ok(());
    }
    let rest = node.rest();
    let said = Json::written(|out| out.object(|o| o.members(&rest)));
    if let Some(Tool::Function(Function { ext, .. }) | Tool::Custom(CustomTool { ext, .. })) =
        tools.get_mut(first)
    {
        ext.members.push((GROUP.to_owned(), said));
    }
    Ok(())
}

/// Marks tools that an item adds: the item has them when it is written again.
pub(super) fn mark_added(tools: &mut [Tool]) {
    for tool in tools {
        if let Tool::Function(Function { ext, .. }) | Tool::Custom(CustomTool { ext, .. }) = tool {
            ext.members.push((ADDED.to_owned(), Json::written(|out| out.raw("true"))));
        }
    }
}

/// The name of a tool that has one.
pub(super) fn name(tool: &Tool) -> Option<&str> {
    match tool {
        Tool::Function(function) => Some(&function.name),
        Tool::Custom(custom) => Some(&custom.name),
        Tool::Vendor(vendor) => vendor.name.as_deref(),
    }
}

fn namespace(tool: &Tool) -> Option<String> {
    match tool {
        Tool::Function(function) => function.namespace.clone(),
        Tool::Custom(custom) => custom.ext.get(NAMESPACE).and_then(Json::as_text),
        Tool::Vendor(_) => None,
    }
}

fn ext(tool: &Tool) -> Option<&Extension> {
    match tool {
        Tool::Function(function) => Some(&function.ext),
        Tool::Custom(custom) => Some(&custom.ext),
        Tool::Vendor(_) => None,
    }
}

/// The tools that stand in the request itself.
pub(super) fn listed(request: &Request) -> Vec<&Tool> {
    let added = |tool: &&Tool| {
        ext(tool).is_some_and(|ext| !ext.of(NAME).is_empty() && ext.get(ADDED).is_some())
    };
    request.tools.iter().filter(|tool| !added(tool)).collect()
}

/// Writes a list of tools, with their groups.
pub(super) fn write(tools: &[&Tool], losses: &mut Losses, out: &mut Writer) {
    out.array(|list| {
        let mut at = 0;
        while let Some(first) = tools.get(at) {
            let Some(name) = namespace(first) else {
                write_tool(first, losses, list);
                at += 1;
                continue;
            };
            let group = ext(first).and_then(|ext| ext.get(GROUP));
            let more = tools[at + 1..].iter().take_while(|tool| {
                namespace(tool).as_ref() == Some(&name)
                    && ext(tool).is_none_or(|ext| ext.get(GROUP).is_none())
            });
            let many = 1 + more.count();
            list.object(|o| {
                o.text_at("type", "namespace");
                o.text_at("name", &name);
                let said = group.and_then(Json::object);
                match said {
                    Some(said) => said.members().for_each(|(name, value)| {
                        o.name(name).raw(value.get());
                    }),
                    None => o.text_at("description", &name),
                }
                o.array_at("tools", |inner| {
                    tools[at..at + many].iter().for_each(|tool| write_tool(tool, losses, inner));
                });
            });
            at += many;
        }
    });
}

fn write_tool(tool: &Tool, losses: &mut Losses, out: &mut Writer) {
    match tool {
        Tool::Function(function) => {
            if function.cache.is_some() {
                losses.add(function.path.as_str(), "tools have no mark for caches");
            }
            out.object(|o| write_function(function, o));
        }
        Tool::Custom(custom) => out.object(|o| {
            o.text_at("type", "custom");
            o.text_at("name", &custom.name);
            o.maybe_text_at("description", custom.description.as_deref());
            o.maybe_json_at("format", custom.format.as_ref().map(flat).as_ref());
            parts::members(&custom.ext, o);
        }),
        Tool::Vendor(vendor) if vendor.language == NAME => out.raw(vendor.json.as_str()),
        Tool::Vendor(vendor) => {
            losses.add(vendor.path.as_str(), "the backend does not have this tool");
        }
    }
}

fn write_function(function: &Function, out: &mut Writer) {
    let own = function.ext.language == NAME;
    out.text_at("type", "function");
    out.text_at("name", &function.name);
    out.maybe_text_at("description", function.description.as_deref());
    match &function.parameters {
        Some(parameters) => out.json_at("parameters", parameters),
        None if own => {}
        None => out.raw_at("parameters", r#"{"type":"object","properties":{}}"#),
    }
    // Where it is absent, Responses makes schemas strict, which other languages do not.
    out.maybe_raw_at("strict", function.strict.or((!own).then_some(false)));
    parts::members(&function.ext, out);
}

/// The form of a free text: Chat has a grammar in an object of its own.
fn flat(format: &Json) -> Json {
    let grammar = || {
        let object = format.object()?;
        let grammar = Object::parse(object.get("grammar")?.get()).ok()?;
        Some(Json::written(|out| {
            out.object(|o| {
                o.text_at("type", "grammar");
                grammar.members().for_each(|(name, value)| o.name(name).raw(value.get()));
            });
        }))
    };
    grammar().unwrap_or_else(|| format.clone())
}

/// Reads which tools are to be called.
///
/// # Errors
/// If it is neither a known word nor an object with a type.
pub(super) fn read_choice(raw: &RawValue) -> Result<ToolChoice, Refused> {
    if let Ok(word) = serde_json::from_str::<String>(raw.get()) {
        return match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            _ => {
                let why = "must be `auto`, `none`, `required` or an object";
                Err(Refused::invalid("tool_choice", why))
            }
        };
    }
    let mut node = Node::new(raw, "tool_choice".to_owned())?;
    let named =
        |kind, mut node: Node<'_>| Ok(ToolChoice::Named { name: node.required("name")?, kind });
    match node.required("type")?.as_str() {
        "function" => named(ToolKind::Function, node),
        "custom" => named(ToolKind::Custom, node),
        "allowed_tools" => {
            let required = node.text("mode")?.as_deref() == Some("required");
            let tools = node.list("tools")?.unwrap_or_default();
            let name = |raw: &RawValue| Object::parse(raw.get()).ok()?.text("name");
            let names = tools.into_iter().filter_map(name).collect();
            Ok(ToolChoice::Allowed { names, required, json: Json::of(raw) })
        }
        _ => Ok(ToolChoice::Other { language: NAME, json: Json::of(raw) }),
    }
}

/// Writes which tools are to be called; `None`: another language's words.
pub(super) fn choice(choice: &ToolChoice, tools: &[Tool]) -> Option<Json> {
    let kind_of = |wanted: &str| {
        let custom = |tool: &Tool| matches!(tool, Tool::Custom(custom) if custom.name == wanted);
        if tools.iter().any(custom) { "custom" } else { "function" }
    };
    Some(match choice {
        ToolChoice::Auto => Json::text("auto"),
        ToolChoice::None => Json::text("none"),
        ToolChoice::Required => Json::text("required"),
        ToolChoice::Named { name, kind } => Json::written(|out| {
            let kind = if *kind == ToolKind::Custom { "custom" } else { "function" };
            out.object(|o| {
                o.text_at("type", kind);
                o.text_at("name", name);
            });
        }),
        ToolChoice::Allowed { json, .. } if json.object().is_some_and(|o| o.has("mode")) => {
            json.clone()
        }
        ToolChoice::Allowed { names, required, .. } => Json::written(|out| {
            out.object(|o| {
                o.text_at("type", "allowed_tools");
                o.text_at("mode", if *required { "required" } else { "auto" });
                o.array_at("tools", |list| {
                    for name in names {
                        list.object(|tool| {
                            tool.text_at("type", kind_of(name));
                            tool.text_at("name", name);
                        });
                    }
                });
            });
        }),
        ToolChoice::Other { language, json } if *language == NAME => json.clone(),
        ToolChoice::Other { .. } => return None,
    })
}
