//! Tests of the words that need nothing from outside.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    Failure, Globals, Job, Script, json,
    tests::{Plain, ask, patient},
};

fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let text = format!("return {text}");
        let got = Script::compile("test", &text, patient()).unwrap().run_here(&Plain).0;
        let got = got.unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(got.to_string(), *expected, "{text}");
    }
}

#[test]
fn texts_are_taken_apart() {
    check(&[
        ("string_utils.split('a,b,,c', ',')", r#"["a","b","","c"]"#),
        ("string_utils.split('a,b,c', ',', 2)", r#"["a","b,c"]"#),
        ("string_utils.split('', ',')", r#"[""]"#),
        ("string_utils.split(' a  b\\tc ')", r#"["a","b","c"]"#),
        ("string_utils.split('a.b', '.')", r#"["a","b"]"#),
        ("string_utils.trim('  a b\\n')", r#""a b""#),
        ("string_utils.starts_with('gpt-4', 'gpt')", "true"),
        ("string_utils.starts_with('gpt', 'gpt-4')", "false"),
        ("string_utils.ends_with('gpt-4', '-4')", "true"),
        ("string_utils.contains('a.b', '.')", "true"),
        ("string_utils.contains('ab', '.')", "false"),
        ("string_utils.lower('ÄB')", r#""äb""#),
        ("string_utils.upper('äb')", r#""ÄB""#),
        ("string_utils.join({'a', 1, 'b'}, '-')", r#""a-1-b""#),
        ("string_utils.join({})", r#""""#),
    ]);
}

#[test]
fn digests_are_those_of_others() {
    check(&[
        ("hash.md5('abc')", r#""900150983cd24fb0d6963f7d28e17f72""#),
        ("hash.sha1('abc')", r#""a9993e364706816aba3e25717850c26c9cd0d89d""#),
        (
            "hash.sha256('abc')",
            r#""ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad""#,
        ),
        (
            "hash.hmac_sha256('key', 'The quick brown fox jumps over the lazy dog')",
            r#""f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8""#,
        ),
        ("hash.base64_encode('ab\\0')", r#""YWIA""#),
        ("hash.base64_decode('YWIA') == 'ab\\0'", "true"),
        ("hash.base64_decode('?')", "null"),
        ("hash.hex('\\0\\xff')", r#""00ff""#),
        ("hash.md5(12)", r#""c20ad4d76fe97759aa27a0c99bff6710""#),
        ("hash.md5(('x'):rep(200000)) == hash.md5(('x'):rep(100000) .. ('x'):rep(100000))", "true"),
    ]);
}

#[test]
fn dates_are_those_of_c() {
    check(&[
        ("os.date('!%c', 0)", r#""Thu Jan  1 00:00:00 1970""#),
        (
            "os.date('!%x %X %p %Y %m %d %H %M %S %j', 1751371200)",
            r#""07/01/25 12:00:00 PM 2025 07 01 12 00 00 182""#,
        ),
        (
            "os.date('!%U %W %V %G %g %w %u %a %A %b %B %y %%', 1751371200)",
            r#""26 26 27 2025 25 2 2 Tue Tuesday Jul July 25 %""#,
        ),
        (
            "os.date('!%I %r %R %T %D %F %e %C %z %Z %n%t|', 3600)",
            "\"01 01:00:00 AM 01:00 01:00:00 01/01/70 1970-01-01  1 19 +0000 UTC \\n\\t|\"",
        ),
        ("os.date('!%Ey %Od', 0)", r#""70 01""#),
        ("os.date('!%U %W', 1735689600 + 4 * 86400)", r#""01 00""#),
        (
            "os.date('!*t', 1751371200)",
            r#"{"day":1,"hour":12,"isdst":false,"min":0,"month":7,"sec":0,"wday":3,"yday":182,"year":2025}"#,
        ),
        ("os.date('!%H', 3599.9)", r#""00""#),
        ("pcall(os.date, '%Ez')", "false"),
        ("pcall(os.date, '%')", "false"),
        ("pcall(os.date, '!%H', 1e300)", "false"),
        ("pcall(os.time, {year = 2025})", "false"),
        ("pcall(os.time, {year = 1 << 62, month = 1 << 62, day = 1 << 62})", "false"),
        ("time.format(0)", r#""1970-01-01T00:00:00Z""#),
        ("time.format(1751371200, '%H:%M %Z', 'Asia/Shanghai')", r#""20:00 CST""#),
        ("time.format(1751371200, '%H:%M %z', 'Europe/Berlin')", r#""14:00 +0200""#),
        ("time.format(1751371200, nil, 'Asia/Kolkata')", r#""2025-07-01T17:30:00+05:30""#),
        ("time.parse('2025-07-01T12:00:00Z')", "1751371200"),
        ("time.parse('2025-07-01T12:00:00.5+02:00')", "1751364000.5"),
        ("time.parse('2025-07-01 20:00', '%Y-%m-%d %H:%M', 'Asia/Shanghai')", "1751371200"),
        ("time.parse('2025-07-01', '%Y-%m-%d', 'UTC')", "1751328000"),
        ("time.parse('x')", "null"),
        ("time.parse('2025-07-01T12:00:00', nil, 'Asia/Shanghai')", "1751342400"),
        ("pcall(time.format, 0, nil, 'No/Zone')", "false"),
        ("pcall(time.format, 0, nil, '../../etc/passwd')", "false"),
        ("time.now() - now() <= 1 and time.now_ms() - now_ms() <= 100", "true"),
    ]);
}

#[test]
fn random_values_are_in_their_ranges() {
    check(&[
        ("#uuid() == 36 and uuid():sub(15, 15) == '4' and uuid() ~= generate_uuid()", "true"),
        (
            "(function() for _ = 1, 1000 do local x = math.random() if x < 0 or x >= 1 then return x end end return true end)()",
            "true",
        ),
        (
            "(function() local seen = {} for _ = 1, 1000 do seen[math.random(3)] = true end return seen end)()",
            "[true,true,true]",
        ),
        (
            "(function() for _ = 1, 1000 do local x = math.random(-5, 5) if x < -5 or x > 5 then return x end end return true end)()",
            "true",
        ),
        ("math.type(math.random(math.mininteger, math.maxinteger))", r#""integer""#),
        ("pcall(math.random, 2, 1)", "false"),
        ("pcall(math.random, 0.5)", "false"),
    ]);
}

#[test]
fn what_is_decoded_is_encoded_as_it_was() {
    for text in [
        "null",
        "[]",
        "{}",
        r#"{"a":null,"b":[],"c":{},"d":[null,{"e":null}]}"#,
        r#"{"a":1,"b":1.0,"c":-0.5,"d":9223372036854775807}"#,
        r#"{"ids":[18446744073709551615,1,9223372036854775808],"n":18446744073709551614}"#,
        r#"{"1":"a","2":null}"#,
    ] {
        check(&[(&format!("json.encode(json.decode('{text}')) == '{text}'"), "true")]);
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(json::normalised(&value).to_string(), text);
    }
    check(&[
        // Nulls are no members.
        (
            "(function() local n = 0 for _ in pairs(json.decode('{\"a\":null}')) do n = n + 1 end return n end)()",
            "0",
        ),
        ("json.decode('{\"a\":null}').a == nil", "true"),
        (
            "(function() local t = json.decode('{\"a\":null,\"b\":1}') t.a = 2 t.b = nil return t end)()",
            r#"{"a":2}"#,
        ),
        ("getmetatable(json.decode('{\"a\":null}'))", "null"),
        // A large integer that is moved or changed is text.
        (
            "(function() local t = json.decode('{\"a\":18446744073709551615}') return {b = t.a} end)()",
            r#"{"b":"18446744073709551615"}"#,
        ),
        (
            "(function() local t = json.decode('{\"a\":18446744073709551615}') t.a = 'x' return t end)()",
            r#"{"a":"x"}"#,
        ),
        ("json.decode('{\"a\":18446744073709551615}').a + 0 > 1e19", "true"),
        (
            "(function() local t = json.decode('[18446744073709551615]') table.remove(t) return t end)()",
            "[]",
        ),
        (
            "json.encode({z = 1, a = 2, m = {b = 1, a = 2}}):gsub('\"', '')",
            "\"{a:2,m:{a:2,b:1},z:1}\"",
        ),
    ]);
}

/// A call whose globals are JSON.
#[derive(Clone)]
struct Given(Value);

impl Job for Given {
    type Answer = Value;
    type Owned = Self;

    fn globals(&self, globals: &Globals<'_>) -> mlua::Result<()> {
        for (name, value) in self.0.as_object().unwrap() {
            let value = json::to_lua(globals.lua, value)?;
            if name == "error" {
                globals.callable(value.as_table().unwrap(), "error")?;
            }
            globals.table.raw_set(name.as_str(), value)?;
        }
        Ok(())
    }

    fn answer(&self, returned: mlua::Value) -> Result<Value, String> {
        json::from_lua(&returned, 1 << 20)
    }

    fn own(&self) -> Self {
        self.clone()
    }
}

#[test]
fn a_body_comes_back_as_it_was() {
    let body = json!({
        "model": "m", "temperature": 1.0, "stop": null, "tools": [], "metadata": {},
        "seed": 18_446_744_073_709_551_615_u64, "messages": [{"role": "user", "name": null, "content": [null, 1.5]}],
    });
    let run = |text: &str| {
        let script = Script::compile("test", text, patient()).unwrap();
        script.run_here(&Given(json!({"request": {"body": body}}))).0.unwrap()
    };
    let normalised = json::normalised(&body);
    assert_eq!(normalised, body);
    assert_eq!(run("return request.body").to_string(), normalised.to_string());
    let changed = run("request.body.model = 'x' return request.body");
    assert_eq!(changed["model"], "x");
    assert_eq!(changed["stop"], Value::Null);
    assert!(changed.as_object().unwrap().contains_key("stop"));
    assert_eq!(changed["messages"].to_string(), normalised["messages"].to_string());
}

#[test]
fn a_global_may_have_the_name_of_a_function() {
    let given = Given(json!({"error": {"type": "timeout", "status_code": 504}}));
    let run = |text: &str| Script::compile("test", text, patient()).unwrap().run_here(&given).0;
    assert_eq!(run("return error.status_code").unwrap(), 504);
    assert_eq!(run("error(error.type)"), Err(Failure::Error("test:1: timeout".to_owned())));
    assert_eq!(run("\nerror('x', 0)"), Err(Failure::Error("x".to_owned())));
    assert_eq!(run("return {pcall(error, 'x')}").unwrap().to_string(), r#"[false,"x"]"#);
}

#[test]
fn lines_have_levels() {
    let text = "log('a') log.info('b', 1) log.warn('c') log.error('d') return pcall(function() log.x = 1 end)";
    let (result, account) = Script::compile("test", text, patient()).unwrap().run_here(&Plain);
    assert_eq!(result.unwrap(), false);
    let lines: Vec<_> = account.log.iter().map(|line| (line.level, line.text.as_str())).collect();
    let (info, warn, error) = (log::Level::Info, log::Level::Warn, log::Level::Error);
    assert_eq!(lines, [(info, "a"), (info, "b\u{20}1"), (warn, "c"), (error, "d")]);
}

#[test]
fn errors_of_words_tell_the_line_and_are_strings() {
    let text = "\nlocal x = 1\nreturn store.incr('k', 1, -1)";
    let why = "test:3: store: a time to live is from 0.001 to 31622400 seconds";
    assert_eq!(ask(text), Err(Failure::Error(why.to_owned())));
    let why = ask("\nreturn ('x'):gsub('x', function() return json.decode('{') end)").unwrap_err();
    assert!(why.to_string().starts_with("test:2: json.decode: "), "{why}");
    let caught = "local _, why = pcall(json.decode, '{') return 'caught: ' .. why";
    assert!(ask(caught).unwrap().as_str().unwrap().starts_with("caught: test:1: json.decode: "));
    let caught = "return {xpcall(json.decode, function(why) return 'caught: ' .. why end, '{')}";
    assert!(ask(caught).unwrap()[1].as_str().unwrap().starts_with("caught: test:1: json.decode: "));
    let kept = "local e = {} local _, why = pcall(error, e) return {why == e, select(2, pcall(error, json.null)) == json.null}";
    assert_eq!(ask(kept).unwrap(), json!([true, true]));
}

/// Scripts that would run or grow for ever, or that break a word with a wrong argument. All end with an
/// error, and only they.
const HOSTILE: [&str; 38] = [
    "local s = ('x'):rep(8000000) while true do hash.sha256(s) end",
    "local s = ('x'):rep(8000000) while true do hash.md5(s) end",
    "local s = ('x'):rep(8000000) while true do pcall(hash.hmac_sha256, s, s) end",
    "hash.sha256(('x'):rep(64 << 20))",
    "local s = ('x'):rep(1000000) while true do hash.base64_encode(s) hash.base64_decode(s) hash.hex(s) end",
    "return hash.hex(('x'):rep(5000000))",
    "return string_utils.split(('a,'):rep(2000000), ',')",
    "while true do string_utils.split(('a '):rep(100000)) end",
    "while true do string_utils.upper(('ß'):rep(500000)) end",
    "local s = ('ab'):rep(2000000) while true do string_utils.contains(s, s .. 'c') end",
    "string_utils.join(setmetatable({}, {__len = function() return 1 << 60 end}))",
    "return string_utils.split('a', '')",
    "return string_utils.split('a', ',', -1)",
    "return string_utils.split({}, ',')",
    "return string_utils.upper('\\xff')",
    "while true do time.format(0, ('%c'):rep(400)) end",
    "return time.format(0, ('%c'):rep(1000000))",
    "return time.format({})",
    "return time.format(0 / 0)",
    "return time.format(0, '%Q')",
    "return time.format(0, '\\xff')",
    "return time.parse(('1'):rep(2000), ('%Y'):rep(2000))",
    "while true do time.parse('2025-01-01', '%Y-%m-%d') end",
    "return os.time({year = {}, month = 1, day = 1})",
    "return os.time(setmetatable({}, {__index = function() return 1 end}))",
    "return store.set('k', ('x'):rep(70000))",
    "return store.set(('k'):rep(1000), 1)",
    "return store.set('', 1)",
    "return store.set('k', function() end)",
    "return store.set('k', 1, -1)",
    "return store.set('k', 1, 0 / 0)",
    "local t = {} t.t = t store.set('k', t)",
    "local t = {} for i = 1, 40 do t = {t, t} end store.set('k', t)",
    "local i = 0 while true do i = i + 1 store.set('k' .. i, 1) end",
    "while true do store.incr('n') end",
    "store.set('s', 'x') return store.incr('s')",
    "while true do log.error(('x'):rep(100000)) end",
    "while true do uuid() math.random() end",
];

#[test]
fn hostile_uses_of_words_end() {
    for text in HOSTILE {
        let began = Instant::now();
        let result = ask(text);
        let took = began.elapsed();
        assert!(result.is_err(), "{text}: {result:?}");
        assert!(took < Duration::from_secs(5), "{text}: {took:?}");
        assert_eq!(ask("return hash.md5('')").unwrap(), "d41d8cd98f00b204e9800998ecf8427e");
    }
}

#[test]
fn words_cannot_be_changed() {
    for text in [
        "store.get = 1",
        "hash.md5 = 1",
        "rawset(hash, 'x', 1)",
        "env.X = 1",
        "rawset(env, 'HOME', 1)",
        "log.info = 1",
        "rawset(log, 'x', 1)",
        "http.get = 1",
        "setmetatable(time, nil)",
        "setmetatable(log, {})",
    ] {
        assert!(matches!(ask(text), Err(Failure::Error(_))), "{text}");
    }
    let same = "return {env.HOME == nil, env.X == nil, log.x == nil, hash.x == nil, env[1] == nil}";
    assert_eq!(ask(same).unwrap(), json!(vec![true; 5]));
}
