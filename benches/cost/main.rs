//! The guard of what a request costs: user instructions, allocations and system calls of a request
//! and of an event of a stream, counted by valgrind, which are the same on a loaded machine as on an
//! idle one.
//!
//! `make cost` compares them with the committed numbers (`expected.json`) and fails if one is more
//! than [`TOLERANCE`] higher. `COST_WRITE=1 make cost` writes the numbers; a commit that raises one
//! says why. `COST_ONLY=full make cost` measures only the cases whose names contain `full`, and
//! `COST_KEEP=FOLDER` keeps callgrind's files there, for `callgrind_annotate`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that cannot go on ends, and it talks to people"
)]

mod backend;
#[path = "../../examples/bare_pingora.rs"]
mod bare;
mod callgrind;
mod cases;
mod client;
mod expected;
mod language;
#[path = "../gateway/figures/markers.rs"]
mod markers;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use self::{
    cases::{CASES, Case, Cost},
    expected::Expected,
};

/// How much more than the committed number is allowed. The numbers are those of x86-64; on another
/// architecture, programs differ in how much more they take.
const TOLERANCE: f64 = if cfg!(target_arch = "x86_64") { 0.03 } else { 0.15 };

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == cases::BARE) {
        // Started by the measurement itself.
        bare::serve(&arguments[2..]);
        return ExitCode::SUCCESS;
    }
    // `cargo test --benches` must not measure.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let only = std::env::var("COST_ONLY").unwrap_or_default();
    let kept = std::env::var_os("COST_KEEP").map(PathBuf::from);
    let own = std::env::temp_dir().join(format!("llmproxy-cost-{}", std::process::id()));
    let folder = kept.clone().unwrap_or_else(|| own.clone());
    fs::create_dir_all(&folder).unwrap();
    // The yardstick is always measured.
    let chosen = |case: &&Case| case.is_bare() || case.name.contains(&only);
    let costs: Vec<(&Case, Cost)> =
        CASES.iter().filter(chosen).map(|case| (case, measured(case, &folder))).collect();
    if kept.is_none() {
        fs::remove_dir_all(&own).ok();
    }
    let table = table(&costs);
    print!("{table}");
    if std::env::var_os("COST_WRITE").is_some() {
        Expected::of(&costs).write();
        write_page(&table);
        return ExitCode::SUCCESS;
    }
    match Expected::read().problems(&costs) {
        problems if problems.is_empty() => ExitCode::SUCCESS,
        problems => {
            for problem in problems {
                println!("cost: {problem}");
            }
            ExitCode::FAILURE
        }
    }
}

/// A measurement that cannot go on is told of, with what its programs have said, and made once more.
fn measured(case: &Case, folder: &Path) -> Cost {
    std::panic::catch_unwind(|| case.measure(folder)).unwrap_or_else(|_| {
        println!("cost: {}: the measurement failed, and is repeated", case.name);
        println!("{}", case.last_words(folder));
        case.measure(folder)
    })
}

fn table(costs: &[(&Case, Cost)]) -> String {
    let mut table = "| | user instructions | of bare Pingora | allocations | system calls |\n\
                     |---|---|---|---|---|\n"
        .to_owned();
    for (case, cost) in costs {
        let bare = costs.iter().find(|(other, _)| other.is_bare() && other.unit == case.unit);
        let ratio = bare.map_or(1.0, |(_, bare)| cost.instructions / bare.instructions);
        table += &format!(
            "| {} | {:.0} | {ratio:.2} | {:.1} | {:.1} |\n",
            case.name, cost.instructions, cost.allocations, cost.system_calls
        );
    }
    table
}

/// Puts the table into the page on benchmarks.
fn write_page(table: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
    let text = fs::read_to_string(&page).unwrap();
    fs::write(&page, markers::replace(&text, "cost", table).unwrap()).unwrap();
}
