//! The client: one connection, one request after the other.

use std::{
    cell::RefCell,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::{
    backend::Backend,
    language::{Language, MARK},
};

/// The key of the client.
pub const KEY: &str = "sk-bench-0123456789";

/// Under valgrind a gateway takes seconds to start.
const START: Duration = Duration::from_secs(120);

thread_local! {
    static CONNECTION: RefCell<Option<TcpStream>> = const { RefCell::new(None) };
}

/// Connects to a gateway, once it accepts connections.
pub fn connect(gateway: SocketAddr) {
    let start = Instant::now();
    let stream = loop {
        match TcpStream::connect(gateway) {
            Ok(stream) => break stream,
            Err(e) => assert!(start.elapsed() < START, "{gateway} does not answer: {e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    CONNECTION.set(Some(stream));
}

fn request(gateway: SocketAddr, language: Language, stream: bool) -> Vec<u8> {
    let body = language.request(stream);
    format!(
        "POST {} HTTP/1.1\r\nHost: {gateway}\r\n{}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        language.path(),
        language.credentials(KEY),
        body.len()
    )
    .into_bytes()
}

/// Reads until the answer so far satisfies `enough`.
fn read(answer: &mut Vec<u8>, enough: impl Fn(&[u8]) -> bool) {
    CONNECTION.with_borrow_mut(|connection| {
        let stream = connection.as_mut().unwrap();
        while !enough(answer) {
            let mut piece = [0; 16 * 1024];
            let n = match stream.read(&mut piece) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            assert!(n > 0, "the connection ended: {}", String::from_utf8_lossy(answer));
            answer.extend_from_slice(&piece[..n]);
        }
    });
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
}

fn send(request: &[u8]) {
    CONNECTION.with_borrow_mut(|connection| {
        connection.as_mut().unwrap().write_all(request).unwrap();
    });
}

/// Sends a request and reads its answer.
pub fn ask(gateway: SocketAddr, language: Language) {
    send(&request(gateway, language, false));
    let mut answer = Vec::new();
    read(&mut answer, is_whole);
}

/// Whether an answer is there to its end.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    match text.split_once("content-length:").and_then(|(_, rest)| rest.lines().next()) {
        Some(length) => answer.len() >= head + 4 + length.trim().parse::<usize>().unwrap(),
        None => answer.ends_with(b"0\r\n\r\n"),
    }
}

/// Reads a stream. The backend sends an event when the one before has come here, so that each is a
/// piece of its own.
pub fn stream(gateway: SocketAddr, language: Language, backend: &Backend, events: u32) {
    send(&request(gateway, language, true));
    let mut answer = Vec::new();
    let come = |answer: &[u8]| memchr::memmem::find_iter(answer, MARK.as_bytes()).count();
    for event in 1..=events {
        backend.send_event();
        let event = event as usize;
        read(&mut answer, |answer| answer.ends_with(b"\n\n\r\n") && come(answer) >= event);
    }
    backend.send_end();
    read(&mut answer, |answer| answer.ends_with(b"0\r\n\r\n"));
}
