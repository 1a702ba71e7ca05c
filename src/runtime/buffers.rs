//! The total memory of all request bodies that are held.

use std::sync::Arc;

use prometheus::IntGauge;

/// Counts the held bytes of all requests.
pub struct Buffers {
    held: IntGauge,
}

impl Buffers {
    pub fn new(held: IntGauge) -> Self {
        Self { held }
    }

    /// An empty share.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { all: Arc::clone(self), bytes: 0 }
    }
}

/// The bytes that one request holds; released when dropped.
pub struct Share {
    all: Arc<Buffers>,
    bytes: i64,
}

impl Share {
    /// Takes more, unless all shares together would then hold more than `limit`.
    #[must_use]
    pub fn try_take(&mut self, bytes: usize, limit: u64) -> bool {
        self.take(bytes);
        let fits = self.all.held.get() <= i64::try_from(limit).unwrap_or(i64::MAX);
        if !fits {
            self.release(bytes);
        }
        fits
    }

    /// Takes more, without a limit.
    pub fn take(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes += bytes;
        self.all.held.add(bytes);
    }

    fn release(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes -= bytes;
        self.all.held.sub(bytes);
    }

    /// Releases everything.
    pub fn clear(&mut self) {
        self.all.held.sub(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let gauge = IntGauge::new("held", "held").unwrap();
        let all = Arc::new(Buffers::new(gauge.clone()));
        let (mut first, mut second) = (all.share(), all.share());
        assert!(first.try_take(60, 100));
        assert!(!second.try_take(60, 100));
        assert_eq!(gauge.get(), 60);
        assert!(second.try_take(40, 100) && !first.try_take(1, 100));
        second.take(500);
        assert_eq!(gauge.get(), 600);
        second.clear();
        assert!(first.try_take(40, 100));
        drop((first, second));
        assert_eq!(gauge.get(), 0);
    }
}
