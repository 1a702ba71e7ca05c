//! The older Completions for backends that do not have them: one prompt becomes a message of the user in
//! Chat, and what Chat answers becomes a text.

use serde_json::{Value, json};

use super::codec::ChatCodec;
use crate::dialect::hub::{
    Codec, Decode, Encode, Event, Exchange, Losses, Object, Refused, Request, Response,
    StreamFault, Target, Writer, target::Traits,
};

/// Tokens of an answer where the client sets no limit, as OpenAI and vLLM have it.
const USUAL_LIMIT: u64 = 16;

/// Members that Chat has no word for, and what they say where they ask for nothing.
const ALIEN: [(&str, &[&str]); 4] = [
    ("echo", &["false", "null"]),
    ("suffix", &["\"\"", "null"]),
    ("best_of", &["1", "null"]),
    ("logprobs", &["null"]),
];

/// Completions as a client's language. Towards backends it is Chat.
#[derive(Clone, Copy, Debug)]
pub struct CompletionsCodec;

impl Codec for CompletionsCodec {
    fn traits(&self) -> &'static Traits {
        ChatCodec.traits()
    }

    fn read(&self, body: &str) -> Result<Request, Refused> {
        let Ok(whole) = Object::parse(body) else {
            return Err(Refused::invalid("", "The body must be a JSON object"));
        };
        let mut limited = false;
        let mut prompt = Err(Refused::invalid("prompt", "it is missing"));
        let mut out = Writer::default();
        let mut refused = None;
        out.object(|out| {
            for (name, value) in whole.members() {
                let text = value.get();
                match ALIEN.iter().find(|(alien, _)| *alien == name) {
                    Some((_, nothing)) if nothing.contains(&text) => continue,
                    Some(_) => {
                        let why = "a backend that answers messages does not have it";
                        refused.get_or_insert_with(|| Refused::new(name, why));
                        continue;
                    }
                    None => {}
                }
                match name {
                    "prompt" => prompt = only_text(text),
                    "max_tokens" if text == "null" => {}
                    _ => {
                        limited |= name == "max_tokens";
                        out.name(name).raw(text);
                    }
                }
            }
            if !limited {
                out.raw_at("max_tokens", USUAL_LIMIT);
            }
            let Ok(prompt) = &prompt else { return };
            out.array_at("messages", |out| {
                out.object(|out| {
                    out.text_at("role", "user");
                    out.text_at("content", prompt);
                });
            });
        });
        match refused {
            Some(refused) => Err(refused),
            None => prompt.and_then(|_| ChatCodec.read(&out.finish())),
        }
    }

    fn write(
        &self,
        request: &Request,
        target: &Target,
        losses: &mut Losses,
    ) -> Result<String, Refused> {
        ChatCodec.write(request, target, losses)
    }

    fn decoder(&self, exchange: &Exchange) -> Box<dyn Decode> {
        ChatCodec.decoder(exchange)
    }

    fn read_answer(&self, body: &str, exchange: &Exchange) -> Result<Vec<Event>, StreamFault> {
        ChatCodec.read_answer(body, exchange)
    }

    fn encoder(&self, exchange: &Exchange) -> Box<dyn Encode> {
        Box::new(Texts { chat: ChatCodec.encoder(exchange), spoken: String::new() })
    }

    fn write_answer(&self, response: &Response, exchange: &Exchange) -> String {
        let chat = ChatCodec.write_answer(response, exchange);
        serde_json::from_str(&chat).map_or(chat, |answer| texts(answer).to_string())
    }

    fn read_error(&self, status: u16, body: &str) -> StreamFault {
        ChatCodec.read_error(status, body)
    }

    fn write_error(&self, fault: &StreamFault) -> (u16, String) {
        ChatCodec.write_error(fault)
    }
}

/// The prompt, where it is one text.
fn only_text(json: &str) -> Result<String, Refused> {
    match serde_json::from_str::<Value>(json) {
        Ok(Value::String(text)) => Ok(text),
        Ok(Value::Array(mut list)) if list.len() == 1 && list[0].is_string() => {
            Ok(list.swap_remove(0).as_str().unwrap_or_default().to_owned())
        }
        _ => {
            let why = "a backend that answers messages takes one text, no tokens and no list";
            Err(Refused::new("prompt", why))
        }
    }
}

/// An answer or a chunk of Chat as one of Completions.
fn texts(mut chat: Value) -> Value {
    if chat["choices"].is_null() {
        // An error.
        return chat;
    }
    chat["object"] = "text_completion".into();
    if let Some(id) = chat["id"].as_str().and_then(|id| id.strip_prefix("chatcmpl-")) {
        chat["id"] = format!("cmpl-{id}").into();
    }
    for choice in chat["choices"].as_array_mut().into_iter().flatten() {
        let said = ["message", "delta"].map(|member| choice[member]["content"].as_str());
        let text = said.into_iter().flatten().next().unwrap_or_default();
        *choice = json!({"index": choice["index"], "text": text, "logprobs": null,
            "finish_reason": choice["finish_reason"]});
    }
    chat
}

/// Writes a stream: what Chat's writer writes, in the other form.
struct Texts {
    chat: Box<dyn Encode>,
    spoken: String,
}

impl Encode for Texts {
    fn event(&mut self, event: &Event, out: &mut String) {
        self.chat.event(event, &mut self.spoken);
        for line in self.spoken.split_terminator("\n\n") {
            let chunk =
                line.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok());
            let Some(chunk) = chunk.map(texts) else {
                // A comment, or the end marker.
                *out += line;
                *out += "\n\n";
                continue;
            };
            // Of a chunk of Chat that has a role alone, or a part of the reasoning, nothing is left.
            let empty = |choice: &Value| choice["text"] == "" && choice["finish_reason"].is_null();
            let choices = chunk["choices"].as_array();
            if choices.is_some_and(|all| !all.is_empty() && all.iter().all(empty)) {
                continue;
            }
            *out += &format!("data: {chunk}\n\n");
        }
        self.spoken.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_prompt_is_a_message_and_what_chat_lacks_is_refused() {
        for prompt in ["\"Hello\"", "[\"Hello\"]"] {
            let body = format!(
                r#"{{"model":"m","prompt":{prompt},"temperature":0.5,"echo":false,"best_of":1,"suffix":null,"n":2,"top_k":3}}"#
            );
            let request = CompletionsCodec.read(&body).unwrap();
            let text = ChatCodec.write(&request, &Target::default(), &mut Losses::default());
            let sent: Value = serde_json::from_str(&text.unwrap()).unwrap();
            assert_eq!(sent["messages"], json!([{"role": "user", "content": "Hello"}]));
            assert_eq!((&sent["max_tokens"], &sent["n"]), (&json!(16), &json!(2)));
            assert_eq!((&sent["temperature"], &sent["top_k"]), (&json!(0.5), &json!(3)));
        }
        for (more, path) in [
            (r#""prompt":"x","echo":true"#, "echo"),
            (r#""prompt":"x","suffix":"y""#, "suffix"),
            (r#""prompt":"x","logprobs":3"#, "logprobs"),
            (r#""prompt":"x","logprobs":0"#, "logprobs"),
            (r#""prompt":"x","best_of":2"#, "best_of"),
            (r#""prompt":["x","y"]"#, "prompt"),
            (r#""prompt":[1,2]"#, "prompt"),
            (r#""max_tokens":3"#, "prompt"),
        ] {
            assert_eq!(CompletionsCodec.read(&format!("{{{more}}}")).unwrap_err().path, path);
        }
    }
}
