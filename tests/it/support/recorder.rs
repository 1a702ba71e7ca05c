//! Servers that record the requests they get: a backend, with or without TLS, and a proxy.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
};

use pingora::tls::{ServerConfig, TlsAcceptor, load_certs_and_key_files};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

#[derive(Clone, Debug)]
pub struct Request {
    /// `GET /path`.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// All values of a header.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str()).collect()
    }
}

type Requests = Arc<Mutex<Vec<Request>>>;

/// A running server. It stops when dropped.
pub struct Recorder {
    pub address: SocketAddr,
    requests: Requests,
    task: JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    /// A backend.
    pub async fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// A backend at this address.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::listen(
            address,
            |mut stream, requests| async move { serve(&mut stream, &requests).await },
        )
        .await
    }

    /// A backend with TLS, by `cert.pem` and `key.pem` of a folder.
    pub async fn tls(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        let files = load_certs_and_key_files(&file("cert.pem"), &file("key.pem"));
        let (chain, key) = files.unwrap().unwrap();
        llmproxy::store::tls::install_crypto();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), move |stream, requests| {
            let acceptor = acceptor.clone();
            async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                serve(&mut stream, &requests).await
            }
        })
        .await
    }

    /// A proxy that answers `CONNECT` with this status line. Every tunnel leads to this machine,
    /// whatever host the request names.
    pub async fn proxy(status: &'static str) -> Self {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), move |stream, requests| {
            tunnel(stream, status, requests)
        })
        .await
    }

    async fn listen<F>(
        address: SocketAddr,
        serve: impl Fn(TcpStream, Requests) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Option<()>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Requests::default();
        let seen = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen)));
            }
        });
        Self { address, requests, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Method and path of each request.
    pub fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.line).collect()
    }

    /// The only inference request.
    pub fn only(&self) -> Request {
        let mut posts = self.requests();
        posts.retain(|request| request.line.starts_with("POST "));
        assert_eq!(posts.len(), 1, "{posts:?}");
        posts.remove(0)
    }
}

/// Reads a request; `None` at the end of the connection.
async fn request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let line = lines.next()?.rsplit_once(' ')?.0.to_owned();
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers: Vec<_> = lines.filter_map(field).collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { line, headers })
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, seen: &Requests) -> Option<()> {
    loop {
        let request = request(stream).await?;
        let path = request.line.split(['?', ' ']).nth(1).unwrap_or_default().to_owned();
        seen.lock().unwrap().push(request);
        let body = if path.ends_with("/models") {
            r#"{"object":"list","data":[{"id":"listed-model","object":"model"}]}"#
        } else if path.ends_with("/metrics") {
            "vllm:num_requests_running{} 0.0\nvllm:num_requests_waiting{} 0.0\n"
        } else {
            r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

async fn tunnel(mut stream: TcpStream, status: &str, seen: Requests) -> Option<()> {
    let request = request(&mut stream).await?;
    let port: u16 = request.line.rsplit(':').next()?.parse().ok()?;
    seen.lock().unwrap().push(request);
    stream.write_all(format!("HTTP/1.1 {status}\r\nVia: test\r\n\r\n").as_bytes()).await.ok()?;
    if status.starts_with("200") {
        let mut target = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        tokio::io::copy_bidirectional(&mut stream, &mut target).await.ok()?;
    }
    Some(())
}
