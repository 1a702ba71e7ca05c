//! Clients: one request after the other on a connection, by HTTP/1.1 with or without TLS, or HTTP/2.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls};

use super::{KEY, language::Language};

/// The longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How clients speak to a server.
#[derive(Clone)]
pub enum Protocol {
    Http1,
    Tls(Arc<rustls::ClientConfig>),
    /// Without TLS. Requests share a connection.
    Http2,
}

/// A body of about `size` bytes, in Chat.
pub fn body(size: usize, stream: bool) -> String {
    Language::Chat.body(size, stream)
}

/// A request by HTTP/1.1, in Chat.
pub fn request(body: &str, close: bool) -> Vec<u8> {
    request_in(Language::Chat, body, close)
}

/// A request by HTTP/1.1.
pub fn request_in(language: Language, body: &str, close: bool) -> Vec<u8> {
    let close = if close { "Connection: close\r\n" } else { "" };
    format!(
        "POST {} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
         {}{close}Content-Length: {}\r\n\r\n{body}",
        language.path(),
        language.credentials(),
        body.len()
    )
    .into_bytes()
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| format!("no connection: {e}"))?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    Ok(stream)
}

/// A connection by HTTP/1.1 that is reused.
pub struct Client {
    stream: Box<dyn Io>,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr, protocol: &Protocol) -> Result<Self, String> {
        let tcp = connect(address).await?;
        let stream: Box<dyn Io> = match protocol {
            Protocol::Tls(config) => {
                let name = rustls::pki_types::ServerName::try_from("localhost");
                let name = name.map_err(|e| e.to_string())?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, tcp).await.map_err(|e| format!("TLS: {e}"))?)
            }
            _ => Box::new(tcp),
        };
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends a request and reads the whole response, whose status must be 200.
    pub async fn ask(&mut self, request: &[u8]) -> Result<(), String> {
        match timeout(PATIENCE, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<(), String> {
        let sent = async {
            self.stream.write_all(request).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|e| format!("a request could not be sent: {e}"))?;
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await;
            let n = read.map_err(|e| format!("a response was cut off: {e}"))?;
            if is_whole(&self.buffer)? {
                return Ok(());
            }
            if n == 0 {
                return Err("a response was cut off".to_owned());
            }
        }
    }
}

/// Whether a response is complete.
fn is_whole(buffer: &[u8]) -> Result<bool, String> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(buffer).map_err(|e| format!("a response is not HTTP: {e}"))?;
    let httparse::Status::Complete(head) = parsed else { return Ok(false) };
    if response.code != Some(200) {
        return Err(refused(buffer));
    }
    let field = |name: &str| response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
    if let Some(length) = field("content-length") {
        let length = std::str::from_utf8(length.value).ok().and_then(|text| text.parse().ok());
        let length: usize = length.ok_or("a content-length is no number")?;
        return Ok(buffer.len() >= head + length);
    }
    Ok(field("transfer-encoding").is_some() && buffer.ends_with(b"\r\n0\r\n\r\n"))
}

/// What a response that is not a success says, in a line.
pub fn refused(response: &[u8]) -> String {
    let text = String::from_utf8_lossy(&response[..response.len().min(600)]);
    let status = text.lines().next().unwrap_or_default();
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    format!("answered {status}: {}", body.chars().take(200).collect::<String>())
}

/// A connection by HTTP/2, which several tasks may use at the same time.
#[derive(Clone)]
pub struct Http2(h2::client::SendRequest<Bytes>);

impl Http2 {
    pub async fn connect(address: SocketAddr) -> Result<Self, String> {
        let tcp = connect(address).await?;
        let (sender, connection) =
            h2::client::handshake(tcp).await.map_err(|e| format!("HTTP/2: {e}"))?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Sends a request and reads the whole response, whose status must be 200.
    pub async fn ask(&self, address: SocketAddr, body: Bytes) -> Result<(), String> {
        match timeout(PATIENCE, self.exchange(address, body)).await {
            Ok(result) => result.map_err(|e| format!("HTTP/2: {e}"))?,
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    async fn exchange(
        &self,
        address: SocketAddr,
        body: Bytes,
    ) -> Result<Result<(), String>, h2::Error> {
        let request = http::Request::post(format!("http://{address}{}", Language::Chat.path()))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {KEY}"))
            .body(());
        let Ok(request) = request else { return Ok(Err("the request is invalid".to_owned())) };
        let mut sender = self.0.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, false)?;
        stream.send_data(body, true)?;
        let response = response.await?;
        let (status, mut body) = (response.status(), response.into_body());
        let mut last = None;
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            last = data.last().copied().or(last);
        }
        Ok(match (status.as_u16(), last) {
            (200, Some(b'}')) => Ok(()),
            (200, _) => Err("a response was cut off".to_owned()),
            (status, _) => Err(format!("answered {status}")),
        })
    }
}

/// What time a future takes, in microseconds.
pub async fn timed(future: impl Future<Output = Result<(), String>>) -> Result<f64, String> {
    let asked = Instant::now();
    future.await?;
    Ok(asked.elapsed().as_secs_f64() * 1e6)
}
