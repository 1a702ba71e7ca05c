//! The `llmproxy` binary.

fn main() -> std::process::ExitCode {
    llmproxy::cli::main()
}
