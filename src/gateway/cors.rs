//! Browsers: which pages may call the API (the Fetch standard, "CORS protocol").

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora::Result;
use pingora_proxy::Session;

use super::{ctx::Ctx, end::End, settlement};
use crate::{base::Rejection, wire::head};

/// The beginning of the names of all fields about this.
const FIELDS: &str = "access-control-";

/// Looks which page asks, and what it is told.
pub fn look(session: &Session, ctx: &mut Ctx) {
    let Some(cors) = &ctx.snapshot.plan.cors else { return };
    let origin = session.req_header().headers.get(header::ORIGIN);
    ctx.request.page = origin.and_then(|origin| cors.allows(origin));
}

/// Whether a browser asks if a page may send a request.
///
/// # Errors
/// If the page may not.
pub fn preflight(session: &Session, ctx: &Ctx) -> Result<Option<Preflight>, Rejection> {
    let Some(cors) = &ctx.snapshot.plan.cors else { return Ok(None) };
    let request = session.req_header();
    let asks = |name: HeaderName| request.headers.contains_key(name);
    if request.method != Method::OPTIONS
        || !asks(header::ORIGIN)
        || !asks(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return Ok(None);
    }
    if ctx.request.page.is_none() {
        return Err(Rejection::origin_not_allowed());
    }
    let asked = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    Ok(Some(Preflight { headers: cors.headers.clone().or_else(|| asked.cloned()) }))
}

/// A browser's question.
pub struct Preflight {
    headers: Option<HeaderValue>,
}

/// Answers it.
pub async fn answer(session: &mut Session, ctx: &mut Ctx, preflight: Preflight) -> Result<()> {
    let mut fields = HeaderMap::with_capacity(12);
    write(ctx, &mut fields);
    if let Some(cors) = &ctx.snapshot.plan.cors {
        fields.insert(header::ACCESS_CONTROL_ALLOW_METHODS, cors.methods.clone());
        fields.insert(header::ACCESS_CONTROL_MAX_AGE, cors.max_age.clone());
        fields.remove(header::ACCESS_CONTROL_EXPOSE_HEADERS);
    }
    if let Some(headers) = preflight.headers {
        fields.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers);
        fields.append(header::VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    }
    ctx.conclude(End::answered(204));
    settlement::settle(ctx, None);
    let head = head::answer(204, fields)?;
    session.write_response_header(Box::new(head), true).await
}

/// What an answer tells the browser.
pub fn write(ctx: &Ctx, fields: &mut HeaderMap) {
    let Some(cors) = &ctx.snapshot.plan.cors else { return };
    head::remove_fields(fields, |name: &HeaderName| name.as_str().starts_with(FIELDS));
    if cors.varies() {
        fields.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    let Some(page) = &ctx.request.page else { return };
    fields.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, page.clone());
    fields.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, cors.exposed.clone());
    if cors.credentials {
        fields.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}
