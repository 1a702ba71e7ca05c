//! Streams of messages as engines write them, and as they should not.

use proptest::prelude::*;

use super::*;
use crate::{
    base::UsageSource,
    dialect::{Blame, Failure, Meter, captured, typed_stream::watched},
};

type Watched = watched::Watched<MessageEvents>;

fn event(document: &str) -> String {
    let name = std::str::from_utf8(text(document.as_bytes(), "type")).unwrap();
    format!("event: {name}\ndata: {document}\n\n")
}

const START: &str = r#"{"type":"message_start","message":{"id":"m","model":"engine","content":[],"usage":{"input_tokens":7,"cache_read_input_tokens":3,"output_tokens":1}}}"#;
const BLOCK: &str =
    r#"{"type":"content_block_start","index":2,"content_block":{"type":"text","text":""}}"#;
const TEXT: &str =
    r#"{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"Hi"}}"#;
const STOP: &str = r#"{"type":"content_block_stop","index":2}"#;
const DELTA: &str =
    r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}"#;
const END: &str = r#"{"type":"message_stop"}"#;
const PING: &str = r#"{"type":"ping"}"#;

fn stream(documents: &[&str]) -> String {
    documents.iter().map(|document| event(document)).collect()
}

#[test]
fn captures_are_metered_and_pass_as_they_are() {
    for (name, prompt, completion, cached, parts) in [
        ("vllm/anthropic_messages_stream", 17, 12, None, 12),
        ("vllm/anthropic_tools_stream", 156, 38, None, 0),
        ("llamacpp/anthropic_messages_stream", 17, 12, Some(16), 12),
        ("llamacpp/anthropic_tools_stream", 156, 31, Some(155), 0),
    ] {
        let stream = captured(name);
        let watched = Watched::of(&[&stream]).finished();
        assert!(watched.out == stream, "{name}: changed without a reason");
        let usage = (prompt, completion, cached, UsageSource::Final);
        assert_eq!(watched.usage(), usage, "{name}");
        let Progress { finished, content, choice_ended, aborted, .. } = watched.seen;
        assert!(finished && content && choice_ended && !aborted, "{name}");
        assert_eq!(watched.seen.model.as_deref(), Some("tiny-llama"), "{name}");
        assert!(parts == 0 || watched.seen.parts == parts, "{name}: {}", watched.seen.parts);
        for at in 0..=stream.len() {
            let (one, two) = stream.split_at(at);
            assert_eq!(Watched::of(&[one, two]).finished().all(), watched.all(), "{name} at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(Watched::of(&bytes).finished().all(), watched.all(), "{name} by bytes");
        // One event in each chunk, as engines send them.
        let text = String::from_utf8(stream.clone()).unwrap();
        let events: Vec<&[u8]> = text.split_inclusive("\n\n").map(str::as_bytes).collect();
        assert_eq!(Watched::of(&events).finished().all(), watched.all(), "{name} by events");
        let crlf = text.replace('\n', "\r\n");
        let watched = Watched::of(&[crlf.as_bytes()]).finished();
        assert_eq!((watched.text(), watched.usage()), (crlf.as_str(), usage), "{name}");
    }
}

#[test]
fn captured_documents_are_metered() {
    use crate::dialect::{Dialect, anthropic::Anthropic};
    for (name, prompt, completion, cached) in [
        ("vllm/anthropic_messages", 17, 12, None),
        ("vllm/anthropic_tools", 156, 38, None),
        ("llamacpp/anthropic_messages", 17, 12, Some(8)),
        ("llamacpp/anthropic_tools", 156, 31, Some(155)),
    ] {
        let document = captured(name);
        for size in [1, 10, document.len()] {
            let (mut meter, mut seen) = (Anthropic.document_meter(), Progress::default());
            for piece in document.chunks(size) {
                meter.push(Bytes::copy_from_slice(piece), &mut seen);
            }
            let counts = meter.counts().unwrap();
            let found = (counts.prompt, counts.completion, counts.cached);
            assert_eq!(found, (prompt, completion, cached), "{name}");
            assert_eq!((seen.model.as_deref(), seen.aborted), (Some("tiny-llama"), false));
        }
    }
    for name in ["vllm/anthropic_count_tokens", "llamacpp/anthropic_count_tokens"] {
        let (mut meter, mut seen) = (Anthropic.document_meter(), Progress::default());
        meter.push(captured(name).into(), &mut seen);
        assert_eq!(meter.counts(), None, "{name}: nothing was used");
    }
}

#[test]
fn content_begins_with_the_first_word() {
    let tool = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c","name":"f","input":{}}}"#;
    let thinking = r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#;
    let redacted = r#"{"type":"content_block_start","index":0,"content_block":{"type":"redacted_thinking","data":"x"}}"#;
    let empty =
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}"#;
    let signature = r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"s"}}"#;
    let json = r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{"}}"#;
    for (last, content) in [
        (BLOCK, false),
        (thinking, false),
        (empty, false),
        (PING, false),
        (STOP, false),
        (TEXT, true),
        (tool, true),
        (redacted, true),
        (signature, true),
        (json, true),
        (r#"{"type":"something_new"}"#, true),
    ] {
        let watched = Watched::of(&[stream(&[START, PING, last]).as_bytes()]);
        assert_eq!(watched.seen.content, content, "{last}");
        // A keep-alive is no event: it may go out while the rest is held back.
        assert_eq!(watched.seen.events, if last == PING { 1 } else { 2 }, "{last}");
    }
}

#[test]
fn usage_is_the_last_word_of_each_member() {
    let whole = stream(&[START, BLOCK, TEXT, STOP, DELTA, END]);
    let watched = Watched::of(&[whole.as_bytes()]);
    assert_eq!(watched.usage(), (10, 5, Some(3), UsageSource::Final));
    let restated = DELTA.replace(r#""output_tokens":5"#, r#""input_tokens":90,"output_tokens":6"#);
    let watched = Watched::of(&[stream(&[START, &restated, END]).as_bytes()]);
    assert_eq!(watched.usage(), (93, 6, Some(3), UsageSource::Final));
    // What is known before the end is a part.
    let cut = Watched::of(&[stream(&[START, BLOCK, TEXT]).as_bytes()]);
    assert_eq!(cut.usage(), (10, 1, Some(3), UsageSource::Partial));
    assert_eq!(cut.finished().usage().3, UsageSource::Partial);
}

#[test]
fn a_stream_without_its_end_is_told_from_a_complete_one() {
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"The backend ended the stream before its answer was complete\"}}\n\n";
    for (documents, begun) in [
        (&[START][..], ""),
        (
            &[START, BLOCK, TEXT],
            "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":2}\n\n",
        ),
        (&[START, BLOCK, TEXT, STOP], ""),
        (&[], ""),
    ] {
        let text = stream(documents);
        // Also with the beginning of one more event.
        for more in ["", "event: content_block_del", "event: message_stop\ndata: {\"type\":\"mess"]
        {
            let watched = Watched::of(&[format!("{text}{more}").as_bytes()]).finished();
            assert_eq!(watched.text(), format!("{text}{begun}{error}"));
            assert!(watched.seen.aborted && watched.seen.ended && !watched.seen.finished);
            assert!(!watched.seen.is_over());
        }
    }
    // Only the last event is missing, or its blank line.
    let whole = stream(&[START, BLOCK, TEXT, STOP, DELTA, END]);
    let most = stream(&[START, BLOCK, TEXT, STOP, DELTA]);
    for text in [most.as_str(), whole.trim_end(), whole.strip_suffix('\n').unwrap(), &whole] {
        let watched = Watched::of(&[text.as_bytes()]).finished();
        assert_eq!(watched.text(), whole);
        assert!(watched.seen.finished && watched.seen.is_over() && !watched.seen.aborted);
        assert_eq!(watched.usage().3, UsageSource::Final);
    }
    // The same if the connection breaks.
    let mut broken = Watched::of(&[whole.trim_end().as_bytes()]);
    let rest = broken.meter.abandon(&mut broken.seen);
    assert_eq!(format!("{}{}", broken.text(), std::str::from_utf8(&rest).unwrap()), whole);
    assert!(broken.seen.finished);
    // All is there but the last event, or more is missing.
    let mut broken = Watched::of(&[most.as_bytes(), b"event: message_stop\ndata: {"]);
    assert_eq!(broken.meter.abandon(&mut broken.seen), event(END));
    assert!(broken.seen.finished && broken.meter.abandon(&mut broken.seen).is_empty());
    let less = stream(&[START, BLOCK, TEXT, STOP]);
    let delta = event(DELTA);
    for more in ["event: message_stop\ndata: {", delta.trim_end()] {
        let mut broken = Watched::of(&[less.as_bytes(), more.as_bytes()]);
        assert!(broken.meter.abandon(&mut broken.seen).is_empty(), "{more}");
        assert!(!broken.seen.finished && !broken.seen.choice_ended);
    }
}

#[test]
fn nothing_follows_the_end() {
    let whole = stream(&[START, BLOCK, TEXT, STOP, DELTA, END]);
    for more in ["data: [DONE]\n\n", ": x\n\n", "x"] {
        for parts in [vec![format!("{whole}{more}")], vec![whole.clone(), more.to_owned()]] {
            let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
            let watched = Watched::of(&parts).finished();
            assert_eq!(watched.text(), whole, "{more}");
        }
    }
}

#[test]
fn errors_say_whose_they_are() {
    for (document, blame) in [
        (r#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#, Blame::Engine),
        (r#"{"type":"error","error":{"type":"api_error","message":"x"}}"#, Blame::Unknown),
        (r#"{"type":"error","error":{"type":"invalid_request_error"}}"#, Blame::Client),
        (r#"{"type":"error","error":{"type":"request_too_large"}}"#, Blame::Client),
        (r#"{"type":"error","error":{"type":"timeout_error"}}"#, Blame::Engine),
    ] {
        let text = stream(&[START, document]);
        let watched = Watched::of(&[text.as_bytes()]).finished();
        assert_eq!(watched.seen.error, Some(blame), "{document}");
        // It is the end: nothing is added.
        assert_eq!(watched.text(), text);
        assert!(!watched.seen.content && !watched.seen.finished && watched.seen.is_broken_off());
    }
    // OpenAI's form, without a name.
    let watched = Watched::of(&[b"data: {\"error\":{\"code\":500}}\n\ndata: [DONE]\n\n"]);
    assert_eq!(watched.seen.error, Some(Blame::Engine));
}

#[test]
fn an_end_without_a_reason_is_an_abort() {
    for (reason, aborted) in [("null", true), (r#""abort""#, true), (r#""end_turn""#, false)] {
        let delta = DELTA.replace(r#""end_turn""#, reason);
        let watched = Watched::of(&[stream(&[START, &delta, END]).as_bytes()]);
        assert_eq!((watched.seen.aborted, watched.seen.finished), (aborted, true), "{reason}");
    }
    let watched = Watched::of(&[stream(&[START, END]).as_bytes()]);
    assert!(!watched.seen.aborted);
}

#[test]
fn a_failure_closes_the_open_block() {
    let document = errors::failure("no", "backend_timeout");
    let failure =
        Failure { document: &document, message: "no", code: "backend_timeout", status: 504 };
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"timeout_error\",\"message\":\"no\"}}\n\n";
    let watched = Watched::of(&[stream(&[START, BLOCK, TEXT]).as_bytes()]);
    let stop = event(r#"{"type":"content_block_stop","index":2}"#);
    assert_eq!(watched.meter.failure(&failure).unwrap(), format!("{stop}{error}"));
    let watched = Watched::of(&[stream(&[START, BLOCK, TEXT, STOP]).as_bytes()]);
    assert_eq!(watched.meter.failure(&failure).unwrap(), error);
}

#[test]
fn the_client_reads_the_name_of_the_model_that_it_knows() {
    let whole = stream(&[START, BLOCK, TEXT, STOP, DELTA, END]);
    let mut watched = Watched::new(Some("own \"name\""));
    watched.push(whole.as_bytes());
    assert_eq!(watched.text(), whole.replace("\"engine\"", r#""own \"name\"""#));
    assert_eq!(watched.seen.model.as_deref(), Some("engine"));
}

#[test]
fn plain_parts_pass_without_a_copy() {
    let mut watched = Watched::of(&[stream(&[START, BLOCK, TEXT]).as_bytes()]);
    for chunk in [event(TEXT), stream(&[TEXT, TEXT, TEXT]), event(PING), event(STOP)] {
        let chunk = Bytes::from(chunk);
        let out = watched.meter.push(chunk.clone(), &mut watched.seen);
        assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), chunk.len()));
    }
    assert_eq!((watched.seen.events, watched.seen.parts), (8, 5));
}

#[test]
fn large_blocks_pass_and_count() {
    let large = format!(
        r#"{{"type":"content_block_start","index":0,"content_block":{{"type":"x","data":"{}"}}}}"#,
        "x".repeat(5 << 20)
    );
    let whole = stream(&[START, &large, STOP, DELTA, END]);
    let parts: Vec<&[u8]> = whole.as_bytes().chunks(1 << 20).collect();
    let watched = Watched::of(&parts).finished();
    assert!(watched.text() == whole && watched.seen.finished && watched.seen.content);
    assert_eq!((watched.seen.events, watched.seen.parts), (5, 1));
    // Cut within it: the error is an event of its own.
    let cut = &whole.as_bytes()[..(4 << 20) + 1000];
    let watched = Watched::of(&[cut]).finished();
    assert!(watched.out.starts_with(cut) && watched.seen.aborted);
    assert!(watched.out[cut.len()..].starts_with(b"\n\nevent: error\n"));
}

proptest! {
    #[test]
    fn any_cut_gives_the_same(
        order in prop::collection::vec(0usize..9, 0..12),
        cuts in prop::collection::vec(0usize..1500, 0..6),
        renamed in any::<bool>(),
        crlf in any::<bool>(),
    ) {
        let error = r#"{"type":"error","error":{"type":"api_error","message":"\"usage\""}}"#;
        let all = [START, BLOCK, TEXT, STOP, DELTA, END, PING, error, "[DONE]"];
        let text: String = order
            .into_iter()
            .map(|n| match all[n] {
                "[DONE]" => "data: [DONE]\n\n: c\n\n".to_owned(),
                document => event(document),
            })
            .collect();
        let text = if crlf { text.replace('\n', "\r\n") } else { text };
        let run = |cuts: &[usize]| {
            let mut watched = Watched::new(renamed.then_some("own"));
            let mut at = 0;
            for cut in cuts.iter().copied().chain([text.len()]) {
                let cut = cut.clamp(at, text.len());
                watched.push(&text.as_bytes()[at..cut]);
                at = cut;
            }
            watched.finished().all()
        };
        let mut cuts = cuts;
        cuts.sort_unstable();
        prop_assert_eq!(run(&cuts), run(&[]));
        let bytes: Vec<usize> = (1..text.len()).collect();
        prop_assert_eq!(run(&bytes), run(&[]));
    }
}
