//! Tools: what the backend's language has no kind of tool for becomes a function or is dropped, and
//! names that it would refuse are changed, in the tools, the choice and the history alike.

use std::collections::{HashMap, HashSet};

use crate::dialect::hub::{
    codec::{RenamedTool, Undo},
    json::Json,
    loss::{Losses, Refused},
    request::{CustomTool, Function, Part, Request, Tool, ToolChoice, ToolKind},
    target::{Target, Traits},
    tool_names,
};

/// Tools whose format only models of their vendor know: another one could not use them.
const UNTRANSLATABLE: [&str; 3] = ["local_shell", "shell", "apply_patch"];

/// Brings tools, the choice among them, and calls and results into the backend's shape.
pub fn prepare(
    request: &mut Request,
    to: &Traits,
    target: &Target,
    losses: &mut Losses,
) -> Result<Undo, Refused> {
    drop_vendor_tools(request, to, losses)?;
    if target.facts.tools == Some(false) && !request.tools.is_empty() {
        if is_forced(request.tool_choice.as_ref()) {
            return Err(Refused::new("tool_choice", "the model cannot call tools"));
        }
        request.tools.clear();
        request.tool_choice = None;
        losses.add("tools", "the model cannot call tools");
    }
    choose_among(request, to)?;
    note_groups(request, to, losses);
    let names = Names::of(request, to, target);
    names.apply(request);
    Ok(names.undo())
}

fn is_forced(choice: Option<&ToolChoice>) -> bool {
    match choice {
        Some(ToolChoice::Required | ToolChoice::Named { .. }) => true,
        Some(ToolChoice::Allowed { required, .. }) => *required,
        _ => false,
    }
}

/// Tools that a vendor runs, or that only its models know.
fn drop_vendor_tools(
    request: &mut Request,
    to: &Traits,
    losses: &mut Losses,
) -> Result<(), Refused> {
    let mut dropped = Vec::new();
    let mut refused = None;
    request.tools.retain(|tool| {
        let Tool::Vendor(vendor) = tool else { return true };
        if vendor.language == to.name {
            return true;
        }
        if UNTRANSLATABLE.contains(&vendor.kind.as_str()) {
            let why = "models of other vendors do not know its format";
            refused = Some(Refused::new(vendor.path.clone(), why));
        }
        let name = vendor.name.clone().unwrap_or_else(|| vendor.kind.clone());
        let why = format!("`{}` is run by another vendor", vendor.kind);
        losses.add(format!("{}:{name}", vendor.path), why);
        dropped.push(name);
        false
    });
    if let Some(refused) = refused {
        return Err(refused);
    }
    if dropped.is_empty() {
        return Ok(());
    }
    let named = match &request.tool_choice {
        Some(ToolChoice::Named { name, .. }) => dropped.contains(name),
        // Another choice than of a function is one of such a tool.
        Some(ToolChoice::Other { language, .. }) => *language != to.name,
        choice => request.tools.is_empty() && is_forced(choice.as_ref()),
    };
    if named {
        return Err(Refused::new(
            "tool_choice",
            "the tool that it demands is run by another vendor",
        ));
    }
    if request.tools.is_empty() {
        request.tool_choice = None;
    }
    Ok(())
}

/// A choice among some tools becomes a shorter list of tools.
fn choose_among(request: &mut Request, to: &Traits) -> Result<(), Refused> {
    match request.tool_choice.take() {
        Some(ToolChoice::Allowed { names, required, .. }) => {
            let known: HashSet<&String> = request.tools.iter().filter_map(name_of).collect();
            if let Some(missing) = names.iter().find(|name| !known.contains(name)) {
                let why = format!("the tool `{missing}` is not among those that the backend gets");
                return Err(Refused::new("tool_choice", why));
            }
            let names: HashSet<String> = names.into_iter().collect();
            request.tools.retain(|tool| name_of(tool).is_none_or(|name| names.contains(name)));
            request.tool_choice =
                Some(if required { ToolChoice::Required } else { ToolChoice::Auto });
        }
        Some(ToolChoice::Other { language, .. }) if language != to.name => {
            let why = "the backend's language has no such choice";
            return Err(Refused::new("tool_choice", why));
        }
        other => request.tool_choice = other,
    }
    Ok(())
}

fn name_of(tool: &Tool) -> Option<&String> {
    match tool {
        Tool::Function(function) => Some(&function.name),
        Tool::Custom(custom) => Some(&custom.name),
        Tool::Vendor(vendor) => vendor.name.as_ref(),
    }
}

/// The group of a tool that takes free text: Responses keeps it in a member of its own, as it keeps
/// what else a group says.
fn group_of(custom: &CustomTool) -> Option<String> {
    custom.ext.get("@namespace").and_then(Json::as_text)
}

/// A language without groups of tools has no place for what a group is for.
fn note_groups(request: &Request, to: &Traits, losses: &mut Losses) {
    if to.namespaces {
        return;
    }
    for tool in &request.tools {
        let (path, ext) = match tool {
            Tool::Function(function) => (&function.path, &function.ext),
            Tool::Custom(custom) => (&custom.path, &custom.ext),
            Tool::Vendor(_) => continue,
        };
        let described = |group: &Json| {
            let said = group.object().and_then(|group| group.text("description"));
            said.is_some_and(|text| !text.is_empty())
        };
        if ext.get("@group").is_some_and(described) {
            // `tools[1].tools[0]` stands in the group `tools[1]`.
            let group = path.rsplit_once(".tools[").map_or(path.as_str(), |(group, _)| group);
            let why = "the backend's language has no groups of tools that are described";
            losses.add(format!("{group}.description"), why);
        }
    }
}

/// The names that tools have at the backend.
struct Names<'a> {
    to: &'a Traits,
    custom: bool,
    tools: Vec<RenamedTool>,
    /// Where they stand in the list, by their names and groups.
    known: HashMap<(String, Option<String>), usize>,
    /// The names that are in use at the backend.
    taken: HashSet<String>,
}

impl<'a> Names<'a> {
    /// Of the tools of a request, and of those that only its history knows.
    fn of(request: &Request, to: &'a Traits, target: &Target) -> Self {
        let custom = target.quirks.custom_tools.unwrap_or(to.custom_tools);
        let (known, taken) = (HashMap::new(), HashSet::new());
        let mut names = Self { to, custom, tools: Vec::new(), known, taken };
        for tool in &request.tools {
            match tool {
                Tool::Function(function) => {
                    names.add(&function.name, function.namespace.as_deref(), ToolKind::Function);
                }
                Tool::Custom(tool) => {
                    names.add(&tool.name, group_of(tool).as_deref(), ToolKind::Custom);
                }
                Tool::Vendor(_) => {}
            }
        }
        for part in request.turns.iter().flat_map(|turn| &turn.parts) {
            if let Part::ToolCall(call) = part {
                names.add(&call.name, call.namespace.as_deref(), call.kind);
            }
        }
        names
    }

    fn add(&mut self, name: &str, namespace: Option<&str>, kind: ToolKind) {
        let key = (name.to_owned(), namespace.map(str::to_owned));
        if self.known.contains_key(&key) {
            return;
        }
        let flat = match namespace.filter(|_| !self.to.namespaces) {
            Some(namespace) => format!("{namespace}__{name}"),
            None => name.to_owned(),
        };
        let taken = |name: &str| self.taken.contains(name);
        let mut sent = tool_names::allowed(&flat, self.to.longest_tool_name, taken);
        if taken(&sent) {
            // Two tools of one name in different groups.
            let whole = format!("{}/{flat}", namespace.unwrap_or_default());
            sent = format!("{sent}_{}", tool_names::hash(&whole));
            sent = tool_names::allowed(&sent, self.to.longest_tool_name, |_| false);
        }
        self.known.insert(key, self.tools.len());
        self.taken.insert(sent.clone());
        self.tools.push(RenamedTool {
            sent,
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            custom: kind == ToolKind::Custom && !self.custom,
        });
    }

    fn find(&self, name: &str, namespace: Option<&str>) -> Option<&RenamedTool> {
        let key = (name.to_owned(), namespace.map(str::to_owned));
        self.known.get(&key).map(|at| &self.tools[*at])
    }

    fn sent(&self, name: &str, namespace: Option<&str>) -> String {
        self.find(name, namespace).map_or_else(|| name.to_owned(), |tool| tool.sent.clone())
    }

    fn apply(&self, request: &mut Request) {
        for tool in &mut request.tools {
            match tool {
                Tool::Function(function) => {
                    function.name = self.sent(&function.name, function.namespace.as_deref());
                    if !self.to.namespaces {
                        function.namespace = None;
                    }
                }
                Tool::Custom(custom) => {
                    custom.name = self.sent(&custom.name, group_of(custom).as_deref());
                    if !self.custom {
                        *tool = Tool::Function(as_function(custom));
                    }
                }
                Tool::Vendor(_) => {}
            }
        }
        if let Some(ToolChoice::Named { name, kind }) = &mut request.tool_choice {
            *name = self
                .tools
                .iter()
                .find(|t| t.name == *name)
                .map_or(name.clone(), |t| t.sent.clone());
            if !self.custom {
                *kind = ToolKind::Function;
            }
        }
        for part in request.turns.iter_mut().flat_map(|turn| &mut turn.parts) {
            match part {
                Part::ToolCall(call) => {
                    call.name = self.sent(&call.name, call.namespace.as_deref());
                    if !self.to.namespaces {
                        call.namespace = None;
                    }
                    if call.kind == ToolKind::Custom && !self.custom {
                        call.kind = ToolKind::Function;
                        let input = std::mem::take(&mut call.arguments);
                        call.arguments =
                            Json::written(|out| out.object(|o| o.text_at("input", &input)))
                                .as_str()
                                .to_owned();
                    }
                }
                Part::ToolResult(result) if !self.custom => result.kind = ToolKind::Function,
                _ => {}
            }
        }
    }

    /// Those that are not for the backend what they are for the client.
    fn undo(self) -> Undo {
        let changed =
            |tool: &RenamedTool| tool.custom || tool.sent != tool.name || tool.namespace.is_some();
        Undo { tools: self.tools.into_iter().filter(changed).collect() }
    }
}

/// A tool of free text as a function with one text. A grammar becomes a part of its description:
/// the model can keep to it, though nothing makes it.
fn as_function(custom: &CustomTool) -> Function {
    let grammar = custom.format.as_ref().and_then(|format| {
        let format = format.object()?;
        let inner = format.get("grammar").map_or("{}", |grammar| grammar.get());
        let inner = crate::dialect::hub::json::Object::parse(inner).ok()?;
        format.text("definition").or_else(|| inner.text("definition"))
    });
    let description = custom.description.clone().unwrap_or_default();
    let description = match grammar {
        Some(grammar) => format!("{description}\n\n`input` is text by this grammar:\n{grammar}")
            .trim()
            .to_owned(),
        None => description,
    };
    let parameters = r#"{"type":"object","properties":{"input":{"type":"string"}},"required":["input"],"additionalProperties":false}"#;
    Function {
        name: custom.name.clone(),
        description: (!description.is_empty()).then_some(description),
        parameters: Json::parse(parameters).ok(),
        path: custom.path.clone(),
        ..Function::default()
    }
}
