//! Where the texts of requests and answers stand: what guards and hooks look at, and change, without
//! knowing a language. Each text is the literal of a JSON document; everything around it stays as it is.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::node::Node;

/// Who speaks in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions: `system` and `developer`.
    System,
    User,
    /// What a model has said earlier, and the arguments of its calls.
    Assistant,
    /// What tools have answered.
    Tool,
}

/// A text of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestText {
    /// The literal in the body, with its quotes.
    pub range: Range<usize>,
    pub role: Role,
    /// The text is JSON itself: the arguments of a call.
    pub embedded: bool,
    /// The text is signed: servers reject it if it is changed.
    pub sealed: bool,
}

/// An image of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestImage {
    /// The literal of its URL or of its data, with its quotes.
    pub range: Range<usize>,
    /// Its size in bytes; `None` if it is not in the request.
    pub bytes: Option<u64>,
}

/// What a request shows to a model. Tools and schemas are no part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestTexts {
    /// In the order in which models read them: the instructions of the request first.
    pub texts: Vec<RequestText>,
    pub images: Vec<RequestImage>,
}

/// What a text of an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// For the user.
    Content,
    Reasoning,
    /// Why the model does not answer.
    Refusal,
    /// The arguments of a call.
    Arguments,
    /// It repeats the request: Responses have its instructions.
    Echo,
}

/// A text of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerText {
    /// The literal in the document, with its quotes.
    pub range: Range<usize>,
    pub part: Part,
    /// What generates one text after the other: a choice, a block, an item. Once another text of it goes on,
    /// this one is over.
    pub group: u64,
    /// The running text that it continues; unique within the answer.
    pub key: u64,
    /// It is the complete text, not a piece: in plain answers, and in events that repeat a text at its end.
    pub whole: bool,
    /// The text is JSON itself (pieces of it: of JSON).
    pub embedded: bool,
    /// The text is signed: once the client sends it back, servers reject it if it was changed.
    pub sealed: bool,
}

/// Which running texts are over after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    All,
    /// All texts of this [`AnswerText::group`].
    Group(u64),
    /// The text with this [`AnswerText::key`].
    Text(u64),
}

/// The texts of one event, or of a plain answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerTexts {
    /// In the order of the document.
    pub texts: Vec<AnswerText>,
    /// What ends after these texts.
    pub ends: Vec<Ending>,
}

/// How deep lists and blocks of content are followed by their names; whatever is deeper is a text.
const DEEPEST: usize = 10;

/// Members of messages, items and blocks that are texts, or hold texts.
const HOLDERS: [&str; 15] = [
    "text",
    "refusal",
    "reasoning",
    "reasoning_content",
    "thinking",
    "content",
    "summary",
    "title",
    "context",
    "data",
    "transcript",
    "output",
    "results",
    "stdout",
    "stderr",
];

impl RequestTexts {
    /// A text.
    pub fn push(&mut self, node: &Node<'_>, role: Role) {
        self.add(node, role, false, false);
    }

    fn add(&mut self, node: &Node<'_>, role: Role, embedded: bool, sealed: bool) {
        if node.is_text() {
            self.texts.push(RequestText { range: node.range(), role, embedded, sealed });
        }
    }

    /// A text, or a list of blocks.
    pub fn content(&mut self, node: &Node<'_>, role: Role) {
        self.held(node, role, 0);
    }

    /// All texts within it.
    pub fn leaves(&mut self, node: &Node<'_>, role: Role) {
        for leaf in node.leaves() {
            if is_data(leaf.bytes()) {
                self.image(&leaf);
            } else {
                self.push(&leaf, role);
            }
        }
    }

    fn held(&mut self, node: &Node<'_>, role: Role, depth: usize) {
        if depth > DEEPEST {
            self.leaves(node, role);
        } else if node.is_text() {
            self.push(node, role);
        } else if node.is_object() {
            self.block(node, role, depth);
        } else {
            for element in node.elements() {
                self.held(&element, role, depth + 1);
            }
        }
    }

    /// A message, an item or a block of any language: the names of their members do not collide, and one
    /// that stands where its language does not expect it is read by some engine.
    fn block(&mut self, node: &Node<'_>, role: Role, depth: usize) {
        if node.get("type").is_some_and(|kind| kind.says("redacted_thinking")) {
            return;
        }
        let role = match node.get("role").and_then(|role| role.text()).as_deref() {
            Some("system" | "developer") => Role::System,
            Some("assistant" | "model") => Role::Assistant,
            Some("tool" | "function") => Role::Tool,
            Some("user") => Role::User,
            _ => kind_role(node).unwrap_or(role),
        };
        let sealed = node.get("signature").is_some_and(|s| s.is_text() && s.bytes().len() > 2);
        for (key, value) in node.members() {
            if key.is("thinking") && sealed {
                self.add(&value, role, false, true);
            } else if key.is("source") {
                self.source(&value, role, depth);
            } else if key.is_any(&["image_url", "image"]) {
                self.image(&value);
            } else if key.is("input") || key.is("output") && value.is_object() {
                self.leaves(&value, role);
            } else if key.is_any(&HOLDERS) {
                self.held(&value, role, depth + 1);
            } else if key.is("arguments") {
                self.arguments(&value, role);
            } else if key.is("tool_calls") {
                for call in value.elements() {
                    self.call(&call);
                }
            } else if key.is("function_call") {
                self.call(&value);
            }
        }
    }

    /// A call of Chat Completions.
    fn call(&mut self, node: &Node<'_>) {
        for (key, value) in node.members() {
            if key.is_any(&["function", "custom"]) {
                self.call(&value);
            } else if key.is("arguments") {
                self.arguments(&value, Role::Assistant);
            } else if key.is("input") {
                self.leaves(&value, Role::Assistant);
            }
        }
    }

    fn arguments(&mut self, node: &Node<'_>, role: Role) {
        if node.is_text() {
            self.add(node, role, true, false);
        } else {
            self.leaves(node, role);
        }
    }

    /// Where an image or a document of Messages comes from.
    fn source(&mut self, node: &Node<'_>, role: Role, depth: usize) {
        let kind = node.get("type").and_then(|kind| kind.text()).unwrap_or_default();
        let media = node.get("media_type").and_then(|media| media.text()).unwrap_or_default();
        let is_image = media.starts_with("image/") || kind == "url" || kind == "file";
        for (key, value) in node.members() {
            if key.is("data") && kind == "base64" {
                if is_image {
                    let bytes = Some(decoded_size(value.bytes().len().saturating_sub(2)));
                    self.images.push(RequestImage { range: value.range(), bytes });
                }
            } else if key.is("url") {
                self.image(&value);
            } else if key.is_any(&["data", "content"]) {
                self.held(&value, role, depth + 1);
            }
        }
    }

    /// The URL of an image, or an object with one.
    fn image(&mut self, node: &Node<'_>) {
        if node.is_object() {
            for (_, value) in node.members().filter(|(key, _)| key.is("url")) {
                self.image(&value);
            }
            return;
        }
        let Some(url) = node.text() else { return };
        let bytes = url.strip_prefix("data:").map(|url| match url.split_once(";base64,") {
            Some((_, data)) => decoded_size(data.len()),
            None => url.len() as u64,
        });
        self.images.push(RequestImage { range: node.range(), bytes });
    }
}

/// Whether a literal is a URL with data in base64, and nothing else.
fn is_data(literal: &[u8]) -> bool {
    let data = literal.strip_prefix(b"\"data:").and_then(|rest| rest.strip_suffix(b"\""));
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_;:,.".contains(byte);
    data.is_some_and(|data| data.iter().all(base64))
}

/// The bytes that so many characters of base64 stand for.
fn decoded_size(characters: usize) -> u64 {
    characters as u64 * 3 / 4
}

/// Who speaks in an item or block that has no role.
fn kind_role(node: &Node<'_>) -> Option<Role> {
    let kind = node.get("type")?.text()?;
    match &*kind {
        kind if kind.ends_with("_output") || kind.ends_with("_result") => Some(Role::Tool),
        "tool_use" | "server_tool_use" | "thinking" | "reasoning" => Some(Role::Assistant),
        kind if kind.ends_with("_call") => Some(Role::Assistant),
        _ => None,
    }
}

impl AnswerTexts {
    /// A text; `name` tells apart what one group generates.
    pub fn push(&mut self, node: &Node<'_>, part: Part, group: u64, name: &str) -> &mut Self {
        if node.is_text() {
            let text = AnswerText {
                range: node.range(),
                part,
                group,
                key: key(group, name, 0),
                whole: false,
                embedded: false,
                sealed: false,
            };
            self.texts.push(text);
        }
        self
    }

    /// All texts within it; they are complete.
    pub fn leaves(&mut self, node: &Node<'_>, part: Part, group: u64) {
        for leaf in node.leaves() {
            self.push(&leaf, part, group, "leaf").with(|text| text.whole = true);
        }
    }

    /// Says more of the last text.
    pub fn with(&mut self, say: impl FnOnce(&mut AnswerText)) {
        if let Some(last) = self.texts.last_mut() {
            say(last);
        }
    }
}

/// The key of the running text `name` of a group; `index` tells apart several of this name.
pub fn key(group: u64, name: &str, index: u64) -> u64 {
    let mut bytes = [0; 48];
    bytes[..8].copy_from_slice(&group.to_le_bytes());
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    let length = name.len().min(32);
    bytes[16..16 + length].copy_from_slice(&name.as_bytes()[..length]);
    xxh3_64(&bytes[..16 + length])
}
