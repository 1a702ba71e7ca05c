//! What has been sent to a client of a stream, so that a stream that is ended here ends with events that fit.

use bytes::Bytes;

use crate::{
    base::Rejection,
    dialect::{Dialect, ErrorWording, Failure, Meter, Metering, Progress},
};

/// The code of an answer that a script has stopped.
const STOPPED: &str = "stopped_by_hook";

/// What has gone out of one stream.
pub struct Delivered {
    language: &'static dyn Dialect,
    /// `None`: the language's error event is the same everywhere.
    meter: Option<(Box<dyn Meter>, Progress)>,
    /// A document is a line, not an event.
    lines: bool,
}

impl Delivered {
    pub fn new(language: &'static dyn Dialect) -> Self {
        let meter = language.stream_meter(&Metering::default(), false);
        let probe = Failure { document: b"{}", message: "", code: "", status: 500 };
        let depends = meter.failure(&probe).is_some();
        Self { language, meter: depends.then(|| (meter, Progress::default())), lines: false }
    }

    /// A stream of documents on lines of their own.
    pub fn of_lines(language: &'static dyn Dialect) -> Self {
        Self { language, meter: None, lines: true }
    }

    /// These bytes go out.
    pub fn push(&mut self, bytes: &Bytes) {
        if let Some((meter, seen)) = &mut self.meter {
            meter.push(bytes.clone(), seen);
        }
    }

    /// The end of a stream that must not go on.
    pub fn refused(&self, rejection: &Rejection, wording: &ErrorWording) -> Bytes {
        self.failure(&Failure {
            document: &wording.rejection(rejection),
            message: &rejection.message,
            code: rejection.code.as_deref().unwrap_or_default(),
            status: rejection.status,
        })
    }

    /// The end of a stream that a script has stopped, which says why.
    pub fn stopped(&self, why: &str) -> Bytes {
        let document = self.language.failure(why, STOPPED);
        self.failure(&Failure { document: &document, message: why, code: STOPPED, status: 500 })
    }

    fn failure(&self, failure: &Failure<'_>) -> Bytes {
        if self.lines {
            return [failure.document, b"\n"].concat().into();
        }
        let own = self.meter.as_ref().and_then(|(meter, _)| meter.failure(failure));
        own.unwrap_or_else(|| self.language.event(failure.document))
    }
}
