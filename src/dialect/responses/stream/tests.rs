//! Streams of responses as engines write them, and as they should not.

use proptest::prelude::*;

use super::*;
use crate::dialect::{
    Blame, Dialect, Failure, Meter, captured, responses::Responses, typed_stream::watched,
};

type Watched = watched::Watched<ResponseEvents>;

fn event(document: &str) -> String {
    let name = std::str::from_utf8(text(document.as_bytes(), "type")).unwrap();
    format!("event: {name}\ndata: {document}\n\n")
}

fn stream(documents: &[&str]) -> String {
    documents.iter().map(|document| event(document)).collect()
}

const CREATED: &str = r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","created_at":5,"model":"engine","status":"in_progress","output":[],"usage":null,"error":null}}"#;
const PROGRESS: &str = r#"{"response":{"id":"resp_1","model":"engine","status":"in_progress"},"sequence_number":1,"type":"response.in_progress"}"#;
const ADDED: &str = r#"{"item":{"id":"msg_1","content":[],"status":"in_progress","type":"message"},"output_index":0,"sequence_number":2,"type":"response.output_item.added"}"#;
const PART: &str = r#"{"part":{"type":"output_text","text":""},"sequence_number":3,"type":"response.content_part.added"}"#;
const TEXT: &str =
    r#"{"delta":"Hi","item_id":"msg_1","sequence_number":4,"type":"response.output_text.delta"}"#;
const DONE: &str = r#"{"item":{"id":"msg_1","content":[{"text":"Hi"}],"type":"message"},"sequence_number":5,"type":"response.output_item.done"}"#;
const END: &str = r#"{"response":{"id":"resp_1","model":"engine","status":"completed","error":null,"output":[{"usage":{"input_tokens":99}}],"usage":{"input_tokens":7,"input_tokens_details":{"cached_tokens":3},"output_tokens":5,"total_tokens":12}},"sequence_number":6,"type":"response.completed"}"#;

#[test]
fn captures_are_metered_and_pass_as_they_are() {
    for (name, cached, parts) in
        [("vllm/responses_stream", Some(0), 12), ("llamacpp/responses_stream", Some(16), 12)]
    {
        let stream = captured(name);
        let watched = Watched::of(&[&stream]).finished();
        assert!(watched.out == stream, "{name}: changed without a reason");
        assert_eq!(watched.usage(), (17, 12, cached, UsageSource::Final), "{name}");
        let Progress { finished, content, choice_ended, aborted, error, .. } = watched.seen;
        assert!(finished && content && choice_ended && !aborted && error.is_none(), "{name}");
        assert_eq!(watched.seen.model.as_deref(), Some("tiny-llama"), "{name}");
        assert_eq!(watched.seen.parts, parts, "{name}");
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
        assert_eq!((watched.text(), watched.seen.parts), (crlf.as_str(), parts), "{name}");
    }
}

#[test]
fn captured_documents_are_metered() {
    for name in ["vllm/responses", "llamacpp/responses"] {
        let document = captured(name);
        let usage: Value = serde_json::from_slice(&document).unwrap();
        for size in [1, 10, document.len()] {
            let (mut meter, mut seen) = (Responses.document_meter(), Progress::default());
            for piece in document.chunks(size) {
                meter.push(Bytes::copy_from_slice(piece), &mut seen);
            }
            let counts = meter.counts().unwrap();
            assert_eq!(counts.prompt, usage["usage"]["input_tokens"], "{name}");
            assert_eq!(counts.completion, usage["usage"]["output_tokens"], "{name}");
            assert!(counts.prompt > 0 && counts.completion > 0, "{name}");
            assert_eq!((seen.model.as_deref(), seen.aborted), (Some("tiny-llama"), false));
        }
        let renamed = Responses.rename_model(document.into(), "own");
        let renamed: Value = serde_json::from_slice(&renamed).unwrap();
        assert_eq!(renamed["model"], "own");
    }
}

#[test]
fn content_begins_with_the_first_word() {
    let call = r#"{"item":{"id":"f","type":"function_call","name":"f","arguments":""},"type":"response.output_item.added"}"#;
    let reasoning = r#"{"item":{"id":"r","type":"reasoning","summary":[]},"type":"response.output_item.added"}"#;
    let empty = r#"{"delta":"","type":"response.output_text.delta"}"#;
    let whole =
        r#"{"part":{"type":"output_text","text":"Hi"},"type":"response.content_part.added"}"#;
    for (last, content) in [
        (PROGRESS, false),
        (ADDED, false),
        (PART, false),
        (reasoning, false),
        (empty, false),
        (r#"{"type":"response.queued","response":{}}"#, false),
        (r#"{"type":"keepalive","sequence_number":1}"#, false),
        (TEXT, true),
        (call, true),
        (whole, true),
        (DONE, true),
        (r#"{"delta":"x","type":"response.reasoning_text.delta"}"#, true),
        (r#"{"type":"response.web_search_call.searching"}"#, true),
    ] {
        let watched = Watched::of(&[stream(&[CREATED, last]).as_bytes()]);
        assert_eq!(watched.seen.content, content, "{last}");
    }
}

#[test]
fn the_inner_status_says_how_it_ended() {
    let failed = END.replace(r#""error":null"#, r#""error":{"code":"server_error"}"#);
    for (document, over, aborted, error) in [
        (END.to_owned(), true, false, None),
        (END.replace("\"completed\"", "\"incomplete\""), true, false, None),
        (END.replace("response.completed", "response.incomplete"), true, false, None),
        (END.replace("\"completed\"", "\"cancelled\""), false, true, None),
        (failed.replace("response.completed", "response.failed"), false, true, Some(Blame::Engine)),
        (failed.replace("\"completed\"", "\"failed\""), false, true, Some(Blame::Engine)),
        (
            failed
                .replace("response.completed", "response.failed")
                .replace("server_error", "context_length_exceeded"),
            false,
            true,
            Some(Blame::Client),
        ),
    ] {
        let text = stream(&[CREATED, &document]);
        let watched = Watched::of(&[text.as_bytes()]).finished();
        assert_eq!(watched.text(), text);
        let Progress { finished, aborted: broken, .. } = watched.seen;
        assert_eq!((finished, broken, watched.seen.error), (true, aborted, error), "{document}");
        assert_eq!(watched.seen.is_over(), over, "{document}");
        assert_eq!(watched.usage().0, 7);
    }
}

#[test]
fn a_stream_without_its_end_fails() {
    let whole = stream(&[CREATED, PROGRESS, ADDED, PART, TEXT, TEXT]);
    for more in ["", "event: response.comp", "event: response.completed\ndata: {\"response\":{"] {
        let watched = Watched::of(&[format!("{whole}{more}").as_bytes()]).finished();
        assert!(watched.text().starts_with(&whole) && !watched.text().contains("completed"));
        let last = watched.last();
        assert_eq!(
            (&last["type"], &last["sequence_number"]),
            (&"response.failed".into(), &5.into())
        );
        assert_eq!(last["response"]["id"], "resp_1");
        assert_eq!(last["response"]["created_at"], 5);
        assert_eq!(last["response"]["model"], "engine");
        assert_eq!(last["response"]["error"]["code"], "backend_failed");
        let item = &last["response"]["output"][0];
        assert_eq!((&item["id"], &item["status"]), (&"msg_1".into(), &"incomplete".into()));
        assert!(watched.seen.aborted && !watched.seen.finished && !watched.seen.is_over());
    }
    // Nothing has come.
    let watched = Watched::of(&[]).finished();
    assert!(watched.text().starts_with("event: response.created\n"));
    assert_eq!(watched.last()["type"], "response.failed");
    // An item that has ended is not repeated.
    let watched = Watched::of(&[stream(&[CREATED, ADDED, DONE]).as_bytes()]).finished();
    assert_eq!(watched.last()["response"]["output"], serde_json::json!([]));
    // Only its blank line is missing.
    let whole = stream(&[CREATED, TEXT, END]);
    for text in [whole.trim_end(), whole.strip_suffix('\n').unwrap()] {
        let watched = Watched::of(&[text.as_bytes()]).finished();
        assert_eq!((watched.text(), watched.seen.finished), (whole.as_str(), true));
    }
}

#[test]
fn a_failure_counts_on() {
    let document = Responses.failure("no", "backend_timeout");
    let failure = Failure { document: &document, message: "?", code: "?", status: 504 };
    let mut watched = Watched::of(&[stream(&[CREATED, PROGRESS, ADDED, PART, TEXT]).as_bytes()]);
    for chunk in [event(TEXT).replace(":4", ":5"), stream(&[TEXT, TEXT])] {
        watched.push(chunk.as_bytes());
    }
    let failed = watched.meter.failure(&failure).unwrap();
    watched.out = failed.to_vec();
    let last = watched.last();
    assert_eq!(last["sequence_number"], 8);
    let error = serde_json::json!({"code": "backend_timeout", "message": "no"});
    assert_eq!(last["response"]["error"], error);
    // llama.cpp numbers nothing.
    let bare = |text: &str| text.replace(r#""sequence_number":4,"#, "");
    let mut watched = Watched::of(&[bare(&event(TEXT)).as_bytes()]);
    watched.out = watched.meter.failure(&failure).unwrap().to_vec();
    assert_eq!(watched.last()["response"]["id"], "resp_none");
}

#[test]
fn the_client_reads_the_name_of_the_model_that_it_knows() {
    let whole = stream(&[CREATED, PROGRESS, TEXT, END]);
    let mut watched = Watched::new(Some("own \"name\""));
    watched.push(whole.as_bytes());
    assert_eq!(watched.text(), whole.replace("\"engine\"", r#""own \"name\"""#));
    assert_eq!(watched.seen.model.as_deref(), Some("engine"));
    let mut watched = Watched::new(Some("own"));
    watched.push(event(CREATED).as_bytes());
    assert_eq!(watched.finished().last()["response"]["model"], "own");
}

#[test]
fn another_languages_end_is_tolerated() {
    let whole = stream(&[CREATED, TEXT, END]);
    for parts in
        [vec![format!("{whole}data: [DONE]\n\n")], vec![whole.clone(), "data: [DONE]".into()]]
    {
        let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
        let watched = Watched::of(&parts).finished();
        assert_eq!((watched.text(), watched.seen.finished), (whole.as_str(), true));
    }
    // It is no end of this one.
    let watched = Watched::of(&[b"data: [DONE]\n\n"]).finished();
    assert!(!watched.seen.finished && watched.seen.aborted);
}

#[test]
fn errors_say_whose_they_are() {
    for (document, blame) in [
        (r#"{"type":"error","code":"server_error","message":"x"}"#, Blame::Engine),
        (r#"{"type":"error","code":"invalid_prompt","message":"x"}"#, Blame::Client),
        (r#"{"type":"error","code":null,"message":"x"}"#, Blame::Unknown),
    ] {
        let text = stream(&[CREATED, document]);
        let watched = Watched::of(&[text.as_bytes()]).finished();
        assert_eq!(watched.seen.error, Some(blame), "{document}");
        assert_eq!(watched.text(), text);
        assert!(!watched.seen.content && !watched.seen.finished);
    }
    let watched = Watched::of(&[b"data: {\"error\":{\"code\":500}}\n\n"]);
    assert_eq!(watched.seen.error, Some(Blame::Engine));
}

#[test]
fn a_large_end_is_read_too() {
    let large =
        END.replace(r#""status":"completed""#, &format!(r#""x":"{}""#, "x".repeat(5 << 20)));
    let named = CREATED.replace(r#""model":"engine","#, "");
    for (large, aborted) in
        [(large.clone(), false), (large.replace(r#""error":null"#, r#""status":"failed""#), true)]
    {
        let whole = stream(&[&named, TEXT, &large]);
        let parts: Vec<&[u8]> = whole.as_bytes().chunks(1 << 20).collect();
        let watched = Watched::of(&parts).finished();
        assert!(watched.text() == whole && watched.seen.finished);
        assert_eq!((watched.usage().0, watched.usage().1), (7, 5));
        assert_eq!(watched.seen.model.as_deref(), Some("engine"));
        assert_eq!((watched.seen.aborted, watched.seen.choice_ended), (aborted, !aborted));
    }
}

#[test]
fn plain_parts_pass_without_a_copy() {
    let mut watched = Watched::of(&[stream(&[CREATED, ADDED, TEXT]).as_bytes()]);
    for chunk in [event(TEXT), stream(&[TEXT, TEXT, TEXT]), event(DONE)] {
        let chunk = Bytes::from(chunk);
        let out = watched.meter.push(chunk.clone(), &mut watched.seen);
        assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), chunk.len()));
    }
    assert_eq!((watched.seen.events, watched.seen.parts), (8, 5));
}

proptest! {
    #[test]
    fn any_cut_gives_the_same(
        order in prop::collection::vec(0usize..10, 0..12),
        cuts in prop::collection::vec(0usize..2500, 0..6),
        renamed in any::<bool>(),
        crlf in any::<bool>(),
    ) {
        let error = r#"{"type":"error","code":"x","sequence_number":40}"#;
        let keep_alive = r#"{"type":"keepalive"}"#;
        let all =
            [CREATED, PROGRESS, ADDED, PART, TEXT, DONE, END, error, keep_alive, "[DONE]"];
        // Numbers rise by one, as in all streams that have them.
        let (mut text, mut number) = (String::new(), 0);
        for n in order {
            match all[n] {
                "[DONE]" => text += ": c\n\n",
                document => {
                    let mut document: Value = serde_json::from_str(document).unwrap();
                    document["sequence_number"] = number.into();
                    number += 1;
                    text += &event(&document.to_string());
                }
            }
        }
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
