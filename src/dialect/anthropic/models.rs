//! Anthropic's form of model lists, which come in pages.

use bytes::Bytes;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::{
    base::Rejection,
    dialect::{Entry, Model},
};

/// The language's name.
pub const LANGUAGE: &str = "messages";

/// Entries of a page, where the client does not say how many it wants.
const USUAL: usize = 20;
/// The most that it may ask for.
const MOST: usize = 1000;

/// Which page is asked for.
#[derive(Default)]
struct Page {
    limit: Option<usize>,
    after: Option<String>,
    before: Option<String>,
}

impl Page {
    fn read(query: &str) -> Result<Self, Rejection> {
        let mut page = Self::default();
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = || percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "limit" => {
                    let limit = value().parse().ok().filter(|n| (1..=MOST).contains(n));
                    let wrong = || Rejection::bad_field("limit", "it must be between 1 and 1000");
                    page.limit = Some(limit.ok_or_else(wrong)?);
                }
                "after_id" => page.after = Some(value()),
                "before_id" => page.before = Some(value()),
                _ => {}
            }
        }
        if page.after.is_some() && page.before.is_some() {
            let why = "it cannot be given together with `after_id`";
            return Err(Rejection::bad_field("before_id", why));
        }
        Ok(page)
    }

    /// The entries of the page, and whether more follow in the same direction.
    fn of<'a>(&self, models: &'a [Model]) -> Result<(&'a [Model], bool), Rejection> {
        let limit = self.limit.unwrap_or(USUAL);
        let find = |param, id: &str| {
            let found = models.iter().position(|model| model.name == id);
            found.ok_or_else(|| Rejection::bad_field(param, "there is no such model"))
        };
        if let Some(id) = &self.before {
            let end = find("before_id", id)?;
            let start = end.saturating_sub(limit);
            return Ok((&models[start..end], start > 0));
        }
        let start = match &self.after {
            Some(id) => find("after_id", id)? + 1,
            None => 0,
        };
        let end = (start + limit).min(models.len());
        Ok((&models[start..end], end < models.len()))
    }
}

/// `{"data":[...],"has_more":false,"first_id":"...","last_id":"..."}`
///
/// # Errors
/// 400 if the query asks for no page.
pub fn list(models: &[Model], query: Option<&str>) -> Result<Bytes, Rejection> {
    let (page, has_more) = Page::read(query.unwrap_or_default())?.of(models)?;
    let data: Vec<Value> = page.iter().map(entry).collect();
    let id = |model: Option<&Model>| model.map(|model| model.name.clone());
    let list = json!({
        "data": data,
        "has_more": has_more,
        "first_id": id(page.first()),
        "last_id": id(page.last()),
    });
    Ok(list.to_string().into())
}

/// One model; as the backend wrote it, if one did in this language.
pub fn entry(model: &Model) -> Value {
    let made = || {
        json!({
            "type": "model",
            "id": model.name,
            "display_name": model.name,
            "created_at": Timestamp::from_second(model.created).unwrap_or_default().to_string(),
        })
    };
    model.entry_in(LANGUAGE).cloned().unwrap_or_else(made)
}

/// Reads a list. Entries without a name are left out.
pub fn read(body: &[u8]) -> Vec<Model> {
    let Ok(Value::Object(mut list)) = serde_json::from_slice::<Value>(body) else {
        return Vec::new();
    };
    let Some(Value::Array(entries)) = list.remove("data") else {
        return Vec::new();
    };
    let model = |value: Value| {
        let name = value["id"].as_str()?.to_owned();
        let created = value["created_at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        let created = created.unwrap_or_default().as_second();
        // vLLM's list has OpenAI's form, whatever it is asked for.
        let own = value["type"] == "model";
        let entry = own.then_some(Entry { language: LANGUAGE, value });
        Some(Model { name, created, entry })
    };
    entries.into_iter().filter_map(model).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(names: &[&str]) -> Vec<Model> {
        let model = |name: &&str| Model { name: (*name).to_owned(), created: 86_400, entry: None };
        names.iter().map(model).collect()
    }

    #[test]
    fn a_list_has_anthropics_form() {
        let list: Value = serde_json::from_slice(&list(&models(&["a/b"]), None).unwrap()).unwrap();
        let expected = json!({
            "data": [{"type": "model", "id": "a/b", "display_name": "a/b",
                "created_at": "1970-01-02T00:00:00Z"}],
            "has_more": false, "first_id": "a/b", "last_id": "a/b",
        });
        assert_eq!(list, expected);
        let none: Value = serde_json::from_slice(&super::list(&[], None).unwrap()).unwrap();
        let expected = json!({"data": [], "has_more": false, "first_id": null, "last_id": null});
        assert_eq!(none, expected);
    }

    #[test]
    fn pages_follow_each_other_in_both_directions() {
        let names: Vec<String> = (0..50).map(|n| format!("m/{n:02}")).collect();
        let all = models(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let page = |query: &str| {
            let list = list(&all, Some(query)).unwrap();
            let list: Value = serde_json::from_slice(&list).unwrap();
            let ids: Vec<String> = list["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|model| model["id"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(list["first_id"], json!(ids.first()), "{query}");
            assert_eq!(list["last_id"], json!(ids.last()), "{query}");
            (ids, list["has_more"].as_bool().unwrap())
        };
        assert_eq!(page(""), (names[..20].to_vec(), true));
        assert_eq!(page("limit=1000&beta=true"), (names.clone(), false));
        assert_eq!(page("after_id=m%2F19&limit=30"), (names[20..].to_vec(), false));
        assert_eq!(page("after_id=m/19&limit=29"), (names[20..49].to_vec(), true));
        assert_eq!(page("after_id=m/49"), (Vec::new(), false));
        assert_eq!(page("before_id=m/20"), (names[..20].to_vec(), false));
        assert_eq!(page("before_id=m/21&limit=20"), (names[1..21].to_vec(), true));
        assert_eq!(page("before_id=m/00"), (Vec::new(), false));
        // All of them, page by page.
        for limit in [1, 7, 49, 50] {
            let (mut seen, mut query) = (Vec::new(), format!("limit={limit}"));
            loop {
                let (ids, more) = page(&query);
                seen.extend(ids);
                if !more {
                    break;
                }
                query = format!("limit={limit}&after_id={}", seen.last().unwrap());
            }
            assert_eq!(seen, names);
        }
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let all = models(&["a", "b"]);
        for (query, param) in [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=x", "limit"),
            ("limit", "limit"),
            ("after_id=c", "after_id"),
            ("before_id=c", "before_id"),
            ("before_id=a&after_id=b", "before_id"),
        ] {
            let refused = list(&all, Some(query)).unwrap_err();
            assert_eq!((refused.status, refused.param.as_deref()), (400, Some(param)), "{query}");
        }
    }

    #[test]
    fn a_backends_entries_are_kept() {
        let own = json!({"type": "model", "id": "claude", "display_name": "Claude",
            "created_at": "2026-01-01T00:00:00Z", "max_input_tokens": 5});
        let body = json!({"data": [own, {"id": "b", "object": "model"}, {"type": "model"}]});
        let read = read(body.to_string().as_bytes());
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].name.as_str(), read[0].created), ("claude", 1_767_225_600));
        assert_eq!(entry(&read[0]), own);
        assert_eq!(entry(&read[1])["display_name"], "b");
        // In another language they have another form.
        let foreign = Entry { language: "openai", value: json!({"object": "model"}) };
        let foreign = Model { name: "x".to_owned(), created: 0, entry: Some(foreign) };
        assert_eq!(entry(&foreign)["type"], "model");
        for nothing in ["", "[]", "{}", r#"{"data":7}"#] {
            assert_eq!(super::read(nothing.as_bytes()), []);
        }
    }
}
