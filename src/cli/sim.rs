//! `llmproxy sim`: a simulated vLLM server.

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    base::duration,
    sim::{Behaviour, Fail, Language, Quirk, Sim, ToolUse},
};

#[derive(Args)]
pub struct SimArgs {
    /// The address to listen on.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// The name of a model; repeat it for several models.
    #[arg(long = "model", default_value = "sim-model")]
    models: Vec<String>,
    /// Time until the first token.
    #[arg(long, default_value = "50ms", value_parser = duration::parse)]
    first_token: Duration,
    /// Time between tokens.
    #[arg(long, default_value = "20ms", value_parser = duration::parse)]
    inter_token: Duration,
    /// Tokens of a response, unless the request asks for fewer.
    #[arg(long, default_value_t = 16)]
    tokens: u64,
    /// A language to speak; repeat it for several. Without it: all.
    #[arg(long = "language", value_enum, value_name = "LANGUAGE")]
    languages: Vec<Language>,
    /// The most tokens of a prompt; 0 for no limit.
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    context_length: u64,
    /// Reason before every response, not only where a request asks for it.
    #[arg(long)]
    reasoning: bool,
    /// When tools are called, if a request leaves it to the model.
    #[arg(long, value_enum, default_value = "always")]
    tool_use: ToolUse,
    /// A fault of other servers in Chat responses; repeat it for several.
    #[arg(long = "quirk", value_enum, value_name = "QUIRK")]
    quirks: Vec<Quirk>,
    /// How requests fail.
    #[arg(long, value_enum, default_value = "none")]
    fail: Fail,
    /// Fail only every Nth request.
    #[arg(long, value_name = "N", default_value_t = 1)]
    fail_every: u64,
    /// Close the connection after each stream without `Connection: close`, as llama.cpp does.
    #[arg(long)]
    close_after_stream: bool,
    /// The bearer token that requests must have; empty for none.
    #[arg(long, default_value = "")]
    api_key: String,
}

/// Runs the server until a signal stops it.
#[tokio::main]
pub async fn run(args: SimArgs) -> std::io::Result<()> {
    let languages = if args.languages.is_empty() { Language::ALL.to_vec() } else { args.languages };
    let behaviour = Behaviour {
        models: args.models,
        first_token_ms: args.first_token.as_millis() as u64,
        inter_token_ms: args.inter_token.as_millis() as u64,
        tokens: args.tokens,
        languages,
        context_length: args.context_length,
        reasoning: args.reasoning,
        tool_use: args.tool_use,
        quirks: args.quirks,
        fail: args.fail,
        fail_every: args.fail_every,
        close_after_stream: args.close_after_stream,
        api_key: args.api_key,
        ..Behaviour::default()
    };
    let sim = Sim::start(args.listen, behaviour.clone()).await?;
    println!("llmproxy {}: simulated vLLM on {}", env!("CARGO_PKG_VERSION"), sim.url());
    println!(
        "models {}, first token after {:?}, then one every {:?}, {} tokens, failure: {:?}",
        behaviour.models.join(", "),
        args.first_token,
        args.inter_token,
        args.tokens,
        args.fail
    );
    // The first process of a container receives only the signals that it handles.
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        () = sim.forever() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
