//! The backends that a request is not sent to again, because they have failed it. One that has
//! failed with a model may succeed with another; one that cannot be reached has failed with all.

use std::sync::Arc;

/// The backends that a request is not sent to again in this round.
#[derive(Default)]
pub struct Excluded(Vec<Exclusion>);

struct Exclusion {
    id: u32,
    /// The model's name there, as the route gives it.
    model: Option<Arc<str>>,
    unreachable: bool,
}

impl Excluded {
    /// Excludes a backend with one model, or with all if it is unreachable.
    pub fn add(&mut self, id: u32, model: Option<Arc<str>>, unreachable: bool) {
        self.0.push(Exclusion { id, model, unreachable });
    }

    /// Whether this backend is excluded with this model.
    pub fn contains(&self, id: u32, model: Option<&str>) -> bool {
        self.with(model).any(|one| one == id)
    }

    /// The ids of the backends that are excluded with this model.
    pub fn with(&self, model: Option<&str>) -> impl Iterator<Item = u32> {
        let same = move |one: &&Exclusion| one.unreachable || one.model.as_deref() == model;
        self.0.iter().filter(same).map(|one| one.id)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A new round begins.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_fails_with_a_model_or_with_all() {
        let mut excluded = Excluded::default();
        excluded.add(1, Some("large".into()), false);
        excluded.add(2, None, true);
        let with = |model| excluded.with(model).collect::<Vec<_>>();
        assert_eq!(
            (with(Some("large")), with(Some("small")), with(None)),
            (vec![1, 2], vec![2], vec![2])
        );
        assert!(excluded.contains(2, Some("small")) && !excluded.contains(1, None));
    }
}
