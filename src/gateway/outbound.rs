//! What goes to the backend: the client's request, less what is none of the backend's business.

use bytes::Bytes;
use http::{HeaderName, Uri, header};
use pingora::{Error, ErrorType, OrErr, Result, http::RequestHeader};

use super::{answer::REQUEST_ID, body_in, ctx::Ctx};
use crate::wire::headers;

/// Credentials of the client, and what is rewritten below. `Accept-Encoding` goes because the
/// answer has to be read; `Expect` was answered by the gateway.
const REMOVED: [HeaderName; 8] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-api-key-userid"),
    HeaderName::from_static("x-api-key-name"),
    header::ACCEPT_ENCODING,
    header::EXPECT,
    header::TRANSFER_ENCODING,
];

/// Turns the client's header into the backend's. Pingora has removed hop-by-hop fields already;
/// the names are gone through once more, so that a change of its policy changes nothing here.
pub fn headers(request: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
    let Some(endpoint) = ctx.way.endpoint.clone() else {
        return Error::e_explain(ErrorType::InternalError, "no backend was chosen");
    };
    for name in headers::HOP_BY_HOP {
        request.remove_header(name);
    }
    for name in REMOVED.iter().chain(&ctx.snapshot.plan.guard_headers) {
        request.remove_header(name);
    }
    let backend = &endpoint.plan;
    let path = request.uri.path_and_query().map_or("/", |p| p.as_str());
    let uri: Uri = format!("{}{path}", backend.prefix)
        .parse()
        .or_err(ErrorType::InternalError, "the path of the backend")?;
    request.set_uri(uri);
    request.insert_header(header::HOST, backend.authority.clone())?;
    request.insert_header(REQUEST_ID, ctx.call.id.as_str())?;
    if let Some(key) = &backend.authorization {
        request.insert_header(header::AUTHORIZATION, key.clone())?;
    }
    let length = body_in::for_backend(ctx).len();
    request.insert_header(header::CONTENT_LENGTH, length)?;
    Ok(())
}

/// Puts the whole body in place of the first piece that Pingora wants to send, and nothing in
/// place of the others. An empty piece is not sent; `None` would end the body.
pub fn body(body: &mut Option<Bytes>, end_of_stream: bool, ctx: &mut Ctx) {
    if !std::mem::replace(&mut ctx.body.given, true) {
        *body = Some(body_in::for_backend(ctx));
    } else if end_of_stream {
        *body = None;
    } else {
        *body = Some(Bytes::new());
    }
}
