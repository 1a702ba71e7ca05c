//! All words of the language: what is in the interpreter, apart from the globals that a stage sets. The
//! reference for scripts and the definitions for editors are made from this table.

/// A word of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// The name; a dot separates the name of a table.
    pub name: &'static str,
    /// How it is called; optional arguments are in brackets.
    pub signature: &'static str,
    /// The types of what it returns.
    pub returns: &'static str,
    /// What it does, in a sentence.
    pub doc: &'static str,
    pub stages: Stages,
}

/// Where a word is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    All,
    /// The stages of [`super::HTTP_STAGES`], and the decision about a key.
    BeforeBackend,
}

const fn word(
    name: &'static str,
    signature: &'static str,
    returns: &'static str,
    doc: &'static str,
) -> Word {
    Word { name, signature, returns, doc, stages: Stages::All }
}

const fn early(
    name: &'static str,
    signature: &'static str,
    returns: &'static str,
    doc: &'static str,
) -> Word {
    Word { name, signature, returns, doc, stages: Stages::BeforeBackend }
}

/// All words.
pub const WORDS: [Word; 118] = [
    word("_VERSION", "_VERSION", "string", "The version of Lua."),
    word(
        "assert",
        "assert(value[, message])",
        "any",
        "Returns its arguments, or raises an error if the first one is false or nil.",
    ),
    word(
        "error",
        "error(message[, level])",
        "nothing",
        "Raises an error; in the stage on_error the global is also a table with the fields type, message and status_code.",
    ),
    word(
        "getmetatable",
        "getmetatable(table)",
        "table | nil",
        "The metatable that the script has set.",
    ),
    word("ipairs", "ipairs(list)", "iterator", "Iterates over the items of a list."),
    word("next", "next(table[, key])", "any, any", "The next key and value of a table."),
    word(
        "pairs",
        "pairs(table)",
        "iterator",
        "Iterates over all keys and values of a table, in no particular order.",
    ),
    word(
        "pcall",
        "pcall(function, ...)",
        "boolean, any",
        "Calls a function; false and the error if it raises one.",
    ),
    word("rawequal", "rawequal(a, b)", "boolean", "Compares without metamethods."),
    word("rawget", "rawget(table, key)", "any", "Reads without metamethods."),
    word("rawlen", "rawlen(value)", "integer", "The length without metamethods."),
    word("rawset", "rawset(table, key, value)", "table", "Writes without metamethods."),
    word(
        "select",
        "select(n, ...)",
        "any",
        "The arguments from the n-th one on; with '#' their number.",
    ),
    word(
        "setmetatable",
        "setmetatable(table, metatable)",
        "table",
        "Sets the metatable; __gc, __mode, __close and __metatable are not available, and the metatable cannot be changed later.",
    ),
    word("tonumber", "tonumber(value[, base])", "number | nil", "Converts a string to a number."),
    word("tostring", "tostring(value)", "string", "Converts a value to a string."),
    word("type", "type(value)", "string", "The type of a value."),
    word("unpack", "unpack(list[, i[, j]])", "any", "The same as table.unpack."),
    word(
        "xpcall",
        "xpcall(function, handler, ...)",
        "boolean, any",
        "Calls a function; false and the result of the handler if it raises an error.",
    ),
    word(
        "require",
        "require(name)",
        "any",
        "The value of a module: NAME.lua in the configured folder (lua.modules), where dots separate folders; it is loaded once for each call.",
    ),
    word(
        "string.byte",
        "string.byte(s[, i[, j]])",
        "integer",
        "The codes of the bytes from i to j.",
    ),
    word("string.char", "string.char(...)", "string", "The string of these bytes."),
    word(
        "string.find",
        "string.find(s, pattern[, init[, plain]])",
        "integer, integer",
        "Start and end of the first match.",
    ),
    word(
        "string.format",
        "string.format(format, ...)",
        "string",
        "Formats values as C's printf does; %q is not available.",
    ),
    word(
        "string.gmatch",
        "string.gmatch(s, pattern[, init])",
        "iterator",
        "Iterates over all matches.",
    ),
    word(
        "string.gsub",
        "string.gsub(s, pattern, with[, n])",
        "string, integer",
        "Replaces matches by a string, by a table's values, or by a function's results; also the number of matches.",
    ),
    word("string.len", "string.len(s)", "integer", "The number of bytes."),
    word("string.lower", "string.lower(s)", "string", "With lower-case ASCII letters."),
    word(
        "string.match",
        "string.match(s, pattern[, init])",
        "string",
        "The captures of the first match.",
    ),
    word(
        "string.rep",
        "string.rep(s, n[, separator])",
        "string",
        "The string n times; at most 64 MiB.",
    ),
    word("string.reverse", "string.reverse(s)", "string", "The bytes in reverse order."),
    word("string.sub", "string.sub(s, i[, j])", "string", "The bytes from i to j."),
    word("string.upper", "string.upper(s)", "string", "With upper-case ASCII letters."),
    word(
        "table.concat",
        "table.concat(list[, separator[, i[, j]]])",
        "string",
        "The items as one string.",
    ),
    word("table.insert", "table.insert(list[, position], value)", "nothing", "Inserts an item."),
    word("table.move", "table.move(from, first, last, to[, target])", "table", "Copies items."),
    word(
        "table.pack",
        "table.pack(...)",
        "table",
        "The arguments as a list, with their number as n.",
    ),
    word(
        "table.remove",
        "table.remove(list[, position])",
        "any",
        "Removes an item and returns it.",
    ),
    word(
        "table.sort",
        "table.sort(list[, before])",
        "nothing",
        "Sorts a list; equal items keep their order.",
    ),
    word("table.unpack", "table.unpack(list[, i[, j]])", "any", "The items as values."),
    word("math.abs", "math.abs(x)", "number", "The absolute value."),
    word("math.acos", "math.acos(x)", "number", "The arc cosine."),
    word("math.asin", "math.asin(x)", "number", "The arc sine."),
    word("math.atan", "math.atan(y[, x])", "number", "The arc tangent."),
    word("math.ceil", "math.ceil(x)", "integer", "The smallest integer not below x."),
    word("math.cos", "math.cos(x)", "number", "The cosine."),
    word("math.deg", "math.deg(x)", "number", "Radians as degrees."),
    word("math.exp", "math.exp(x)", "number", "e to the power of x."),
    word("math.floor", "math.floor(x)", "integer", "The largest integer not above x."),
    word("math.fmod", "math.fmod(x, y)", "number", "The remainder, rounded towards zero."),
    word("math.huge", "math.huge", "number", "Infinity."),
    word("math.log", "math.log(x[, base])", "number", "The logarithm."),
    word("math.max", "math.max(x, ...)", "number", "The largest argument."),
    word("math.maxinteger", "math.maxinteger", "integer", "The largest integer."),
    word("math.min", "math.min(x, ...)", "number", "The smallest argument."),
    word("math.mininteger", "math.mininteger", "integer", "The smallest integer."),
    word("math.modf", "math.modf(x)", "number, number", "The integral part and the fraction."),
    word("math.pi", "math.pi", "number", "The number pi."),
    word("math.pow", "math.pow(x, y)", "number", "x to the power of y."),
    word("math.rad", "math.rad(x)", "number", "Degrees as radians."),
    word(
        "math.random",
        "math.random([m[, n]])",
        "number",
        "A random number from 0 to 1, an integer from 1 to m, or one from m to n; not for secrets.",
    ),
    word("math.sin", "math.sin(x)", "number", "The sine."),
    word("math.sqrt", "math.sqrt(x)", "number", "The square root."),
    word("math.tan", "math.tan(x)", "number", "The tangent."),
    word("math.tointeger", "math.tointeger(x)", "integer | nil", "The integer that x is."),
    word("math.type", "math.type(x)", "string | nil", "'integer' or 'float'."),
    word("math.ult", "math.ult(m, n)", "boolean", "Compares integers without sign."),
    word("math.atan2", "math.atan2(y, x)", "number", "The same as math.atan with two arguments."),
    word("math.cosh", "math.cosh(x)", "number", "The hyperbolic cosine."),
    word("math.frexp", "math.frexp(x)", "number, integer", "m and e, so that x is m * 2^e."),
    word("math.ldexp", "math.ldexp(m, e)", "number", "m * 2^e."),
    word("math.log10", "math.log10(x)", "number", "The logarithm with base 10."),
    word("math.sinh", "math.sinh(x)", "number", "The hyperbolic sine."),
    word("math.tanh", "math.tanh(x)", "number", "The hyperbolic tangent."),
    word("os.clock", "os.clock()", "number", "The CPU time of the process in seconds."),
    word(
        "os.date",
        "os.date([format[, time]])",
        "string | table",
        "A date as C's strftime writes it, in the zone of the process (TZ), or in UTC if the format begins with '!'; '*t' makes a table.",
    ),
    word("os.difftime", "os.difftime(a, b)", "number", "a - b."),
    word(
        "os.time",
        "os.time([table])",
        "integer",
        "Unix time in seconds, of now or of a date in the zone of the process.",
    ),
    word(
        "json.encode",
        "json.encode(value)",
        "string",
        "JSON text of at most 256 KiB, with members in the order of their names.",
    ),
    word(
        "json.decode",
        "json.decode(text)",
        "any",
        "The value of a JSON text of at most 1 MiB; null members are absent, and written again by json.encode; integers from 2^63 to 2^64-1 are strings, and written as numbers again at their place.",
    ),
    word(
        "json.null",
        "json.null",
        "null",
        "JSON's null, for lists and for members that a script sets.",
    ),
    word(
        "json.array",
        "json.array(table)",
        "table",
        "Marks a table as a list, so that an empty one is written as [].",
    ),
    word(
        "string_utils.split",
        "string_utils.split(text[, separator[, n]])",
        "table",
        "The pieces of a text between separators, at most n; without a separator its words.",
    ),
    word(
        "string_utils.trim",
        "string_utils.trim(text)",
        "string",
        "Without white space at both ends.",
    ),
    word(
        "string_utils.starts_with",
        "string_utils.starts_with(text, prefix)",
        "boolean",
        "Whether the text begins with this one.",
    ),
    word(
        "string_utils.ends_with",
        "string_utils.ends_with(text, suffix)",
        "boolean",
        "Whether the text ends with this one.",
    ),
    word(
        "string_utils.contains",
        "string_utils.contains(text, part)",
        "boolean",
        "Whether this text occurs; it is no pattern.",
    ),
    word(
        "string_utils.lower",
        "string_utils.lower(text)",
        "string",
        "With lower-case letters, of all alphabets; the text must be UTF-8.",
    ),
    word(
        "string_utils.upper",
        "string_utils.upper(text)",
        "string",
        "With upper-case letters, of all alphabets; the text must be UTF-8.",
    ),
    word(
        "string_utils.join",
        "string_utils.join(list[, separator])",
        "string",
        "The items as one string.",
    ),
    word("time.now", "time.now()", "integer", "Unix time in seconds."),
    word("time.now_ms", "time.now_ms()", "integer", "Unix time in milliseconds."),
    word(
        "time.format",
        "time.format([time[, format[, zone]]])",
        "string",
        "A time as C's strftime writes it, by default as RFC 3339; the zone is a name such as Asia/Shanghai, by default that of the process (TZ).",
    ),
    word(
        "time.parse",
        "time.parse(text[, format[, zone]])",
        "number | nil, string",
        "Unix time of a text in a format of strptime, by default of RFC 3339; nil and the reason if it has none.",
    ),
    word(
        "hash.md5",
        "hash.md5(text)",
        "string",
        "The MD5 digest in hexadecimal digits; not for secrets.",
    ),
    word(
        "hash.sha1",
        "hash.sha1(text)",
        "string",
        "The SHA-1 digest in hexadecimal digits; not for secrets.",
    ),
    word("hash.sha256", "hash.sha256(text)", "string", "The SHA-256 digest in hexadecimal digits."),
    word(
        "hash.hmac_sha256",
        "hash.hmac_sha256(key, text)",
        "string",
        "The HMAC with SHA-256 in hexadecimal digits.",
    ),
    word("hash.base64_encode", "hash.base64_encode(bytes)", "string", "Base64 with padding."),
    word(
        "hash.base64_decode",
        "hash.base64_decode(text)",
        "string | nil",
        "The bytes of a base64 text; nil if it is none.",
    ),
    word("hash.hex", "hash.hex(bytes)", "string", "The bytes in hexadecimal digits."),
    word("store.get", "store.get(key)", "any", "The value of a key; nil if there is none."),
    word(
        "store.set",
        "store.set(key, value[, ttl])",
        "nothing",
        "Sets a string, number, boolean or table (as JSON) for ttl seconds, by default lua.store.default_ttl; nil deletes.",
    ),
    word(
        "store.incr",
        "store.incr(key[, by[, ttl]])",
        "integer",
        "Adds to an integer, which begins at 0, and returns the sum; ttl is the life of a new one in seconds.",
    ),
    word(
        "store.expire",
        "store.expire(key, ttl)",
        "boolean",
        "Sets how many seconds a value still lives; whether it is there.",
    ),
    word("store.delete", "store.delete(key)", "boolean", "Deletes a value; whether it was there."),
    early(
        "http.get",
        "http.get(url[, {headers, timeout}])",
        "{status, headers, body}",
        "Sends a request to one of lua.http.hosts and waits for the answer; raises an error if there is none.",
    ),
    early(
        "http.post",
        "http.post(url, body[, {headers, timeout}])",
        "{status, headers, body}",
        "The same with a body; a table is sent as JSON.",
    ),
    early(
        "http.request",
        "http.request({method, url, headers, body, timeout})",
        "{status, headers, body}",
        "The same with any method; timeout is in seconds, at most lua.http.timeout.",
    ),
    word("env", "env.NAME", "string | nil", "A variable of the environment, of those in lua.env."),
    word("uuid", "uuid()", "string", "A random UUID (version 4)."),
    word("generate_uuid", "generate_uuid()", "string", "The same as uuid()."),
    word("now", "now()", "integer", "Unix time in seconds."),
    word("now_ms", "now_ms()", "integer", "Unix time in milliseconds."),
    word(
        "log",
        "log(...)",
        "nothing",
        "Writes a line to the log, at the level info; at most 10 lines for each call.",
    ),
    word("log.info", "log.info(...)", "nothing", "The same as log(...)."),
    word("log.warn", "log.warn(...)", "nothing", "Writes a line at the level warn."),
    word("log.error", "log.error(...)", "nothing", "Writes a line at the level error."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lua::interpreter::all_words;

    #[test]
    fn every_word_is_in_the_table() {
        let mut names: Vec<_> = WORDS.iter().map(|word| word.name.to_owned()).collect();
        names.sort();
        assert_eq!(names, all_words());
        for word in WORDS {
            let bare = word.signature.split(['(', '.']).next().unwrap();
            assert!(word.name.starts_with(bare), "{}", word.name);
            assert!(word.doc.ends_with('.'), "{}", word.name);
            let http = word.name.starts_with("http.");
            assert_eq!(word.stages == Stages::BeforeBackend, http, "{}", word.name);
        }
    }
}
