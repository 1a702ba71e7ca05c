//! What the variables of a prompt stand for in a request.

use std::borrow::Cow;

use jiff::civil::DateTime;

use crate::config::plan::{Piece, RequestVariable};

/// What a request says.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// In the time zone of the prompts.
    pub now: DateTime,
    pub model: &'a str,
    pub user: &'a str,
}

/// A text with the values of its variables.
pub fn render(pieces: &[Piece], facts: &Facts<'_>) -> String {
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Variable { variable, default } => match value(*variable, facts) {
                empty if empty.is_empty() => out.push_str(default),
                value => out.push_str(&value),
            },
        }
    }
    out
}

fn value<'a>(variable: RequestVariable, facts: &Facts<'a>) -> Cow<'a, str> {
    let now = |format| Cow::Owned(facts.now.strftime(format).to_string());
    match variable {
        RequestVariable::Date => now("%Y-%m-%d"),
        RequestVariable::Time => now("%H:%M:%S"),
        RequestVariable::DateTime => now("%Y-%m-%dT%H:%M:%S"),
        RequestVariable::Model => facts.model.into(),
        RequestVariable::UserId => facts.user.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_their_formats() {
        let facts = Facts {
            now: jiff::civil::date(2026, 3, 4).at(5, 6, 7, 890),
            model: "gpt-4o",
            user: "",
        };
        for (variable, expected) in [
            (RequestVariable::Date, "2026-03-04"),
            (RequestVariable::Time, "05:06:07"),
            (RequestVariable::DateTime, "2026-03-04T05:06:07"),
            (RequestVariable::Model, "gpt-4o"),
            (RequestVariable::UserId, "anyone"),
        ] {
            let variable = Piece::Variable { variable, default: "anyone".to_owned() };
            let pieces = [Piece::Text("[".to_owned()), variable, Piece::Text("]".to_owned())];
            assert_eq!(render(&pieces, &facts), format!("[{expected}]"));
        }
    }
}
