//! What `llmproxy` without arguments prints.

use std::process::ExitCode;

/// The exit code of wrong arguments, as clap has it.
const WRONG_ARGUMENTS: u8 = 2;

/// Prints the commands to begin with, to stderr: nothing was run.
pub fn print() -> ExitCode {
    eprintln!(
        "\
llmproxy {}: a programmable gateway at the edge of a fleet of LLM servers.
Nothing was started: there is neither a command nor a configuration file.

To try it, with two simulated backends:

    llmproxy demo

To run it, write the address of a backend into a file, check the file, and start the gateway:

    printf 'backends:\\n  - url: \"http://127.0.0.1:8001\"\\n' > llmproxy.yaml
    llmproxy check --config llmproxy.yaml
    llmproxy --config llmproxy.yaml

To rewrite a configuration of version 0.5 or older:

    llmproxy convert OLD.yaml --output llmproxy.yaml

`llmproxy --help` lists all commands; `llmproxy schema` describes every key of the file.",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::from(WRONG_ARGUMENTS)
}
