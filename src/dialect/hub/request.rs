//! A request in the neutral form: turns with ordered parts.
//!
//! Every node has an [`Extension`]: the members of its source that have no word here. Writing the
//! same language again restores them; another language drops them, and says so.

use super::json::Json;

/// Members that have no word in the hub, by the language that they are of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extension {
    /// The language's name.
    pub language: &'static str,
    /// In their order.
    pub members: Vec<(String, Json)>,
    /// Members that only say what holds without them (`"is_error": false`, `"stop": null`): restored
    /// in the same language, no loss in another.
    pub defaults: Vec<(String, Json)>,
}

impl Extension {
    /// What is left of an object of this language.
    pub fn new(language: &'static str, members: Vec<(String, Json)>) -> Self {
        Self { language, members, defaults: Vec::new() }
    }

    /// The members, if they are of this language.
    pub fn of(&self, language: &str) -> &[(String, Json)] {
        if self.language == language { &self.members } else { &[] }
    }

    /// A member, whatever the language.
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.members.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The names of members that say something, which dropping them would lose: neither `null` nor
    /// of the form of the source alone, whose names begin with `@` (how it was cut into items, a
    /// list that was empty).
    pub fn said(&self) -> impl Iterator<Item = &str> {
        let says =
            |(name, value): &&(String, Json)| !name.starts_with('@') && value.as_str() != "null";
        self.members.iter().filter(says).map(|(name, _)| name.as_str())
    }
}

/// A request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The model, as the client names it.
    pub model: Option<String>,
    /// A stream is asked for.
    pub stream: bool,
    /// What stands before the first turn that is not the system's.
    pub system: Vec<SystemText>,
    /// The conversation.
    pub turns: Vec<Turn>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Which of them it has to call.
    pub tool_choice: Option<ToolChoice>,
    /// Several calls in one answer are allowed; `None`: not said.
    pub parallel_tools: Option<bool>,
    /// The form of the answer.
    pub format: Option<Format>,
    /// How much the model may reason, and who sees it.
    pub reasoning: Reasoning,
    /// `low`, `medium`, `high`.
    pub verbosity: Option<String>,
    /// The most tokens that may be generated, reasoning included.
    pub max_output: Option<u64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Numbers as they were written.
    pub sampling: Sampling,
    /// How many answers are wanted.
    pub choices: Option<u64>,
    /// Log probabilities of the answer's tokens are wanted, with so many alternatives.
    pub logprobs: Option<u64>,
    /// Forms of output beside text: `audio`, `image`.
    pub modalities: Vec<String>,
    /// The client's own notes on the request: an object of strings.
    pub metadata: Option<Json>,
    /// Who the client asks for.
    pub user: Option<String>,
    /// Groups requests that begin alike.
    pub cache_key: Option<String>,
    /// As the client's language names it.
    pub service_tier: Option<String>,
    /// The vendor may keep the answer.
    pub store: Option<bool>,
    /// What refers to state that only the vendor has: refused where another backend is asked.
    /// Each with its path (`previous_response_id`, `conversation`, `background`, ...).
    pub stateful: Vec<String>,
    /// What the client wants of the answer's form.
    pub client: ClientWishes,
    /// The rest of its members.
    pub ext: Extension,
}

/// Sampling, as texts of numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    pub temperature: Option<Json>,
    pub top_p: Option<Json>,
    pub top_k: Option<Json>,
    pub frequency_penalty: Option<Json>,
    pub presence_penalty: Option<Json>,
    pub seed: Option<Json>,
    pub logit_bias: Option<Json>,
}

/// What the answer's form depends on, beside the language.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientWishes {
    /// Chat: a stream ends with a chunk that has the usage.
    pub usage: bool,
    /// Chat: the client has sent `functions`, and knows calls only as `function_call`.
    pub functions: bool,
    /// Responses: state of reasoning is given to the client (`reasoning.encrypted_content`).
    pub encrypted_reasoning: bool,
    /// Responses: members of the request that the response repeats, as they go out.
    pub echo: Vec<(String, Json)>,
}

/// One text of the system.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SystemText {
    /// The text.
    pub text: String,
    /// The word of its source: `system`, `developer`, `instructions`.
    pub origin: &'static str,
    /// The prompt is to be cached up to here, in its source's words (`cache_control`).
    pub cache: Option<Json>,
    pub ext: Extension,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    #[default]
    User,
    Assistant,
    /// Only behind the first turn of another role; before it, it is [`Request::system`].
    System,
}

/// One turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    pub role: Role,
    pub parts: Vec<Part>,
    /// Where it stands in the client's request, for messages: `messages[3]`.
    pub path: String,
    /// A turn of [`Role::System`] came as `developer`.
    pub developer: bool,
    /// The speaker's name.
    pub name: Option<String>,
    pub ext: Extension,
}

/// One part of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    Text(Text),
    Image(Media),
    Audio(Media),
    Video(Media),
    /// A document.
    File(Media),
    ToolCall(ToolCall),
    ToolResult(ToolResult),
    Reasoning(ReasoningPart),
    /// The model's refusal, in its words.
    Refusal(String),
    /// A search result that the client found.
    Search(Search),
    /// Anything else, tagged with its language: a call or result of a tool that the vendor runs, a
    /// compaction, a change of tools.
    Opaque(Opaque),
}

/// Text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text {
    pub text: String,
    /// The prompt is to be cached up to here, in its source's words.
    pub cache: Option<Json>,
    /// Citations in their source's words.
    pub citations: Option<Json>,
    /// Responses: `commentary` or `final_answer`.
    pub phase: Option<String>,
    /// The item that it belongs to, where its language has items.
    pub item: Option<String>,
    pub ext: Extension,
}

impl Text {
    /// Plain text.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

/// An image, a sound, a document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Media {
    pub source: MediaSource,
    /// The media type, as far as it is known: `image/png`.
    pub mime: Option<String>,
    /// A document's name or title.
    pub name: Option<String>,
    /// An image's `detail`.
    pub detail: Option<String>,
    pub cache: Option<Json>,
    pub ext: Extension,
}

/// Where media are.
#[derive(Clone, Debug, PartialEq)]
pub enum MediaSource {
    /// In the request, in the standard alphabet of base64.
    Base64(String),
    /// Plain text, of a document.
    Text(String),
    /// At an address, which is never fetched.
    Url(String),
    /// At the vendor, by this id.
    FileId(String),
}

impl Default for MediaSource {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolCall {
    /// What its result refers to.
    pub id: String,
    pub name: String,
    /// The arguments as text: JSON for a function, anything for a custom tool.
    pub arguments: String,
    pub kind: ToolKind,
    /// The item's own id, where its language has items (`fc_...`).
    pub item: Option<String>,
    /// Responses: the namespace of its tool.
    pub namespace: Option<String>,
    /// State of the issuer that goes with the call.
    pub state: Option<State>,
    pub cache: Option<Json>,
    pub ext: Extension,
}

/// What a tool takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolKind {
    /// A JSON object by a schema.
    #[default]
    Function,
    /// Free text, perhaps by a grammar.
    Custom,
}

/// The result of a call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolResult {
    /// The call's id.
    pub call: String,
    /// The tool's name, where the language says it.
    pub name: Option<String>,
    /// Text, images, documents.
    pub parts: Vec<Part>,
    /// The content was a plain string, not a list of parts.
    pub plain: bool,
    /// The tool failed.
    pub is_error: bool,
    pub kind: ToolKind,
    /// The item's own id, where its language has items.
    pub item: Option<String>,
    pub cache: Option<Json>,
    pub ext: Extension,
}

/// Reasoning that the model has shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReasoningPart {
    /// The text; `None` if it was not shown.
    pub text: Option<String>,
    /// Summaries, where they are apart from the text.
    pub summary: Vec<String>,
    /// What its issuer wants back.
    pub state: Option<State>,
    /// The issuer has hidden it, the state is all that there is.
    pub redacted: bool,
    /// The item's own id, where its language has items.
    pub item: Option<String>,
    pub ext: Extension,
}

/// State that only its issuer can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The domain of backends that can read it, from an envelope; `None`: it came bare, and is of
    /// the vendor of [`State::language`].
    pub issuer: Option<String>,
    /// The language in which it came bare, or that the envelope says.
    pub language: String,
    /// The value as its issuer gave it.
    pub value: String,
}

/// A search result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Search {
    pub source: String,
    pub title: String,
    pub parts: Vec<Part>,
    pub cache: Option<Json>,
    pub ext: Extension,
}

/// What has no word in the hub.
#[derive(Clone, Debug, PartialEq)]
pub struct Opaque {
    pub language: &'static str,
    /// Its type there: `web_search_call`, `container_upload`.
    pub kind: String,
    pub json: Json,
    /// What a model of another vendor could read of it; empty: nothing.
    pub readable: String,
}

/// A tool.
#[derive(Clone, Debug, PartialEq)]
pub enum Tool {
    Function(Function),
    /// Free text, perhaps by a grammar.
    Custom(CustomTool),
    /// Run by the vendor, or of a schema that only its models know.
    Vendor(VendorTool),
}

/// A tool that the client runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    pub name: String,
    pub description: Option<String>,
    /// A JSON Schema; `None`: no parameters.
    pub parameters: Option<Json>,
    pub strict: Option<bool>,
    /// Responses: the group it belongs to.
    pub namespace: Option<String>,
    pub cache: Option<Json>,
    /// Where it stands in the client's request.
    pub path: String,
    pub ext: Extension,
}

/// A tool that takes free text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CustomTool {
    pub name: String,
    pub description: Option<String>,
    /// `{"type":"grammar",...}` or `{"type":"text"}`, in its source's words.
    pub format: Option<Json>,
    pub path: String,
    pub ext: Extension,
}

/// A tool that others do not know.
#[derive(Clone, Debug, PartialEq)]
pub struct VendorTool {
    pub language: &'static str,
    /// Its type there.
    pub kind: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    pub json: Json,
    pub path: String,
}

/// What the model has to call.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolChoice {
    Auto,
    None,
    /// Any of them.
    Required,
    /// This one.
    Named {
        name: String,
        kind: ToolKind,
    },
    /// Only these, and one of them if `required`.
    Allowed {
        names: Vec<String>,
        required: bool,
        /// As its source wrote it.
        json: Json,
    },
    /// Anything else, in its source's words.
    Other {
        language: &'static str,
        json: Json,
    },
}

/// The form of the answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON by a schema.
    Schema {
        name: Option<String>,
        description: Option<String>,
        schema: Json,
        strict: Option<bool>,
    },
    /// Anything else, in its source's words.
    Other {
        language: &'static str,
        json: Json,
    },
}

/// How much the model may reason.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reasoning {
    /// `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`, or a word that is not known.
    pub effort: Option<String>,
    /// In tokens.
    pub budget: Option<u64>,
    pub mode: Option<ReasoningMode>,
    /// What of it the client is shown, in its source's word: `auto`, `concise`, `detailed`
    /// (Responses), `summarized`, `omitted` (Messages).
    pub show: Option<String>,
    pub ext: Extension,
}

/// Whether the model reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningMode {
    On,
    Off,
    /// As the model decides.
    Auto,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_restores_the_form_says_nothing() {
        let json = |text: &str| Json::parse(text).unwrap();
        let members = [("@items", "[0]"), ("truncation", "\"auto\""), ("prompt", "null")];
        let members = members.map(|(name, value)| (name.to_owned(), json(value)));
        let ext = Extension::new("responses", members.into());
        assert_eq!(ext.said().collect::<Vec<_>>(), ["truncation"]);
    }
}
