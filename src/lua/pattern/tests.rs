//! Tests of patterns: the expected results are those of Lua 5.4.

use super::{class::in_class, failure::Result, *};
use std::cell::Cell;

const CASES: &[(&[u8], &[u8], &str)] = &[
    (b"", b"abc", "0..0"),
    (b"", b"", "0..0"),
    (b"a", b"", "none"),
    (b"b", b"abc", "1..2"),
    (b"bc", b"abc", "1..3"),
    (b"^b", b"abc", "none"),
    (b"^a", b"abc", "0..1"),
    (b"c$", b"abc", "2..3"),
    (b"^$", b"", "0..0"),
    (b"$", b"abc", "3..3"),
    (b"a$c", b"xa$c", "1..4"),
    (b"a^b", b"a^b", "0..3"),
    (b".", b"\0", "0..1"),
    (b"a.c", b"xabc", "1..4"),
    (b"b*", b"abbb", "0..0"),
    (b"b+", b"abbb", "1..4"),
    (b"b-", b"abbb", "0..0"),
    (b"ab-c", b"abbbc", "0..5"),
    (b"ab?c", b"ac abc", "0..2"),
    (b"a?a?a?aa", b"aa", "0..2"),
    (b".*b", b"aabab", "0..5"),
    (b".-b", b"aabab", "0..3"),
    (b"%a+", b"12ab3", "2..4"),
    (b"%A+", b"ab12c", "2..4"),
    (b"%c", b"a\x7f", "1..2"),
    (b"%d+", b"a2026b", "1..5"),
    (b"%D+", b"12ab", "2..4"),
    (b"%g+", b" a! ", "1..3"),
    (b"%l+", b"ABcdE", "2..4"),
    (b"%L+", b"abCDe", "2..4"),
    (b"%p+", b"a,;b", "1..3"),
    (b"%P+", b",;ab", "2..4"),
    (b"%s+", b"a \t\n\x0b\x0c\rb", "1..7"),
    (b"%S+", b" \x0bab ", "2..4"),
    (b"%u+", b"abCD", "2..4"),
    (b"%w+", b"..a1_", "2..4"),
    (b"%W+", b"a1_.", "2..4"),
    (b"%x+", b"xyzfF09g", "3..7"),
    (b"%X+", b"afxyz", "2..5"),
    (b"%z", b"a\0", "1..2"),
    (b"%.", b"a.b", "1..2"),
    (b"%%", b"5%", "1..2"),
    (b"\xff+", b"a\xff\xff", "1..3"),
    (b"%a", b"\xe4", "none"),
    (b"a\0b", b"xa\0b", "1..4"),
    (b"[abc]+", b"xxcabd", "2..5"),
    (b"[^abc]+", b"abxyc", "2..4"),
    (b"[a-c]+", b"zabcd", "1..4"),
    (b"[]]", b"a]", "1..2"),
    (b"[^]]", b"]a", "1..2"),
    (b"[]-a]+", b"Z^a`]", "1..5"),
    (b"[a-]+", b"b-a-", "1..4"),
    (b"[-a]+", b"b-a-", "1..4"),
    (b"[%a_][%w_]*", b"1_x9 ", "1..4"),
    (b"[%]]", b"]", "0..1"),
    (b"[%a-z]+", b"1-z", "1..3"),
    (b"[^%s]+", b"  ab ", "2..4"),
    (b"[+-%%]", b"]", "0..1"),
    (b"[a^]+", b"b^a", "1..3"),
    (b"[\0-\x1f]", b"a\n", "1..2"),
    (b"[b-a]", b"ab", "none"),
    (b"[.]", b"a.", "1..2"),
    (b"()", b"ab", "0..0 @0"),
    (b"a()b()", b"xab", "1..3 @2 @3"),
    (b"(a)(b)", b"ab", "0..2 0..1 1..2"),
    (b"((a)(b))", b"xab", "1..3 1..3 1..2 2..3"),
    (b"(a*(.)%w(%s*))", b"aab c", "0..4 0..4 1..2 3..4"),
    (b"(.-)=(.*)", b"key=value", "0..9 0..3 4..9"),
    (b"^(%s*)(.-)%s*$", b" ab  ", "0..5 0..1 1..3"),
    (b"()(%d+)()", b"ab12c", "2..4 @2 2..4 @4"),
    (b"(a)-b", b"a-b", "0..3 0..1"),
    (b"(a*)b?", b"aab", "0..3 0..2"),
    (b"(['\"]).-%1", b"x 'it\" is' y", "2..10 2..3"),
    (b"(%a)%1", b"abccd", "2..4 2..3"),
    (b"(a)(b)%2%1", b"abba", "0..4 0..1 1..2"),
    (b"()%1", b"aa", "none"),
    (b"()a%1", b"aa", "none"),
    (b"(a*)%1b", b"aaaab", "0..5 0..2"),
    (b"%b()", b"f(a(b)c)d)", "1..8"),
    (b"%b()", b"((a)", "1..4"),
    (b"%bxx", b"axbxc", "1..4"),
    (b"%b()%b[]", b"()[a]", "0..5"),
    (b"%b\0\x01", b"a\0b\x01", "1..4"),
    (b"%b()", b"", "none"),
    (b"%f[%a]%a+", b"1 the", "2..5"),
    (b"%f[%A]", b"ab", "2..2"),
    (b"%f[\0]", b"ab", "2..2"),
    (b"%f[^\0]", b"ab", "0..0"),
    (b"%f[%w]%w+%f[%W]", b"..ab1!", "2..5"),
    (b"%f[a]", b"baab", "1..1"),
    (b"%", b"a", "malformed pattern (ends with '%')"),
    (b"a%", b"a", "malformed pattern (ends with '%')"),
    (b"a%", b"b", "none"),
    (b"[a", b"a", "malformed pattern (missing ']')"),
    (b"[]", b"a", "malformed pattern (missing ']')"),
    (b"[^]", b"a", "malformed pattern (missing ']')"),
    (b"[a%", b"a", "malformed pattern (missing ']')"),
    (b"[a%]", b"a", "malformed pattern (missing ']')"),
    (b"[", b"a", "malformed pattern (missing ']')"),
    (b"%f", b"a", "missing '[' after '%f' in pattern"),
    (b"%fa", b"a", "missing '[' after '%f' in pattern"),
    (b"%f[", b"a", "malformed pattern (missing ']')"),
    (b"%b", b"a", "malformed pattern (missing arguments to '%b')"),
    (b"%b(", b"a", "malformed pattern (missing arguments to '%b')"),
    (b"(a", b"a", "unfinished capture"),
    (b"(a", b"b", "none"),
    (b"()(", b"b", "unfinished capture"),
    (b"a)", b"a", "invalid pattern capture"),
    (b"(a))", b"a", "invalid pattern capture"),
    (b")", b"", "invalid pattern capture"),
    (b"%0", b"a", "invalid capture index %0"),
    (b"%1", b"a", "invalid capture index %1"),
    (b"(a)%2", b"a", "invalid capture index %2"),
    (b"(a%1)", b"aa", "invalid capture index %1"),
    (b"(a%1", b"aa", "invalid capture index %1"),
    (b"*a", b"*a", "0..2"),
    (b"+", b"+", "0..1"),
    (b"a**", b"aa*", "0..3"),
    (b"a+?", b"aa?", "0..3"),
    (b"a--", b"a-", "0..2"),
    (b"^*", b"*", "0..1"),
    (b"^^a", b"^a", "0..2"),
    (b"%-?", b"-", "0..1"),
    (b"(^a)", b"^a", "0..2 0..2"),
    (b"a\\n", b"a\\n", "0..3"),
];

fn never() -> bool {
    false
}

fn show(result: Result<Option<Match>>) -> String {
    match result {
        Err(failure) => failure.to_string(),
        Ok(None) => "none".to_owned(),
        Ok(Some(found)) => {
            let mut shown = format!("{}..{}", found.start, found.end);
            for capture in found.captures {
                shown += &match capture {
                    Capture::Span { start, end } => format!(" {start}..{end}"),
                    Capture::Position(at) => format!(" @{at}"),
                };
            }
            shown
        }
    }
}

fn find_freely(subject: &[u8], pattern: &[u8], from: usize) -> Result<Option<Match>> {
    find(subject, pattern, from, &mut Budget::new(&never))
}

fn gsub(subject: &str, pattern: &str, template: &str, max: usize) -> String {
    let subject = subject.as_bytes();
    let mut budget = Budget::new(&never);
    let mut replace = |found: &Match, out: &mut Vec<u8>| {
        expand(subject, found, template.as_bytes(), 1 << 20, out)
    };
    match substitute(subject, pattern.as_bytes(), max, &mut budget, &mut replace) {
        Ok((out, count)) => format!("{} {count}", String::from_utf8(out).unwrap()),
        Err(SubstituteError::Pattern(failure) | SubstituteError::Replace(failure)) => {
            failure.to_string()
        }
    }
}

/// What gmatch walks over: the first capture or the whole match of each.
fn gmatch(subject: &str, pattern: &str, from: usize) -> Vec<String> {
    let mut budget = Budget::new(&never);
    let (mut at, mut last_end, mut walked) = (from, None, Vec::new());
    while let Some(found) =
        next(subject.as_bytes(), pattern.as_bytes(), at, last_end, &mut budget).unwrap()
    {
        walked.push(match found.captures.first() {
            None => subject[found.start..found.end].to_owned(),
            Some(&Capture::Span { start, end }) => subject[start..end].to_owned(),
            Some(Capture::Position(at)) => format!("@{at}"),
        });
        at = found.end;
        last_end = Some(at);
    }
    walked
}

/// The result of `work` with a budget that is over at the `patience`th check, and the number of
/// checks.
fn watched<T>(
    patience: usize,
    work: impl FnOnce(&mut Budget<'_>) -> Result<T>,
) -> (Result<T>, usize) {
    let asked = Cell::new(0);
    let over = || {
        asked.set(asked.get() + 1);
        asked.get() >= patience
    };
    let result = work(&mut Budget::new(&over));
    (result, asked.get())
}

#[test]
fn finds_what_lua_finds() {
    for &(pattern, subject, expected) in CASES {
        let shown = show(find_freely(subject, pattern, 0));
        let (pattern, subject) = (pattern.escape_ascii(), subject.escape_ascii());
        assert_eq!(shown, expected, "{pattern} in {subject}");
    }
}

#[test]
fn begins_where_it_is_told() {
    for (pattern, from, expected) in [
        ("b", 1, "1..2"),
        ("b", 2, "4..5"),
        ("^b", 4, "4..5"),
        ("^b", 3, "none"),
        ("^b", 7, "none"),
        ("^", 6, "6..6"),
        ("", 6, "6..6"),
        ("", 7, "none"),
        ("[", 7, "none"),
        ("%f[b]", 1, "1..1"),
        ("%f[b]", 2, "4..4"),
    ] {
        assert_eq!(show(find_freely(b"abcabc", pattern.as_bytes(), from)), expected, "{pattern}");
    }
}

#[test]
fn classes_are_those_of_the_c_locale() {
    for (class, members) in
        [("a", 52), ("c", 33), ("d", 10), ("g", 94), ("l", 26), ("p", 32), ("s", 6)]
            .into_iter()
            .chain([("u", 26), ("w", 62), ("x", 22), ("z", 1)])
    {
        let counted = |class: u8| (0..=u8::MAX).filter(|&byte| in_class(byte, class)).count();
        let class = class.as_bytes()[0];
        assert_eq!(counted(class), members, "{}", char::from(class));
        assert_eq!(counted(class.to_ascii_uppercase()), 256 - members);
    }
}

#[test]
fn substitutes_as_gsub() {
    for (subject, pattern, template, expected) in [
        ("abc", "%w*", "x", "x 1"),
        ("hello world", "o*", "x", "xhxexlxlx xwxrxlxdx 10"),
        ("", "", "x", "x 1"),
        ("abc", "", "-", "-a-b-c- 4"),
        ("abc", "b*", "-", "-a-c- 3"),
        ("hello", "^h", "J", "Jello 1"),
        ("hhh", "^h", "", "hh 1"),
        ("abc", "^", "x", "xabc 1"),
        ("abc", "^x*", "-", "-abc 1"),
        ("abc", "^b", "x", "abc 0"),
        ("abc", "$", "x", "abcx 1"),
        ("ab cd", "(%w)(%w)", "%2%1", "ba dc 2"),
        ("ab", "()", "%1", "1a2b3 3"),
        ("a=1, b=2", "(%w+)=(%w+)", "%2=%1%%", "1=a%, 2=b% 2"),
        ("a,b,,c", ",*", ";", ";a;b;c; 4"),
        ("abc", "b", "<%0%1>", "a<bb>c 1"),
        ("a b  c", "%s+", "", "abc 2"),
        ("aXb", "%f[%u].", "_", "a_b 1"),
        ("alo", ".", "%2", "invalid capture index %2"),
        ("alo", "(.)", "%2", "invalid capture index %2"),
        ("alo", ".", "%x", "invalid use of '%' in replacement string"),
        ("alo", ".", "%", "invalid use of '%' in replacement string"),
        ("alo", "x", "%", "alo 0"),
        ("alo", "(%0)", "a", "invalid capture index %0"),
        ("alo", "[", "a", "malformed pattern (missing ']')"),
        ("alo", "(a", "%1", "unfinished capture"),
    ] {
        assert_eq!(gsub(subject, pattern, template, usize::MAX), expected, "{pattern}");
    }
    assert_eq!(gsub("abc def", "%w+", "<%0>", 1), "<abc> def 1");
    assert_eq!(gsub("abc", "[", "x", 0), "abc 0");
    let mut refuse = |_: &Match, _: &mut Vec<u8>| Err("no");
    let refused = substitute(b"abc", b"b", 9, &mut Budget::new(&never), &mut refuse);
    assert_eq!(refused, Err(SubstituteError::Replace("no")));
}

#[test]
fn walks_as_gmatch() {
    for (subject, pattern, expected) in [
        ("abc", "%w*", "abc"),
        ("hello world", "o*", "||||o||o|||"),
        ("one two", "%a+", "one|two"),
        ("a=1,b=2", "%w=(%w)", "1|2"),
        ("abc", "", "|||"),
        ("", "x*", ""),
        ("^a^a", "^a", "^a|^a"),
        ("aab", "a-", "|||"),
        ("THE (quick) fox", "%((%a+)%)", "quick"),
        ("ab", "()", "@0|@1|@2"),
    ] {
        assert_eq!(gmatch(subject, pattern, 0).join("|"), expected, "{pattern}");
    }
    assert_eq!(gmatch("one two", "%a+", 2), ["e", "two"]);
    assert!(gmatch("abc", "x", 0).is_empty());
    assert!(gmatch("abc", "", 4).is_empty());
}

#[test]
fn limits_are_those_of_lua() {
    let subject = vec![b'a'; 300];
    let run = |pattern: String| find_freely(&subject, pattern.as_bytes(), 0);
    assert_eq!(run("a?".repeat(199)).unwrap().unwrap().end, 199);
    assert_eq!(run("a?".repeat(200)), Err(Failure::TooComplex));
    assert_eq!(run("()".repeat(32)).unwrap().unwrap().captures.len(), 32);
    assert_eq!(run("(a)".repeat(32)).unwrap().unwrap().end, 32);
    assert_eq!(show(run("()".repeat(33))), "too many captures");
    assert_eq!(show(run("(".repeat(33))), "too many captures");
    assert_eq!(Failure::TooComplex.to_string(), "pattern too complex");
}

#[test]
fn the_deepest_recursion_fits_a_small_stack() {
    let deep = || {
        for items in ["a?b?", "a-%l-", "[ab]?%l?", "a*b*", "a+b+", "[ac]*[bc]*"] {
            let pattern = items.repeat(101);
            let subject = b"ab".repeat(300);
            let failure = find_freely(&subject, pattern.as_bytes(), 0).unwrap_err();
            assert_eq!(failure, Failure::TooComplex, "{items}");
        }
    };
    std::thread::Builder::new().stack_size(512 * 1024).spawn(deep).unwrap().join().unwrap();
}

#[test]
fn hostile_patterns_end_when_time_is_over() {
    let long = vec![b'a'; 30_000];
    let open = vec![b'('; 30_000];
    let many = "%d".repeat(3000);
    let patterns = [
        (&long, "a*a*a*a*b".to_owned()),
        (&long, "a+a+a+b".to_owned()),
        (&long, ".-.-.-.-b".to_owned()),
        (&long, "a?".repeat(40) + "%d"),
        (&long, "(a*)(a*)%1%2b".to_owned()),
        (&long, "%f[a]a*.*.*b".to_owned()),
        (&long, "[ab]*[a-z]*[^b]*b".to_owned()),
        (&long, format!("[{many}a]*b")),
        (&long, format!("a[^{many}]-b")),
        (&open, "%b()".to_owned()),
        (&open, ".-%b()".to_owned()),
    ];
    for (subject, pattern) in &patterns {
        let pattern = pattern.as_bytes();
        let told = pattern.escape_ascii().to_string();
        let (result, asked) = watched(50, |budget| find(subject, pattern, 0, budget));
        assert_eq!((result, asked), (Err(Failure::Over), 50), "{told}");
        let (result, asked) = watched(50, |budget| next(subject, pattern, 0, None, budget));
        assert_eq!(asked, 50, "{told}");
        assert!(result.is_err(), "{told}");
        let (result, _) = watched(50, |budget| {
            let mut keep = |_: &Match, _: &mut Vec<u8>| Ok::<(), Failure>(());
            Ok(substitute(subject, pattern, usize::MAX, budget, &mut keep))
        });
        assert_eq!(result, Ok(Err(SubstituteError::Pattern(Failure::Over))), "{told}");
    }
}

#[test]
fn calls_that_share_a_budget_add_up() {
    let (result, asked) = watched(3, |budget| {
        (0..100_000).try_for_each(|_| find(b"aaab", b"a-b", 0, budget).map(|_| ()))
    });
    assert_eq!((result, asked), (Err(Failure::Over), 3));
}

#[test]
fn tells_plain_patterns() {
    for plain in ["", "abc", "a b\0c", ")", "]", "a,b"] {
        assert!(is_plain(plain.as_bytes()), "{plain}");
    }
    for special in "^$*+?.([%-".chars() {
        assert!(!is_plain(format!("a{special}").as_bytes()), "{special}");
    }
}

#[test]
fn finds_plain_text_as_a_search_by_windows_does() {
    let mut seed = 1_u32;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) % below
    };
    for _ in 0..20_000 {
        let [subject, needle] = [24, 7].map(|length| {
            (0..random(length)).map(|_| b"ab"[random(2) as usize]).collect::<Vec<_>>()
        });
        let from = random(26) as usize;
        let expected = (from..=subject.len()).find(|&at| subject[at..].starts_with(&needle));
        let found = find_plain(&subject, &needle, from, &mut Budget::new(&never));
        assert_eq!(found, Ok(expected), "{needle:?} in {subject:?} from {from}");
    }
}

#[test]
fn plain_search_is_linear_and_watched() {
    let subject = vec![b'a'; 1_000_000];
    let mut needle = vec![b'a'; 500_000];
    needle.push(b'b');
    let (result, asked) = watched(300, |budget| find_plain(&subject, &needle, 0, budget));
    assert_eq!(result, Ok(None));
    assert!((200..300).contains(&asked), "{asked}");
    let (result, asked) = watched(7, |budget| find_plain(&subject, &needle, 0, budget));
    assert_eq!((result, asked), (Err(Failure::Over), 7));
}
