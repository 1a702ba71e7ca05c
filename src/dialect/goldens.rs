//! Every fixture in every language: the translations as golden files, and what must hold of all.
//!
//! Fixtures are in `tests/fixtures/translate/LANGUAGE/`: `NAME.request.json` of a client,
//! `NAME.answer.json` and `NAME.answer.sse` of a backend. What they become is in
//! `tests/golden/translate/FROM-TO/`. `GOLDEN_WRITE=1 cargo test goldens` writes it anew; the
//! difference is to be read.

mod hardest;
mod properties;

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    anthropic::codec::MessagesCodec,
    hub::{Codec, Event, Exchange, Losses, Refused, Target, Translator, prepare, translator},
    openai::codec::ChatCodec,
    responses::codec::ResponsesCodec,
};

/// All languages that are translated.
pub(super) const CODECS: [&dyn Codec; 3] = [&ChatCodec, &ResponsesCodec, &MessagesCodec];

/// One fixture.
pub(super) struct Fixture {
    pub(super) codec: &'static dyn Codec,
    pub(super) name: String,
    pub(super) text: String,
}

fn folder(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(of).join("translate")
}

/// The fixtures of all languages whose names end so.
pub(super) fn fixtures(end: &str) -> Vec<Fixture> {
    let mut found = Vec::new();
    for codec in CODECS {
        let folder = folder("fixtures").join(codec.traits().name);
        let mut names: Vec<String> = fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(end))
            .collect();
        names.sort();
        for file in names {
            let text = fs::read_to_string(folder.join(&file)).unwrap();
            found.push(Fixture { codec, name: file.trim_end_matches(end).to_owned(), text });
        }
    }
    found.extend(captures(end));
    assert!(found.len() > 15, "{}", found.len());
    found
}

/// What running servers were asked and have answered, of those captures that say something that the
/// others do not. Those of Messages are fixtures by themselves.
const CAPTURES: [(&dyn Codec, &[&str]); 2] = [
    (
        &ChatCodec,
        &[
            "chat_content_parts",
            "chat_json_schema",
            "chat_nonstream_logprobs",
            "chat_stop",
            "chat_stream",
            "chat_stream_continuous_usage",
            "chat_stream_n2",
            "chat_think",
            "chat_think_stream",
            "chat_tool_result",
            "chat_tools_auto",
            "chat_tools_named_stream",
            "chat_tools_required",
            "chat_tools_required_stream",
        ],
    ),
    (&ResponsesCodec, &["responses", "responses_stream"]),
];

fn captures(end: &str) -> Vec<Fixture> {
    let mut found = Vec::new();
    for server in ["vllm", "llamacpp"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(server);
        for (codec, names) in CAPTURES {
            for name in names {
                let file = if end == ".request.json" { "req" } else { "txt" };
                let raw = fs::read_to_string(folder.join(format!("{name}.{file}"))).unwrap();
                let text = match file {
                    // What comes behind the request line.
                    "req" if server == "vllm" => raw.split_once("\n").unwrap().1,
                    "req" => continue,
                    _ => raw.split_once("\r\n\r\n").unwrap().1,
                };
                if name.ends_with("_stream") != (end == ".answer.sse")
                    && file == "txt"
                    && !name.starts_with("chat_stream_")
                    || name.starts_with("chat_stream_") && end == ".answer.json"
                {
                    continue;
                }
                let name = format!("{server}_{name}");
                found.push(Fixture { codec, name, text: text.trim_start().to_owned() });
            }
        }
    }
    found
}

/// The other languages.
pub(super) fn others(codec: &dyn Codec) -> impl Iterator<Item = &'static dyn Codec> {
    let name = codec.traits().name;
    CODECS.into_iter().filter(move |other| other.traits().name != name)
}

/// What goldens are made for: a plain backend with a name of its own for the model.
pub(super) fn target() -> Target {
    Target {
        model: Some("backend-model".to_owned()),
        issuer: "backend".to_owned(),
        ..Target::default()
    }
}

pub(super) fn exchange(backend: &dyn Codec) -> Exchange {
    Exchange {
        model: Some("client-model".to_owned()),
        created: 1_700_000_000,
        issuer: "backend".to_owned(),
        backend: backend.traits().name,
        client: super::hub::request::ClientWishes {
            usage: true,
            encrypted_reasoning: true,
            ..Default::default()
        },
        ..Exchange::default()
    }
}

/// A stream in another language.
pub(super) fn stream(from: &dyn Codec, to: &dyn Codec, pieces: &[&[u8]]) -> (String, Vec<Event>) {
    let exchange = exchange(from);
    let mut translator = Translator::new(from, to, &exchange);
    let (mut out, mut events) = (String::new(), Vec::new());
    for piece in pieces {
        translator.push(&Bytes::copy_from_slice(piece), &mut out, |e| events.push(e.clone()));
    }
    translator.finish(&mut out, |e| events.push(e.clone()));
    (out, events)
}

fn translated(fixture: &Fixture, to: &dyn Codec) -> Result<(String, Losses), Refused> {
    let request = fixture.codec.read(&fixture.text)?;
    let outgoing = prepare::translate(request, fixture.codec.traits(), to, &target())?;
    Ok((outgoing.body, outgoing.losses))
}

fn request_golden(fixture: &Fixture, to: &dyn Codec) -> String {
    match translated(fixture, to) {
        Err(refused) => format!("refused: {refused}\n"),
        Ok((body, losses)) => {
            let value: serde_json::Value = serde_json::from_str(&body).unwrap();
            let mut out = format!("{value:#}\n");
            for loss in losses.iter() {
                writeln!(out, "dropped: {}: {}", loss.path, loss.why).unwrap();
            }
            out
        }
    }
}

/// A plain answer, as a document and as a stream.
fn answer_golden(fixture: &Fixture, to: &dyn Codec) -> String {
    let exchange = exchange(fixture.codec);
    match translator::answer(fixture.codec, &fixture.text, &exchange) {
        Err(fault) => format!("failed: {:?}: {}\n", fault.class, fault.message),
        Ok(events) => {
            let document = translator::document(to, &events, &exchange);
            let value: serde_json::Value = serde_json::from_str(&document).unwrap();
            format!("{value:#}\n--- as a stream\n{}", translator::stream(to, &events, &exchange))
        }
    }
}

/// A stream, as a stream and as a document.
fn stream_golden(fixture: &Fixture, to: &dyn Codec) -> String {
    let (out, events) = stream(fixture.codec, to, &[fixture.text.as_bytes()]);
    let document = translator::document(to, &events, &exchange(fixture.codec));
    let value: serde_json::Value = serde_json::from_str(&document).unwrap();
    format!("{out}--- as a document\n{value:#}\n")
}

#[test]
fn translations_are_as_they_were_reviewed() {
    let writes = std::env::var_os("GOLDEN_WRITE").is_some();
    let (mut expected, mut differing) = (BTreeSet::new(), Vec::new());
    type Golden = fn(&Fixture, &dyn Codec) -> String;
    let kinds: [(&str, Golden); 3] = [
        (".request.json", request_golden),
        (".answer.json", answer_golden),
        (".answer.sse", stream_golden),
    ];
    for (end, golden) in kinds {
        for fixture in fixtures(end) {
            for to in others(fixture.codec) {
                let pair = format!("{}-{}", fixture.codec.traits().name, to.traits().name);
                let path = folder("golden").join(pair).join(format!("{}{end}", fixture.name));
                let now = golden(&fixture, to);
                if writes {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(&path, &now).unwrap();
                } else if fs::read_to_string(&path).ok().as_deref() != Some(now.as_str()) {
                    differing.push(format!("{}\n{now}", path.display()));
                }
                expected.insert(path);
            }
        }
    }
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
    for pair in fs::read_dir(folder("golden")).unwrap() {
        for file in fs::read_dir(pair.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            assert!(expected.contains(&path), "{} belongs to no fixture", path.display());
        }
    }
}
