//! The committed numbers.

use std::{fs, path::PathBuf};

use serde_json::{Map, Value, json};

use super::{
    TOLERANCE,
    cases::{Case, Cost},
};

/// The committed numbers, by case.
pub struct Expected(Map<String, Value>);

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/cost/expected.json")
}

impl Expected {
    pub fn read() -> Self {
        let text = fs::read(file()).expect("`COST_WRITE=1 make cost` writes it");
        Self(serde_json::from_slice(&text).expect("an object"))
    }

    /// These numbers.
    pub fn of(costs: &[(&Case, Cost)]) -> Self {
        let number = |(case, cost): &(&Case, Cost)| {
            let number = json!({
                "instructions": cost.instructions.round(),
                "allocations": (cost.allocations * 10.0).round() / 10.0,
                "system_calls": (cost.system_calls * 10.0).round() / 10.0,
            });
            (case.name.to_owned(), number)
        };
        Self(costs.iter().map(number).collect())
    }

    pub fn write(self) {
        let mut text = serde_json::to_string_pretty(&self.0).unwrap();
        text.push('\n');
        fs::write(file(), text).unwrap();
    }

    fn number(&self, case: &Case, what: &str) -> Option<f64> {
        self.0.get(case.name)?.get(what)?.as_f64()
    }

    /// What is worse than expected. Another compiler or C library changes all programs alike: what
    /// is expected is scaled by what bare Pingora takes now.
    pub fn problems(&self, costs: &[(&Case, Cost)]) -> Vec<String> {
        let mut problems = Vec::new();
        for (case, cost) in costs {
            let bare = costs.iter().find(|(other, _)| other.is_bare() && other.unit == case.unit);
            let scale = bare.and_then(|(bare, now)| {
                Some(now.instructions / self.number(bare, "instructions")?)
            });
            let mut check = |what, now: f64, allowed: Option<f64>| match allowed {
                None => problems.push(format!("{}: no {what} are committed", case.name)),
                Some(allowed) if now > allowed => problems.push(format!(
                    "{}: {now:.1} {what}, and {allowed:.1} are allowed. If that is meant, run \
                     `COST_WRITE=1 make cost` and say in the commit why",
                    case.name
                )),
                Some(_) => {}
            };
            if !case.is_bare() {
                let instructions = self.number(case, "instructions").zip(scale);
                let instructions = instructions.map(|(n, scale)| n * scale * (1.0 + TOLERANCE));
                check("instructions", cost.instructions, instructions);
            }
            // A part of one is noise.
            let allowed = |what| Some(self.number(case, what)? * (1.0 + TOLERANCE) + 0.3);
            check("allocations", cost.allocations, allowed("allocations"));
            check("system calls", cost.system_calls, allowed("system_calls"));
        }
        problems
    }
}
