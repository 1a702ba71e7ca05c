//! Concurrency limits: a request holds a slot until it ends.

use super::*;

#[tokio::test]
async fn a_running_stream_holds_its_slot() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let gateway = gateway_with(&sim, "{per_key: {max_concurrent: 2}}").await;
    let streams = [open_stream(&gateway, A).await, open_stream(&gateway, A).await];
    let no = gateway.ask_as(A).await;
    assert_eq!(refusal(&no), no_slot(429));
    let message = no.json()["error"]["message"].as_str().unwrap().to_owned();
    let said = "Concurrency limit reached: per_key.max_concurrent allows 2.";
    assert!(message.starts_with(said), "{message}");
    assert_eq!(refusals_by(&gateway, "per_key.max_concurrent").await, 1.0);
    open_stream(&gateway, B).await;
    drop(streams);
}

#[tokio::test]
async fn a_slot_is_released_however_the_request_ends() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let gateway = gateway_with(&sim, "{per_key: {max_concurrent: 1}}").await;
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    for way in ["whole", "left", "left by HTTP/2", "broken", "never begun", "500", "400", "wedged"]
    {
        let slow = matches!(way, "left" | "left by HTTP/2");
        sim.change(|b| {
            b.inter_token_ms = if slow { FOREVER } else { 0 };
            b.fail = match way {
                "broken" => Fail::MidStream,
                "never begun" => Fail::BeforeHeaders,
                "500" => Fail::Error,
                "wedged" => Fail::Wedge,
                _ => Fail::None,
            };
        });
        match way {
            "left" => drop(open_stream(&gateway, A).await),
            "wedged" => {
                let client = send_chat(&gateway, A, false).await;
                eventually("the request is at the backend", async || sim.stats().running() == 1)
                    .await;
                drop(client);
            }
            "left by HTTP/2" => {
                let request = h2.post(gateway.url(PATH)).bearer_auth(A).body(chat(true));
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), 200);
                drop(answer);
            }
            _ => {
                let body =
                    if way == "400" { r#"{"model":"sim-model"}"#.to_owned() } else { chat(true) };
                let mut client = gateway.client().await;
                let answer = ask(&mut client, A, &body).await;
                let expected = match way {
                    "never begun" => 502,
                    "500" => 500,
                    "400" => 400,
                    _ => 200,
                };
                assert_eq!(answer.status, expected, "{way}");
                assert_eq!(answer.text().contains("[DONE]"), way == "whole", "{way}");
            }
        }
        sim.change(|b| (b.inter_token_ms, b.fail) = (FOREVER, Fail::None));
        eventually(&format!("a free slot after a request that was {way}"), async || {
            send_chat(&gateway, A, true).await.head().await.status == 200
        })
        .await;
        eventually("the backend has no running request", async || sim.stats().running() == 0).await;
    }
    // No slot was released twice.
    let _stream = take_slot(&gateway).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), no_slot(429));
}

#[tokio::test]
async fn a_slot_is_free_once_the_client_has_the_whole_response() {
    let sim = sim().await;
    let gateway = gateway_with(&sim, "{per_key: {max_concurrent: 1}}").await;
    for n in 0..300 {
        // On a new connection each time, so that only the slot orders them.
        let answer = send_chat(&gateway, A, n % 2 == 0).await.answer().await;
        assert_eq!(answer.status, 200, "{n}: {}", answer.text());
    }
    let (dead, _socket) = unreachable();
    let more = format!("{KEYS}rate_limit: {{per_key: {{max_concurrent: 1}}}}\n");
    let gateway = Gateway::before(&[dead], &more).await;
    for n in 0..100 {
        assert_eq!(gateway.ask_as(A).await.status, 502, "{n}");
    }
}
