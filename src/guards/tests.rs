//! Guards in all languages: what is found, what the backend gets, and what the client gets back.

mod answers;
mod requests;

use bytes::{Bytes, BytesMut};

use super::*;
use crate::{
    base::Principal,
    base::Rejection,
    config::{self, plan::GuardsPlan},
    dialect::{self, Operation},
    wire::edit,
};

/// The guards of this section of a configuration.
fn plan(section: &str) -> GuardsPlan {
    let text = format!("backends: [{{url: 'http://127.0.0.1:1'}}]\nguards: {section}\n");
    let loaded = config::load_text(&text, std::path::Path::new(""), &|_| None);
    loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems)).guards
}

fn guards(section: &str) -> Guards {
    Guards::new(&plan(section))
}

fn language(name: &str) -> &'static dyn Dialect {
    *dialect::DIALECTS.iter().find(|language| language.name() == name).unwrap()
}

fn operation(language: &'static dyn Dialect) -> &'static Operation {
    let usual = |operation: &&Operation| operation.path == language.usual_path();
    language.operations().iter().find(usual).unwrap()
}

/// What the backend gets, and what the answer gets back.
fn request(
    guards: &Guards,
    name: &str,
    body: &str,
) -> Result<(String, RequestOutcome), Box<Refused>> {
    let selected = guards.applies(&Subject::default());
    let language = language(name);
    let outcome = guards.request(selected, language, operation(language), body.as_bytes())?;
    let mut sent = BytesMut::from(body);
    edit::apply(&mut sent, outcome.edits.clone());
    let sent = String::from_utf8(sent.to_vec()).unwrap();
    let _: serde_json::Value =
        serde_json::from_str(&sent).unwrap_or_else(|e| panic!("{e}: {sent}"));
    Ok((sent, outcome))
}

fn filter(guards: &Guards, name: &str, vault: Option<Vault>) -> AnswerFilter {
    guards.answer(guards.applies(&Subject::default()), language(name), vault).unwrap()
}

/// The filter for these denied words and these values of e-mail.
fn filter_for(name: &str, deny: &str, values: &[&str]) -> AnswerFilter {
    let section = format!("{{redact: [{{kinds: [email]}}], deny: [{deny}]}}");
    let guards = guards(&section);
    let texts: Vec<_> =
        values.iter().map(|v| serde_json::json!({"role": "user", "content": v})).collect();
    let body = serde_json::json!({"messages": texts}).to_string();
    let (_, outcome) = request(&guards, "chat", &body).unwrap();
    assert_eq!(outcome.vault.as_ref().map_or(0, Vault::len), values.len());
    filter(&guards, name, outcome.vault)
}

/// What a stream becomes, cut at these places.
fn streamed(
    filter: &mut AnswerFilter,
    stream: &[u8],
    cuts: &[usize],
) -> Result<Vec<u8>, (Vec<u8>, Box<Rejection>)> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    cuts.sort_unstable();
    let mut out = Vec::new();
    let mut from = 0;
    for cut in cuts.into_iter().chain([stream.len()]) {
        let last = cut == stream.len();
        let piece = Bytes::copy_from_slice(&stream[from..cut]);
        from = cut;
        match filter.push(&piece, last) {
            Ok(bytes) => out.extend_from_slice(&bytes),
            Err(blocked) => {
                out.extend_from_slice(&blocked.sent);
                return Err((out, Box::new(blocked.rejection)));
            }
        }
    }
    Ok(out)
}

/// The running texts of a stream, joined.
fn joined(name: &str, stream: &[u8]) -> Vec<(dialect::texts::Part, String)> {
    use crate::{
        dialect::event,
        wire::{literal::Literal, sse},
    };
    let mut splitter = sse::Splitter::default();
    let mut events = Vec::new();
    splitter.push(&Bytes::copy_from_slice(stream), |piece| events.push(piece));
    let mut keys: Vec<u64> = Vec::new();
    let mut found: Vec<(dialect::texts::Part, String)> = Vec::new();
    for piece in events {
        let sse::Piece::Event(event) = piece else { panic!() };
        let Some((document, _)) = event::document(event::Form::Events, &event) else { continue };
        for text in language(name).answer_texts(&document, true).texts {
            if text.whole {
                continue;
            }
            let said = Literal::read(&document[text.range]).unwrap().text.into_owned();
            match keys.iter().position(|key| *key == text.key) {
                Some(at) => found[at].1.push_str(&said),
                None => {
                    keys.push(text.key);
                    found.push((text.part, said));
                }
            }
        }
    }
    found
}

#[test]
fn entries_apply_by_model_key_and_tag() {
    let guards = guards(
        "{caps: [{n: 1}, {n: 1, when: {models: ['qwen-*'], keys: [vip]}}, {n: 1, when: {tags: [a, b]}},
          {n: 1, enabled: false}]}",
    );
    let tags = ["b".to_owned()];
    let vip = Principal { key_id: "k".into(), name: "vip".into(), ..Principal::default() };
    let who = |model, principal| Subject { model, principal, ..Subject::default() };
    for (subject, caps) in [
        (who("", None), 0b001),
        (who("qwen-7b", None), 0b001),
        (who("qwen-7b", Some(&vip)), 0b011),
        (Subject { tags: &tags, ..who("llama", Some(&vip)) }, 0b101),
    ] {
        assert_eq!(guards.applies(&subject).caps, caps, "{subject:?}");
    }
    assert!(!guards.is_empty() && Guards::default().is_empty());
    assert!(Guards::default().applies(&Subject::default()).is_empty());
}

#[test]
fn services_see_no_more_than_the_backend() {
    let guards = guards("{redact: [{}], moderation: [{url: 'http://127.0.0.1:1'}]}");
    let caller = Principal { key_id: "k".into(), user_id: "u".into(), ..Principal::default() };
    let who = Subject { model: "m", principal: Some(&caller), ..Subject::default() };
    let body =
        r#"{"messages":[{"role":"system","content":"no"},{"role":"user","content":"a@b.de"}]}"#;
    let (sent, _) = request(&guards, "chat", body).unwrap();
    let chat = language("chat");
    let asked = (chat, operation(chat));
    let questions = guards.questions(guards.applies(&who), asked, sent.as_bytes(), &who);
    let [(service, question)] = &questions[..] else { panic!() };
    assert!(service.is_before());
    assert_eq!(question.texts, ["[EMAIL_1]"]);
    assert_eq!((&*question.model, &*question.user, &*question.key), ("m", "u", "k"));
}

#[test]
fn mistakes_of_the_configuration_are_told() {
    for (section, problem) in [
        ("{redact: [{kinds: []}]}", "guards.redact[0]: looks for nothing"),
        ("{redact: [{status: 500}]}", "guards.redact[0].status: is neither 400 nor 403"),
        (
            "{redact: [{patterns: [{name: email, pattern: x}]}]}",
            "guards.redact[0].patterns[0].name: is taken",
        ),
        ("{redact: [{patterns: [{name: 'a b', pattern: x}]}]}", "is no word"),
        (
            "{deny: [{words: [a], patterns: ['(']}]}",
            "guards.deny[0].patterns[0]: cannot be used as a pattern: unclosed group",
        ),
        ("{deny: [{}]}", "guards.deny[0]: looks for nothing"),
        ("{deny: [{words: [a], window: 2}]}", "guards.deny[0].window: is not between 16 and 4096"),
        ("{moderation: [{url: nowhere}]}", "guards.moderation[0].url: is not an http or https URL"),
        (
            "{moderation: [{url: 'http://x', form: generic, categories: [hate]}]}",
            "guards.moderation[0].categories: is for",
        ),
        ("{caps: [{n: 0}]}", "guards.caps[0].n: is zero"),
        (
            "{caps: [{when: {keys: ['*x']}}]}",
            "guards.caps[0].when.keys[0]: `*` is allowed only at the end",
        ),
    ] {
        let text = format!("backends: [{{url: 'http://127.0.0.1:1'}}]\nguards: {section}\n");
        let loaded = config::load_text(&text, std::path::Path::new(""), &|_| None);
        let told: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|told| told.contains(problem)), "{section}: {told:?}");
    }
}
