//! Reads a client's request.

use serde_json::value::RawValue;

use super::{
    LANGUAGE,
    fields::{Content, Fields},
    read_blocks, read_tools,
};
use crate::dialect::hub::{
    Extension, Json, Part, Refused, Request, Role, Turn,
    request::{Format, ReasoningMode, SystemText, Text},
};

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Answer,
    /// A count of its tokens, for which no limit has to be said.
    Count,
}

/// Reads a request.
///
/// # Errors
/// If a member is missing or of the wrong type.
pub fn request(body: &str, purpose: Purpose) -> Result<Request, Refused> {
    let mut fields = Fields::of_body(body)?;
    let mut request = Request {
        model: fields.text("model")?,
        stream: fields.flag("stream", Some(false))?.unwrap_or_default(),
        service_tier: fields.text("service_tier")?,
        ..Request::default()
    };
    limit(&mut fields, &mut request, purpose)?;
    system(&mut fields, &mut request)?;
    messages(&mut fields, &mut request)?;
    read_tools::tools(&mut fields, &mut request)?;
    read_tools::choice(&mut fields, &mut request)?;
    stop(&mut fields, &mut request)?;
    request.sampling.temperature = fields.number("temperature")?;
    request.sampling.top_p = fields.number("top_p")?;
    request.sampling.top_k = fields.number("top_k")?;
    thinking(&mut fields, &mut request)?;
    output_config(&mut fields, &mut request)?;
    metadata(&mut fields, &mut request)?;
    stateful(&fields, &mut request);
    // What is left of objects whose other members have words in the hub.
    let of_objects = std::mem::take(&mut request.ext.members);
    request.ext = fields.rest();
    request.ext.members.extend(of_objects);
    Ok(request)
}

fn limit(fields: &mut Fields<'_>, request: &mut Request, purpose: Purpose) -> Result<(), Refused> {
    request.max_output = fields.count("max_tokens")?;
    match request.max_output {
        None if purpose == Purpose::Answer => Err(fields.missing("max_tokens")),
        Some(0) if purpose == Purpose::Answer => Err(Refused::new(
            "max_tokens",
            "0 asks for no answer, only for a warm cache, which cannot be had from this backend",
        )),
        _ => Ok(()),
    }
}

fn system(fields: &mut Fields<'_>, request: &mut Request) -> Result<(), Refused> {
    match fields.content("system")? {
        None => {}
        Some(Content::Text(text)) => {
            request.system.push(SystemText { text, origin: "system", ..SystemText::default() });
        }
        Some(Content::List(list)) => {
            if list.is_empty() {
                fields.says("system", "[]");
            }
            for (path, raw) in list {
                let mut block = Fields::new(raw, path)?;
                let kind = block.needed("type")?;
                if kind != "text" {
                    let why = format!("`{kind}` cannot stand here, only `text`");
                    return Err(Refused::invalid(block.at("type"), why));
                }
                request.system.push(SystemText {
                    text: block.needed("text")?,
                    origin: "system",
                    cache: block.json("cache_control"),
                    ext: block.rest(),
                });
            }
        }
    }
    Ok(())
}

fn messages(fields: &mut Fields<'_>, request: &mut Request) -> Result<(), Refused> {
    let list = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    request.turns.reserve(list.len());
    for (path, raw) in list {
        let turn = turn(path, raw)?;
        if turn.role == Role::System && request.turns.is_empty() && all_text(&turn) {
            request.system.extend(turn.parts.into_iter().filter_map(system_text));
        } else {
            request.turns.push(turn);
        }
    }
    Ok(())
}

fn turn(path: String, raw: &RawValue) -> Result<Turn, Refused> {
    let mut message = Fields::new(raw, path)?;
    let role = match message.needed("role")?.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        other => {
            let why = format!("`{other}` is no role: `user`, `assistant`, `system`");
            return Err(Refused::invalid(message.at("role"), why));
        }
    };
    let content = message.content("content")?.ok_or_else(|| message.missing("content"))?;
    let parts = match content {
        Content::Text(text) => vec![Part::Text(Text::plain(text))],
        Content::List(list) => list
            .into_iter()
            .map(|(path, raw)| read_blocks::block(path, raw))
            .collect::<Result<_, _>>()?,
    };
    let path = message.path().to_owned();
    Ok(Turn { role, parts, path, ext: message.rest(), ..Turn::default() })
}

fn all_text(turn: &Turn) -> bool {
    turn.parts.iter().all(|part| matches!(part, Part::Text(_)))
}

fn system_text(part: Part) -> Option<SystemText> {
    let Part::Text(text) = part else { return None };
    Some(SystemText { text: text.text, origin: "system", cache: text.cache, ext: text.ext })
}

fn stop(fields: &mut Fields<'_>, request: &mut Request) -> Result<(), Refused> {
    let Some(list) = fields.list("stop_sequences")? else { return Ok(()) };
    if list.is_empty() {
        fields.says("stop_sequences", "[]");
    }
    for (path, raw) in list {
        match serde_json::from_str(raw.get()) {
            Ok(text) => request.stop.push(text),
            Err(_) => return Err(Refused::invalid(path, "must be a string")),
        }
    }
    Ok(())
}

fn thinking(fields: &mut Fields<'_>, request: &mut Request) -> Result<(), Refused> {
    let Some(mut thinking) = fields.fields("thinking")? else { return Ok(()) };
    let reasoning = &mut request.reasoning;
    let kind = thinking.needed("type")?;
    reasoning.budget = thinking.count("budget_tokens")?;
    reasoning.show = thinking.text("display")?;
    reasoning.ext = thinking.rest();
    reasoning.mode = match kind.as_str() {
        "enabled" => Some(ReasoningMode::On),
        "adaptive" => Some(ReasoningMode::Auto),
        "disabled" => Some(ReasoningMode::Off),
        // `between_tools`, and words that are newer than this.
        other => {
            reasoning.ext.members.push(("type".to_owned(), Json::text(other)));
            (other == "between_tools").then_some(ReasoningMode::Auto)
        }
    };
    Ok(())
}

fn output_config(fields: &mut Fields<'_>, request: &mut Request) -> Result<(), Refused> {
    if let Some(mut config) = fields.fields("output_config")? {
        request.reasoning.effort = config.text("effort")?;
        if let Some(format) = config.fields("format")? {
            request.format = Some(self::format(format)?);
        }
        let empty = request.reasoning.effort.is_none() && request.format.is_none();
        match config.leftover() {
            Some(rest) => request.ext.members.push(("output_config".to_owned(), rest)),
            None if empty => fields.says("output_config", "{}"),
            None => {}
        }
    }
    // Its name and place while it was a beta.
    if let Some(format) = fields.fields("output_format")? {
        request.format.get_or_insert(self::format(format)?);
    }
    Ok(())
}

fn format(mut format: Fields<'_>) -> Result<Format, Refused> {
    let kind = format.needed("type")?;
    if kind == "json_schema" {
        let schema = format.object("schema")?.ok_or_else(|| format.missing("schema"))?;
        let name = format.text("name")?;
        let description = format.text("description")?;
        let strict = format.flag("strict", None)?;
        return Ok(Format::Schema { name, description, schema, strict });
    }
    let mut members = format.rest().members;
    members.insert(0, ("type".to_owned(), Json::text(&kind)));
    let json = Json::written(|out| out.object(|o| o.members(&members)));
    Ok(Format::Other { language: LANGUAGE, json })
}

fn metadata(fields: &mut Fields<'_>, request: &mut Request) -> Result<(), Refused> {
    let Some(mut metadata) = fields.fields("metadata")? else { return Ok(()) };
    request.user = metadata.text("user_id")?;
    match metadata.leftover() {
        Some(rest) => request.ext.members.push(("metadata".to_owned(), rest)),
        None if request.user.is_none() => fields.says("metadata", "{}"),
        None => {}
    }
    Ok(())
}

/// Members that mean something that only the vendor has. They stay in the extension as well.
fn stateful(fields: &Fields<'_>, request: &mut Request) {
    for name in ["container", "mcp_servers", "thread"] {
        if fields.holds(name) {
            request.stateful.push(name.to_owned());
        }
    }
}

/// Whether a node was read from Messages.
pub fn is_ours(ext: &Extension) -> bool {
    ext.language == LANGUAGE
}
