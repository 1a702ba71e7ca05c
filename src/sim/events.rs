//! What the streams of all languages have in common.

use super::reply::{Finish, Step};

/// The events of one streamed answer, as one language writes them. Each text is one event or several, and is
/// written by itself.
pub trait Events: Send {
    /// The first events begin before the engine has a place for the request.
    fn begins_at_once(&self) -> bool {
        false
    }

    /// The prompt has been read; so many of its tokens were in the prefix cache.
    fn prefilled(&mut self, cached: u64);

    /// The events before any content.
    fn opening(&mut self) -> Vec<String>;

    /// The events of a token. The last one has the reason why the answer ends. `generated` counts the tokens of
    /// one choice, this one included.
    fn step(&mut self, step: Step<'_>, finish: Option<Finish>, generated: u64) -> Vec<String>;

    /// The events after the last token.
    fn closing(&mut self, generated: u64) -> Vec<String>;

    /// The event of an engine that has died; no other follows.
    fn error(&mut self) -> String;

    /// What ends every stream, even that of an engine that has died.
    fn end(&self) -> &'static str {
        ""
    }
}
