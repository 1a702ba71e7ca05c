//! The backend: it answers at once, or sends a stream event by event when it is told to.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};

use super::language::Language;

/// What is next in a stream.
enum Next {
    Event,
    End,
}

/// A backend on threads of its own, for as long as the process lives.
pub struct Backend {
    pub address: SocketAddr,
    next: Sender<Next>,
}

impl Backend {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (next, told) = channel();
        let told = Arc::new(Mutex::new(told));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let told = Arc::clone(&told);
                std::thread::spawn(move || serve(stream, &told));
            }
        });
        Self { address, next }
    }

    /// Sends an event of the stream.
    pub fn send_event(&self) {
        self.next.send(Next::Event).unwrap();
    }

    /// Ends the stream.
    pub fn send_end(&self) {
        self.next.send(Next::End).unwrap();
    }
}

/// Serves a connection to its end.
fn serve(stream: TcpStream, told: &Mutex<Receiver<Next>>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some((line, body)) = read_request(&mut reader) {
        let streamed = body.windows(13).any(|part| part == b"\"stream\":true");
        let language = Language::of(&line);
        let sent = match () {
            () if streamed => send_stream(&mut stream, language, &told.lock().unwrap()),
            () if line.starts_with("POST") => send(&mut stream, &language.answer()),
            // Probes of health, and questions for models.
            () => send(&mut stream, r#"{"object":"list","data":[{"id":"sim-model"}]}"#),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The first line of a request, and its body.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first, body))
}

fn send(stream: &mut TcpStream, body: &str) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\n";
    let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes())
}

fn send_stream(
    stream: &mut TcpStream,
    language: Language,
    told: &Receiver<Next>,
) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut out = head.to_owned();
    for n in 0.. {
        let (part, last) = match told.recv() {
            Ok(Next::Event) => (language.event(n), false),
            Ok(Next::End) | Err(_) => (language.end(n), true),
        };
        out += &format!("{:x}\r\n{part}\r\n", part.len());
        if last {
            out += "0\r\n\r\n";
        }
        stream.write_all(out.as_bytes())?;
        out.clear();
        if last {
            break;
        }
    }
    Ok(())
}
