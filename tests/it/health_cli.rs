//! `llmproxy health`: what a container's health check runs. And the folder for data, which an image
//! sets.

use std::{path::Path, process::Stdio};

use tokio::{
    net::{TcpListener, TcpStream},
    process::Command,
};

use super::{
    support::{Gateway, eventually, free_address, sim, sim_with},
    tls::certificate,
};

/// The exit code, and what was said.
async fn health(args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    command.arg("health").args(args).stdin(Stdio::null()).kill_on_drop(true);
    let out = command.output().await.unwrap();
    assert!(out.stdout.is_empty(), "{out:?}");
    (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
}

async fn of(file: &Path, more: &[&str]) -> (i32, String) {
    health(&[&["--config", file.to_str().unwrap()], more].concat()).await
}

#[tokio::test]
async fn a_gateway_tells_how_it_is() {
    let sick = sim_with(|s| s.health = 503).await;
    let mut gateway = Gateway::before(&[sick.url()], "health_check: {interval: 1h}\n").await;
    assert_eq!(of(&gateway.file, &[]).await, (0, String::new()), "it lives");
    let (code, said) = of(&gateway.file, &["--ready"]).await;
    let url = gateway.url("/ready");
    assert_eq!(
        (code, said),
        (1, format!("llmproxy: {url}: 503 Service Unavailable: no healthy backend\n"))
    );
    assert_eq!(health(&["--url", &gateway.url("/health")]).await.0, 0);
    // A redirect, a missing path: whatever is not 200 is not well.
    assert_eq!(health(&["--url", &gateway.url("/nowhere")]).await.0, 1);

    // A change that the gateway refuses does not make it ill.
    gateway.rewrite("backend: []\nserver: {threads: many}\n");
    gateway.logs("unknown key").await;
    assert_eq!(of(&gateway.file, &[]).await.0, 0);

    gateway.crash();
    let (code, said) = of(&gateway.file, &[]).await;
    assert_eq!(code, 1);
    assert!(said.contains("Connection refused"), "{said}");
    std::fs::remove_file(&gateway.file).unwrap();
    let (code, said) = of(&gateway.file, &[]).await;
    assert_eq!(code, 1);
    assert!(said.contains("cannot be read"), "{said}");
}

#[tokio::test]
async fn it_asks_where_the_configuration_says() {
    let sim = sim().await;
    let operator = free_address();
    let more = format!("server: {{metrics_listen: \":{}\"}}\n", operator.port());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    assert_eq!(of(&gateway.file, &["--ready"]).await, (0, String::new()));
    drop(gateway);

    // A certificate is made out to a name that nobody uses on the machine itself.
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let files = folder.path().display();
    let tls = format!("{{cert_file: {files}/cert.pem, key_file: {files}/key.pem}}");
    let gateway = Gateway::before(&[sim.url()], &format!("server: {{tls: {tls}}}\n")).await;
    assert_eq!(of(&gateway.file, &["--ready"]).await, (0, String::new()));
}

#[tokio::test]
async fn who_does_not_answer_is_not_waited_for() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health", silent.local_addr().unwrap());
    let (code, said) = health(&["--url", &url, "--timeout", "50ms"]).await;
    assert_eq!(code, 1);
    assert!(said.contains("timed out"), "{said}");
}

#[tokio::test]
async fn the_folder_for_data_may_come_from_the_environment() {
    let sim = sim().await;
    let data = tempfile::tempdir().unwrap();
    let named = data.path().join("of the environment");
    let env = [("LLMPROXY_DATA_DIR", named.to_str().unwrap())];
    let reporter = "usage: {reporters: [{type: builtin}]}\n";
    for (more, usual) in [("", true), ("data_dir: own\n", false)] {
        let backends = format!("backends: [{{url: \"{}\"}}]\n", sim.url());
        let gateway = Gateway::spawn(&format!("{backends}{reporter}{more}"), &env);
        eventually("it answers", async || TcpStream::connect(gateway.address).await.is_ok()).await;
        assert_eq!(named.join("usage").is_dir(), usual);
        assert_eq!(gateway.path("own/usage").is_dir(), !usual);
        std::fs::remove_dir_all(&named).ok();
    }
}
