//! Reasoning in the history: its text is for whoever takes it, its state for its issuer alone.

use crate::dialect::hub::{
    loss::Losses,
    request::{Part, Request, State},
    target::{Target, Traits},
};

/// Drops the state of other issuers, and what is empty without it.
pub fn prepare(
    request: &mut Request,
    from: &Traits,
    to: &Traits,
    target: &Target,
    losses: &mut Losses,
) {
    for turn in &mut request.turns {
        let path = format!("{}.{}", turn.path, from.words.state);
        let mut keep = |state: &mut Option<State>| {
            let foreign = state.as_ref().is_some_and(|state| !is_readable(state, to, target));
            if foreign {
                *state = None;
                losses.add(path.clone(), "it is of another issuer than the backend");
            }
        };
        for part in &mut turn.parts {
            match part {
                Part::Reasoning(reasoning) => keep(&mut reasoning.state),
                Part::ToolCall(call) => keep(&mut call.state),
                _ => {}
            }
        }
        turn.parts.retain(|part| match part {
            Part::Reasoning(reasoning) => {
                reasoning.state.is_some()
                    || reasoning.text.as_ref().is_some_and(|text| !text.is_empty())
                    || reasoning.summary.iter().any(|text| !text.is_empty())
            }
            _ => true,
        });
    }
    request.turns.retain(|turn| !turn.parts.is_empty());
}

/// The backend can read it: it is from its own domain, or came bare from a client of its vendor.
fn is_readable(state: &State, to: &Traits, target: &Target) -> bool {
    state.language == to.name && state.issuer.as_ref().is_none_or(|issuer| *issuer == target.issuer)
}
