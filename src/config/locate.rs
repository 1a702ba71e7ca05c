//! Finding the line of a path in a YAML text.
//!
//! `serde_yaml` reports a position only with an error. So a visitor walks down to the path and
//! fails there on purpose: the error carries the position.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::value::{self, Step};

/// The line (from 1) of the value at `path`, or of its closest parent that exists.
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let steps = value::parse(path);
    (0..=steps.len()).rev().find_map(|n| find(text, &steps[..n]))
}

fn find(text: &str, steps: &[Step]) -> Option<usize> {
    if steps.is_empty() {
        return None;
    }
    let error = Walk(steps).deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    // Any other error is unrelated to the path.
    if !error.to_string().contains(ARRIVED) {
        return None;
    }
    error.location().map(|l| l.line())
}

const ARRIVED: &str = "arrived at the path";

struct Walk<'p>(&'p [Step]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.0.split_first() else {
            return Ok(());
        };
        while let Some(found) = map.next_key_seed(KeyIs { wanted, last: rest.is_empty() })? {
            if found {
                map.next_value_seed(Walk(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.0.split_first() else {
            return Ok(());
        };
        for _ in 0..*wanted {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        if rest.is_empty() {
            seq.next_element_seed(Fail)?;
        } else {
            seq.next_element_seed(Walk(rest))?;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Compares a key; fails at the key itself when it is the last step, so that the position is the
/// key's and not that of a value some lines further down.
struct KeyIs<'p> {
    wanted: &'p str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.last) {
            (true, true) => Err(E::custom(ARRIVED)),
            (same, _) => Ok(same),
        }
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }
}

/// Fails at any value.
struct Fail;

impl<'de> DeserializeSeed<'de> for Fail {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! fail_on {
    ($($name:ident($($t:ty)?)),*) => {
        $(fn $name<E: Error>(self $(, _: $t)?) -> Result<(), E> { Err(E::custom(ARRIVED)) })*
    };
}

impl<'de> Visitor<'de> for Fail {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fail_on!(
        visit_bool(bool),
        visit_i64(i64),
        visit_u64(u64),
        visit_f64(f64),
        visit_str(&str),
        visit_unit()
    );

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(ARRIVED))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(ARRIVED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# first\nlisten: x\nbackends:\n  - url: a\n    weight: 1\n  - url: b\n\n    tls:\n      ca: c\nlist: [1, 2]\n";

    #[test]
    fn finds_lines() {
        for (path, line) in [
            ("listen", 2),
            ("backends", 3),
            ("backends[0].url", 4),
            ("backends[0].weight", 5),
            ("backends[1]", 6),
            ("backends[1].tls.ca", 9),
            ("list[1]", 10),
        ] {
            assert_eq!(line_of(TEXT, path), Some(line), "{path}");
        }
    }

    #[test]
    fn falls_back_to_the_parent() {
        assert_eq!(line_of(TEXT, "backends[1].missing"), Some(6));
        assert_eq!(line_of(TEXT, "nothing"), None);
    }
}
