//! Members that a backend refuses, whatever its language: they are left out of what was written.

use bytes::BytesMut;

use super::super::{
    loss::{Losses, Refused},
    target::Target,
};
use crate::wire::{
    edit::{self, Edit},
    json,
};

/// Without these an answer would be another one.
const NEEDED: [&str; 1] = ["tools"];

/// The body without the members that the backend refuses. A codec may have left some out already, where
/// it knows better what that means.
///
/// # Errors
/// If the request cannot do without one of them.
pub fn leave_out(body: String, target: &Target, losses: &mut Losses) -> Result<String, Refused> {
    let refuses = &target.quirks.refuses;
    if refuses.is_empty() {
        return Ok(body);
    }
    let doc = body.as_bytes();
    let named = |member: &json::Member| refuses.iter().find(|name| member.is(doc, name));
    let found = json::members(doc, 0).filter_map(Result::ok);
    let mut some = false;
    for name in found.filter_map(|member| named(&member)) {
        if NEEDED.contains(&name.as_str()) {
            return Err(Refused::new(name.as_str(), "The backend does not take it"));
        }
        some = true;
        losses.add(name.as_str(), "the backend does not take it");
    }
    if !some {
        return Ok(body);
    }
    let cuts = json::cuts(doc, |member| named(member).is_some()).unwrap_or_default();
    let mut rest = BytesMut::from(doc);
    edit::apply(&mut rest, cuts.into_iter().map(Edit::cut).collect());
    Ok(String::from_utf8(rest.to_vec()).unwrap_or(body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::hub::target::Quirks;

    fn without(refuses: &[&str], body: &str) -> Result<(String, Vec<String>), Refused> {
        let refuses = refuses.iter().map(|name| (*name).to_owned()).collect();
        let target =
            Target { quirks: Quirks { refuses, ..Quirks::default() }, ..Target::default() };
        let mut losses = Losses::default();
        let body = leave_out(body.to_owned(), &target, &mut losses)?;
        Ok((body, losses.paths().into_iter().map(str::to_owned).collect()))
    }

    #[test]
    fn what_is_refused_is_left_out_and_named() {
        let body = r#"{"model":"m","top_k":3,"messages":[{"top_k":1}],"metadata":{"user_id":"u"}}"#;
        let (left, lost) = without(&["metadata", "top_k", "seed"], body).unwrap();
        assert_eq!(left, r#"{"model":"m","messages":[{"top_k":1}]}"#);
        assert_eq!(lost, ["top_k", "metadata"]);
        assert_eq!(without(&["seed"], body).unwrap(), (body.to_owned(), Vec::new()));
        assert_eq!(without(&["tools"], r#"{"tools":[]}"#).unwrap_err().path, "tools");
        assert_eq!(without(&["tools"], "{}").unwrap().0, "{}");
    }
}
