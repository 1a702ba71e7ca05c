//! `llmproxy usage verify`: whether the spool is complete and undamaged.

use std::fmt::Write;

use clap::Args;
use indicatif::BinaryBytes;

use super::{
    output::{bar, count, print},
    spool::archive,
};
use crate::{
    cli::config_file::ConfigFile,
    config::plan::Plan,
    usage::spool::{Gap, Verification},
};

#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub file: ConfigFile,
}

/// Checks the spool. Returns whether nothing is damaged or missing.
///
/// # Errors
/// If it cannot be checked.
pub fn run(plan: &Plan) -> Result<bool, String> {
    let archive = archive(plan)?;
    let template = "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    let bar = bar(archive.bytes(), template);
    let verdict = archive.verify(&mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let verdict = verdict?;
    let places = archive.positions()?;
    let lost_positions: Vec<_> = places.into_iter().filter(|(_, place)| place.is_none()).collect();
    let mut text = problems(&verdict);
    for (name, _) in &lost_positions {
        writeln!(
            text,
            "the position of the reporter {name} is damaged: it starts again from the oldest record"
        )
        .ok();
    }
    let good = verdict.is_intact() && lost_positions.is_empty();
    let records = count(verdict.records, "record");
    let segments = count(archive.segments().len() as u64, "segment");
    let bytes = BinaryBytes(verdict.bytes);
    let end = if good { "nothing is damaged, nothing is missing" } else { "there are problems" };
    writeln!(text, "{records} in {segments}, {bytes}: {end}").ok();
    print(&text);
    Ok(good)
}

/// A line for each problem.
fn problems(verdict: &Verification) -> String {
    let mut text = String::new();
    for damage in &verdict.damage {
        let (path, bytes) = (damage.path.display(), count(damage.bytes, "byte"));
        writeln!(text, "{path}: {bytes} at offset {} cannot be read", damage.offset).ok();
    }
    for gap in &verdict.gaps {
        match gap {
            Gap::Log { from, lost } => {
                let (to, lost) = (from + lost - 1, count(*lost, "record"));
                writeln!(text, "{lost} missing in the spool: #{from} to #{to}")
            }
            Gap::Sequence { process, from, lost } => {
                let (to, lost) = (from + lost - 1, count(*lost, "record"));
                let numbers = format!("sequence {from} to {to}");
                writeln!(text, "{lost} missing of process {process:?}: {numbers}")
            }
            Gap::Order { index } => writeln!(text, "record #{index} is out of order"),
        }
        .ok();
    }
    for path in &verdict.unread_files {
        writeln!(text, "{}: does not belong to the spool and is ignored", path.display()).ok();
    }
    if verdict.torn > 0 {
        let bytes = count(verdict.torn, "byte");
        writeln!(text, "the last record is incomplete, {bytes}: being written, or left by a crash")
            .ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::spool::Damage;

    #[test]
    fn every_problem_has_a_line() {
        let verdict = Verification {
            damage: vec![Damage { path: "a/0.log".into(), offset: 16, bytes: 1 }],
            gaps: vec![
                Gap::Log { from: 3, lost: 1 },
                Gap::Sequence { process: "gw_1".to_owned(), from: 4, lost: 2 },
                Gap::Order { index: 9 },
            ],
            unread_files: vec!["a/0.log.bak".into()],
            torn: 5,
            ..Verification::default()
        };
        let told = "a/0.log: 1 byte at offset 16 cannot be read
1 record missing in the spool: #3 to #3
2 records missing of process \"gw_1\": sequence 4 to 5
record #9 is out of order
a/0.log.bak: does not belong to the spool and is ignored
the last record is incomplete, 5 bytes: being written, or left by a crash
";
        assert_eq!(problems(&verdict), told);
    }
}
