//! Members of a client's request, read with the types that Messages gives them. What is of another
//! type is refused, with its path.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::LANGUAGE;
use crate::dialect::hub::{Extension, Json, Object, Refused};

/// An object of the request and the place where it stands.
pub struct Fields<'a> {
    object: Object<'a>,
    path: String,
    defaults: Vec<(String, Json)>,
}

impl<'a> Fields<'a> {
    /// The members of a value.
    ///
    /// # Errors
    /// If it is no object.
    pub fn new(raw: &'a RawValue, path: String) -> Result<Self, Refused> {
        match Object::parse(raw.get()) {
            Ok(object) => Ok(Self { object, path, defaults: Vec::new() }),
            Err(_) => Err(Refused::invalid(path, "must be an object")),
        }
    }

    /// The members of a whole request.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn of_body(body: &'a str) -> Result<Self, Refused> {
        match Object::parse(body) {
            Ok(object) => Ok(Self { object, path: String::new(), defaults: Vec::new() }),
            Err(error) => {
                Err(Refused::invalid("", format!("the body is not a JSON object: {error}")))
            }
        }
    }

    /// Where the object stands.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where a member of it stands.
    pub fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a member as it stands; an explicit `null` is remembered.
    pub fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let null = self.object.get(name).filter(|value| value.get() == "null");
        self.defaults.extend(null.map(|null| (name.to_owned(), Json::of(null))));
        self.object.take(name)
    }

    /// A string member, without taking it.
    pub fn peek(&self, name: &str) -> Option<String> {
        self.object.text(name)
    }

    /// It has a member that is neither `null` nor empty.
    pub fn holds(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(|raw| !matches!(raw.get(), "null" | "[]" | "{}"))
    }

    fn typed<T: DeserializeOwned>(&mut self, name: &str, kind: &str) -> Result<Option<T>, Refused> {
        let Some(raw) = self.take(name) else { return Ok(None) };
        match serde_json::from_str(raw.get()) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Refused::invalid(self.at(name), format!("must be {kind}"))),
        }
    }

    /// Takes a string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Refused> {
        self.typed(name, "a string")
    }

    /// Takes a string that must be there.
    pub fn needed(&mut self, name: &str) -> Result<String, Refused> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    /// A member that must be there is not.
    pub fn missing(&self, name: &str) -> Refused {
        Refused::invalid(self.at(name), "is required")
    }

    /// Takes a truth value. One that says the `default` is remembered as such.
    pub fn flag(&mut self, name: &str, default: Option<bool>) -> Result<Option<bool>, Refused> {
        let value = self.typed(name, "`true` or `false`")?;
        if let (Some(said), true) = (value, value == default) {
            self.defaults.push((name.to_owned(), Json::written(|out| out.raw(&said.to_string()))));
        }
        Ok(value)
    }

    /// Takes a count.
    pub fn count(&mut self, name: &str) -> Result<Option<u64>, Refused> {
        self.typed(name, "a whole number that is not negative")
    }

    /// Takes a number with its digits.
    pub fn number(&mut self, name: &str) -> Result<Option<Json>, Refused> {
        let Some(raw) = self.take(name) else { return Ok(None) };
        let first = raw.get().bytes().next().unwrap_or_default();
        match first == b'-' || first.is_ascii_digit() {
            true => Ok(Some(Json::of(raw))),
            false => Err(Refused::invalid(self.at(name), "must be a number")),
        }
    }

    /// Takes a list, with the path of each element.
    pub fn list(&mut self, name: &str) -> Result<Option<Vec<(String, &'a RawValue)>>, Refused> {
        let Some(raw) = self.take(name) else { return Ok(None) };
        let path = self.at(name);
        match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
            Ok(list) => Ok(Some(
                list.into_iter()
                    .enumerate()
                    .map(|(at, raw)| (format!("{path}[{at}]"), raw))
                    .collect(),
            )),
            Err(_) => Err(Refused::invalid(path, "must be a list")),
        }
    }

    /// Takes an object.
    pub fn fields(&mut self, name: &str) -> Result<Option<Self>, Refused> {
        let path = self.at(name);
        self.take(name).map(|raw| Self::new(raw, path)).transpose()
    }

    /// Takes an object as text.
    pub fn object(&mut self, name: &str) -> Result<Option<Json>, Refused> {
        match self.take(name).map(Json::of) {
            Some(json) if !json.is_object() => {
                Err(Refused::invalid(self.at(name), "must be an object"))
            }
            json => Ok(json),
        }
    }

    /// Takes a member as text of JSON, whatever it is.
    pub fn json(&mut self, name: &str) -> Option<Json> {
        self.take(name).map(Json::of)
    }

    /// It says something that holds anyway.
    pub fn says(&mut self, name: &str, value: &str) {
        self.defaults.push((name.to_owned(), Json::written(|out| out.raw(value))));
    }

    /// What was not taken.
    pub fn rest(self) -> Extension {
        Extension { defaults: self.defaults, ..Extension::new(LANGUAGE, self.object.rest()) }
    }

    /// What was not taken, as an object; `None`: nothing is left.
    pub fn leftover(self) -> Option<Json> {
        let rest = self.rest();
        let all: Vec<_> = rest.members.into_iter().chain(rest.defaults).collect();
        (!all.is_empty()).then(|| Json::written(|out| out.object(|o| o.members(&all))))
    }
}

/// Reads either a string or a list: the form of contents.
pub enum Content<'a> {
    Text(String),
    List(Vec<(String, &'a RawValue)>),
}

impl<'a> Fields<'a> {
    /// Takes a content; `None`: there is none.
    pub fn content(&mut self, name: &str) -> Result<Option<Content<'a>>, Refused> {
        let Some(raw) = self.object.get(name) else { return Ok(None) };
        if raw.get().starts_with('[') {
            return Ok(self.list(name)?.map(Content::List));
        }
        match self.typed(name, "a string or a list of blocks")? {
            Some(text) => Ok(Some(Content::Text(text))),
            None => Ok(None),
        }
    }
}
