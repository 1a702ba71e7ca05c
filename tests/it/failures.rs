//! Backends that fail during a response.

use llmproxy::sim::Fail;

use crate::support::{Gateway, Receiver, chat, sim_with};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_event() {
    for fail in [Fail::MidStream, Fail::AfterHeaders] {
        let sim = sim_with(|b| b.fail = fail).await;
        let receiver = Receiver::start().await;
        let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
        let answer = gateway.client().await.ask(PATH, chat(true)).await;
        assert_eq!(answer.status, 200);
        assert!(answer.whole, "the stream is ended properly");
        let last = answer.text().trim_end().rsplit("\n\n").next().unwrap();
        let event: serde_json::Value =
            serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(event["error"]["code"], "backend_failed", "{fail:?}");
        assert!(!answer.text().contains("[DONE]") && !answer.text().contains("usage"));
        let record = receiver.one().await;
        assert_eq!(record["outcome"], "upstream_error");
        let (tokens, source) =
            (record["completion_tokens"].as_u64(), record["usage_source"].as_str());
        match fail {
            // Eight of sixteen tokens had arrived and were counted.
            Fail::MidStream => assert_eq!((tokens, source), (Some(8), Some("partial"))),
            _ => assert_eq!((tokens, source), (Some(0), Some("none"))),
        }
    }
}

#[tokio::test]
async fn a_plain_response_that_breaks_is_cut_off() {
    let sim = sim_with(|b| b.fail = Fail::MidStream).await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let answer = gateway.client().await.ask(PATH, chat(false)).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.whole, "a client must see that something is missing");
    assert_eq!(receiver.one().await["outcome"], "upstream_error");
}

#[tokio::test]
async fn an_abort_by_the_engine_is_recorded() {
    for (fail, stream) in [
        (Fail::Abort, true),
        (Fail::Abort, false),
        (Fail::ErrorEvent, true),
        (Fail::ErrorEventMidStream, true),
    ] {
        let sim = sim_with(|b| b.fail = fail).await;
        let receiver = Receiver::start().await;
        let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
        let answer = gateway.client().await.ask(PATH, chat(stream)).await;
        assert_eq!(answer.status, 200);
        assert!(answer.whole);
        if stream {
            assert!(answer.text().ends_with("data: [DONE]\n\n"), "passed on as it came");
        }
        let record = receiver.one().await;
        assert_eq!(record["outcome"], "upstream_error", "{fail:?} {stream}");
    }
}

#[tokio::test]
async fn errors_of_a_backend_pass_unchanged() {
    for (fail, status) in [(Fail::Error, 500), (Fail::Busy, 503)] {
        let sim = sim_with(|b| b.fail = fail).await;
        let receiver = Receiver::start().await;
        let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
        let mut direct = crate::support::Client::connect(sim.address).await;
        let expected = direct.ask(PATH, chat(true)).await;
        let answer = gateway.client().await.ask(PATH, chat(true)).await;
        assert_eq!((answer.status, answer.text()), (status, expected.text()));
        let record = receiver.one().await;
        assert_eq!(
            (record["outcome"].as_str(), record["status_code"].as_u64()),
            (Some("upstream_error"), Some(u64::from(status)))
        );
    }
}

#[tokio::test]
async fn a_response_that_is_not_http_is_an_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.read_u8().await.unwrap();
            socket.write_all(b"SSH-2.0-OpenSSH_9.9\r\n\r\n").await.unwrap();
        }
    });
    let gateway = Gateway::before(&[url], "").await;
    let answer = gateway.client().await.ask(PATH, chat(false)).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (502, Some("backend_failed"))
    );
}
