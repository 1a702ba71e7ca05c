//! Writes a request for a backend.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::{members, tools, words::LANGUAGE, write_messages::Messages};
use crate::dialect::hub::{
    Json, Losses, Object, Part, Refused, Request, Role, Target, Writer, effort, request::Format,
};

/// Longest name of a user that OpenAI takes, in characters.
const LONGEST_USER: usize = 64;

/// Most texts that end an answer, at OpenAI.
const MOST_STOPS: usize = 4;

/// Writes a request.
///
/// # Errors
/// If something cannot be said to a backend of this kind, or nothing may be lost and something is.
pub fn request(request: &Request, target: &Target, losses: &mut Losses) -> Result<String, Refused> {
    let mut out = Writer::default();
    let mut result = Ok(());
    out.object(|out| {
        let native = request.ext.language == LANGUAGE;
        let mut top = Top { out, request, target, losses, native };
        result = top.write();
    });
    result?;
    if let (true, Some(refused)) = (target.strict, losses.refusal()) {
        return Err(refused);
    }
    Ok(out.finish())
}

/// Writes the members of the request itself.
struct Top<'a> {
    out: &'a mut Writer,
    request: &'a Request,
    target: &'a Target,
    losses: &'a mut Losses,
    /// The request came in this language.
    native: bool,
}

impl Top<'_> {
    fn write(&mut self) -> Result<(), Refused> {
        let request = self.request;
        self.out.maybe_text_at("model", self.target.model.as_deref().or(request.model.as_deref()));
        let mut result = Ok(());
        self.out.array_at("messages", |out| {
            result = Messages::new(request, self.target).write(out, self.losses);
        });
        result?;
        if !request.tools.is_empty() {
            self.must("tools")?;
        }
        tools::write(self.out, request, &self.target.quirks, self.losses);
        self.format()?;
        self.effort();
        self.limits()?;
        self.sampling();
        self.hints();
        self.continuation()?;
        self.stream();
        self.rest();
        Ok(())
    }

    fn refuses(&self, name: &str) -> bool {
        self.target.quirks.refuses.iter().any(|refused| refused == name)
    }

    /// It may be written; if not, the loss is noted.
    fn may(&mut self, name: &str) -> bool {
        let may = !self.refuses(name);
        if !may {
            self.losses.add(name, "the backend does not take it");
        }
        may
    }

    /// It may be written.
    ///
    /// # Errors
    /// If not: the answer would not be what the client waits for.
    fn must(&self, name: &str) -> Result<(), Refused> {
        if self.refuses(name) {
            return Err(Refused::new(name, "The backend does not take it"));
        }
        Ok(())
    }

    fn number(&mut self, name: &'static str, value: Option<&Json>) {
        if let Some(value) = value
            && self.may(name)
        {
            self.out.json_at(name, value);
        }
    }

    fn text(&mut self, name: &'static str, value: Option<&str>) {
        if let Some(value) = value
            && self.may(name)
        {
            self.out.text_at(name, value);
        }
    }

    fn format(&mut self) -> Result<(), Refused> {
        const NAME: &str = "response_format";
        let Some(format) = &self.request.format else { return Ok(()) };
        match format {
            Format::Text if !self.native => return Ok(()),
            Format::Text if self.refuses(NAME) => return Ok(()),
            _ => self.must(NAME)?,
        }
        match format {
            Format::Text => self.out.object_at(NAME, |out| out.text_at("type", "text")),
            Format::JsonObject => {
                self.out.object_at(NAME, |out| out.text_at("type", "json_object"));
            }
            Format::Schema { name, description, schema, strict } => {
                // Messages has no such word: there, each answer is as its schema says.
                let made = self.request.ext.language == "messages" && strict.is_none();
                let strict = strict.or_else(|| made.then(|| is_closed(schema)));
                self.out.object_at(NAME, |out| {
                    out.text_at("type", "json_schema");
                    out.object_at("json_schema", |out| {
                        out.text_at("name", name.as_deref().unwrap_or("output"));
                        out.maybe_text_at("description", description.as_deref());
                        out.json_at("schema", schema);
                        out.maybe_raw_at("strict", strict);
                        let inner = "response_format.json_schema";
                        members::write_inner(out, &self.request.ext, inner);
                    });
                });
            }
            Format::Other { language: LANGUAGE, json } => self.out.json_at(NAME, json),
            Format::Other { .. } => {
                return Err(Refused::new(NAME, "The backend's language has no such format"));
            }
        }
        Ok(())
    }

    /// The word for how much the model may reason: the client's, or what its budget amounts to.
    fn effort(&mut self) {
        let (wanted, unsaid) = self.target.effort_of(&self.request.reasoning);
        if unsaid {
            self.losses.add(switch(self.request), "the model may have no word for it");
        }
        let Some(wanted) = wanted else { return };
        let word = effort::nearest(wanted, &self.target.facts.efforts).unwrap_or(wanted);
        if word != wanted {
            self.losses.add("reasoning_effort", format!("the model takes {word} at most"));
        }
        self.text("reasoning_effort", Some(word));
    }

    fn limits(&mut self) -> Result<(), Refused> {
        if let Some(limit) = self.request.max_output {
            let newer = self.target.quirks.max_completion_tokens;
            self.out.raw_at(if newer { "max_completion_tokens" } else { "max_tokens" }, limit);
        }
        let mut stop: Vec<&str> = self.request.stop.iter().map(String::as_str).collect();
        if !self.native && self.target.quirks.developer && stop.len() > MOST_STOPS {
            stop.truncate(MOST_STOPS);
            self.losses.add("stop", "the backend takes four texts at most");
        }
        if !stop.is_empty() && self.may("stop") {
            match self.default("stop").cloned() {
                Some(text) => self.out.json_at("stop", &text),
                None => self.out.array_at("stop", |out| stop.iter().for_each(|t| out.text(t))),
            }
        }
        if let Some(choices) = self.request.choices {
            if choices > 1 {
                self.must("n")?;
            }
            if !self.refuses("n") {
                self.out.raw_at("n", choices);
            }
        }
        if let Some(alternatives) = self.request.logprobs {
            self.must("logprobs")?;
            self.out.raw_at("logprobs", true);
            if alternatives > 0 {
                self.out.raw_at("top_logprobs", alternatives);
            }
        }
        if !self.request.modalities.is_empty() {
            self.must("modalities")?;
            self.out.array_at("modalities", |out| {
                out.text("text");
                self.request.modalities.iter().for_each(|form| out.text(form));
            });
        }
        Ok(())
    }

    fn sampling(&mut self) {
        let sampling = &self.request.sampling;
        self.number("temperature", sampling.temperature.as_ref());
        self.number("top_p", sampling.top_p.as_ref());
        self.number("frequency_penalty", sampling.frequency_penalty.as_ref());
        self.number("presence_penalty", sampling.presence_penalty.as_ref());
        self.number("seed", sampling.seed.as_ref());
        self.number("logit_bias", sampling.logit_bias.as_ref());
        // Only engines know it.
        if sampling.top_k.is_some() && self.target.quirks.developer && !self.native {
            self.losses.add("top_k", "the backend has no such field");
        } else {
            self.number("top_k", sampling.top_k.as_ref());
        }
    }

    /// What does not change the answer. Words that only OpenAI has go to others only if the client
    /// has sent them in this language.
    fn hints(&mut self) {
        let request = self.request;
        let all = self.native || self.target.quirks.developer;
        let user = request.user.as_deref().map(|user| self.user(user));
        let newer = self.target.quirks.developer && self.default("user").is_none();
        self.text(if newer { "safety_identifier" } else { "user" }, user.as_deref());
        if all {
            self.text("verbosity", request.verbosity.as_deref());
            self.number("metadata", request.metadata.as_ref());
            self.text("prompt_cache_key", request.cache_key.as_deref());
            if let (Some(store), true) = (request.store, !self.refuses("store")) {
                self.out.raw_at("store", store);
            }
        } else {
            // The cache's key is for the choice of a backend, and nothing is stored there.
            for (name, given) in [
                ("verbosity", request.verbosity.is_some()),
                ("metadata", request.metadata.is_some()),
                ("store", request.store == Some(true)),
            ] {
                if given {
                    self.losses.add(name, "the backend has no such field");
                }
            }
        }
        let Some(tier) = request.service_tier.as_deref() else { return };
        let known = ["auto", "default", "flex", "priority", "scale"].contains(&tier);
        if self.native || (all && known) {
            self.text("service_tier", Some(tier));
        } else if tier != "auto" && tier != "default" {
            self.losses.add("service_tier", "the backend has no such tier");
        }
    }

    /// Another language's user may be longer than OpenAI takes: its hash stands for it.
    fn user(&self, user: &str) -> String {
        if self.native || !self.target.quirks.developer || user.chars().count() <= LONGEST_USER {
            return user.to_owned();
        }
        let digest = Sha256::digest(user.as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// An answer whose beginning stands last is continued where the backend is told so; a client of
    /// this language says so by itself.
    fn continuation(&mut self) -> Result<(), Refused> {
        let Some(last) = self.request.turns.last().filter(|turn| turn.role == Role::Assistant)
        else {
            return Ok(());
        };
        let called = last.parts.iter().any(|part| matches!(part, Part::ToolCall(_)));
        let begun = last.parts.iter().any(|part| matches!(part, Part::Text(_)));
        if self.native || called || !begun {
            return Ok(());
        }
        if !self.target.quirks.continues {
            let why = "The backend cannot continue an answer that has begun";
            return Err(Refused::new(last.path.clone(), why));
        }
        self.out.raw_at("add_generation_prompt", false);
        self.out.raw_at("continue_final_message", true);
        Ok(())
    }

    fn stream(&mut self) {
        if !self.request.stream {
            return;
        }
        self.out.raw_at("stream", true);
        if self.target.usage_off
            || !self.target.quirks.stream_options
            || self.refuses("stream_options")
        {
            return;
        }
        self.out.object_at("stream_options", |out| {
            out.raw_at("include_usage", true);
            if self.target.running_usage {
                out.raw_at("continuous_usage_stats", true);
            }
            members::write_inner(out, &self.request.ext, "stream_options");
        });
    }

    /// What has no word in the hub, and what the gateway adds.
    fn rest(&mut self) {
        let ext = &self.request.ext;
        for (name, value) in ext.of(LANGUAGE) {
            let added = self.target.fields.iter().any(|(field, _)| field == name);
            if !members::is_inner(name) && !added && self.may(name) {
                self.out.json_at(name, value);
            }
        }
        for (name, value) in &self.target.fields {
            self.out.json_at(name, value);
        }
        // Some have been written, and the stream's options are the gateway's.
        let known = |name: &str| {
            ["stop", "stream_options", "user"].contains(&name)
                || self.target.fields.iter().any(|(field, _)| *field == name)
        };
        for (name, value) in ext.defaults.iter().filter(|_| self.native) {
            if !known(name) && !self.refuses(name) {
                self.out.json_at(name, value);
            }
        }
    }

    /// The form in which a client of this language has written what has another form here.
    fn default(&self, name: &str) -> Option<&Json> {
        let known = self.request.ext.defaults.iter().find(|(known, _)| known == name);
        known.map(|(_, value)| value).filter(|value| self.native && value.as_str() != "null")
    }
}

/// Where clients say that the model is not to reason.
fn switch(request: &Request) -> &'static str {
    match request.ext.language {
        "messages" => "thinking",
        _ => "reasoning_effort",
    }
}

/// Objects and lists in each other up to which a schema is looked at; OpenAI takes fewer.
const DEEPEST: u32 = 64;

/// Each object of a schema has only the members that it names, and needs all of them: what OpenAI
/// asks for where a schema is strict.
fn is_closed(schema: &Json) -> bool {
    fn closed(text: &str, depth: u32) -> bool {
        if !text.starts_with(['{', '[']) {
            return true;
        }
        if depth > DEEPEST {
            return false;
        }
        let depth = depth + 1;
        if let Ok(list) = serde_json::from_str::<Vec<&serde_json::value::RawValue>>(text) {
            return list.into_iter().all(|element| closed(element.get(), depth));
        }
        let Ok(mut object) = Object::parse(text) else { return true };
        if object.has("properties") || object.text("type").as_deref() == Some("object") {
            let alone =
                object.get("additionalProperties").is_some_and(|more| more.get() == "false");
            let needed: HashSet<String> = object.read("required").unwrap_or_default();
            let names = object.take("properties").and_then(|p| Object::parse(p.get()).ok());
            let names = names.unwrap_or_default();
            let mut all = names.members();
            if !alone
                || !all.all(|(name, value)| needed.contains(name) && closed(value.get(), depth))
            {
                return false;
            }
        }
        object.members().all(|(_, value)| closed(value.get(), depth))
    }
    closed(schema.as_str(), 0)
}
