//! Requests of scripts to other servers: only to configured origins, and bounded in time and size.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use reqwest::Url;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
};

use super::{
    journal::{HttpCall, HttpReply, Outcome},
    origin::Origin,
    permits::block_on,
    settings::HttpSettings,
};
use crate::store;

/// Largest number of header fields of a request or an answer.
const MOST_FIELDS: usize = 64;

/// Header fields that belong to the connection.
const OWN_FIELDS: [HeaderName; 9] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
];

/// A runtime of their own: an answer of a megabyte must not delay Redis. Made when the first request
/// needs it, and so is the client.
static OUTSIDE: LazyLock<Option<(Runtime, reqwest::Client)>> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("scripts")
        .enable_all()
        .build()
        .ok()?;
    Some((runtime, store::http::outside()))
});

/// Hears about the requests of scripts.
pub trait HttpObserver: Send + Sync {
    /// `host` is the configured origin. `result` is a class of status (`2xx`), or `timeout`, `busy`,
    /// `too_large`, `failed`.
    fn request(&self, host: &str, result: &'static str, took: Duration);
}

/// Sends a request and waits for its answer; blocks the thread.
pub fn request(
    settings: &HttpSettings,
    concurrent: &Arc<Semaphore>,
    observer: Option<&dyn HttpObserver>,
    call: &HttpCall,
) -> Outcome {
    let failed = |why: String| Outcome::Failed(format!("http: {why}").into());
    let (origin, request) = match prepare(settings, call) {
        Ok(prepared) => prepared,
        Err(why) => return failed(why),
    };
    let Some((runtime, client)) = &*OUTSIDE else {
        return failed("there is no thread for requests".to_owned());
    };
    let began = Instant::now();
    let own = call.timeout.map(Duration::from_millis);
    let timeout = own.map_or(settings.timeout, |own| own.min(settings.timeout));
    let (places, largest) = (Arc::clone(concurrent), settings.max_response);
    let client = client.clone();
    let answer = runtime.spawn(async move {
        let answer = async {
            let Ok(_place) = places.acquire().await else { return Err(HttpFailure::Busy) };
            exchange(&client, request, largest).await
        };
        tokio::time::timeout(timeout, answer).await.unwrap_or(Err(HttpFailure::Timeout(timeout)))
    });
    // The answer comes in time; this is for a runtime that has ended.
    let answer = block_on(answer, timeout + Duration::from_secs(5));
    let answer = answer.and_then(Result::ok).unwrap_or(Err(HttpFailure::Timeout(timeout)));
    if let Some(observer) = observer {
        observer.request(origin.as_str(), result_word(&answer), began.elapsed());
    }
    match answer {
        Ok(reply) => Outcome::Http(Arc::new(reply)),
        Err(why) => failed(format!("{}: {why}", origin.as_str())),
    }
}

/// Why there is no answer.
enum HttpFailure {
    Timeout(Duration),
    Busy,
    TooLarge(usize),
    Broken(String),
}

impl fmt::Display for HttpFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(limit) => write!(f, "no answer within {limit:?}"),
            Self::Busy => f.write_str("too many requests are under way"),
            Self::TooLarge(limit) => write!(f, "the answer is larger than {limit} bytes"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

fn result_word(answer: &Result<HttpReply, HttpFailure>) -> &'static str {
    match answer {
        Ok(reply) => match reply.status / 100 {
            1 | 2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        },
        Err(HttpFailure::Timeout(_)) => "timeout",
        Err(HttpFailure::Busy) => "busy",
        Err(HttpFailure::TooLarge(_)) => "too_large",
        Err(HttpFailure::Broken(_)) => "failed",
    }
}

/// Checks what a script asks for.
fn prepare<'s>(
    settings: &'s HttpSettings,
    call: &HttpCall,
) -> Result<(&'s Origin, reqwest::Request), String> {
    let url = Url::parse(&call.url).map_err(|e| format!("it is not a URL: {e}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL has a user name: use a header field".to_owned());
    }
    let origin = settings.hosts.iter().find(|origin| origin.allows(&url)).ok_or_else(|| {
        let (scheme, host) = (url.scheme(), url.host_str().unwrap_or_default());
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port} is not in the configured list `lua.http.hosts`")
    })?;
    let method = Method::from_bytes(call.method.as_bytes())
        .ok()
        .filter(|method| method != Method::CONNECT && method != Method::TRACE)
        .ok_or("the method is not valid")?;
    if call.headers.len() > MOST_FIELDS {
        return Err(format!("there are more than {MOST_FIELDS} header fields"));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &call.headers {
        let name = name
            .parse::<HeaderName>()
            .map_err(|_| "the name of a header field is not valid".to_owned())?;
        if OWN_FIELDS.contains(&name) {
            return Err(format!("the header field `{name}` belongs to the connection"));
        }
        let value = HeaderValue::from_bytes(value)
            .map_err(|_| format!("the value of the header field `{name}` is not valid"))?;
        headers.append(name, value);
    }
    let mut request = reqwest::Request::new(method, url);
    *request.headers_mut() = headers;
    *request.body_mut() = call.body.clone().map(Into::into);
    Ok((origin, request))
}

async fn exchange(
    client: &reqwest::Client,
    request: reqwest::Request,
    largest: usize,
) -> Result<HttpReply, HttpFailure> {
    let broken = |e| HttpFailure::Broken(store::http::cause(e));
    let mut response = client.execute(request).await.map_err(broken)?;
    let fields = response.headers().iter().take(MOST_FIELDS);
    let headers = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let headers = headers.collect();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(broken)? {
        if body.len() + piece.len() > largest {
            return Err(HttpFailure::TooLarge(largest));
        }
        body.extend_from_slice(&piece);
    }
    Ok(HttpReply { status: response.status().as_u16(), headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_may_not_say() {
        let settings = HttpSettings {
            hosts: vec![Origin::parse("http://a.example").unwrap()],
            ..HttpSettings::default()
        };
        let call = |url: &str, method: &str, name: &str, value: &str| HttpCall {
            method: method.to_owned(),
            url: url.to_owned(),
            headers: vec![(name.to_owned(), value.as_bytes().to_vec())],
            body: None,
            timeout: None,
        };
        assert!(prepare(&settings, &call("http://a.example/", "GET", "x-a", "1")).is_ok());
        for (url, method, name, value) in [
            ("http://b.example/", "GET", "x-a", "1"),
            ("file:///etc/passwd", "GET", "x-a", "1"),
            ("http://u:p@a.example/", "GET", "x-a", "1"),
            ("http://a.example/", "CONNECT", "x-a", "1"),
            ("http://a.example/", "G T", "x-a", "1"),
            ("http://a.example/", "GET", "host", "b.example"),
            ("http://a.example/", "GET", "Transfer-Encoding", "chunked"),
            ("http://a.example/", "GET", "x a", "1"),
            ("http://a.example/", "GET", "x-a", "1\r\nx: 2"),
        ] {
            let call = call(url, method, name, value);
            assert!(prepare(&settings, &call).is_err(), "{url} {method} {name}");
        }
    }
}
