//! A piece of an answer that goes out by itself at a time, unless something comes before that it belongs
//! to.

use std::sync::Mutex;

use bytes::Bytes;
use tokio::time::Instant;

use crate::base::lock;

/// Such a piece, if there is one.
#[derive(Default)]
pub struct PendingPiece(Mutex<Pending>);

#[derive(Default)]
enum Pending {
    #[default]
    None,
    Waiting(Bytes, Instant),
    /// Being sent, or sent: the bytes that are left.
    Leaving(Bytes),
}

impl PendingPiece {
    /// Sends this piece at that time, unless [`Self::recall`] comes before. `false` if another one is
    /// still going out.
    pub fn send_at(&self, at: Instant, piece: Bytes) -> bool {
        let mut pending = lock(&self.0);
        let free = !matches!(&*pending, Pending::Leaving(rest) if !rest.is_empty());
        if free {
            *pending = Pending::Waiting(piece, at);
        }
        free
    }

    /// Takes back what waits; `false` if it is too late for that.
    pub fn recall(&self) -> bool {
        let mut pending = lock(&self.0);
        let late = matches!(*pending, Pending::Leaving(_));
        if !late {
            *pending = Pending::None;
        }
        !late
    }

    /// There is none, and none was sent.
    pub fn is_none(&self) -> bool {
        matches!(*lock(&self.0), Pending::None)
    }

    /// When there is something to send.
    pub fn at(&self) -> Option<Instant> {
        match &*lock(&self.0) {
            Pending::Waiting(_, at) => Some(*at),
            Pending::Leaving(rest) if !rest.is_empty() => Some(Instant::now()),
            _ => None,
        }
    }

    /// What is to be sent by now; it cannot be taken back any more.
    pub fn leaving(&self, now: Instant) -> Bytes {
        let mut pending = lock(&self.0);
        match std::mem::take(&mut *pending) {
            Pending::Waiting(piece, at) if at <= now => *pending = Pending::Leaving(piece),
            other => *pending = other,
        }
        match &*pending {
            Pending::Leaving(rest) => rest.clone(),
            _ => Bytes::new(),
        }
    }

    /// This many bytes of it were sent.
    pub fn sent(&self, bytes: usize) {
        if let Pending::Leaving(rest) = &mut *lock(&self.0) {
            *rest = rest.slice(bytes..);
        }
    }

    /// What is left of it, which must go out before anything else.
    pub fn take_rest(&self) -> Bytes {
        let mut pending = lock(&self.0);
        match std::mem::take(&mut *pending) {
            Pending::Leaving(rest) => rest,
            other => {
                *pending = other;
                Bytes::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_piece_goes_out_once() {
        let pending = PendingPiece::default();
        let now = Instant::now();
        let soon = now + Duration::from_millis(100);
        let piece = Bytes::from_static(b"abc");
        assert!(pending.send_at(soon, piece.clone()));
        assert_eq!(pending.leaving(now), "", "it is too early");
        assert!(pending.recall());
        assert_eq!((pending.at(), pending.take_rest()), (None, Bytes::new()));
        // It is broken off after two bytes.
        assert!(pending.send_at(soon, piece.clone()));
        assert_eq!(pending.leaving(soon), piece);
        pending.sent(2);
        assert!(!pending.recall() && pending.at().is_some());
        assert!(!pending.send_at(soon, Bytes::from_static(b"next")));
        assert_eq!(pending.leaving(now), "c");
        assert_eq!(pending.take_rest(), "c");
        assert!(pending.recall() && pending.send_at(soon, piece));
    }
}
