//! `llmproxy translate`: what the gateway would send, and what it would lose.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use bytes::Bytes;
use clap::Args;

use crate::{
    config::plan,
    dialect::{
        Dialect, Protocol,
        hub::{Codec, Exchange, Losses, Target, Translator, prepare, translator},
        names,
    },
};

#[derive(Args)]
pub struct TranslateArgs {
    /// The language of the file: `chat`, `responses` or `messages`.
    #[arg(long, value_name = "LANGUAGE")]
    from: String,
    /// The language to translate it into.
    #[arg(long, value_name = "LANGUAGE")]
    to: String,
    /// The file is a backend's answer, not a client's request.
    #[arg(long)]
    answer: bool,
    /// The file is a backend's answer as a stream of events.
    #[arg(long)]
    stream: bool,
    /// The client's request that the answer belongs to: names of tools are given back as they stand
    /// there.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// The name of the model at the backend, whose known abilities apply.
    #[arg(long)]
    model: Option<String>,
    /// Refuse whatever would be dropped, as `translation: strict` does.
    #[arg(long)]
    strict: bool,
    /// The file; `-` for the standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub fn run(args: &TranslateArgs) -> ExitCode {
    match translated(args) {
        Ok((text, losses)) => {
            for loss in losses.iter() {
                eprintln!("dropped `{}`: {}", loss.path, loss.why);
            }
            // A reader that closes the pipe early is no reason to panic.
            let mut out = std::io::stdout();
            out.write_all(text.as_bytes()).ok();
            if !text.ends_with('\n') {
                out.write_all(b"\n").ok();
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("llmproxy: {why}");
            ExitCode::FAILURE
        }
    }
}

fn translated(args: &TranslateArgs) -> Result<(String, Losses), String> {
    let (from, to) = (codec(&args.from)?, codec(&args.to)?);
    let text = read(&args.file)?;
    if !args.answer && !args.stream {
        return request(args, from, to, &text);
    }
    let exchange = exchange(args, from, to)?;
    let mut out = String::new();
    if args.stream {
        let mut translator = Translator::new(from, to, &exchange);
        translator.push(&Bytes::from(text), &mut out, |_| {});
        translator.finish(&mut out, |_| {});
    } else {
        let events = translator::answer(from, &text, &exchange).map_err(|fault| fault.message)?;
        out = translator::document(to, &events, &exchange);
    }
    Ok((out, Losses::default()))
}

/// A client's request, as a backend gets it.
fn request(
    args: &TranslateArgs,
    from: &dyn Codec,
    to: &dyn Codec,
    text: &str,
) -> Result<(String, Losses), String> {
    let request = from.read(text).map_err(|refused| refused.to_string())?;
    let target = target(args, request.model.as_deref());
    if from.traits().name == to.traits().name {
        let mut losses = Losses::default();
        let body =
            to.write(&request, &target, &mut losses).map_err(|refused| refused.to_string())?;
        return Ok((body, losses));
    }
    let outgoing = prepare::translate(request, from.traits(), to, &target)
        .map_err(|refused| refused.to_string())?;
    Ok((outgoing.body, outgoing.losses))
}

fn target(args: &TranslateArgs, asked: Option<&str>) -> Target {
    let model = args.model.as_deref().or(asked).unwrap_or_default();
    Target {
        model: args.model.clone(),
        facts: plan::model_facts(model),
        strict: args.strict,
        ..Target::default()
    }
}

/// What the answer's side has to know, from the client's request if there is one: that is written in
/// the language which the answer is translated into.
fn exchange(
    args: &TranslateArgs,
    from: &'static dyn Codec,
    to: &dyn Codec,
) -> Result<Exchange, String> {
    let backend = from.traits().name;
    let Some(file) = &args.request else {
        return Ok(Exchange { backend, ..Exchange::default() });
    };
    let request = to.read(&read(file)?).map_err(|refused| refused.to_string())?;
    let (model, client) = (request.model.clone(), request.client.clone());
    let target = target(args, model.as_deref());
    let outgoing = prepare::translate(request, to.traits(), from, &target)
        .map_err(|refused| refused.to_string())?;
    Ok(Exchange { backend, model, client, undo: outgoing.undo, ..Exchange::default() })
}

/// The codec of a language's usual operation.
fn codec(name: &str) -> Result<&'static dyn Codec, String> {
    let language: Option<&'static dyn Dialect> = Protocol::named(name).map(Protocol::language);
    let usual = language.and_then(Dialect::usual_codec);
    usual.map(|(_, codec)| codec).ok_or_else(|| {
        let known: Vec<_> = names().collect();
        format!("there is no language `{name}`; known are {}", known.join(", "))
    })
}

fn read(file: &Path) -> Result<String, String> {
    let read = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|e| format!("{}: {e}", file.display()))
}
