//! A server that answers whatever it is asked, and remembers it; with or without TLS. And a proxy.

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

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET /path`.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Asked {
    /// The values of a field.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str()).collect()
    }
}

type All = Arc<Mutex<Vec<Asked>>>;

/// A running server. It stops when dropped.
pub struct Recorder {
    pub address: SocketAddr,
    asked: All,
    task: JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    pub async fn start() -> Self {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), None).await
    }

    /// At this address.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::listen(address, None).await
    }

    /// With TLS, by `cert.pem` and `key.pem` of a folder.
    pub async fn tls(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        let files = load_certs_and_key_files(&file("cert.pem"), &file("key.pem"));
        let (chain, key) = files.unwrap().unwrap();
        llmproxy::store::tls::install_crypto();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), Some(acceptor)).await
    }

    async fn listen(address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = All::default();
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, seen) = (tls.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &seen).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, asked, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The first lines of what it was asked.
    pub fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    /// The only inference request that it was asked.
    pub fn only(&self) -> Asked {
        let mut posts = self.asked();
        posts.retain(|asked| asked.line.starts_with("POST "));
        assert_eq!(posts.len(), 1, "{posts:?}");
        posts.remove(0)
    }
}

/// Reads a request; `None` at the end.
async fn request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Asked> {
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
    Some(Asked { line, headers })
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, seen: &All) {
    while let Some(asked) = request(&mut stream).await {
        let path = asked.line.split(['?', ' ']).nth(1).unwrap_or_default().to_owned();
        seen.lock().unwrap().push(asked);
        let body = if path.ends_with("/models") {
            r#"{"object":"list","data":[{"id":"told-model","object":"model"}]}"#
        } else if path.ends_with("/metrics") {
            "vllm:num_requests_running{} 0.0\nvllm:num_requests_waiting{} 0.0\n"
        } else {
            r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A proxy: it makes every tunnel to this machine, whatever the host is called.
pub struct Proxy {
    pub address: SocketAddr,
    asked: All,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// A proxy that answers `CONNECT` with this status line.
    pub async fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = All::default();
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tunnel(stream, status, Arc::clone(&seen)));
            }
        });
        Self { address, asked, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The first lines of what it was asked.
    pub fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }
}

async fn tunnel(mut stream: TcpStream, status: &str, seen: All) -> Option<()> {
    let asked = request(&mut stream).await?;
    let port: u16 = asked.line.rsplit(':').next()?.parse().ok()?;
    seen.lock().unwrap().push(asked);
    stream.write_all(format!("HTTP/1.1 {status}\r\nVia: test\r\n\r\n").as_bytes()).await.ok()?;
    if status.starts_with("200") {
        let mut target = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        tokio::io::copy_bidirectional(&mut stream, &mut target).await.ok()?;
    }
    Some(())
}
