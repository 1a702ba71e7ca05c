//! Finding personal data and secrets in a text: patterns, and what the number itself says.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
    sync::LazyLock,
};

use super::checksum;
use crate::{config::choices::PersonalData, wire::pattern::Patterns};

/// A kind of personal data.
pub struct Detector {
    /// Its name in messages and metrics.
    pub kind: &'static str,
    /// Its name in placeholders.
    pub label: &'static str,
    patterns: Patterns,
    checks: Vec<Check>,
}

/// What a match is worth: the range of the value, or the offset from which the search goes on.
type Check = fn(&str, Range<usize>) -> Result<Range<usize>, usize>;

/// The kinds, by their precedence: of two that overlap the first one counts.
static DETECTORS: LazyLock<[(PersonalData, Detector); 8]> = LazyLock::new(|| {
    [
        (PersonalData::Secret, Detector::new("secret", "SECRET", &SECRETS)),
        (PersonalData::Email, Detector::new("email", "EMAIL", &EMAILS)),
        (PersonalData::Iban, Detector::new("iban", "IBAN", &IBANS)),
        (PersonalData::Card, Detector::new("card", "CARD", &CARDS)),
        (PersonalData::NationalId, Detector::new("national_id", "ID", &NATIONAL_IDS)),
        (PersonalData::Phone, Detector::new("phone", "PHONE", &PHONES)),
        (PersonalData::Ipv6, Detector::new("ipv6", "IP", &IPV6)),
        (PersonalData::Ipv4, Detector::new("ipv4", "IP", &IPV4)),
    ]
});

/// The detectors of these kinds, by their precedence.
pub fn detectors(kinds: &[PersonalData]) -> impl Iterator<Item = &'static Detector> {
    DETECTORS.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, detector)| detector)
}

static SECRETS: [(&str, Check); 3] = [
    (r"(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z))", whole),
    (r"(?-u:\b)eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}", whole),
    (
        "(?-u:\\b)(?:sk-[A-Za-z0-9_-]{16,}|(?:sk|rk)_live_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}\
         |gh[opsur]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}\
         |xox[abeoprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{30,}|AIza[A-Za-z0-9_-]{35})",
        whole,
    ),
];

static EMAILS: [(&str, Check); 1] =
    [(r"[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}", email)];

static IBANS: [(&str, Check); 1] = [(r"[A-Za-z]{2}[0-9]{2}(?: ?[A-Za-z0-9]){11,30}", iban)];

static CARDS: [(&str, Check); 1] = [(r"[0-9](?:[ -]?[0-9]){12,}", card)];

static NATIONAL_IDS: [(&str, Check); 8] = [
    (r"[0-9]{3}-[0-9]{2}-[0-9]{4}", |t, r| number(t, r, checksum::ssn)),
    (r"[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9Xx]", |t, r| number(t, r, checksum::chinese)),
    (r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", |t, r| digits(t, r, checksum::brazilian)),
    (r"[1-478] ?[0-9]{2} ?(?:0[1-9]|1[0-2]) ?[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", |t, r| {
        digits(t, r, checksum::french)
    }),
    (r"[2-9][0-9]{3}[ -][0-9]{4}[ -][0-9]{4}", |t, r| digits(t, r, checksum::indian)),
    (r"[0-9]{11}", |t, r| number(t, r, checksum::polish)),
    (r"[XYZ0-9][0-9]{7}-?[A-Z]", |t, r| {
        let id = t[r.clone()].replace('-', "");
        number(t, r, |_| checksum::spanish(id.as_bytes()))
    }),
    (r"[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]", |t, r| {
        number(t, r, checksum::italian)
    }),
];

static PHONES: [(&str, Check); 4] = [
    (r"\+[1-9][0-9 ().\-/]{6,20}[0-9]", |t, r| digits(t, r, |d| (8..=15).contains(&d.len()))),
    (r"\(?[2-9][0-9]{2}\)?[ .-]{1,2}[2-9][0-9]{2}[ .-][0-9]{4}", |t, r| number(t, r, |_| true)),
    (r"1[3-9][0-9](?:[0-9]{8}|[ -][0-9]{4}[ -][0-9]{4})", |t, r| number(t, r, |_| true)),
    (r"0[1-9][0-9]{0,4}[ /-][0-9][0-9 ]{3,12}[0-9]", |t, r| {
        digits(t, r, |d| (9..=12).contains(&d.len()))
    }),
];

static IPV6: [(&str, Check); 1] = [(r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}", |t, r| {
    let address = t[r.clone()].parse::<Ipv6Addr>();
    let long = address.is_ok() && r.len() > 4;
    number(t, r.clone(), |_| long).map_err(|_| r.end)
})];

static IPV4: [(&str, Check); 1] = [(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}", |t, r| {
    number(t, r, |text| {
        std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv4Addr>().is_ok())
    })
})];

impl Detector {
    fn new(kind: &'static str, label: &'static str, list: &[(&str, Check)]) -> Self {
        let patterns: Vec<String> = list.iter().map(|(pattern, _)| (*pattern).to_owned()).collect();
        let patterns = Patterns::new(&patterns).expect("a test compiles the patterns");
        Self { kind, label, patterns, checks: list.iter().map(|(_, check)| *check).collect() }
    }

    /// Where the text has such data, in ascending order.
    pub fn find_all(&self, text: &str) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some((pattern, range)) = self.patterns.find(text, from) {
            match self.checks[pattern](text, range) {
                Ok(range) => {
                    from = range.end;
                    found.push(range);
                }
                Err(next) => from = next,
            }
        }
        found
    }
}

/// The offset after the first character of a range: all patterns begin with one of ASCII.
fn after_first(range: &Range<usize>) -> usize {
    range.start + 1
}

fn whole(_: &str, range: Range<usize>) -> Result<Range<usize>, usize> {
    Ok(range)
}

/// `git@host:path` is the address of a repository.
fn email(text: &str, range: Range<usize>) -> Result<Range<usize>, usize> {
    let repository = text[range.clone()].starts_with("git@") && text[range.end..].starts_with(':');
    if repository { Err(range.end) } else { Ok(range) }
}

/// A number that is not a part of a longer word or number, and passes its check.
fn number(
    text: &str,
    range: Range<usize>,
    check: impl FnOnce(&[u8]) -> bool,
) -> Result<Range<usize>, usize> {
    let valid = stands_alone(text, &range) && check(text[range.clone()].as_bytes());
    if valid { Ok(range) } else { Err(after_first(&range)) }
}

/// The same for a number with separators, which the check does not see.
fn digits(
    text: &str,
    range: Range<usize>,
    check: impl FnOnce(&[u8]) -> bool,
) -> Result<Range<usize>, usize> {
    number(text, range, |text| check(&digits_of(text)))
}

fn digits_of(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii_digit).collect()
}

fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let (before, after) = (&text.as_bytes()[..range.start], &text.as_bytes()[range.end..]);
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let free_before = match before {
        [.., last] if word(last) => false,
        [.., other, b'-' | b'.'] => !word(other),
        _ => true,
    };
    let free_after = match after {
        [first, ..] if word(first) => false,
        [b'-', next, ..] => !word(next),
        [b'.', next, ..] => !next.is_ascii_digit(),
        _ => true,
    };
    free_before && free_after
}

/// A card among groups of digits: one group, or groups of 3 to 6 digits of which the last may be shorter.
fn card(text: &str, range: Range<usize>) -> Result<Range<usize>, usize> {
    if !stands_alone(text, &range) {
        return Err(range.end);
    }
    let bytes = text.as_bytes();
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut start = range.start;
    for at in range.clone() {
        if !bytes[at].is_ascii_digit() {
            groups.push(start..at);
            start = at + 1;
        }
    }
    groups.push(start..range.end);
    for first in 0..groups.len() {
        let mut number: Vec<u8> = Vec::new();
        for group in &groups[first..] {
            number.extend_from_slice(&bytes[group.clone()]);
            if number.len() > 19 {
                break;
            }
            let issued = (b'2'..=b'6').contains(&number[0]);
            if number.len() >= 13 && issued && checksum::luhn(&number) {
                return Ok(groups[first].start..group.end);
            }
            if !(3..=6).contains(&group.len()) {
                break;
            }
        }
    }
    Err(range.end)
}

/// The length of accounts, by country.
const IBAN_LENGTHS: &str = "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 \
    DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 \
    IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 \
    NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 \
    VA22 VG24 XK20";

/// An account: what follows it may look like more of it.
fn iban(text: &str, range: Range<usize>) -> Result<Range<usize>, usize> {
    let country = text[range.start..range.start + 2].to_ascii_uppercase();
    let lengths = IBAN_LENGTHS.split_ascii_whitespace();
    let length = lengths.filter_map(|entry| entry.strip_prefix(country.as_str())).next();
    let length: usize = length.and_then(|digits| digits.parse().ok()).unwrap_or(usize::MAX);
    let places = text[range.clone()].bytes().enumerate().filter(|(_, byte)| *byte != b' ');
    let (at, account): (Vec<usize>, Vec<u8>) = places.take(length).unzip();
    let end = range.start + at.last().map_or(0, |last| last + 1);
    let found = range.start..end;
    let valid = account.len() == length && stands_alone(text, &found) && checksum::iban(&account);
    if valid { Ok(found) } else { Err(after_first(&range)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: PersonalData, text: &str) -> Vec<&str> {
        let detector = detectors(&[kind]).next().unwrap();
        detector.find_all(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn finds_each_kind() {
        use PersonalData::{Card, Email, Iban, Ipv4, Ipv6, NationalId, Phone, Secret};
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N";
        for (kind, text, values) in [
            (
                Email,
                "write to Ann.B+x@mail.example.co.uk, or 我a@b.de。",
                &["Ann.B+x@mail.example.co.uk", "a@b.de"][..],
            ),
            (Email, "git@github.com:org/repo and @name", &[]),
            (
                Card,
                "4111 1111 1111 1111, 378282246310005; 4111111111111112",
                &["4111 1111 1111 1111", "378282246310005"],
            ),
            (Card, "order 12 4111-1111-1111-1111 x", &["4111-1111-1111-1111"]),
            (Card, "1700000000000 and 41111111111111114111111111111111", &[]),
            (
                Iban,
                "IBAN DE89 3704 0044 0532 0130 00 is mine, GB82WEST12345698765432.",
                &["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"],
            ),
            (Iban, "DE89 3704 0044 0532 0130 01", &[]),
            (
                NationalId,
                "SSN 123-45-6789, 11010519491231002X, 529.982.247-25",
                &["123-45-6789", "11010519491231002X", "529.982.247-25"],
            ),
            (NationalId, "000-12-3456 and 1123-45-67890", &[]),
            (
                Phone,
                "+49 (30) 1234567, (415) 555-2671; 13912345678",
                &["+49 (30) 1234567", "(415) 555-2671", "13912345678"],
            ),
            (Phone, "030 1234567, 06 12 34 56 78", &["030 1234567", "06 12 34 56 78"]),
            (Phone, "2026-11-30 12:00, 1.13912345678, 550e8400-e29b-41d4-a716-13912345678", &[]),
            (
                Secret,
                "sk-proj-abcdefghij0123456789 AKIAIOSFODNN7EXAMPLE task-abcdefghij0123456789",
                &["sk-proj-abcdefghij0123456789", "AKIAIOSFODNN7EXAMPLE"],
            ),
            (Secret, jwt, &[jwt]),
            (
                Secret,
                "a -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY----- b",
                &["-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----"],
            ),
            (Ipv4, "10.0.0.1 and 300.1.1.1, 1.2.3.4.5", &["10.0.0.1"]),
            (Ipv6, "2001:db8::1 std::vector 12:30:45", &["2001:db8::1"]),
        ] {
            assert_eq!(found(kind, text), values, "{text}");
        }
    }
}
