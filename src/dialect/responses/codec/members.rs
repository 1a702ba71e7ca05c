//! The members of a request that is written.

use crate::dialect::hub::{Json, Target, Writer};

/// The members of the request, each once.
pub(super) struct Members<'a> {
    refuses: &'a [String],
    /// The request came in this language.
    pub own: bool,
    written: Vec<String>,
    /// What the backend refuses and would have got.
    pub refused: Vec<String>,
}

impl<'a> Members<'a> {
    /// For a request that came in this language, or not.
    pub fn new(target: &'a Target, own: bool) -> Self {
        Self { refuses: &target.quirks.refuses, own, written: Vec::new(), refused: Vec::new() }
    }

    /// Writes a member, unless it is there already or the backend refuses it.
    pub fn put(&mut self, name: &str, value: Option<Json>, out: &mut Writer) {
        let Some(value) = value else { return };
        if self.refuses.iter().any(|member| member == name) {
            return self.refused.push(name.to_owned());
        }
        if !self.written.iter().any(|written| written == name) {
            self.written.push(name.to_owned());
            out.json_at(name, &value);
        }
    }
}
