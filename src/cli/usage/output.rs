//! What the commands print: texts, times, counts, and a progress bar.

use std::{io::Write, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;

/// The time of a record, from milliseconds since 1970.
pub fn time(millis: i64) -> String {
    let time = Timestamp::from_millisecond(millis);
    time.map_or_else(|_| millis.to_string(), |time| format!("{time:.3}"))
}

/// The time since a record was written.
pub fn age(millis: i64) -> Duration {
    let ago = Timestamp::now().as_millisecond().saturating_sub(millis);
    Duration::from_millis(ago.try_into().unwrap_or(0))
}

/// `1 record`, `2 records`.
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Prints a text. A reader that closes the pipe early is no reason to panic: returns `false` then.
pub fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// A progress bar on stderr; hidden if stderr is not a terminal.
pub fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style.progress_chars("=> "))
}
