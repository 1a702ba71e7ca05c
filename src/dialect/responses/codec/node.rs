//! Reads the objects of a request: strict about types, with the place in the client's words.

use serde::de::Deserialize;
use serde_json::value::RawValue;

use crate::dialect::hub::{Json, Object, Refused};

/// An object of a request, whose members are taken out one by one.
pub(super) struct Node<'a> {
    object: Object<'a>,
    /// Members that are `null`, which is as if they were not there; kept to be restored.
    nulls: Vec<(String, Json)>,
    /// Where it stands; empty: it is the request itself.
    pub path: String,
}

impl<'a> Node<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// If it is no object.
    pub fn new(raw: &'a RawValue, path: String) -> Result<Self, Refused> {
        match Object::parse(raw.get()) {
            Ok(object) => Ok(Self::of(object, path)),
            Err(_) => Err(Refused::invalid(path, "must be an object")),
        }
    }

    /// Of an object that was read.
    pub fn of(mut object: Object<'a>, path: String) -> Self {
        let null = |(name, value): (&str, &RawValue)| (value.get() == "null").then(|| name.into());
        let names: Vec<String> = object.members().filter_map(null).collect();
        let nulls = names.into_iter().map(|name| {
            object.take(&name);
            (name, Json::written(|out| out.raw("null")))
        });
        let nulls = nulls.collect();
        Self { object, nulls, path }
    }

    /// The place of a member.
    pub fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A member is there, and not `null`.
    pub fn has(&self, name: &str) -> bool {
        self.object.has(name)
    }

    /// A member as it stands, without taking it.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.object.get(name)
    }

    /// A string, without taking it.
    pub fn peek(&self, name: &str) -> Option<String> {
        self.object.text(name)
    }

    /// Takes a member.
    pub fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        self.object.take(name)
    }

    /// Takes any value.
    pub fn json(&mut self, name: &str) -> Option<Json> {
        self.object.json(name)
    }

    /// Takes a string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Refused> {
        self.typed(name, "must be a string")
    }

    /// Takes a string that must be there.
    pub fn required(&mut self, name: &str) -> Result<String, Refused> {
        let text = self.text(name)?;
        text.ok_or_else(|| Refused::invalid(self.at(name), "is required"))
    }

    /// Takes a truth value.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Refused> {
        self.typed(name, "must be true or false")
    }

    /// Takes a whole number that is not negative.
    pub fn count(&mut self, name: &str) -> Result<Option<u64>, Refused> {
        self.typed(name, "must be a whole number")
    }

    /// Takes a number as it was written.
    pub fn number(&mut self, name: &str) -> Result<Option<Json>, Refused> {
        let Some(raw) = self.object.take(name) else { return Ok(None) };
        match raw.get().as_bytes().first() {
            Some(b'0'..=b'9' | b'-') => Ok(Some(Json::of(raw))),
            _ => Err(Refused::invalid(self.at(name), "must be a number")),
        }
    }

    /// Takes a list.
    pub fn list(&mut self, name: &str) -> Result<Option<Vec<&'a RawValue>>, Refused> {
        self.typed(name, "must be a list")
    }

    /// Takes an object.
    pub fn node(&mut self, name: &str) -> Result<Option<Self>, Refused> {
        let path = self.at(name);
        self.object.take(name).map(|raw| Self::new(raw, path)).transpose()
    }

    /// What was not taken.
    pub fn rest(self) -> Vec<(String, Json)> {
        let mut rest = self.object.rest();
        rest.extend(self.nulls);
        rest
    }

    fn typed<T: Deserialize<'a>>(&mut self, name: &str, why: &str) -> Result<Option<T>, Refused> {
        let Some(raw) = self.object.take(name) else { return Ok(None) };
        let read = serde_json::from_str(raw.get());
        read.map(Some).map_err(|_| Refused::invalid(self.at(name), why))
    }
}
