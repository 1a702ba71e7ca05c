//! Text written by hand into a buffer, for what is written of every request: the formatting machinery
//! of the standard library and of serde costs several times as much as the bytes.

use std::{cell::Cell, io::Write};

use jiff::Timestamp;

/// Eight times the same byte.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The top bit of each of eight bytes that is below `bound`; others may be set above such a byte. The
/// bytes themselves are below 0x80: of others the bit says nothing.
#[inline]
const fn below(bytes: u64, bound: u8) -> u64 {
    bytes.wrapping_sub(each(bound)) & !bytes
}

/// Top bits of what a string of JSON cannot hold as it is: control characters, `"` and `\`.
#[inline]
const fn special(bytes: u64) -> u64 {
    below(bytes, 0x20) | below(bytes ^ each(b'"'), 1) | below(bytes ^ each(b'\\'), 1)
}

/// Whether `refused` sets a top bit for any eight bytes of a text. Short texts are padded with `a`; the
/// last bytes of longer ones may be looked at twice.
#[inline]
fn any_word(text: &[u8], refused: impl Fn(u64) -> u64) -> bool {
    let refused = |word: [u8; 8]| refused(u64::from_ne_bytes(word)) & each(0x80) != 0;
    let (words, rest) = text.as_chunks::<8>();
    if words.iter().any(|word| refused(*word)) {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    if let Some(last) = text.last_chunk::<8>() {
        return refused(*last);
    }
    let mut padded = [b'a'; 8];
    padded.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    refused(padded)
}

/// A string of JSON, as `serde_json` writes it.
#[inline]
pub fn json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    match any_word(text.as_bytes(), special) {
        false => out.extend_from_slice(text.as_bytes()),
        true => escape(out, text.as_bytes()),
    }
    out.push(b'"');
}

/// The inside of a string of JSON.
#[cold]
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for byte in text {
        let short = match byte {
            b'"' | b'\\' => *byte,
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..0x20 => {
                let digit = |n: u8| HEX[usize::from(n)];
                out.extend_from_slice(&[
                    b'\\',
                    b'u',
                    b'0',
                    b'0',
                    digit(byte >> 4),
                    digit(byte & 15),
                ]);
                continue;
            }
            _ => {
                out.push(*byte);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', short]);
    }
}

/// Whether `{:?}` shows a text as it is, between quotes.
#[inline]
pub fn is_plain(text: &str) -> bool {
    !any_word(text.as_bytes(), |word| word | special(word) | below(word ^ each(0x7f), 1))
}

/// A text as `{:?}` shows it.
#[inline]
pub fn debug(out: &mut Vec<u8>, text: &str) {
    if is_plain(text) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // Writing to memory does not fail.
        let _ = write!(out, "{text:?}");
    }
}

/// A whole number.
#[inline]
pub fn integer(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// 32 hexadecimal digits.
pub fn hex(out: &mut Vec<u8>, bits: u128) {
    let mut digits = [0; 32];
    for (two, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bits.to_be_bytes()) {
        *two = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
    }
    out.extend_from_slice(&digits);
}

thread_local! {
    /// The last second that this thread has written, and its text without the `Z`.
    static SECOND: Cell<(i64, [u8; 19])> = const { Cell::new((-1, [0; 19])) };
}

/// A time in RFC 3339 with milliseconds, UTC: `{:.3}`.
pub fn timestamp(out: &mut Vec<u8>, time: Timestamp) {
    let second = time.as_second();
    let (known, mut text) = SECOND.get();
    if known != second || time < Timestamp::UNIX_EPOCH {
        let Some(shown) = whole_second(time) else {
            let _ = write!(out, "{time:.3}");
            return;
        };
        text = shown;
        SECOND.set((second, text));
    }
    let millis = time.subsec_millisecond();
    let mut end = *b".000Z";
    for (digit, unit) in end[1..4].iter_mut().zip([100, 10, 1]) {
        *digit += (millis / unit % 10) as u8;
    }
    out.extend_from_slice(&text);
    out.extend_from_slice(&end);
}

/// The text of a time's second without the `Z`; `None` before 1970.
fn whole_second(time: Timestamp) -> Option<[u8; 19]> {
    if time < Timestamp::UNIX_EPOCH {
        return None;
    }
    let mut shown = [0; 20];
    let second = Timestamp::from_second(time.as_second()).ok()?;
    write!(&mut shown[..], "{second:.0}").ok()?;
    shown.first_chunk().filter(|_| shown[19] == b'Z').copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn compare(text: &str) {
        let json = written(|out| json_string(out, text));
        assert_eq!(json, serde_json::to_string(text).unwrap());
        assert_eq!(written(|out| debug(out, text)), format!("{text:?}"));
    }

    #[test]
    fn every_byte_at_every_place_is_written_as_by_the_libraries() {
        for length in 1..20 {
            for at in 0..length {
                for code in (0..0x180).chain([0x2028, 0xfeff, 0x1f600]) {
                    let mut text = vec!['a'; length];
                    text[at] = char::from_u32(code).unwrap();
                    compare(&text.into_iter().collect::<String>());
                }
            }
        }
        compare("");
    }

    #[test]
    fn times_are_those_of_the_library() {
        for (second, nano) in [(0, 0), (0, 999_999_999), (-1, 0), (-1, 1), (-2, 999_000_000)] {
            let time = Timestamp::new(second, nano).unwrap();
            assert_eq!(written(|out| timestamp(out, time)), format!("{time:.3}"));
        }
        for time in [Timestamp::MIN, Timestamp::MAX] {
            assert_eq!(written(|out| timestamp(out, time)), format!("{time:.3}"));
        }
    }

    proptest! {
        #[test]
        fn texts_are_those_of_the_libraries(text in any::<String>(), ascii in "[ -~\n]{0,40}") {
            compare(&text);
            compare(&ascii);
        }

        #[test]
        fn numbers_and_times_are_those_of_the_libraries(
            bits in any::<u128>(), number in any::<u64>(), second in -9_999_999i64..253_402_207_200,
            nano in 0i32..1_000_000_000,
        ) {
            prop_assert_eq!(written(|out| hex(out, bits)), format!("{bits:032x}"));
            prop_assert_eq!(written(|out| integer(out, number)), number.to_string());
            let time = Timestamp::new(second, 0).unwrap();
            let time = time + jiff::SignedDuration::from_nanos(nano.into());
            for _ in 0..2 {
                prop_assert_eq!(written(|out| timestamp(out, time)), format!("{time:.3}"));
            }
        }
    }
}
