//! What all chunks of a stream, and a plain answer, have in common.

use super::words::LANGUAGE;
use crate::dialect::hub::{Exchange, Object, Start, Writer, event::Citation, request::State};

/// Writes the members that say which answer it is.
pub fn write(out: &mut Writer, object: &str, start: &Start, exchange: &Exchange) {
    out.text_at("id", &id(start, exchange));
    out.text_at("object", object);
    out.raw_at("created", start.created.unwrap_or(exchange.created));
    let model = exchange.model.as_deref().or(start.model.as_deref());
    out.text_at("model", model.unwrap_or(""));
    out.maybe_text_at("service_tier", start.service_tier.as_deref());
    out.maybe_text_at("system_fingerprint", start.fingerprint.as_deref());
}

fn id(start: &Start, exchange: &Exchange) -> String {
    const PREFIX: &str = "chatcmpl-";
    match start.id.as_str() {
        "" => format!("{PREFIX}{}", exchange.created),
        id if id.starts_with(PREFIX) => id.to_owned(),
        id => format!("{PREFIX}{id}"),
    }
}

/// Writes an entry of `annotations`, if the citation is one of this language or has an address;
/// `text`: the characters of the content that it is about.
pub fn annotation(out: &mut Writer, citation: &Citation, text: (usize, usize)) {
    if citation.language == LANGUAGE {
        return out.raw(citation.json.as_str());
    }
    let Some(url) = &citation.url else { return };
    out.object(|out| {
        out.text_at("type", "url_citation");
        out.object_at("url_citation", |out| {
            out.text_at("url", url);
            out.text_at("title", citation.title.as_deref().unwrap_or(""));
            out.raw_at("start_index", text.0);
            out.raw_at("end_index", text.1);
        });
    });
}

/// A client is shown it.
pub fn is_shown(citation: &Citation) -> bool {
    citation.language == LANGUAGE || citation.url.is_some()
}

/// A citation of a folded answer, which has kept its own words alone.
pub fn citation(language: &'static str, json: &str) -> Option<Citation> {
    let object = Object::parse(json).ok()?;
    Some(Citation {
        language,
        json: crate::dialect::hub::Json::parse(json).ok()?,
        url: object.text("url"),
        title: object.text("title"),
    })
}

/// Writes the state of a call.
pub fn signature(out: &mut Writer, state: &State) {
    let value = crate::dialect::hub::envelope::wrap(state, LANGUAGE);
    out.object_at("extra_content", |out| {
        out.object_at("google", |out| out.text_at("thought_signature", &value));
    });
}
