//! Which backends have failed a request. One that has failed with a model may do well with another;
//! one that cannot be reached has failed with all.

use std::sync::Arc;

/// Those that have failed it.
#[derive(Default)]
pub struct Tried(Vec<One>);

struct One {
    id: u32,
    /// The model's name there, as a way gives it.
    model: Option<Arc<str>>,
    unreachable: bool,
}

impl Tried {
    /// Adds one.
    pub fn add(&mut self, id: u32, model: Option<Arc<str>>, unreachable: bool) {
        self.0.push(One { id, model, unreachable });
    }

    /// Whether this one has, with this model.
    pub fn contains(&self, id: u32, model: Option<&str>) -> bool {
        self.with(model).any(|one| one == id)
    }

    /// The ids of those that have failed with this model.
    pub fn with(&self, model: Option<&str>) -> impl Iterator<Item = u32> {
        let same = move |one: &&One| one.unreachable || one.model.as_deref() == model;
        self.0.iter().filter(same).map(|one| one.id)
    }

    /// None has.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// They are tried anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_fails_with_a_model_or_with_all() {
        let mut tried = Tried::default();
        tried.add(1, Some("large".into()), false);
        tried.add(2, None, true);
        let with = |model| tried.with(model).collect::<Vec<_>>();
        assert_eq!(
            (with(Some("large")), with(Some("small")), with(None)),
            (vec![1, 2], vec![2], vec![2])
        );
        assert!(tried.contains(2, Some("small")) && !tried.contains(1, None));
    }
}
