//! A client's request to the hub.

use serde_json::value::RawValue;

use super::{echo, items::Input, node::Node, tools, traits::NAME};
use crate::dialect::hub::{
    Extension, Json, Object, Refused, Request,
    request::{ClientWishes, Format, Reasoning, Sampling, SystemText, Tool, ToolChoice},
};

/// Members that the hub has in other words; the client's words are kept, and written again as long
/// as they still say the same.
pub(super) const KEPT: [&str; 6] =
    ["text", "tool_choice", "reasoning", "include", "stop", "top_logprobs"];

/// Words of `include`.
pub(super) const ENCRYPTED: &str = "reasoning.encrypted_content";
pub(super) const LOGPROBS: &str = "message.output_text.logprobs";

/// Reads a request.
///
/// # Errors
/// If it is no JSON object, or a member is of the wrong type.
pub(super) fn request(body: &str) -> Result<Request, Refused> {
    let Ok(object) = Object::parse(body) else {
        return Err(Refused::invalid("", "The body must be a JSON object"));
    };
    let mut client = ClientWishes { echo: echo::of(&object), ..ClientWishes::default() };
    let mut node = Node::of(object, String::new());
    let mut form = keep(&node);
    let input = input(&mut node, &mut form)?;
    let (include, logprobs) = include(&mut node)?;
    client.encrypted_reasoning = include;
    let text = text(&mut node)?;
    let mut request = Request {
        model: node.text("model")?,
        stream: flag(&mut node, "stream", &mut form)?,
        system: instructions(&mut node)?,
        turns: input.turns,
        tools: Vec::new(),
        tool_choice: node.take("tool_choice").map(tools::read_choice).transpose()?,
        parallel_tools: node.flag("parallel_tool_calls")?,
        format: text.0,
        reasoning: reasoning(&mut node)?,
        verbosity: text.1,
        max_output: node.count("max_output_tokens")?,
        stop: stop(&mut node)?,
        sampling: sampling(&mut node)?,
        logprobs,
        metadata: node.json("metadata"),
        user: user(&mut node, &mut form)?,
        cache_key: node.text("prompt_cache_key")?,
        service_tier: node.text("service_tier")?,
        store: node.flag("store")?,
        stateful: stateful(&node)?,
        client,
        ..Request::default()
    };
    request.system.extend(input.system);
    request.stateful.extend(input.stateful);
    request.tools = all_tools(&mut node, input.tools, &mut form)?;
    request.ext = Extension::new(NAME, node.rest());
    request.ext.members.extend(form);
    Ok(request)
}

/// The client's words for what the hub has in other words.
fn keep(node: &Node<'_>) -> Vec<(String, Json)> {
    let kept = |name: &&str| Some((format!("@{name}"), Json::of(node.get(name)?)));
    KEPT.iter().filter_map(kept).collect()
}

fn input(node: &mut Node<'_>, form: &mut Vec<(String, Json)>) -> Result<Input, Refused> {
    let Some(raw) = node.take("input") else { return Ok(Input::default()) };
    let kind = if raw.get().starts_with('"') { "string" } else { "list" };
    form.push(("@input".to_owned(), Json::text(kind)));
    Input::read(raw)
}

/// A flag that is the same when it is absent.
fn flag(node: &mut Node<'_>, name: &str, form: &mut Vec<(String, Json)>) -> Result<bool, Refused> {
    let said = node.flag(name)?;
    if said == Some(false) {
        form.push((format!("@{name}"), Json::written(|out| out.raw("false"))));
    }
    Ok(said == Some(true))
}

fn instructions(node: &mut Node<'_>) -> Result<Vec<SystemText>, Refused> {
    let text = node.text("instructions")?;
    let system = |text| SystemText {
        text,
        origin: "instructions",
        ext: Extension::new(NAME, Vec::new()),
        ..SystemText::default()
    };
    Ok(text.map(system).into_iter().collect())
}

/// What the answer has beside itself: state of reasoning, and log probabilities.
fn include(node: &mut Node<'_>) -> Result<(bool, Option<u64>), Refused> {
    let list = node.list("include")?.unwrap_or_default();
    let has = |word: &str| list.iter().any(|raw| raw.get().trim_matches('"') == word);
    let top = node.count("top_logprobs")?;
    let logprobs = if has(LOGPROBS) { Some(top.unwrap_or(0)) } else { top.filter(|n| *n > 0) };
    Ok((has(ENCRYPTED), logprobs))
}

fn text(node: &mut Node<'_>) -> Result<(Option<Format>, Option<String>), Refused> {
    let Some(mut text) = node.node("text")? else { return Ok((None, None)) };
    let verbosity = text.text("verbosity")?;
    let Some(raw) = text.take("format") else { return Ok((None, verbosity)) };
    Ok((Some(format(raw)?), verbosity))
}

fn format(raw: &RawValue) -> Result<Format, Refused> {
    let mut node = Node::new(raw, "text.format".to_owned())?;
    Ok(match node.required("type")?.as_str() {
        "text" => Format::Text,
        "json_object" => Format::JsonObject,
        "json_schema" => {
            let Some(schema) = node.json("schema") else {
                return Err(Refused::invalid("text.format.schema", "is required"));
            };
            Format::Schema {
                name: node.text("name")?,
                description: node.text("description")?,
                schema,
                strict: node.flag("strict")?,
            }
        }
        _ => Format::Other { language: NAME, json: Json::of(raw) },
    })
}

fn reasoning(node: &mut Node<'_>) -> Result<Reasoning, Refused> {
    let Some(mut inner) = node.node("reasoning")? else { return Ok(Reasoning::default()) };
    let effort = inner.text("effort")?;
    // `generate_summary` is the older name.
    let show = match inner.text("summary")? {
        None => inner.peek("generate_summary"),
        show => show,
    };
    let ext = Extension::new(NAME, inner.rest());
    Ok(Reasoning { effort, show, ext, ..Reasoning::default() })
}

/// Texts that end the answer, which open servers take.
fn stop(node: &mut Node<'_>) -> Result<Vec<String>, Refused> {
    let Some(raw) = node.take("stop") else { return Ok(Vec::new()) };
    let one = serde_json::from_str::<String>(raw.get()).map(|text| vec![text]);
    one.or_else(|_| serde_json::from_str(raw.get()))
        .map_err(|_| Refused::invalid("stop", "must be a string or a list of strings"))
}

fn sampling(node: &mut Node<'_>) -> Result<Sampling, Refused> {
    let bias = node.json("logit_bias");
    if bias.as_ref().is_some_and(|bias| !bias.is_object()) {
        return Err(Refused::invalid("logit_bias", "must be an object"));
    }
    Ok(Sampling {
        temperature: node.number("temperature")?,
        top_p: node.number("top_p")?,
        top_k: node.number("top_k")?,
        frequency_penalty: node.number("frequency_penalty")?,
        presence_penalty: node.number("presence_penalty")?,
        seed: node.number("seed")?,
        logit_bias: bias,
    })
}

/// `safety_identifier`, or else `user`.
fn user(node: &mut Node<'_>, form: &mut Vec<(String, Json)>) -> Result<Option<String>, Refused> {
    if let Some(user) = node.text("safety_identifier")? {
        return Ok(Some(user));
    }
    let user = node.text("user")?;
    if user.is_some() {
        form.push(("@user".to_owned(), Json::text("user")));
    }
    Ok(user)
}

/// Members that refer to what the vendor keeps. They stay, for a backend that keeps it.
fn stateful(node: &Node<'_>) -> Result<Vec<String>, Refused> {
    let mut paths = Vec::new();
    for name in ["previous_response_id", "conversation", "prompt"] {
        if node.has(name) {
            paths.push(name.to_owned());
        }
    }
    match node.get("background").map(RawValue::get) {
        Some("true") => paths.push("background".to_owned()),
        None | Some("false") => {}
        Some(_) => return Err(Refused::invalid("background", "must be true or false")),
    }
    Ok(paths)
}

/// The request's tools, and those that items add, unless they are the same.
fn all_tools(
    node: &mut Node<'_>,
    mut added: Vec<Tool>,
    form: &mut Vec<(String, Json)>,
) -> Result<Vec<Tool>, Refused> {
    let list = node.list("tools")?;
    if list.as_ref().is_some_and(Vec::is_empty) {
        form.push(("@tools".to_owned(), Json::written(|out| out.array(|_| {}))));
    }
    let mut all = tools::read(list.unwrap_or_default(), "tools")?;
    // Tools of the vendor that items add have no place of their own.
    added.retain(|tool| {
        let known = all.iter().any(|other| tools::name(other) == tools::name(tool));
        !known && !matches!(tool, Tool::Vendor(_))
    });
    tools::mark_added(&mut added);
    all.extend(added);
    Ok(all)
}

/// The client's words for a member, if they still say what the request does.
pub(super) fn still_said(request: &Request, name: &str) -> Option<Json> {
    let kept = request.ext.of(NAME).iter().find(|(key, _)| key.strip_prefix('@') == Some(name));
    let (_, json) = kept?;
    let body = Json::written(|out| out.object(|o| o.json_at(name, json)));
    let mut node = Node::of(body.object()?, String::new());
    let same = match name {
        "text" => text(&mut node).ok()? == (request.format.clone(), request.verbosity.clone()),
        "reasoning" => reasoning(&mut node).ok()? == request.reasoning,
        "stop" => stop(&mut node).ok()? == request.stop,
        "tool_choice" => {
            let choice: Option<ToolChoice> =
                node.take("tool_choice").map(tools::read_choice).transpose().ok()?;
            choice == request.tool_choice
        }
        "include" => {
            let said = include(&mut node).ok()?;
            (said.0, said.1.is_some())
                == (request.client.encrypted_reasoning, asks_logprobs(request))
        }
        "top_logprobs" => match node.count("top_logprobs").ok()? {
            Some(0) | None => request.logprobs.unwrap_or(0) == 0,
            top => request.logprobs == top,
        },
        _ => true,
    };
    same.then(|| json.clone())
}

/// The answer's logarithms of probabilities are asked for by `include`, not only by their number.
fn asks_logprobs(request: &Request) -> bool {
    let said = |raw: &Json| raw.as_str().contains(LOGPROBS);
    let kept = request.ext.of(NAME).iter().find(|(name, _)| name == "@include");
    request.logprobs.is_some() && kept.is_none_or(|(_, raw)| said(raw))
}
