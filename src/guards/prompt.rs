//! Denied words and patterns in requests.

use super::{
    finding::{Finding, Refused},
    inner::pieces,
    role::in_roles,
};
use crate::{
    base::Rejection, config::plan::DenyPlan, dialect::texts::RequestText, wire::literal::Literal,
};

/// Looks for what must not stand in the texts of a body.
///
/// # Errors
/// If it stands there.
pub fn check(
    entries: &[&DenyPlan],
    texts: &[RequestText],
    body: &[u8],
) -> Result<(), Box<Refused>> {
    if entries.is_empty() {
        return Ok(());
    }
    for text in texts {
        let Some(literal) = body.get(text.range.clone()).and_then(Literal::read) else { continue };
        let looking = entries.iter().filter(|entry| in_roles(&entry.roles, text.role));
        for entry in looking {
            let found = pieces(&literal.text, text.embedded)
                .iter()
                .any(|piece| entry.patterns.find(piece.text(), 0).is_some());
            if found {
                let kind = "prompt".to_owned();
                let finding = Finding { guard: "deny", kind, action: "refuse", count: 1 };
                let rejection = Rejection::content_blocked(entry.status, &entry.message);
                return Err(Box::new(Refused { rejection, findings: vec![finding] }));
            }
        }
    }
    Ok(())
}
