//! The backend of the benchmark, in a process of its own: it answers at once, in the shape of vLLM, in the
//! language of the request, and stamps each token with the time at which it was written, so that the client knows how long each
//! token was on its way. (`llmproxy sim` parses each request and draws its answers, which takes longer
//! than passing them on.)

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};

use super::language::Language;

const MODELS: &str = r#"{"object":"list","data":[{"id":"sim-model","object":"model","created":1780000000,"owned_by":"vllm","root":"sim-model","parent":null,"max_model_len":32768}]}"#;

/// What streams look like.
#[derive(Clone, Copy)]
pub struct Pace {
    pub tokens: usize,
    /// Between two tokens; the first is written at once.
    pub pause: Duration,
}

/// The time now, in nanoseconds that all processes of the machine agree on.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Serves until the process is killed. The arguments: the address, tokens, microseconds between them.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let [listen, tokens, pause] = arguments else {
        return Err("an address, a number of tokens and a pause".to_owned());
    };
    let listen: SocketAddr = listen.parse().map_err(|e| format!("{listen}: {e}"))?;
    let pace = Pace {
        tokens: tokens.parse().map_err(|e| format!("{tokens}: {e}"))?,
        pause: Duration::from_micros(pause.parse().map_err(|e| format!("{pause}: {e}"))?),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| e.to_string())?.block_on(serve(listen, pace))
}

async fn serve(listen: SocketAddr, pace: Pace) -> Result<(), String> {
    let listener = TcpListener::bind(listen).await.map_err(|e| e.to_string())?;
    loop {
        let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).ok();
        tokio::spawn(connection(stream, pace));
    }
}

/// Answers requests until the client goes.
async fn connection(mut stream: TcpStream, pace: Pace) -> Option<()> {
    let mut buffer = Vec::with_capacity(4 * 1024);
    loop {
        let request = request(&mut stream, &mut buffer).await?;
        match request.kind {
            Kind::Health => answer(&mut stream, "200 OK", "").await?,
            Kind::Models => answer(&mut stream, "200 OK", MODELS).await?,
            Kind::Unknown => answer(&mut stream, "404 Not Found", "{}").await?,
            Kind::Plain => answer(&mut stream, "200 OK", &request.language.answer()).await?,
            Kind::Stream(usage) => events(&mut stream, pace, request.language, usage).await?,
        }
        if request.last {
            return None;
        }
        buffer.drain(..request.length);
    }
}

/// What of a request matters here.
struct Request {
    kind: Kind,
    language: Language,
    /// Head and body.
    length: usize,
    /// The client wants the connection to be closed.
    last: bool,
}

enum Kind {
    Health,
    Models,
    Unknown,
    Plain,
    Stream(Usage),
}

/// Which events have counts of tokens.
#[derive(Clone, Copy, PartialEq)]
enum Usage {
    None,
    Last,
    All,
}

async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let head = loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, buffer).await?;
    };
    let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
    let last = text.contains("connection: close");
    let length = match content_length(&text) {
        Some(length) => head + length,
        None if text.contains("transfer-encoding: chunked") => {
            while !buffer.ends_with(b"\r\n0\r\n\r\n") {
                more(stream, buffer).await?;
            }
            buffer.len()
        }
        None => head,
    };
    buffer.reserve(length.saturating_sub(buffer.len()));
    while buffer.len() < length {
        more(stream, buffer).await?;
    }
    let line = text.split_once(" http/")?.0;
    let language = Language::of(line);
    let kind = match line {
        "get /health" => Kind::Health,
        "get /v1/models" => Kind::Models,
        line if line.starts_with("get ") => Kind::Unknown,
        _ => kind(&buffer[head..length]),
    };
    Some(Request { kind, language, length, last })
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    stream.read_buf(buffer).await.ok().filter(|n| *n > 0).map(drop)
}

fn content_length(head: &str) -> Option<usize> {
    let (_, rest) = head.split_once("\ncontent-length:")?;
    rest.lines().next()?.trim().parse().ok()
}

/// Proxies that write a body anew may move its members: both ends are looked at.
fn kind(body: &[u8]) -> Kind {
    const END: usize = 512;
    let ends = [&body[..body.len().min(END)], &body[body.len().saturating_sub(END)..]].concat();
    let says = |name: &str| {
        let found = |space| {
            let text = format!("\"{name}\":{space}true");
            memchr::memmem::find(&ends, text.as_bytes()).is_some()
        };
        found("") || found(" ")
    };
    match (says("stream"), says("continuous_usage_stats"), says("include_usage")) {
        (false, ..) => Kind::Plain,
        (true, true, _) => Kind::Stream(Usage::All),
        (true, false, true) => Kind::Stream(Usage::Last),
        (true, false, false) => Kind::Stream(Usage::None),
    }
}

async fn answer(stream: &mut TcpStream, status: &str, body: &str) -> Option<()> {
    let text = format!(
        "HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.ok()
}

async fn events(
    stream: &mut TcpStream,
    pace: Pace,
    language: Language,
    usage: Usage,
) -> Option<()> {
    let mut out = String::from(
        "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    frame(&mut out, &language.start(&usage_of(usage, 0)));
    // Responses repeats at the end what it has said.
    let mut said = String::new();
    let begun = Instant::now();
    for n in 1..=pace.tokens {
        if n > 1 {
            sleep_until(begun + pace.pause * (n as u32 - 1)).await;
        }
        let text = format!(" @{}", now());
        frame(&mut out, &language.token(n, &text, n == pace.tokens, &usage_of(usage, n)));
        if language == Language::Responses {
            said += &text;
        }
        if n == pace.tokens {
            break;
        }
        stream.write_all(out.as_bytes()).await.ok()?;
        out.clear();
    }
    if language == Language::Chat && usage != Usage::None {
        frame(
            &mut out,
            &format!(
                "data: {{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1780000000,\"model\":\"sim-model\",\"choices\":[]{}}}\n\n",
                usage_of(Usage::All, pace.tokens)
            ),
        );
    }
    frame(&mut out, &language.end(pace.tokens, &said));
    out.push_str("0\r\n\r\n");
    stream.write_all(out.as_bytes()).await.ok()
}

/// A chunk of a chunked body.
fn frame(out: &mut String, text: &str) {
    out.push_str(&format!("{:x}\r\n{text}\r\n", text.len()));
}

fn usage_of(usage: Usage, tokens: usize) -> String {
    match usage {
        Usage::All => format!(
            ",\"usage\":{{\"prompt_tokens\":230,\"total_tokens\":{},\"completion_tokens\":{tokens}}}",
            230 + tokens
        ),
        _ => String::new(),
    }
}
