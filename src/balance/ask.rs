//! What a request brings, as the key that pingora-load-balancing hands to a selection.

use std::{
    cell::OnceCell,
    time::{Duration, Instant},
};

use super::{Wish, trouble::Matter};

/// A wish, as bytes: time, session, caller, whether circuits count, then the ids tried, the model and the blocks, with their
/// numbers before.
pub fn write(wish: &Wish<'_>, epoch: Instant, key: &mut Vec<u8>) {
    let nanos = wish.now.saturating_duration_since(epoch).as_nanos() as u64;
    key.clear();
    key.extend(nanos.to_le_bytes());
    key.push(u8::from(wish.session.is_some()));
    key.extend(wish.session.unwrap_or_default().to_le_bytes());
    key.extend(wish.caller.to_le_bytes());
    key.push(u8::from(wish.spare));
    key.extend((wish.tried.len() as u32).to_le_bytes());
    key.extend((wish.model.len() as u32).to_le_bytes());
    wish.tried.iter().for_each(|id| key.extend(id.to_le_bytes()));
    key.extend(wish.model.as_bytes());
    wish.blocks.iter().for_each(|block| key.extend(block.to_le_bytes()));
}

/// A wish that was read from a key.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The time.
    pub now: Instant,
    /// The same, in milliseconds from the epoch.
    pub millis: u64,
    /// What binds the request to a backend.
    pub session: Option<u64>,
    /// Who calls, hashed.
    pub caller: u64,
    /// No other backend can take its place: circuits and pauses bar nothing.
    pub spare: bool,
    /// The model.
    pub model: &'a str,
    tried: &'a [u8],
    blocks: &'a [u8],
    /// The last circuit of the pool that is kept open, if any is not: found out when needed.
    pub(super) last_kept: OnceCell<Option<(Instant, u32)>>,
}

impl<'a> Ask<'a> {
    /// Reads a key; `None` if it is none of [`write`]'s.
    pub fn read(key: &'a [u8], epoch: Instant) -> Option<Self> {
        let (nanos, rest) = key.split_first_chunk()?;
        let (&[some], rest) = rest.split_first_chunk()?;
        let (session, rest) = rest.split_first_chunk()?;
        let (caller, rest) = rest.split_first_chunk()?;
        let (&[spare], rest) = rest.split_first_chunk()?;
        let (tried, rest) = rest.split_first_chunk()?;
        let (model, rest) = rest.split_first_chunk()?;
        let (tried, rest) = rest.split_at_checked(4 * u32::from_le_bytes(*tried) as usize)?;
        let (model, blocks) = rest.split_at_checked(u32::from_le_bytes(*model) as usize)?;
        let since = Duration::from_nanos(u64::from_le_bytes(*nanos));
        Some(Self {
            now: epoch + since,
            millis: since.as_millis() as u64,
            session: (some == 1).then_some(u64::from_le_bytes(*session)),
            caller: u64::from_le_bytes(*caller),
            spare: spare == 1,
            model: std::str::from_utf8(model).ok()?,
            tried,
            blocks,
            last_kept: OnceCell::new(),
        })
    }

    /// What circuits are asked.
    pub fn matter(&self) -> Matter<'a> {
        Matter { model: self.model, caller: self.caller, now: self.now }
    }

    /// Whether there are backends that are not wanted.
    pub fn again(&self) -> bool {
        !self.tried.is_empty()
    }

    /// Whether a backend is not wanted.
    pub fn tried(&self, id: u32) -> bool {
        self.tried.as_chunks().0.iter().any(|bytes| u32::from_le_bytes(*bytes) == id)
    }

    /// The beginnings of the conversation, the longest last.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.blocks.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_what_the_wish_said() {
        let (epoch, mut key) = (Instant::now(), Vec::new());
        let now = epoch + Duration::from_millis(1234);
        let wish = Wish {
            model: "qwen",
            caller: 9,
            spare: true,
            session: Some(7),
            blocks: &[1, 2, 3],
            tried: &[4, 5],
            now,
        };
        write(&wish, epoch, &mut key);
        let ask = Ask::read(&key, epoch).unwrap();
        assert_eq!((ask.now, ask.millis, ask.session, ask.model), (now, 1234, Some(7), "qwen"));
        assert_eq!((ask.caller, ask.spare), (9, true));
        assert_eq!(ask.blocks().rev().collect::<Vec<_>>(), [3, 2, 1]);
        assert!(ask.tried(4) && ask.tried(5) && !ask.tried(6));
        assert!(Ask::read(b"", epoch).is_none());
        assert!(Ask::read(&key[..30], epoch).is_none());
    }
}
