//! What a strategy is to a pool: a selection of pingora-load-balancing that is also asked with the
//! typed request.
//!
//! pingora-load-balancing hands a selection nothing but a key, by which the selection decides where
//! to start. So the strategy is asked first, with the request; the positions of the members that it
//! prefers are the key with which the [`LoadBalancer`](pingora_load_balancing::LoadBalancer) then
//! selects.

use std::sync::Arc;

use pingora_load_balancing::selection::BackendSelection;

use super::super::{pick::Pick, table::Table};

/// A rule by which members of a table are picked.
pub trait Rule: Send + Sync + 'static {
    /// The members to offer first, at most two; all others follow. `None`: no preference.
    fn choose(_table: &Table, _pick: &Pick<'_>) -> [Option<usize>; 2] {
        [None, None]
    }

    /// The score by which a member is compared with the others; lower is better. `None`: the rule
    /// does not compare.
    fn score(_table: &Table, _member: usize, _pick: &Pick<'_>) -> Option<f64> {
        None
    }

    /// Learns which member was picked.
    fn picked(_table: &Table, _member: usize, _pick: &Pick<'_>) {}
}

/// A selection of pingora-load-balancing that has a rule.
pub trait RuleSelection: BackendSelection<Config = Arc<Table>> {
    type Rule: Rule;
}

/// The key that makes a selection start with some members: their positions, `NONE` for none.
pub fn start_key(preferred: [Option<usize>; 2]) -> [u8; 8] {
    let [first, second] =
        preferred.map(|member| member.map_or(NONE, |member| member as u32).to_le_bytes());
    let mut key = [0; 8];
    key[..4].copy_from_slice(&first);
    key[4..].copy_from_slice(&second);
    key
}

/// The members with which a selection starts by its key; any other key starts with none.
pub fn start_members(key: &[u8]) -> [Option<usize>; 2] {
    let ([first, second], []) = key.as_chunks() else { return [None, None] };
    [first, second].map(|position| {
        let position = u32::from_le_bytes(*position);
        (position != NONE).then_some(position as usize)
    })
}

const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_key_names_its_members_and_any_other_key_names_none() {
        for members in [[None, None], [Some(0), None], [None, Some(7)], [Some(300), Some(2)]] {
            assert_eq!(start_members(&start_key(members)), members);
        }
        assert_eq!(start_members(b""), [None, None]);
        assert_eq!(start_members(b"a session"), [None, None]);
    }
}
