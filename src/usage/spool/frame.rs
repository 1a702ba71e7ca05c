//! The format of a record in a segment: a marker, the length, a checksum, the index, the time of writing,
//! and the JSON. All numbers are little-endian.
//!
//! The marker contains bytes that are invalid in UTF-8, so no record contains it: it shows where the next
//! record begins after damage.

use std::ops::Range;

use memchr::memmem;

use super::entry::Entry;

/// The first bytes of every record.
const MARKER: [u8; 4] = [0xF5, b'u', 0xFF, 0x9E];

/// Bytes before the JSON: marker 4, length 4, checksum 4, index 8, time 8.
pub const HEAD: usize = 28;

/// The longest record; a larger length is damage.
const LONGEST: usize = 64 << 20;

/// What was found at an offset.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// A record.
    Record {
        index: u64,
        /// When it was written, in milliseconds since 1970.
        time: i64,
        /// The range of the JSON.
        json: Range<usize>,
    },
    /// Unreadable bytes; the next record may begin at this offset.
    Damage(usize),
    /// The beginning of a record: this many bytes from the offset on are needed to decode it.
    Partial(usize),
}

/// Bytes of an encoded record.
pub fn size(entry: &Entry) -> u64 {
    (HEAD + entry.json.len()) as u64
}

pub fn encode(out: &mut Vec<u8>, entry: &Entry) {
    let start = out.len();
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&MARKER);
    head[4..8].copy_from_slice(&(entry.json.len() as u32).to_le_bytes());
    head[12..20].copy_from_slice(&entry.index.to_le_bytes());
    head[20..].copy_from_slice(&entry.time.to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(&entry.json);
    // Over index, time and JSON, which now lie side by side.
    let sum = crc32fast::hash(&out[start + 12..]);
    out[start + 8..start + 12].copy_from_slice(&sum.to_le_bytes());
}

fn checksum(index: &[u8], time: &[u8], json: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for part in [index, time, json] {
        sum.update(part);
    }
    sum.finalize()
}

/// Decodes what begins at `at`.
pub fn decode(bytes: &[u8], at: usize) -> Frame {
    let rest = &bytes[at..];
    let Some((head, tail)) = rest.split_at_checked(HEAD) else {
        return match rest.starts_with(&MARKER[..rest.len().min(4)]) {
            true => Frame::Partial(HEAD),
            false => Frame::Damage(next_marker(bytes, at)),
        };
    };
    let number = |range: Range<usize>| {
        head[range].iter().rev().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte))
    };
    let len = number(4..8) as usize;
    if head[..4] != MARKER || len > LONGEST {
        return Frame::Damage(next_marker(bytes, at));
    }
    let Some(json) = tail.get(..len) else {
        return Frame::Partial(HEAD + len);
    };
    if u64::from(checksum(&head[12..20], &head[20..28], json)) != number(8..12) {
        return Frame::Damage(next_marker(bytes, at));
    }
    let json = at + HEAD..at + HEAD + len;
    Frame::Record { index: number(12..20), time: number(20..28) as i64, json }
}

/// Where the next record may begin after `at`: at a marker, or at the last bytes if a marker may begin
/// there.
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
            encode(&mut bytes, &entry(i as u64, text));
        }
        bytes
    }

    /// The indexes of all records that can be decoded.
    fn indexes(bytes: &[u8]) -> Vec<u64> {
        let (mut at, mut seen) = (0, Vec::new());
        while at < bytes.len() {
            at = match decode(bytes, at) {
                Frame::Record { index, json, .. } => {
                    seen.push(index);
                    json.end
                }
                Frame::Damage(next) => next,
                Frame::Partial(_) => next_marker(bytes, at),
            };
        }
        seen
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = log(&[b"{}".to_vec(), b"".to_vec()]);
        let first = Frame::Record { index: 0, time: -7, json: HEAD..HEAD + 2 };
        assert_eq!(decode(&bytes, 0), first);
        assert_eq!(decode(&bytes[..10], 0), Frame::Partial(HEAD));
        assert_eq!(decode(&bytes[..HEAD + 1], 0), Frame::Partial(HEAD + 2));
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
