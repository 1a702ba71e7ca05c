//! `addresses: one`: if the first address of a name is unreachable, the next one is tried.

use std::net::{Ipv4Addr, SocketAddr};

use llmproxy::sim::{Behaviour, Fail, Sim};
use tokio::net::TcpSocket;

use crate::support::{Gateway, NameServer, chat, recorder::Recorder};

/// A server at the second of two addresses of this machine. At the first address the port is reserved
/// without a listener.
async fn second() -> (Recorder, TcpSocket, u16) {
    loop {
        let recorder = Recorder::start_at((Ipv4Addr::new(127, 0, 0, 2), 0).into()).await;
        let port = recorder.address.port();
        let socket = TcpSocket::new_v4().unwrap();
        if socket.bind((Ipv4Addr::LOCALHOST, port).into()).is_ok() {
            return (recorder, socket, port);
        }
    }
}

fn configuration(names: &NameServer, port: u16, more: &str) -> String {
    format!(
        "{}health_check: {{interval: 1h}}\nbackends: [{{url: \"http://engine.test:{port}\", addresses: one}}]\n{more}",
        names.section()
    )
}

#[tokio::test]
async fn the_next_address_is_tried_and_kept() {
    for (addresses, more) in [
        (&["127.0.0.1", "127.0.0.2"][..], ""),
        (&["127.0.0.2", "127.0.0.1"], ""),
        (&["127.0.0.1", "127.0.0.3", "127.0.0.2"], ""),
        (&["127.0.0.1", "127.0.0.2"], "routing: {retry: {enabled: false}}\n"),
        (&["127.0.0.1", "127.0.0.2"], "timeouts: {total: 10m}\n"),
    ] {
        let (recorder, _first, port) = second().await;
        let names = NameServer::start().await;
        names.set("engine.test", addresses);
        let gateway = Gateway::start(&configuration(&names, port, more)).await;
        let mut client = gateway.client().await;
        for body in [chat(false), chat(true), chat(false)] {
            let answer = client.ask("/v1/chat/completions", &body).await;
            assert_eq!(answer.status, 200, "{addresses:?} {more}: {}", gateway.log());
        }
        assert_eq!(client.get("/v1/models").await.status, 200);
        let lines = recorder.lines();
        assert!(lines.contains(&"GET /v1/models".to_owned()), "{addresses:?}: {lines:?}");
        // The probe used it too.
        assert_eq!(client.get("/ready").await.status, 200);
        assert!(lines.contains(&"GET /health".to_owned()), "{addresses:?}: {lines:?}");
        assert_eq!(gateway.metric("llmproxy_retries_total{cause=\"connect\"}").await, 0.0);
    }
}

#[tokio::test]
async fn an_address_of_the_other_ip_version_is_used() {
    let address = "[::1]:0".parse().unwrap();
    if tokio::net::TcpListener::bind(address).await.is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let recorder = Recorder::start_at(address).await;
    let address = recorder.address;
    let names = NameServer::start().await;
    for addresses in [&["127.0.0.3", "::1"][..], &["::1"]] {
        names.set("engine.test", addresses);
        let gateway = Gateway::start(&configuration(&names, address.port(), "")).await;
        assert_eq!(gateway.ask_with("").await.status, 200, "{addresses:?}: {}", gateway.log());
    }
    assert_eq!(recorder.lines().iter().filter(|line| line.starts_with("POST")).count(), 2);
}

#[tokio::test]
async fn a_request_to_another_address_can_be_aborted() {
    let wedged = |address: SocketAddr| async move {
        let behaviour = Behaviour { fail: Fail::Wedge, ..Behaviour::default() };
        Sim::start(address, behaviour).await.unwrap()
    };
    let sim = wedged((Ipv4Addr::new(127, 0, 0, 2), 0).into()).await;
    let names = NameServer::start().await;
    names.set("engine.test", &["127.0.0.3", "127.0.0.2"]);
    let more = "timeouts: {total: 500ms}\n";
    let gateway = Gateway::start(&configuration(&names, sim.address.port(), more)).await;
    for stream in [false, true] {
        let answer = gateway.client().await.ask("/v1/chat/completions", chat(stream)).await;
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "request_timeout");
    }
}

#[tokio::test]
async fn without_a_reachable_address_the_backend_is_unreachable() {
    let (recorder, _first, port) = second().await;
    drop(recorder);
    let names = NameServer::start().await;
    names.set("engine.test", &["127.0.0.1", "127.0.0.2"]);
    let text = configuration(&names, port, "").replace("health_check: {interval: 1h}\n", "");
    let gateway = Gateway::start(&text).await;
    let answer = gateway.ask_with("").await;
    assert_eq!(answer.status, 502, "{}", gateway.log());
    assert_eq!(answer.json()["error"]["code"], "backend_unreachable");
}
