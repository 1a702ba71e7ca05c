//! How a record stands in a segment: a marker, its length, a checksum, its index, when it was
//! written, and its JSON. All numbers are little-endian.
//!
//! The marker holds bytes that UTF-8 does not know, so that it stands in no record: what follows a
//! damaged place is found by it.

use std::ops::Range;

use memchr::memmem;

use super::Entry;

/// How every record begins.
const MARKER: [u8; 4] = [0xF5, b'u', 0xFF, 0x9E];

/// Bytes before the JSON: marker 4, length 4, checksum 4, index 8, time 8.
pub const HEAD: usize = 28;

/// A longer record is none.
const LONGEST: usize = 64 << 20;

/// What stands at a place.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A record.
    Record {
        /// Its index.
        index: u64,
        /// When it was written, in milliseconds since 1970.
        time: i64,
        /// Where its JSON is.
        json: Range<usize>,
    },
    /// Nothing that can be read; a record may begin again at this place.
    Damage(usize),
    /// The beginning of something: so many bytes would have to be there from the place on.
    Part(usize),
}

/// Bytes that a record takes.
pub fn size(entry: &Entry) -> u64 {
    (HEAD + entry.json.len()) as u64
}

/// Writes a record.
pub fn write(out: &mut Vec<u8>, entry: &Entry) {
    let (index, time) = (entry.index.to_le_bytes(), entry.time.to_le_bytes());
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&(entry.json.len() as u32).to_le_bytes());
    out.extend_from_slice(&checksum(&index, &time, &entry.json).to_le_bytes());
    out.extend_from_slice(&index);
    out.extend_from_slice(&time);
    out.extend_from_slice(&entry.json);
}

fn checksum(index: &[u8], time: &[u8], json: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for part in [index, time, json] {
        sum.update(part);
    }
    sum.finalize()
}

/// What stands at `at`.
pub fn look(bytes: &[u8], at: usize) -> Found {
    let rest = &bytes[at..];
    let Some((head, tail)) = rest.split_at_checked(HEAD) else {
        return match rest.starts_with(&MARKER[..rest.len().min(4)]) {
            true => Found::Part(HEAD),
            false => Found::Damage(next_marker(bytes, at)),
        };
    };
    let number = |range: Range<usize>| {
        head[range].iter().rev().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte))
    };
    let len = number(4..8) as usize;
    if head[..4] != MARKER || len > LONGEST {
        return Found::Damage(next_marker(bytes, at));
    }
    let Some(json) = tail.get(..len) else {
        return Found::Part(HEAD + len);
    };
    if u64::from(checksum(&head[12..20], &head[20..28], json)) != number(8..12) {
        return Found::Damage(next_marker(bytes, at));
    }
    let json = at + HEAD..at + HEAD + len;
    Found::Record { index: number(12..20), time: number(20..28) as i64, json }
}

/// Where a record may begin behind `at`: a marker, or the last bytes if they may be one.
pub fn next_marker(bytes: &[u8], at: usize) -> usize {
    let from = (at + 1).min(bytes.len());
    let found = memmem::find(&bytes[from..], &MARKER).map(|n| from + n);
    found.unwrap_or_else(|| {
        let begun = (1..MARKER.len()).rev().find(|n| bytes[from..].ends_with(&MARKER[..*n]));
        bytes.len() - begun.unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn entry(index: u64, json: &[u8]) -> Entry {
        Entry { index, time: -7, json: Bytes::copy_from_slice(json) }
    }

    fn log(texts: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            write(&mut bytes, &entry(i as u64, text));
        }
        bytes
    }

    /// The indexes that are found, as somebody finds them who has all bytes.
    fn indexes(bytes: &[u8]) -> Vec<u64> {
        let (mut at, mut seen) = (0, Vec::new());
        while at < bytes.len() {
            at = match look(bytes, at) {
                Found::Record { index, json, .. } => {
                    seen.push(index);
                    json.end
                }
                Found::Damage(next) => next,
                Found::Part(_) => next_marker(bytes, at),
            };
        }
        seen
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = log(&[b"{}".to_vec(), b"".to_vec()]);
        let first = Found::Record { index: 0, time: -7, json: HEAD..HEAD + 2 };
        assert_eq!(look(&bytes, 0), first);
        assert_eq!(look(&bytes[..10], 0), Found::Part(HEAD));
        assert_eq!(look(&bytes[..HEAD + 1], 0), Found::Part(HEAD + 2));
        assert_eq!(indexes(&bytes), [0, 1]);
    }

    proptest! {
        #[test]
        fn damage_costs_only_what_is_damaged(
            texts in prop::collection::vec("[ -~]{0,40}".prop_map(String::into_bytes), 3..8),
            at in 0usize..400,
            with in 1u8..=255,
        ) {
            let mut bytes = log(&texts);
            let at = at % bytes.len();
            bytes[at] ^= with;
            let seen = indexes(&bytes);
            let mut start = 0;
            let hit = texts.iter().position(|text| {
                start += HEAD + text.len();
                at < start
            });
            let all = 0..texts.len() as u64;
            let rest: Vec<u64> = all.filter(|i| Some(*i as usize) != hit).collect();
            prop_assert_eq!(seen, rest);
        }

        #[test]
        fn a_log_may_end_anywhere(cut in 0usize..400) {
            let texts: Vec<_> = (0..5).map(|n| vec![b'x'; n * 7]).collect();
            let bytes = log(&texts);
            let cut = cut % bytes.len();
            let seen = indexes(&bytes[..cut]);
            prop_assert_eq!(&seen, &(0..seen.len() as u64).collect::<Vec<_>>());
            let whole: usize = texts[..seen.len()].iter().map(|t| HEAD + t.len()).sum();
            prop_assert!(whole <= cut);
            let next = texts.get(seen.len()).map_or(usize::MAX, |t| whole + HEAD + t.len());
            prop_assert!(next > cut);
        }
    }
}
