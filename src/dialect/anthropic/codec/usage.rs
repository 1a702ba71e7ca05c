//! Usage as Messages counts it: the input does not include what came from caches, or went there.

use crate::dialect::hub::{Object, Usage, Writer};

/// Counts in the vendor's words. What is said later replaces what was said before; what is not said
/// stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
}

impl Counts {
    /// Takes a `usage` object. It may be anything: what is no count is not there.
    pub fn take(&mut self, usage: &str) {
        let Ok(mut usage) = Object::parse(usage) else { return };
        let mut set = |slot: &mut Option<u64>, name: &str| {
            *slot = usage.read(name).or(*slot);
        };
        set(&mut self.input, "input_tokens");
        set(&mut self.cache_read, "cache_read_input_tokens");
        set(&mut self.cache_write, "cache_creation_input_tokens");
        set(&mut self.output, "output_tokens");
        let inner = |object: &str, name: &str| {
            Object::parse(usage.get(object)?.get()).ok()?.read::<u64>(name)
        };
        let hour = inner("cache_creation", "ephemeral_1h_input_tokens");
        self.cache_write_1h = hour.or(self.cache_write_1h);
        let thinking = inner("output_tokens_details", "thinking_tokens");
        self.reasoning = thinking.or(self.reasoning);
    }

    /// In the hub's words: totals include their parts.
    pub fn usage(&self) -> Usage {
        let parts = [self.input, self.cache_read, self.cache_write];
        let sum = parts.iter().flatten().fold(0_u64, |sum, part| sum.saturating_add(*part));
        Usage {
            input: parts.iter().any(Option::is_some).then_some(sum),
            cache_read: self.cache_read,
            cache_write: self.cache_write,
            cache_write_1h: self.cache_write_1h,
            output: self.output,
            reasoning: self.reasoning,
            ..Usage::default()
        }
    }
}

/// Writes the members of a `usage` object. `whole`: clients read both counts of it.
pub fn write(out: &mut Writer, usage: &Usage, whole: bool) {
    if usage.input.is_some() || whole {
        out.raw_at("input_tokens", usage.uncached());
    }
    out.maybe_raw_at("cache_creation_input_tokens", usage.cache_write);
    out.maybe_raw_at("cache_read_input_tokens", usage.cache_read);
    if let (Some(hour), Some(all)) = (usage.cache_write_1h, usage.cache_write) {
        out.object_at("cache_creation", |o| {
            o.raw_at("ephemeral_5m_input_tokens", all.saturating_sub(hour));
            o.raw_at("ephemeral_1h_input_tokens", hour);
        });
    }
    out.raw_at("output_tokens", usage.output.unwrap_or(0));
    if let Some(reasoning) = usage.reasoning {
        out.object_at("output_tokens_details", |o| o.raw_at("thinking_tokens", reasoning));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_includes_caches_in_the_hub_only() {
        let mut counts = Counts::default();
        counts.take(
            r#"{"input_tokens":9,"cache_read_input_tokens":8,"cache_creation_input_tokens":5,"cache_creation":{"ephemeral_1h_input_tokens":2},"output_tokens":1}"#,
        );
        counts.take(r#"{"output_tokens":12,"output_tokens_details":{"thinking_tokens":7}}"#);
        let usage = counts.usage();
        assert_eq!((usage.input, usage.output, usage.reasoning), (Some(22), Some(12), Some(7)));
        let mut out = Writer::default();
        out.object(|o| write(o, &usage, false));
        assert_eq!(
            out.finish(),
            r#"{"input_tokens":9,"cache_creation_input_tokens":5,"cache_read_input_tokens":8,"cache_creation":{"ephemeral_5m_input_tokens":3,"ephemeral_1h_input_tokens":2},"output_tokens":12,"output_tokens_details":{"thinking_tokens":7}}"#
        );
    }

    #[test]
    fn what_is_not_reported_stays_unknown() {
        for text in ["{}", "[]", r#"{"input_tokens":null,"output_tokens":"x"}"#] {
            let mut counts = Counts::default();
            counts.take(text);
            assert_eq!(counts.usage(), Usage::default(), "{text}");
        }
        let mut out = Writer::default();
        out.object(|o| write(o, &Usage::default(), false));
        out.object(|o| write(o, &Usage::default(), true));
        assert_eq!(out.finish(), r#"{"output_tokens":0},{"input_tokens":0,"output_tokens":0}"#);
    }
}
