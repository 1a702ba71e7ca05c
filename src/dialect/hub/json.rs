//! JSON as text: what a translation does not have to understand keeps its bytes, so that numbers
//! keep their digits and members keep their order.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON value: valid, without white space between its tokens. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Json(Arc<str>);

impl Json {
    /// Reads a value.
    ///
    /// # Errors
    /// If the text is not one JSON value.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let raw: &RawValue = serde_json::from_str(text)?;
        Ok(Self::of(raw))
    }

    /// A value that was read.
    pub fn of(raw: &RawValue) -> Self {
        Self(compact(raw.get()).into())
    }

    /// A string as a value.
    pub fn text(text: &str) -> Self {
        let mut out = Writer::default();
        out.text(text);
        Self(out.finish().into())
    }

    /// What a writer has written, which must be one whole value.
    pub fn written(write: impl FnOnce(&mut Writer)) -> Self {
        let mut out = Writer::default();
        write(&mut out);
        Self(out.finish().into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// It is an object.
    pub fn is_object(&self) -> bool {
        self.0.starts_with('{')
    }

    /// It is an array.
    pub fn is_array(&self) -> bool {
        self.0.starts_with('[')
    }

    /// The string that it is, if it is one.
    pub fn as_text(&self) -> Option<String> {
        serde_json::from_str(&self.0).ok()
    }

    /// Its members, if it is an object.
    pub fn object(&self) -> Option<Object<'_>> {
        serde_json::from_str(&self.0).ok()
    }

    /// Its elements, if it is an array.
    pub fn array(&self) -> Option<Vec<&RawValue>> {
        serde_json::from_str(&self.0).ok()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A valid JSON text without the white space between its tokens.
pub fn compact(text: &str) -> Cow<'_, str> {
    let blank = |b: u8| matches!(b, b' ' | b'\n' | b'\r' | b'\t');
    let (mut inside, mut escaped) = (false, false);
    let mut out: Option<Vec<u8>> = None;
    for (at, byte) in text.bytes().enumerate() {
        let drop = !inside && blank(byte);
        if drop && out.is_none() {
            out = Some(text.as_bytes()[..at].to_vec());
        }
        if let Some(out) = out.as_mut().filter(|_| !drop) {
            out.push(byte);
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ => {}
        }
    }
    // Only whole ASCII characters were left out.
    match out.map(String::from_utf8) {
        Some(Ok(out)) => Cow::Owned(out),
        _ => Cow::Borrowed(text),
    }
}

/// The members of an object, to be taken out one by one. Of two equal names the last counts.
#[derive(Clone, Debug, Default)]
pub struct Object<'a> {
    /// `None`: it was taken.
    members: Vec<Option<(Cow<'a, str>, &'a RawValue)>>,
    /// Where the members stand, of an object that has many.
    index: Option<HashMap<Cow<'a, str>, usize>>,
}

/// Members that are searched one by one; more have an index.
const FEW: usize = 32;

impl<'a> Object<'a> {
    /// Reads an object.
    ///
    /// # Errors
    /// If the text is not one JSON object.
    pub fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Takes a member; `None` if it is not there or `null`.
    pub fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.position(name)?;
        let (_, value) = self.members[at].take()?;
        (value.get() != "null").then_some(value)
    }

    /// Takes a member and reads it; `None` if it is not there, or of another type.
    pub fn read<T: Deserialize<'a>>(&mut self, name: &str) -> Option<T> {
        serde_json::from_str(self.take(name)?.get()).ok()
    }

    /// Takes a member as text of JSON.
    pub fn json(&mut self, name: &str) -> Option<Json> {
        self.take(name).map(Json::of)
    }

    /// A member as it stands, `null` included, without taking it.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.members[self.position(name)?].as_ref().map(|(_, value)| *value)
    }

    fn position(&self, name: &str) -> Option<usize> {
        match &self.index {
            Some(index) => index.get(name).copied(),
            None => {
                let is = |member: &Option<(Cow<'a, str>, _)>| {
                    member.as_ref().is_some_and(|(key, _)| key == name)
                };
                self.members.iter().position(is)
            }
        }
    }

    fn set(&mut self, name: Cow<'a, str>, value: &'a RawValue) {
        if let Some(at) = self.position(&name) {
            self.members[at] = Some((name, value));
            return;
        }
        if let Some(index) = &mut self.index {
            index.insert(name.clone(), self.members.len());
        }
        self.members.push(Some((name, value)));
        if self.index.is_none() && self.members.len() > FEW {
            let names = self.members.iter().enumerate();
            let index = names.filter_map(|(at, member)| Some((member.as_ref()?.0.clone(), at)));
            self.index = Some(index.collect());
        }
    }

    /// A string member, without taking it.
    pub fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }

    /// It has a member of this name.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// What was not taken, in its order.
    pub fn rest(self) -> Vec<(String, Json)> {
        let rest = self.members.into_iter().flatten();
        rest.map(|(key, value)| (key.into_owned(), Json::of(value))).collect()
    }

    /// The members, in their order.
    pub fn members(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.members.iter().flatten().map(|(key, value)| (key.as_ref(), *value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                // Most objects of an event fit.
                let mut object = Object { members: Vec::with_capacity(8), index: None };
                while let Some(Name(name)) = map.next_key()? {
                    object.set(name, map.next_value()?);
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// A name that is borrowed where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Writes JSON. Commas are put by itself.
pub struct Writer {
    out: String,
}

impl Default for Writer {
    /// With room for an event of a stream, which would grow several times.
    fn default() -> Self {
        Self { out: String::with_capacity(256) }
    }
}

impl Writer {
    /// What was written.
    pub fn finish(self) -> String {
        self.out
    }

    /// An object, whose members `write` writes.
    pub fn object(&mut self, write: impl FnOnce(&mut Self)) {
        self.separate();
        self.out.push('{');
        write(self);
        self.out.push('}');
    }

    /// An array, whose elements `write` writes.
    pub fn array(&mut self, write: impl FnOnce(&mut Self)) {
        self.separate();
        self.out.push('[');
        write(self);
        self.out.push(']');
    }

    /// A string.
    pub fn text(&mut self, text: &str) {
        self.separate();
        self.quote(text);
    }

    /// A value as it stands.
    pub fn raw(&mut self, value: &str) {
        self.separate();
        self.out.push_str(value);
    }

    /// The name of a member; its value follows.
    pub fn name(&mut self, name: &str) -> &mut Self {
        self.separate();
        self.quote(name);
        self.out.push(':');
        self
    }

    /// A member with a string.
    pub fn text_at(&mut self, name: &str, text: &str) {
        self.name(name).text(text);
    }

    /// A member with a string, if there is one.
    pub fn maybe_text_at(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text_at(name, text);
        }
    }

    /// A member with a value as it stands: a number, `true`, `null`.
    pub fn raw_at(&mut self, name: &str, value: impl fmt::Display) {
        self.name(name).raw(&value.to_string());
    }

    /// A member with a value as it stands, if there is one.
    pub fn maybe_raw_at(&mut self, name: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.raw_at(name, value);
        }
    }

    /// A member with a value.
    pub fn json_at(&mut self, name: &str, value: &Json) {
        self.name(name).raw(value.as_str());
    }

    /// A member with a value, if there is one.
    pub fn maybe_json_at(&mut self, name: &str, value: Option<&Json>) {
        if let Some(value) = value {
            self.json_at(name, value);
        }
    }

    /// A member with an object.
    pub fn object_at(&mut self, name: &str, write: impl FnOnce(&mut Self)) {
        self.name(name).object(write);
    }

    /// A member with an array.
    pub fn array_at(&mut self, name: &str, write: impl FnOnce(&mut Self)) {
        self.name(name).array(write);
    }

    /// Members as they stand.
    pub fn members(&mut self, members: &[(String, Json)]) {
        for (name, value) in members {
            self.json_at(name, value);
        }
    }

    fn separate(&mut self) {
        if !matches!(self.out.as_bytes().last(), None | Some(b'{' | b'[' | b':' | b'\n')) {
            self.out.push(',');
        }
    }

    fn quote(&mut self, text: &str) {
        self.out.push('"');
        let mut from = 0;
        for (at, byte) in text.bytes().enumerate() {
            let escape: &str = match byte {
                b'"' => "\\\"",
                b'\\' => "\\\\",
                b'\n' => "\\n",
                b'\r' => "\\r",
                b'\t' => "\\t",
                0x08 => "\\b",
                0x0c => "\\f",
                0..=0x1f => {
                    self.out.push_str(&text[from..at]);
                    self.out.push_str(&format!("\\u{byte:04x}"));
                    from = at + 1;
                    continue;
                }
                _ => continue,
            };
            self.out.push_str(&text[from..at]);
            self.out.push_str(escape);
            from = at + 1;
        }
        self.out.push_str(&text[from..]);
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::dialect::hub::stopwatch::Stopwatch;

    #[test]
    fn values_keep_digits_and_order() {
        let text = r#" { "z" : 12345678901234567890.10 , "a" : [ 1 , "x \" { " ] , "e":{} } "#;
        let json = Json::parse(text.trim()).unwrap();
        assert_eq!(json.as_str(), r#"{"z":12345678901234567890.10,"a":[1,"x \" { "],"e":{}}"#);
        assert!(Json::parse("{} x").is_err() && Json::parse("{").is_err());
    }

    #[test]
    fn members_are_taken_once_and_the_last_of_two_counts() {
        let mut object =
            Object::parse(r#"{"a":1,"b":null,"a":2,"\u0063":"x","d":{"e":[ 1]}}"#).unwrap();
        assert_eq!(object.read::<u8>("a"), Some(2));
        assert_eq!(object.read::<u8>("a"), None);
        assert!(object.take("b").is_none());
        assert_eq!(object.text("c").as_deref(), Some("x"));
        let rest: Vec<_> =
            object.rest().into_iter().map(|(n, v)| (n, v.as_str().to_owned())).collect();
        assert_eq!(rest, [("c".into(), "\"x\"".into()), ("d".into(), "{\"e\":[1]}".to_owned())]);
    }

    #[test]
    fn an_object_of_many_members_is_as_one_of_few() {
        const MANY: usize = 100_000;
        let began = Stopwatch::start();
        let mut text = String::from("{");
        // Every name twice, and every second one taken, some of them as `null`.
        for (at, value) in (0..MANY).map(|at| (at, "1")).chain((0..MANY).map(|at| (at, "2"))) {
            let value = if at % 10 == 0 { "null" } else { value };
            text += &format!("\"k\\u00{:02x}{at}\":{value},", 0x61 + at % 20);
        }
        text += "\"last\":3}";
        let mut object = Object::parse(&text).unwrap();
        let name = |at: usize| format!("k{}{at}", char::from(0x61 + (at % 20) as u8));
        for at in (0..MANY).step_by(2) {
            assert!(object.has(&name(at)));
            let value = object.take(&name(at)).map(RawValue::get);
            assert_eq!(value, (at % 10 != 0).then_some("2"));
            assert!(!object.has(&name(at)) && object.take(&name(at)).is_none());
        }
        let rest = object.rest();
        assert_eq!(rest.len(), MANY / 2 + 1);
        for (at, (key, value)) in rest.iter().take(MANY / 2).enumerate() {
            assert_eq!((key, value.as_str()), (&name(2 * at + 1), "2"));
        }
        assert!(began.time().as_secs() < 4, "{:?}", began.time());
    }

    #[test]
    fn commas_stand_between_members_and_elements_only() {
        let mut out = Writer::default();
        out.object(|o| {
            o.text_at("a", "x,");
            o.array_at("b", |b| {
                b.raw("1");
                b.object(|_| {});
                b.text("");
                b.array(|_| {});
            });
            o.object_at("c", |_| {});
            o.raw_at("d", true);
            o.maybe_text_at("e", None);
            o.members(&[("f".into(), Json::parse("[ ]").unwrap())]);
        });
        assert_eq!(out.finish(), r#"{"a":"x,","b":[1,{},"",[]],"c":{},"d":true,"f":[]}"#);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in any::<String>(), name in any::<String>()) {
            let json = Json::written(|out| out.object(|o| o.text_at(&name, &text)));
            let value: Value = serde_json::from_str(json.as_str()).unwrap();
            prop_assert_eq!(value[&name].as_str(), Some(text.as_str()));
            let back = Json::text(&text).as_text();
            prop_assert_eq!(back.as_deref(), Some(text.as_str()));
        }
    }
}
