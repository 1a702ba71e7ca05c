//! `string_utils` and `hash`, as natives. Each one checks the time while it walks a long text.

use base64::{Engine, engine::general_purpose::STANDARD};
use mlua::{Error, Lua, LuaString, Table};
use ring::{digest, hmac};

use super::clock::Clock;

/// Bytes between two checks of the time.
const PIECE: usize = 64 << 10;

/// Items between two checks of the time.
const ITEMS: usize = 1024;

/// Sets the natives.
pub fn functions(lua: &Lua, table: &Table, clock: &Clock) -> mlua::Result<()> {
    string_utils(lua, table, clock)?;
    hashes(lua, table, clock)
}

fn string_utils(lua: &Lua, table: &Table, clock: &Clock) -> mlua::Result<()> {
    let at = clock.clone();
    let split = lua.create_function(
        move |lua, (text, separator, most): (LuaString, Option<LuaString>, Option<i64>)| {
            split(lua, &at, &text, separator.as_ref(), most)
        },
    )?;
    table.set("split", split)?;
    let at = clock.clone();
    let trim = lua.create_function(move |lua, text: LuaString| {
        at.reserve(lua, text.as_bytes().len())?;
        lua.create_string(text.as_bytes().trim_ascii())
    })?;
    table.set("trim", trim)?;
    type Two = (LuaString, LuaString);
    let starts = |_: &Lua, (text, with): Two| Ok(text.as_bytes().starts_with(&with.as_bytes()));
    table.set("starts_with", lua.create_function(starts)?)?;
    let ends = |_: &Lua, (text, with): Two| Ok(text.as_bytes().ends_with(&with.as_bytes()));
    table.set("ends_with", lua.create_function(ends)?)?;
    let at = clock.clone();
    let contains = lua.create_function(move |lua, (text, part): Two| {
        let found = memchr::memmem::find(&text.as_bytes(), &part.as_bytes()).is_some();
        at.check(lua)?;
        Ok(found)
    })?;
    table.set("contains", contains)?;
    for (name, change) in [
        ("lowercase", str::to_lowercase as fn(&str) -> String),
        ("uppercase", str::to_uppercase as fn(&str) -> String),
    ] {
        let at = clock.clone();
        let changed = lua.create_function(move |lua, text: LuaString| {
            let bytes = text.as_bytes();
            // A letter may become three.
            at.reserve(lua, bytes.len().saturating_mul(3))?;
            let changed = match str::from_utf8(&bytes) {
                Ok(text) => lua.create_string(change(text)),
                Err(_) => Err(Error::runtime("string_utils: the text is not UTF-8")),
            };
            at.check(lua)?;
            changed
        })?;
        table.set(name, changed)?;
    }
    Ok(())
}

/// Pieces of a text; without a separator its words.
fn split(
    lua: &Lua,
    clock: &Clock,
    text: &LuaString,
    separator: Option<&LuaString>,
    most: Option<i64>,
) -> mlua::Result<Table> {
    let bytes = text.as_bytes();
    let most = most.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(0));
    if most == 0 {
        return Err(Error::runtime("string_utils.split: the number of pieces is not above 0"));
    }
    let pieces = lua.create_table()?;
    let mut n = 0;
    let mut add = |piece: &[u8]| {
        n += 1;
        if n % ITEMS == 0 {
            clock.check(lua)?;
        }
        clock.reserve(lua, piece.len())?;
        pieces.raw_push(lua.create_string(piece)?)?;
        Ok::<usize, Error>(n)
    };
    let Some(separator) = separator.map(LuaString::as_bytes) else {
        let words = bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        for word in words.take(most) {
            add(word)?;
        }
        return Ok(pieces);
    };
    if separator.is_empty() {
        return Err(Error::runtime("string_utils.split: the separator is empty"));
    }
    let finder = memchr::memmem::Finder::new(&separator[..]);
    let (mut from, mut pieces_made) = (0, 0);
    while pieces_made + 1 < most
        && let Some(at) = finder.find(&bytes[from..])
    {
        pieces_made = add(&bytes[from..from + at])?;
        from += at + separator.len();
    }
    add(&bytes[from..])?;
    Ok(pieces)
}

fn hashes(lua: &Lua, table: &Table, clock: &Clock) -> mlua::Result<()> {
    let at = clock.clone();
    let md5 = lua.create_function(move |lua, text: LuaString| {
        use md5::Digest;
        let mut digest = md5::Md5::new();
        in_pieces(lua, &at, &text.as_bytes(), |piece| digest.update(piece))?;
        Ok(hex(&digest.finalize()))
    })?;
    table.set("md5", md5)?;
    for (name, algorithm) in
        [("sha1", &digest::SHA1_FOR_LEGACY_USE_ONLY), ("sha256", &digest::SHA256)]
    {
        let at = clock.clone();
        let hash = lua.create_function(move |lua, text: LuaString| {
            let mut digest = digest::Context::new(algorithm);
            in_pieces(lua, &at, &text.as_bytes(), |piece| digest.update(piece))?;
            Ok(hex(digest.finish().as_ref()))
        })?;
        table.set(name, hash)?;
    }
    let at = clock.clone();
    let sign = lua.create_function(move |lua, (key, text): (LuaString, LuaString)| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key.as_bytes());
        let mut context = hmac::Context::with_key(&key);
        in_pieces(lua, &at, &text.as_bytes(), |piece| context.update(piece))?;
        Ok(hex(context.sign().as_ref()))
    })?;
    table.set("hmac_sha256", sign)?;
    let at = clock.clone();
    let encode = lua.create_function(move |lua, text: LuaString| {
        let bytes = text.as_bytes();
        at.reserve(lua, bytes.len().saturating_mul(2))?;
        let encoded = lua.create_string(STANDARD.encode(&bytes));
        at.check(lua)?;
        encoded
    })?;
    table.set("base64_encode", encode)?;
    let at = clock.clone();
    let decode = lua.create_function(move |lua, text: LuaString| {
        let bytes = text.as_bytes();
        at.reserve(lua, bytes.len())?;
        let decoded = STANDARD.decode(&bytes);
        at.check(lua)?;
        decoded.ok().map(|bytes| lua.create_string(bytes)).transpose()
    })?;
    table.set("base64_decode", decode)?;
    let at = clock.clone();
    let hex = lua.create_function(move |lua, text: LuaString| {
        let bytes = text.as_bytes();
        at.reserve(lua, bytes.len().saturating_mul(4))?;
        let made = lua.create_string(hex(&bytes));
        at.check(lua)?;
        made
    })?;
    table.set("hex", hex)
}

/// Walks a text piece by piece.
fn in_pieces(
    lua: &Lua,
    clock: &Clock,
    text: &[u8],
    mut each: impl FnMut(&[u8]),
) -> mlua::Result<()> {
    for piece in text.chunks(PIECE) {
        each(piece);
        if piece.len() == PIECE {
            clock.check(lua)?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}
