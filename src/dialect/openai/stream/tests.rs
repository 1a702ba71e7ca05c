//! Streams as engines write them, and as they should not.

use proptest::prelude::*;

use super::*;
use crate::{
    base::{TokenCounts, UsageSource},
    dialect::Blame,
};

/// A meter, and what it has seen.
struct Watched {
    meter: StreamMeter,
    seen: Progress,
}

impl Watched {
    fn new(strip: Strip) -> Self {
        Self { meter: StreamMeter::new(strip), seen: Progress::default() }
    }

    fn by_line(self) -> Self {
        Self { meter: self.meter.by_line(), ..self }
    }

    fn naming(self, model: Option<&str>) -> Self {
        Self { meter: self.meter.naming(model), ..self }
    }

    fn push(&mut self, chunk: Bytes) -> Bytes {
        self.meter.push(chunk, &mut self.seen)
    }

    fn finish(&mut self) -> Bytes {
        self.meter.finish(&mut self.seen)
    }

    fn abandon(&mut self) -> Bytes {
        self.meter.abandon(&mut self.seen)
    }

    fn usage(&self) -> (TokenCounts, UsageSource) {
        self.seen.usage(self.meter.counts())
    }
}

fn run(strip: Strip, parts: &[&str]) -> (String, Watched) {
    let mut meter = Watched::new(strip);
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(&meter.push(Bytes::copy_from_slice(part.as_bytes())));
    }
    out.extend_from_slice(&meter.finish());
    (String::from_utf8(out).unwrap(), meter)
}

const ALL: Strip = Strip::All { nulls: false };

const ROLE: &str = concat!(
    r#"data: {"id":"x","choices":[{"delta":{"role":"assistant"},"finish_reason":null}],"#,
    r#""usage":{"prompt_tokens":3,"total_tokens":3,"completion_tokens":0},"prompt_text":null}"#,
    "\n\n"
);
const LAST: &str = concat!(
    r#"data: {"id":"x","choices":[{"delta":{},"finish_reason":"stop"}],"#,
    r#""usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}"#,
    "\n\n"
);
const USAGE: &str = concat!(
    r#"data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"#,
    r#""completion_tokens":2},"system_fingerprint":"f"}"#,
    "\n\n"
);
const DONE: &str = "data: [DONE]\n\n";

#[test]
fn takes_out_what_was_added_and_puts_back_what_moved() {
    let (out, meter) = run(ALL, &[ROLE, LAST, USAGE, DONE]);
    let expected = concat!(
        r#"data: {"id":"x","choices":[{"delta":{"role":"assistant"},"finish_reason":null}],"prompt_text":null}"#,
        "\n\n",
        r#"data: {"id":"x","choices":[{"delta":{},"finish_reason":"stop"}],"system_fingerprint":"f"}"#,
        "\n\ndata: [DONE]\n\n"
    );
    assert_eq!(out, expected);
    let counts = TokenCounts { prompt: 3, completion: 2, total: 5, ..TokenCounts::default() };
    assert_eq!(meter.usage(), (counts, UsageSource::Final));
}

#[test]
fn leaves_the_final_chunk_to_a_client_that_asked() {
    let (out, _) = run(Strip::Running, &[ROLE, LAST, USAGE, DONE]);
    assert!(out.contains(USAGE) && !out.contains(r#""completion_tokens":0"#));
    assert!(out.contains(r#""finish_reason":"stop"}]}"#));
}

#[test]
fn a_client_that_asked_gets_usage_also_where_no_usage_chunk_comes() {
    let (out, _) = run(Strip::Running, &[ROLE, LAST, DONE]);
    assert!(out.contains(LAST) && !out.contains(r#""completion_tokens":0"#));
    let (out, _) = run(Strip::Running, &[ROLE, LAST]);
    assert!(out.contains(LAST));
    let (out, _) = run(ALL, &[ROLE, LAST, DONE]);
    assert!(!out.contains("usage"));
}

#[test]
fn a_comment_lets_the_last_chunk_go() {
    for comment in [": keep-alive\n\n", "\n", "data:\n\n", "event: ping\n\n"] {
        let mut meter = Watched::new(ALL);
        assert!(meter.push(Bytes::from(LAST)).is_empty());
        let out = meter.push(Bytes::from(comment));
        assert!(out.starts_with(b"data: {") && out.ends_with(comment.as_bytes()), "{comment:?}");
        // Nothing is kept of the next ones.
        assert_eq!(meter.push(Bytes::from(comment)), comment);
        assert_eq!(meter.push(Bytes::from(format!("{USAGE}{DONE}"))), DONE);
        assert_eq!(meter.usage().0.total, 5);
        // A client that asked gets the usage, and the usage chunk as well if one comes.
        let (out, _) = run(Strip::Running, &[ROLE, LAST, comment, DONE]);
        assert_eq!(out.matches("\"usage\"").count(), 1, "{out}");
        assert!(out.contains(LAST) && out.ends_with(&format!("{comment}{DONE}")), "{out}");
        let (out, _) = run(Strip::Running, &[ROLE, LAST, comment, USAGE, DONE]);
        assert!(out.ends_with(&format!("{LAST}{comment}{USAGE}{DONE}")), "{out}");
    }
}

#[test]
fn the_last_chunk_can_be_let_go_at_any_time() {
    for strip in [ALL, Strip::Running] {
        let mut meter = Watched::new(strip);
        let mut out = meter.push(Bytes::from(LAST)).to_vec();
        out.extend_from_slice(meter.seen.pending.as_ref().unwrap());
        meter.meter.sent_pending(&mut meter.seen);
        assert_eq!(meter.seen.pending, None);
        out.extend_from_slice(&meter.push(Bytes::from(DONE)));
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.contains("usage"), strip != ALL, "{out}");
        assert_eq!(out.matches("stop").count(), 1);
    }
}

#[test]
fn a_usage_chunk_may_lack_choices_or_its_blank_line() {
    let bare = "data: {\"id\":\"a\",\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}";
    let (out, meter) = run(ALL, &[&format!("{bare}\n\n"), DONE]);
    assert_eq!((out.as_str(), meter.usage().0.total), (DONE, 3));
    let (out, meter) = run(ALL, &[bare]);
    assert_eq!((out.as_str(), meter.usage().0.total), ("", 3));
}

#[test]
fn choices_are_counted_apart_until_the_engine_adds_them_up() {
    let chunk = |index: u32, n: u32| {
        format!(
            "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{}}}}],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{n},\"total_tokens\":{}}}}}\n\n",
            5 + n
        )
    };
    let (_, meter) = run(ALL, &[&chunk(0, 1), &chunk(1, 1), &chunk(0, 2), &chunk(1, 7)]);
    assert_eq!(
        meter.usage().0,
        TokenCounts { prompt: 5, completion: 9, total: 14, ..TokenCounts::default() }
    );
    let (_, meter) = run(ALL, &[&chunk(0, 1), &chunk(1, 1), USAGE, DONE]);
    assert_eq!(
        meter.usage().0,
        TokenCounts { prompt: 3, completion: 2, total: 5, ..TokenCounts::default() }
    );
}

#[test]
fn touches_nothing_when_nothing_was_added() {
    let all = [ROLE, LAST, USAGE, DONE];
    let (out, meter) = run(Strip::Nothing, &all);
    assert_eq!(out, all.concat());
    assert_eq!(meter.usage().0.total, 5);
}

#[test]
fn passes_unchanged_chunks_without_a_copy() {
    let mut meter = Watched::new(Strip::Nothing);
    let chunk = Bytes::from(format!("{ROLE}{LAST}"));
    let at = chunk.as_ptr();
    assert_eq!(meter.push(chunk).as_ptr(), at);
}

#[test]
fn a_stream_without_done_loses_no_byte() {
    let (out, meter) = run(ALL, &[ROLE, LAST, "data: {\"hal"]);
    assert!(out.ends_with("data: {\"hal"));
    assert!(out.contains("\"stop\""));
    assert_eq!(meter.usage().1, UsageSource::Final);
    assert!(!meter.seen.finished);
}

#[test]
fn a_stream_that_breaks_keeps_its_last_figures() {
    let mut meter = Watched::new(ALL);
    meter.push(Bytes::from(format!("{ROLE}{LAST}data: {{\"hal")));
    let counts = TokenCounts { prompt: 3, completion: 2, total: 5, ..TokenCounts::default() };
    assert_eq!(meter.usage(), (counts, UsageSource::Partial));
    let rest = meter.abandon();
    assert!(rest.ends_with(b"}]}\n\n"));
    assert!(meter.abandon().is_empty());
}

#[test]
fn sees_aborts_and_error_events() {
    let abort = "data: {\"choices\":[{\"delta\":{},\"finish_reason\": \"abort\"}]}\n\n";
    let (_, meter) = run(Strip::Nothing, &[abort, DONE]);
    assert!(meter.seen.aborted && meter.seen.finished && meter.seen.error.is_none());
    let error = "data: {\"error\": {\"message\": \"gone\", \"code\": 500}}\n\n";
    let (_, meter) = run(Strip::Nothing, &[error, DONE]);
    assert!(meter.seen.error.is_some());
    let text =
        r#"data: {"choices":[{"delta":{"content":"\"error\":{} \"finish_reason\":\"abort\""}}]}"#;
    let (_, meter) = run(Strip::Nothing, &[text, "\n\n", DONE]);
    assert!(meter.seen.error.is_none() && !meter.seen.aborted);
}

#[test]
fn tolerates_what_servers_do() {
    let parts = [
        ": keep-alive\n\n",
        "data: {\"choices\":[{\"delta\":{}}],\"usage\":null}\r\n\r\n",
        "data: {\"id\":\"\",\"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"late\"}}]}\n\n",
    ];
    let (out, meter) = run(Strip::Nothing, &parts);
    assert_eq!(out, parts.concat());
    assert_eq!(
        meter.usage(),
        (
            TokenCounts { prompt: 1, completion: 2, total: 3, ..TokenCounts::default() },
            UsageSource::Final
        )
    );
    let (out, _) = run(ALL, &parts);
    assert_eq!(out, [parts[0], parts[1], parts[3]].concat());
    let (out, _) = run(Strip::All { nulls: true }, &parts);
    assert!(!out.contains("usage") && out.contains("late") && out.contains(": keep-alive"));
}

#[test]
fn counts_the_events_that_carry_a_part_of_the_answer() {
    let part = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
    let null = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n";
    let error = "data: {\"error\":{\"message\":\"gone\"}}\n\n";
    for (parts, content) in [
        (&[part, part, null][..], 3),
        (&[part, ": keep-alive\n\n", part, "data: {\"hal"], 2),
        (&[part, LAST, USAGE, DONE], 1),
        (&[part, error, DONE], 1),
        (&[ROLE, part, part, LAST, DONE], 3),
        (&[": keep-alive\n\n"], 0),
    ] {
        let mut meter = Watched::new(Strip::Nothing);
        parts.iter().for_each(|p| drop(meter.push(Bytes::copy_from_slice(p.as_bytes()))));
        assert_eq!(meter.seen.parts, content, "{parts:?}");
    }
}

#[test]
fn absurd_counts_are_none_and_overflow_nothing() {
    let chunk = |index: u32, n: u64| {
        format!(
            "data: {{\"choices\":[{{\"index\":{index}}}],\"usage\":{{\"prompt_tokens\":{n},\"completion_tokens\":{n}}}}}\n\n"
        )
    };
    let (_, meter) = run(ALL, &[&chunk(0, u64::MAX), &chunk(1, u64::MAX)]);
    assert_eq!(meter.usage(), (TokenCounts::default(), UsageSource::None));
    let (_, meter) = run(ALL, &[&chunk(0, 1 << 40), &chunk(1, 1 << 40)]);
    assert_eq!(meter.usage().0.completion, 2 << 40);
}

#[test]
fn the_first_name_of_a_model_is_the_engines() {
    let text = r#"data: {"choices":[{"delta":{"content":"\"model\":\"x\"","model":"inner"}}]}"#;
    let event = |model: &str| format!("data: {{\"id\":\"x\",\"model\": {model}}}\n\n");
    for (parts, name) in [
        (vec![format!("{text}\n\n"), event("\"a\""), event("\"b\"")], Some("a")),
        (vec![event("\"qwen\\/7b\"")], Some("qwen/7b")),
        (vec![event("null"), event("\"b\"")], None),
        (vec![event(&format!("\"{}\"", "m".repeat(257)))], None),
        (vec![DONE.to_owned()], None),
    ] {
        let mut meter = Watched::new(ALL).naming(Some("alias"));
        let mut out = Vec::new();
        parts.iter().for_each(|p| out.extend(meter.push(Bytes::copy_from_slice(p.as_bytes()))));
        assert_eq!(meter.seen.model.take().as_deref(), name, "{parts:?}");
        assert!(!String::from_utf8(out).unwrap().contains("qwen"));
    }
}

#[test]
fn details_of_choices_are_added_up_or_taken_from_the_last_event() {
    let chunk = |index: u32, n: u32| {
        format!(
            "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{}}}}],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{n},\"prompt_tokens_details\":{{\"cached_tokens\":4}},\"completion_tokens_details\":{{\"reasoning_tokens\":{n}}}}}}}\n\n"
        )
    };
    let (_, meter) = run(ALL, &[&chunk(0, 1), &chunk(1, 2), &chunk(0, 3)]);
    let (counts, _) = meter.usage();
    assert_eq!((counts.cached, counts.reasoning), (Some(4), Some(5)));
    let last = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":2},\"completion_tokens_details\":null}}\n\n";
    let (_, meter) = run(ALL, &[&chunk(0, 3), &chunk(1, 2), last, DONE]);
    let (counts, _) = meter.usage();
    // `null` takes nothing back.
    assert_eq!((counts.completion, counts.cached, counts.reasoning), (5, Some(2), Some(5)));
}

#[test]
fn error_events_say_whose_fault_it_is() {
    for (event, blame) in [
        (r#"{"error":{"message":"m","type":"InternalServerError","code":500}}"#, Blame::Engine),
        (r#"{"error":{"message":"m","type":"BadRequestError","code":400}}"#, Blame::Client),
        (
            r#"{"error":{"type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            Blame::Client,
        ),
        (r#"{"error":{"code":null,"type":"server_error"}}"#, Blame::Engine),
        (r#"{"error":{"code":429}}"#, Blame::Engine),
        (r#"{"error":"out of range","error_type":"validation"}"#, Blame::Client),
        (r#"{"error":"Request failed","error_type":"generation"}"#, Blame::Engine),
        (r#"{"error":"something"}"#, Blame::Unknown),
        (r#"{"object":"error","message":"m","type":"BadRequestError","code":400}"#, Blame::Client),
        (r#"{"object":"error","message":"m","code":50001}"#, Blame::Engine),
    ] {
        let mut meter = Watched::new(Strip::Nothing);
        meter.push(Bytes::from(format!("data: {event}\n\n")));
        assert_eq!(meter.seen.error, Some(blame), "{event}");
    }
}

#[test]
fn an_error_is_no_content_however_it_is_said() {
    for (event, failed, blame) in [
        ("data: {\"object\":\"error\",\"message\":\"m\"}\n\n", true, Some(Blame::Unknown)),
        ("event: error\ndata: {\"message\":\"m\",\"code\":500}\n\n", true, Some(Blame::Engine)),
        ("data: {\"message\":\"m\",\"code\":400}\nevent: error\n\n", true, Some(Blame::Client)),
        ("event: error\r\ndata: gone\r\n\r\n", true, Some(Blame::Unknown)),
        ("data: {\"error\":null,\"choices\":[]}\n\n", false, None),
        ("data: {\"error\":false,\"choices\":[]}\n\n", false, None),
        ("event: message\ndata: {\"choices\":[{\"delta\":{\"role\":\"error\"}}]}\n\n", false, None),
        ("data:\n\n", false, None),
        ("data: \n\n", false, None),
        ("data: {}\n\n", false, None),
        ("data\n\n", false, None),
    ] {
        let mut meter = Watched::new(Strip::Nothing);
        assert_eq!(meter.push(Bytes::from(event)), event, "passes as it is");
        assert_eq!((meter.seen.error.is_some(), meter.seen.error), (failed, blame), "{event:?}");
        assert!(!meter.seen.content, "{event:?}");
    }
}

#[test]
fn what_follows_done_is_dropped() {
    for rest in ["x", "\n", ": late\n\n", "data: {\"error\":{}}\n\n", USAGE, DONE] {
        for strip in [Strip::Nothing, ALL] {
            let (out, meter) = run(strip, &[LAST, &format!("{DONE}{rest}"), rest]);
            assert!(out.ends_with(&format!("}}\n\n{DONE}")), "{out}");
            assert!(meter.seen.finished && meter.seen.error.is_none());
        }
    }
}

#[test]
fn done_is_known_without_its_blank_line() {
    for (end, done) in [
        ("data: [DONE]", true),
        ("data: [DONE]\n", true),
        ("data:[DONE]\r\n", true),
        ("data: [DONE", false),
        (": [DONE]", false),
    ] {
        let mut meter = Watched::new(ALL);
        meter.push(Bytes::from(format!("{LAST}{end}")));
        let out = meter.abandon();
        assert_eq!((meter.seen.finished, out.ends_with(DONE.as_bytes())), (done, done), "{end:?}");
        assert!(out.starts_with(b"data: {"));
    }
}

#[test]
fn a_client_that_asked_gets_usage_wherever_it_stands() {
    let chunk = |usage: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"x\",\"model\":\"q\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"a\"}},\"finish_reason\":{finish}}}]{usage}}}\n\n"
        )
    };
    let usage = r#","usage":{"prompt_tokens":3,"completion_tokens":9}"#;
    let (early, last) = (chunk(usage, "null"), chunk("", "\"stop\""));
    let bare = "data: {\"id\":\"x\",\"model\":\"q\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":9}}\n\n";
    for parts in
        [vec![&*early, &last, DONE], vec![&*early, &last, ": x\n\n", DONE], vec![&*early, &last]]
    {
        let (out, meter) = run(Strip::Running, &parts);
        assert_eq!(out.matches(bare).count(), 1, "{out}");
        assert_eq!(out.matches("\"usage\"").count(), 1, "{out}");
        assert_eq!(meter.usage().0.total, 12);
        let (out, _) = run(ALL, &parts);
        assert!(!out.contains("usage"), "{out}");
        let mut meter = Watched::new(Strip::Running).naming(Some("alias"));
        let out: Vec<u8> =
            parts.iter().flat_map(|p| meter.push(Bytes::copy_from_slice(p.as_bytes()))).collect();
        assert!(!String::from_utf8(out).unwrap().contains("\"q\""));
    }
    // Running figures of two choices are added up for it.
    let other = early.replace("\"index\":0", "\"index\":1");
    let (out, _) = run(Strip::Running, &[&early, &other, DONE]);
    assert!(
        out.contains(r#""usage":{"prompt_tokens":3,"completion_tokens":18,"total_tokens":21}"#)
    );
}

#[test]
fn usage_is_read_wherever_it_stands_and_however_it_is_written() {
    let choice = r#""choices":[{"index":0,"delta":{},"finish_reason":"stop""#;
    for (event, total) in [
        (
            format!(
                r#"{{{choice}}}],"x_groq":{{"usage":{{"prompt_tokens":2,"completion_tokens":3}}}}}}"#
            ),
            5,
        ),
        (format!(r#"{{{choice},"usage":{{"prompt_tokens":2,"completion_tokens":4}}}}]}}"#), 6),
        (format!(r#"{{{choice}}}],"usage":{{"prompt_tokens":2.0,"completion_tokens":"5"}}}}"#), 7),
        (format!(r#"{{{choice}}}],"usage":{{"input_tokens":2,"output_tokens":6}}}}"#), 8),
        (format!(r#"{{{choice}}}],"usage":{{"prompt_tokens":2,"completion_tokens":-6}}}}"#), 0),
    ] {
        for later in [
            "",
            r#"{"choices":[],"usage":null}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}"#,
        ] {
            let later = if later.is_empty() { String::new() } else { format!("data: {later}\n\n") };
            let (out, meter) = run(Strip::Nothing, &[&format!("data: {event}\n\n"), &later, DONE]);
            assert_eq!(meter.usage().0.total, total, "{event}");
            let source = if total == 0 { UsageSource::None } else { UsageSource::Final };
            assert_eq!(meter.usage().1, source, "{event}");
            assert!(out.contains(&event));
        }
    }
}

#[test]
fn what_llamacpp_writes_unasked_stays() {
    let event = "data: {\"choices\":[{\"text\":\"\",\"index\":0,\"finish_reason\":\"length\"}],\"object\":\"text_completion\",\"usage\":{\"completion_tokens\":8,\"prompt_tokens\":2,\"total_tokens\":10},\"timings\":{\"cache_n\":1}}\n\n";
    for strip in [ALL, Strip::All { nulls: true }, Strip::Running, Strip::Nothing] {
        let (out, meter) = run(strip, &[event, DONE]);
        assert_eq!(out, format!("{event}{DONE}"), "{strip:?}");
        assert_eq!(meter.usage().0.total, 10);
    }
}

#[test]
fn an_event_of_any_size_is_metered() {
    for size in [1 << 20, 5 << 20] {
        let event = format!(
            "data: {{\"model\":\"q\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}],\"usage\":{{\"prompt_tokens\":3,\"completion_tokens\":4}}}}\n\n",
            "x".repeat(size)
        );
        for piece in [event.len(), 100_000] {
            let mut meter = Watched::new(ALL);
            let parts = event.as_bytes().chunks(piece);
            let mut out: Vec<u8> =
                parts.flat_map(|p| meter.push(Bytes::copy_from_slice(p))).collect();
            out.extend_from_slice(&meter.push(Bytes::from(DONE)));
            assert_eq!((meter.usage().0.total, meter.seen.parts, meter.seen.events), (7, 1, 2));
            assert_eq!(meter.seen.model.take().as_deref(), Some("q"));
            assert!(meter.seen.finished && out.ends_with(DONE.as_bytes()) && out.len() >= size);
        }
    }
}

#[test]
fn a_byte_order_mark_hides_nothing() {
    let stream = format!("\u{feff}{ROLE}{LAST}{USAGE}{DONE}");
    let (out, meter) = run(ALL, &[&stream]);
    assert!(out.starts_with('\u{feff}') && !out.contains("usage"), "{out}");
    assert_eq!(meter.usage().1, UsageSource::Final);
    let cuts: Vec<String> = stream.chars().map(String::from).collect();
    let cuts: Vec<&str> = cuts.iter().map(String::as_str).collect();
    assert_eq!(run(ALL, &cuts).0, out);
}

#[test]
fn documents_may_stand_on_lines() {
    let line = |event: &str| format!("{}\n", event.trim_start_matches("data: ").trim_end());
    let stream = [line(ROLE), line(LAST), line(USAGE)].concat();
    for size in [1, 5, stream.len()] {
        let mut meter = Watched::new(ALL).by_line().naming(Some("alias"));
        let parts = stream.as_bytes().chunks(size);
        let mut out: Vec<u8> = parts.flat_map(|p| meter.push(Bytes::copy_from_slice(p))).collect();
        out.extend_from_slice(&meter.finish());
        let out = String::from_utf8(out).unwrap();
        assert!(!out.contains("usage") && out.lines().count() == 2, "{out}");
        assert!(out.ends_with("\"system_fingerprint\":\"f\"}\n"), "{out}");
        assert_eq!((meter.usage().0.total, meter.usage().1), (5, UsageSource::Final));
    }
}

#[test]
fn usage_is_taken_out_of_data_on_several_lines() {
    let event = "id: 7\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\ndata: \"usage\":{\"prompt_tokens\":1,\ndata: \"completion_tokens\":2},\"model\":\"q\"}\n\n";
    let mut meter = Watched::new(ALL).naming(Some("alias"));
    let out = meter.push(Bytes::from(event));
    assert_eq!(
        String::from_utf8_lossy(&out),
        "id: 7\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"model\":\"alias\"}\n\n"
    );
    assert_eq!(meter.usage().0.total, 3);
}

/// What engines, and the networks between, make of the end of a stream.
const ENDS: [&str; 11] = [
    ROLE,
    LAST,
    USAGE,
    DONE,
    ": heartbeat\n\n",
    "\n",
    "data:\n\n",
    "event: error\ndata: {}\n\n",
    "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"}}],\"usage\":{\"prompt_tokens\":3.0,\"completion_tokens\":\"9\"}}\n\n",
    "data: {\"choices\":[],\"usage\":null}\r\n\r\n",
    "data: {\"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":0}}\n\n",
];

proptest! {
    #[test]
    fn no_split_changes_anything(
        parts in proptest::collection::vec(0..ENDS.len(), 0..8),
        cuts in proptest::collection::vec(0usize..1500, 0..8),
        strip in 0..4usize,
        cut_off in any::<bool>(),
    ) {
        let strip = [Strip::Nothing, Strip::Running, ALL, Strip::All { nulls: true }][strip];
        let mut stream: String = parts.into_iter().map(|part| ENDS[part]).collect();
        if cut_off {
            stream.push_str("data: {\"ha");
        }
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
        cuts.sort_unstable();
        let bytes = Bytes::from(stream.clone());
        let whole = run(strip, &[&stream]);
        let mut meter = Watched::new(strip);
        let mut out = Vec::new();
        let mut at = 0;
        for cut in cuts.into_iter().chain([stream.len()]) {
            out.extend_from_slice(&meter.push(bytes.slice(at..cut)));
            at = cut;
        }
        out.extend_from_slice(&meter.finish());
        prop_assert_eq!(String::from_utf8(out).unwrap(), &*whole.0);
        prop_assert_eq!(meter.usage(), whole.1.usage());
        prop_assert_eq!(meter.seen.finished, whole.1.seen.finished);
        // The answer itself is never lost: each chunk that ends a choice goes out, up to `[DONE]`.
        let before = stream.split("[DONE]").next().unwrap_or_default();
        prop_assert_eq!(whole.0.matches("\"stop\"").count(), before.matches("\"stop\"").count());
    }
}
