//! What becomes of measurements: percentiles, tables, the blocks of a page that hold them, and plots.
//! Nothing here measures, so `tests/it/figures.rs` tests it.

pub mod markers;
pub mod stats;
pub mod svg;
pub mod table;

/// The blocks of `docs/benchmarks.md` that the benchmark fills, and `cost`, which `benches/cost` does.
pub const BLOCKS: &[&str] = &[
    "requests",
    "bodies-100k",
    "bodies-2m",
    "streams-32",
    "streams-256",
    "streams-2000",
    "streams-10000",
    "languages",
    "latency",
    "tls",
    "h2",
    "threads",
    "start",
    "decisions",
    "selection",
    "plot-latency",
    "plot-throughput",
    "plot-memory",
    "cost",
];
