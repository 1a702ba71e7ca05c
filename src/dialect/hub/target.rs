//! What a request is written for: what the backend's language can say, what its model can do, and
//! where the server differs from its language.

use super::{
    effort,
    json::Json,
    request::{Reasoning, ReasoningMode},
};

/// What a language can say. One constant for each language.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// The language's name.
    pub name: &'static str,
    /// Tools that take free text.
    pub custom_tools: bool,
    /// Groups of tools.
    pub namespaces: bool,
    /// The longest name of a tool, of `[a-zA-Z0-9_-]`.
    pub longest_tool_name: usize,
    /// Each id of a call must be there once in a conversation.
    pub unique_call_ids: bool,
    /// Each call must have its result, in the turn behind it.
    pub results_required: bool,
    /// More than one answer.
    pub choices: bool,
    pub logprobs: bool,
    pub stop: bool,
    pub penalties: bool,
    pub seed: bool,
    pub logit_bias: bool,
    pub top_k: bool,
    pub verbosity: bool,
    pub metadata: bool,
    pub user: bool,
    pub cache_key: bool,
    pub service_tier: bool,
    pub store: bool,
    pub parallel_tools: bool,
    /// Audio and other forms of output.
    pub modalities: bool,
    /// Marks for caches in the prompt.
    pub cache_marks: bool,
    /// An answer that the request begins is continued.
    pub prefill: bool,
    /// The fewest tokens of an answer that the vendor takes.
    pub least_output: u64,
    /// How clients of this language name what may be dropped.
    pub words: Words,
}

/// Names of fields, for messages to clients and operators.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    pub max_output: &'static str,
    pub stop: &'static str,
    pub effort: &'static str,
    pub verbosity: &'static str,
    pub user: &'static str,
    pub parallel_tools: &'static str,
    pub logprobs: &'static str,
    /// Of a part of a turn: what its issuer wants back.
    pub state: &'static str,
}

/// What a model can do, from the configuration and its presets. What is not known is not guessed:
/// the request passes, and the backend says no if it must.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFacts {
    /// The most tokens of an answer.
    pub max_output: Option<u64>,
    /// Where a language demands a limit and the client has set none.
    pub default_output: Option<u64>,
    /// The words for effort that it takes, from little to much; empty: not known.
    pub efforts: Vec<String>,
    /// How it is told to reason, in Messages.
    pub thinking: Thinking,
    /// It takes temperature, top_p and top_k; `None`: not known.
    pub sampling: Option<bool>,
    /// It takes images.
    pub vision: Option<bool>,
    /// It can call tools.
    pub tools: Option<bool>,
    /// It can call tools in Chat.
    pub chat_tools: Option<bool>,
    /// It takes a schema for its answer.
    pub schemas: Option<bool>,
    /// It takes system messages behind the first turn.
    pub late_system: Option<bool>,
}

impl ModelFacts {
    /// These facts, and those of a preset where these say nothing.
    pub fn or(self, preset: Self) -> Self {
        Self {
            max_output: self.max_output.or(preset.max_output),
            default_output: self.default_output.or(preset.default_output),
            efforts: if self.efforts.is_empty() { preset.efforts } else { self.efforts },
            thinking: match self.thinking {
                Thinking::Unknown => preset.thinking,
                known => known,
            },
            sampling: self.sampling.or(preset.sampling),
            vision: self.vision.or(preset.vision),
            tools: self.tools.or(preset.tools),
            chat_tools: self.chat_tools.or(preset.chat_tools),
            schemas: self.schemas.or(preset.schemas),
            late_system: self.late_system.or(preset.late_system),
        }
    }
}

/// How a model is told to reason, in Messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// Not known: nothing is converted beyond what the client says.
    #[default]
    Unknown,
    /// `output_config.effort`.
    Effort,
    /// `thinking.budget_tokens`.
    Budget,
    /// It does not.
    None,
}

/// Where a server that speaks Chat differs from OpenAI's.
#[derive(Clone, Debug, PartialEq)]
pub struct Quirks {
    /// The limit's name is `max_completion_tokens`, not `max_tokens`.
    pub max_completion_tokens: bool,
    /// It knows the role `developer`.
    pub developer: bool,
    /// The field in which it wants reasoning back; `None`: it does not.
    pub reasoning_field: Option<&'static str>,
    /// Each message with calls must have that field, empty if there was none.
    pub reasoning_on_calls: bool,
    /// All system messages have to be one, at the beginning.
    pub one_system: bool,
    /// Texts are strings, not lists of parts.
    pub flat_text: bool,
    /// Marks for caches in content parts are kept.
    pub cache_control: bool,
    /// It continues an answer whose beginning stands last (vLLM's `continue_final_message`).
    pub continues: bool,
    /// It takes `stream_options`.
    pub stream_options: bool,
    /// It takes tools of free text; `None`: as its language does.
    pub custom_tools: Option<bool>,
    /// Models whose words for effort are not known take `none`: an engine leaves it to the template,
    /// which vendors' models are checked against. Counts for Responses as well.
    pub effort_none: bool,
    /// It has `/v1/completions`.
    pub completions: bool,
    /// Members that it refuses.
    pub refuses: Vec<String>,
}

impl Default for Quirks {
    /// vLLM, and most open servers.
    fn default() -> Self {
        Self {
            max_completion_tokens: false,
            developer: false,
            reasoning_field: Some("reasoning"),
            reasoning_on_calls: false,
            one_system: true,
            flat_text: true,
            cache_control: false,
            continues: true,
            stream_options: true,
            custom_tools: None,
            effort_none: true,
            completions: true,
            refuses: Vec::new(),
        }
    }
}

/// What a request is written for.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The model's name there; `None`: as the client says.
    pub model: Option<String>,
    pub facts: ModelFacts,
    pub quirks: Quirks,
    /// Nothing may be dropped.
    pub strict: bool,
    /// Whose state of reasoning it can read: a name from the configuration, or the backend's.
    pub issuer: String,
    /// A stream is not asked for its usage.
    pub usage_off: bool,
    /// A stream reports its usage in every chunk (vLLM).
    pub running_usage: bool,
    /// Members that are added (`cache_salt`), as they go out.
    pub fields: Vec<(&'static str, Json)>,
}

impl Target {
    /// The word for effort that stands for what a client of another language says by a switch or a
    /// budget; `None`: it says nothing, or that the model is not to reason, for which this one may
    /// have no word. The second is whether it is so.
    pub fn effort_of<'a>(&'a self, reasoning: &'a Reasoning) -> (Option<&'a str>, bool) {
        let wanted = match (&reasoning.effort, reasoning.budget) {
            (Some(word), _) => return (Some(word), false),
            (None, _) if reasoning.mode == Some(ReasoningMode::Off) => "none",
            (None, Some(budget)) => effort::word(budget),
            (None, None) => return (None, false),
        };
        let efforts = &self.facts.efforts;
        let word = effort::nearest(wanted, efforts).unwrap_or(wanted);
        let known = match &efforts[..] {
            [] => self.quirks.effort_none,
            list => list.iter().any(|word| word == "none"),
        };
        if word == "none" && !known { (None, true) } else { (Some(word), false) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_said_to_models_that_may_know_it() {
        let target = |efforts: &[&str], effort_none| Target {
            facts: ModelFacts {
                efforts: efforts.iter().map(|word| (*word).to_owned()).collect(),
                ..ModelFacts::default()
            },
            quirks: Quirks { effort_none, ..Quirks::default() },
            ..Target::default()
        };
        let off = Reasoning { mode: Some(ReasoningMode::Off), ..Reasoning::default() };
        let nothing = Reasoning { budget: Some(0), ..Reasoning::default() };
        for (efforts, effort_none, told) in [
            (&[][..], true, (Some("none"), false)),
            (&[], false, (None, true)),
            (&["none", "low"], false, (Some("none"), false)),
            (&["low", "high"], true, (Some("low"), false)),
            (&["a lot"], true, (None, true)),
        ] {
            for reasoning in [&off, &nothing] {
                let target = target(efforts, effort_none);
                assert_eq!(target.effort_of(reasoning), told, "{efforts:?} {effort_none}");
            }
        }
        // What the client says in a word, and what is more than nothing, is said.
        let vendor = target(&[], false);
        let word = Reasoning { effort: Some("none".into()), ..Reasoning::default() };
        assert_eq!(vendor.effort_of(&word), (Some("none"), false));
        let some = Reasoning { budget: Some(1024), ..Reasoning::default() };
        assert_eq!(vendor.effort_of(&some), (Some("low"), false));
        assert_eq!(vendor.effort_of(&Reasoning::default()), (None, false));
    }
}
