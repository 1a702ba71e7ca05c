//! What the environment asks for.

use std::path::PathBuf;

/// The sections, in the order in which they run.
pub const SECTIONS: [&str; 11] = [
    "requests",
    "bodies",
    "streams",
    "languages",
    "latency",
    "tls",
    "h2",
    "threads",
    "start",
    "decisions",
    "selection",
];

pub struct Settings {
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Numbers of concurrent streams.
    pub streams: Vec<usize>,
    /// Whether to write the tables and plots into the documentation.
    pub write: bool,
    /// The file for the raw results.
    pub results: PathBuf,
    /// Where `scripts/bench-peers.sh` has installed other gateways.
    pub peers: PathBuf,
    only: Vec<String>,
}

impl Settings {
    /// # Errors
    /// If a variable has a value that makes no sense.
    pub fn from_environment() -> Result<Self, String> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let path = |name, default: &str| match variable(name) {
            Some(path) => PathBuf::from(path),
            None => root.join(default),
        };
        let streams = variable("BENCH_STREAMS").unwrap_or_else(|| "32,256,2000,10000".to_owned());
        let settings = Self {
            seconds: number("BENCH_SECONDS", 3.0)?,
            streams: list(&streams)
                .map(|n| n.parse().map_err(|_| format!("BENCH_STREAMS: {n:?} is not a number")))
                .collect::<Result<_, _>>()?,
            write: variable("BENCH_WRITE").is_some_and(|value| value != "0"),
            results: path("BENCH_RESULTS", "target/bench/results.json"),
            peers: path("BENCH_PEERS", "target/bench-peers"),
            only: list(&variable("BENCH_ONLY").unwrap_or_default()).map(str::to_owned).collect(),
        };
        match settings.seconds > 0.0 && !settings.streams.contains(&0) {
            true => Ok(settings),
            false => Err("BENCH_SECONDS and BENCH_STREAMS must be positive".to_owned()),
        }
    }

    /// Whether a section runs. Without the name of any section all of them may.
    pub fn section(&self, name: &str) -> bool {
        let mut sections = self.only.iter().filter(|word| is_section(word)).peekable();
        sections.peek().is_none() || sections.any(|word| word == name)
    }

    /// Whether `BENCH_ONLY` contains words that are not sections, but parts of the names of rows.
    pub fn selects_rows(&self) -> bool {
        self.only.iter().any(|word| !is_section(word))
    }

    /// Whether a row is one of those that `BENCH_ONLY` asks for.
    pub fn row(&self, name: &str) -> bool {
        let mut words = self.only.iter().filter(|word| !is_section(word)).peekable();
        let name = name.to_lowercase();
        words.peek().is_none() || words.any(|word| name.contains(&word.to_lowercase()))
    }
}

fn is_section(word: &str) -> bool {
    SECTIONS.contains(&word)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str, default: f64) -> Result<f64, String> {
    match variable(name) {
        Some(text) => text.parse().map_err(|_| format!("{name}: {text:?} is not a number")),
        None => Ok(default),
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}
