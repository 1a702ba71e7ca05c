//! Where the words of an event stand that scripts know: the same words in every language.

/// A word of the events of a language: what scripts know as `event.content`, for instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventWord {
    /// `content`, `reasoning`, `tool_calls`, `finish_reason` or `usage`.
    pub name: &'static str,
    /// The events that have it there, by their `type`; `None`: any.
    pub when: Option<&'static str>,
    /// Where it stands in the event's document (RFC 6901).
    pub pointer: &'static str,
}

impl EventWord {
    /// In any event.
    pub const fn any(name: &'static str, pointer: &'static str) -> Self {
        Self { name, when: None, pointer }
    }

    /// In events of this type.
    pub const fn of(when: &'static str, name: &'static str, pointer: &'static str) -> Self {
        Self { name, when: Some(when), pointer }
    }
}
