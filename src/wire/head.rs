//! Heads of messages as Pingora has them, edited without the map in which it keeps how each name was
//! written.
//!
//! Pingora keeps a second map of names in their original case, and each change through its own methods
//! costs two allocations and two insertions. Names of header fields are case-insensitive (RFC 9110,
//! section 5.1), and HTTP/2 has them in lower case only.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pingora::{
    Error, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
};

/// The content type of JSON.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Edits the fields of a request. Names are written in lower case from then on, but for common ones.
///
/// # Errors
/// None in practice: the target has been accepted before.
pub fn edit_request(head: &mut RequestHeader, edit: impl FnOnce(&mut HeaderMap)) -> Result<()> {
    // Any other target is not what its URI says.
    let plain = head.raw_path().starts_with(b"/") && head.raw_path_is_utf8();
    let target = (!plain).then(|| head.raw_path().to_vec());
    let empty = RequestHeader::from(http::Request::new(()).into_parts().0);
    let mut parts: http::request::Parts = std::mem::replace(head, empty).into();
    edit(&mut parts.headers);
    *head = parts.into();
    if let Some(target) = target {
        head.set_raw_path(&target)?;
    }
    Ok(())
}

/// The head of an answer of the gateway's own.
///
/// # Errors
/// If there is no such status.
pub fn answer(status: u16, fields: HeaderMap) -> Result<ResponseHeader> {
    let mut parts = http::Response::new(()).into_parts().0;
    let unknown = |_| Error::explain(ErrorType::InternalError, "an unknown status");
    parts.status = StatusCode::from_u16(status).map_err(unknown)?;
    parts.headers = fields;
    Ok(parts.into())
}

/// Edits the fields of an answer. Names are written in lower case from then on, but for common ones.
///
/// # Errors
/// None in practice: the reason is the one that has come.
pub fn edit_response(head: &mut ResponseHeader, edit: impl FnOnce(&mut HeaderMap)) -> Result<()> {
    let reason = head.get_reason_phrase();
    let unusual = reason.filter(|reason| head.status.canonical_reason() != Some(reason));
    let unusual = unusual.map(str::to_owned);
    let empty = ResponseHeader::from(http::Response::new(()).into_parts().0);
    let mut parts: http::response::Parts = std::mem::replace(head, empty).into();
    edit(&mut parts.headers);
    *head = parts.into();
    if unusual.is_some() {
        head.set_reason_phrase(unusual.as_deref())?;
    }
    Ok(())
}

/// Removes the fields whose names are unwanted.
pub fn remove_fields(fields: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = fields.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in &names {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, header};

    use super::*;

    #[test]
    fn a_request_keeps_everything_but_the_case_of_its_names() {
        for target in [
            &b"/v1/x?a=b"[..],
            b"*",
            b"http://h.test/v1/x?y",
            b"/caf\xe9",
            b"/v1/x#y",
            b"h.test:443",
        ] {
            let mut head = RequestHeader::build(Method::POST, target, None).unwrap();
            let raw = head.raw_path().to_vec();
            head.append_header("X-Some", "1").unwrap();
            head.append_header("X-Some", "2").unwrap();
            head.append_header("hOST", "h.test").unwrap();
            edit_request(&mut head, |fields| {
                fields.insert(header::CONTENT_LENGTH, HeaderValue::from(7));
            })
            .unwrap();
            assert_eq!((&head.method, head.raw_path()), (&Method::POST, &raw[..]));
            let mut wire = Vec::new();
            head.header_to_h1_wire(&mut wire);
            let wire = String::from_utf8(wire).unwrap();
            assert_eq!(wire, "x-some: 1\r\nx-some: 2\r\nHost: h.test\r\nContent-Length: 7\r\n");
        }
    }

    #[test]
    fn an_answer_keeps_its_reason() {
        for (status, reason) in
            [(200, Some("OK")), (200, Some("Fine")), (299, None), (299, Some("Odd"))]
        {
            let mut head = ResponseHeader::build(status, None).unwrap();
            head.set_reason_phrase(reason).unwrap();
            head.insert_header("X-Some", "1").unwrap();
            edit_response(&mut head, |fields| remove_fields(fields, |name| name == "x-some"))
                .unwrap();
            assert_eq!(head.status, StatusCode::from_u16(status).unwrap());
            assert_eq!(head.get_reason_phrase(), reason);
            assert!(head.headers.is_empty());
        }
    }
}
