//! Tests of what scripts can do, and of attempts to break out of the limits.

use std::time::{Duration, Instant};

use mlua::{Lua, Value};

use super::{Failure, Globals, Job, Limits, Script, json};

/// A call without globals whose answer is JSON.
#[derive(Clone)]
pub struct Plain;

impl Job for Plain {
    type Answer = serde_json::Value;
    type Owned = Self;

    fn globals(&self, globals: &Globals<'_>) -> mlua::Result<()> {
        let headers = globals.lua.create_table()?;
        headers.raw_set("X-A", "a")?;
        headers.set_metatable(Some(globals.headers.clone()))?;
        globals.table.raw_set("headers", headers)?;
        globals.table.raw_set("api_key", "sk-a")
    }

    fn answer(&self, returned: Value) -> Result<serde_json::Value, String> {
        json::from_lua(&returned, 1 << 20)
    }

    fn own(&self) -> Self {
        Self
    }
}

pub fn ask(text: &str) -> Result<serde_json::Value, Failure> {
    let script =
        Script::compile("test", text, Limits::default()).unwrap_or_else(|e| panic!("{text}: {e}"));
    script.run_here(&Plain).0
}

#[test]
fn what_a_script_may_say() {
    for (text, expected) in [
        ("return 1 + 1", "2"),
        ("return nil", "null"),
        ("return", "null"),
        ("", "null"),
        ("-- only a comment", "null"),
        ("return api_key", "\"sk-a\""),
        ("local t = {3, 1, 2} table.sort(t) return t", "[1,2,3]"),
        ("local t = {3, 1, 2} table.sort(t, function(a, b) return a > b end) return t", "[3,2,1]"),
        ("local t = {1, 2, 3} return {table.remove(t, 1), table.remove(t), #t}", "[1,3,1]"),
        ("local t = {} table.insert(t, 'b') table.insert(t, 1, 'a') return t", "[\"a\",\"b\"]"),
        ("return table.concat({1, 'a', 2.5}, '-')", "\"1-a-2.5\""),
        ("return {table.unpack({1, 2, 3}, 2)}", "[2,3]"),
        ("return {unpack({1, 2})}", "[1,2]"),
        ("return table.move({1, 2, 3}, 1, 3, 2)", "[1,1,2,3]"),
        ("return table.pack(1, 2).n", "2"),
        ("return ('abc'):upper() .. string.rep('x', 3, ',')", "\"ABCx,x,x\""),
        ("return {('key=val'):match('(%w+)=(%w+)')}", "[\"key\",\"val\"]"),
        ("return {('hello'):find('l+')}", "[3,4]"),
        ("return {('a.b'):find('.', 1, true)}", "[2,2]"),
        ("return {('abc'):gsub('%w', '%0%0')}", "[\"aabbcc\",3]"),
        ("return (('abc'):gsub('b', {b = 'x'}))", "\"axc\""),
        ("return (('abc'):gsub('.', function(c) if c == 'a' then return 'y' end end))", "\"ybc\""),
        (
            "local t = {} for w in ('a b c'):gmatch('%a') do t[#t+1] = w end return t",
            "[\"a\",\"b\",\"c\"]",
        ),
        (
            "local t = {} for k, v in ('a=1,b=2'):gmatch('(%w)=(%w)') do t[k] = v end return t.b",
            "\"2\"",
        ),
        ("return json.encode({a = {1, 2}, b = json.null})", "\"{\\\"a\\\":[1,2],\\\"b\\\":null}\""),
        (
            "return json.decode('{\"c\":null,\"a\":[1,{\"b\":2.5}]}')",
            "{\"a\":[1,{\"b\":2.5}],\"c\":null}",
        ),
        ("return math.floor(2.7) + math.max(1, 5) + math.pow(2, 2)", "11.0"),
        (
            "return type(now()) .. type(now_ms()) .. type(os.time()) .. type(os.date())",
            "\"numbernumbernumberstring\"",
        ),
        ("return {pcall(error, 'x')}", "[false,\"x\"]"),
        ("return {xpcall(error, function(e) return e .. '!' end, 'x')}", "[false,\"x!\"]"),
        ("return {xpcall(function(a) return a end, error, 1)}", "[true,1]"),
        ("return tostring(12) .. tonumber('3') .. select('#', 1, 2)", "\"1232\""),
        (
            "local t = setmetatable({}, {__index = function(_, k) return k end}) return t.foo",
            "\"foo\"",
        ),
        ("return string.format('%05.1f %s %d', 3.14159, 'x', 7)", "\"003.1 x 7\""),
        ("余额 = 1 return _ENV['余额']", "1"),
    ] {
        // Names of Lua are ASCII: the last line is not a script.
        if text.starts_with('余') {
            assert!(Script::compile("test", text, Limits::default()).is_err());
            continue;
        }
        let got = ask(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(got.to_string(), expected, "{text}");
    }
}

#[test]
fn what_is_not_there() {
    for name in [
        "io",
        "package",
        "load",
        "loadstring",
        "loadfile",
        "dofile",
        "debug",
        "coroutine",
        "collectgarbage",
        "print",
        "os.execute",
        "os.exit",
        "os.getenv",
        "os.remove",
        "os.rename",
        "os.tmpname",
        "os.setlocale",
        "string.dump",
        "math.randomseed",
        "_G",
        "utf8",
    ] {
        assert_eq!(ask(&format!("return {name} == nil")).unwrap(), true, "{name}");
    }
}

#[test]
fn nothing_is_left_behind() {
    for leave in [
        "left = 1",
        "_ENV.left = 1",
        "rawset(_ENV, 'left', 1)",
        "string.left = 1",
        "string.find = nil",
        "rawset(string, 'left', 1)",
        "table.insert(string, 1)",
        "getmetatable('').__index.left = 1",
        "getmetatable(string).__index.left = 1",
        "getmetatable(_ENV).__index.left = 1",
        "setmetatable(_ENV, nil).left = 1",
        "setmetatable(string, {__index = {left = 1}})",
        "for k, v in pairs(string) do v = nil end string.find = 1",
        "os.left = 1 math.left = 1 json.left = 1",
        "string.format = function() return 1 end",
        "getmetatable(headers).__index = function() return 'left' end",
        "getmetatable(headers).left = 1",
        "setmetatable(headers, nil)",
        "rawset(headers, 'left', 1)",
        "local f = string.find local ok = pcall(rawset, f, 'left', 1)",
    ] {
        // Most of these fail, which is as good.
        ask(leave).ok();
        let got = ask(
            "return {left == nil, string.left == nil, ('').left == nil, os.left == nil, \
             math.left == nil, json.left == nil, string.find('abc', 'b') == 2, string.format('%d', 7) == '7', \
             headers['x-nothing'] == nil, headers.left == nil}",
        );
        assert_eq!(got.unwrap(), serde_json::json!(vec![true; 10]), "{leave}");
    }
}

#[test]
fn errors_tell_the_line_and_no_more() {
    let error = |text: &str| match ask(text) {
        Err(Failure::Error(why)) => why,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(
        error("\nlocal x = nil + 1"),
        "test:2: attempt to perform arithmetic on a nil value"
    );
    assert_eq!(error("error('no')"), "test:1: no");
    assert!(error("return data.balance.x").contains("test:1: attempt to index a nil value"));
    assert!(error("error(('x'):rep(100000))").len() < 600);
    assert_eq!(error("error('a\\nb', 0)"), "a b");
    assert!(error("error({})").len() < 200);
    assert!(matches!(ask("return function() end"), Err(Failure::Answer(_))));
    assert!(matches!(ask("local t = {} t.t = t return t"), Err(Failure::Answer(_))));
    let why = Script::compile("auth.lua", "return 1 +", Limits::default()).unwrap_err();
    assert!(why.starts_with("auth.lua:1: unexpected symbol"), "{why}");
    // What is a chunk only together with what is put around it is no script.
    for text in ["end return 1, function()", "return 1 end do", "end"] {
        assert!(Script::compile("test", text, Limits::default()).is_err(), "{text}");
    }
}

/// Scripts that would run or grow for ever. All end, and only they.
const HOSTILE: [&str; 44] = [
    "while true do end",
    "repeat until false",
    "for i = 1, math.huge do end",
    "goto a ::a:: goto a",
    "local function f() return f() end return f()",
    "local function f() f() end f()",
    "local s = 'x' while true do s = s .. s end",
    "return ('x'):rep(1 << 40)",
    "local t = {} for i = 1, math.huge do t[i] = i end",
    "while true do pcall(function() while true do end end) end",
    "while true do pcall(pcall, pcall, function() while true do end end) end",
    "return pcall(function() while true do end end)",
    "xpcall(function() while true do end end, function() while true do end end)",
    "local function f() pcall(f) pcall(f) end f()",
    "return ('a'):rep(30000):find('a*a*a*a*a*b')",
    "return ('a'):rep(300000):find(('a?'):rep(150) .. 'b')",
    "return ('a'):rep(2000000):match('.-.-.-.-b')",
    "return (('a'):rep(1000000):gsub('a', ('b'):rep(1000000)))",
    "return (('a'):rep(1000000):gsub('a+', ('%0'):rep(1000000)))",
    "for w in ('a'):rep(1000000):gmatch('a*a*b') do end",
    "table.concat(setmetatable({}, {__index = table.concat}), '', 1, 1 << 60)",
    "table.move({}, 1, math.maxinteger - 1, 2)",
    "table.insert(setmetatable({}, {__len = function() return 1 << 60 end}), 1, 0)",
    "local a = ('x'):rep(1000000) local b, t = a .. 'y', {} for i = 1, 200000 do t[i] = i % 2 == 0 and a .. '' or b end table.sort(t)",
    "local t = {} for i = 1, 60 do t = {t, t} end return json.encode(t)",
    "return json.decode(('['):rep(1000000))",
    "return json.decode('[' .. ('1,'):rep(2000000) .. '1]')",
    "local s = 'x' for i = 1, 30 do s = string.format('%s%s', s, s) end",
    "local t = setmetatable({}, {__index = function(t, k) return t[k] end}) return t.x",
    "local m = {} local t = setmetatable({}, m) m.__call = t return t()",
    "local t = setmetatable({}, {}) getmetatable(t).__call = t t()",
    "local a = ('\\0'):rep(4500000) local b = a .. 'x' while true do local c = a < b local d = a < b local e = a < b end",
    "local s = ('x'):rep(4000000) local t = {} for i = 1, 90 do t[i] = s end for i = 1, 1000000 do string.format(('%.1s'):rep(90), unpack(t)) end",
    "local t = setmetatable({}, {__tostring = json.encode}) for i = 1, 1e9 do pcall(string.format, ('%s'):rep(40), t, t, t, t) end",
    "while true do json.decode('{' .. ('\"a\":1,'):rep(100000) .. '\"a\":1}') end",
    "local w = setmetatable({}, {__mode = 'k'})",
    "while true do os.date(('%%'):rep(1500000)) end",
    "while true do pcall(json.encode, ('\\1'):rep(5000000)) end",
    "while true do string.format('%q', ('\\0'):rep(3000000)) end",
    "local s = ('0'):rep(4500000) while true do local a = s + 0 end",
    "local s = ('x'):rep(4000000) while true do log(s, s, s, s, s, s, s, s) end",
    "local function f(n) return (('a'):rep(1000000):gsub('a+', function(s) return f(n) end)) end return f(1)",
    "local s = ('ab'):rep(2000000) while true do s:find(s .. 'c', 1, true) end",
    "local t = setmetatable({}, {__close = function() while true do end end}) local x <close> = t",
];

#[test]
fn hostile_scripts_end() {
    for text in HOSTILE {
        let began = Instant::now();
        let result = ask(text);
        let took = began.elapsed();
        assert!(result.is_err(), "{text}: {result:?}");
        // Far above the limit of 100 ms, and far below for ever: no machine is so slow.
        assert!(took < Duration::from_secs(5), "{text}: {took:?}");
        assert_eq!(ask("return ('abc'):match('b')").unwrap(), "b", "after {text}");
    }
}

/// Scripts that C would never finish, and that have a plain answer.
#[test]
fn nothing_is_done_quickly() {
    assert_eq!(ask("return (''):rep(1 << 62)").unwrap(), "");
    assert_eq!(ask("return #(''):rep(1 << 62, '')").unwrap(), 0);
}

#[test]
fn finalizers_cannot_be_set() {
    let why = ask("setmetatable({}, {__gc = function() while true do end end})").unwrap_err();
    assert!(matches!(why, Failure::Error(why) if why.contains("__gc")));
    let ask = |text: &str| Script::compile("test", text, patient()).unwrap().run_here(&Plain).0;
    // Set later it is never called.
    ask("local m = {} for i = 1, 1000 do setmetatable({}, m) end m.__gc = function() while true do end end")
        .unwrap();
    let kept = "local C = {} C.__index = C function C:name() return 'c' end
        local o = setmetatable({}, C) return {o:name(), getmetatable(o) == C}";
    assert_eq!(ask(kept).unwrap(), serde_json::json!(["c", true]));
    for _ in 0..100 {
        ask("local t = {} for i = 1, 1000 do t[i] = {} end").unwrap();
    }
}

#[test]
fn the_log_is_bounded() {
    let script =
        Script::compile("test", "for i = 1, 1000 do log('line\\n' .. i, 2) end", Limits::default());
    let (result, account) = script.unwrap().run_here(&Plain);
    assert!(result.is_ok());
    assert_eq!(account.log.len(), 11);
    assert_eq!(account.log[0].text, "line 1\u{20}2");
}

/// Time enough for a slow machine: these are not about the limit.
pub fn patient() -> Limits {
    Limits::new(Duration::from_secs(10), 10 << 20)
}

/// What a script answers does not depend on where it runs.
#[tokio::test]
async fn a_trial_changes_no_decision() {
    for (text, expected) in [
        ("return {(pcall(string.rep, 'x', 2000000))}", "[true]"),
        ("return {not pcall(string.rep, 'x', 20000000)}", "[true]"),
        ("return #json.decode('[' .. ('1,'):rep(150000) .. '1]')", "150001"),
        ("local ok = pcall(function() for i = 1, 200000 do end end) return {ok}", "[true]"),
    ] {
        let script = std::sync::Arc::new(Script::compile("t", text, patient()).unwrap());
        assert_eq!(script.run_here(&Plain).0.unwrap().to_string(), expected, "{text}");
        for _ in 0..5 {
            assert_eq!(script.run(&Plain).await.unwrap().to_string(), expected, "{text}");
        }
    }
}

#[tokio::test]
async fn slow_scripts_leave_the_thread_of_the_request() {
    let text = "local n = 0 for i = 1, 400000 do n = n + i end return n";
    let script = std::sync::Arc::new(Script::compile("slow", text, patient()).unwrap());
    for _ in 0..5 {
        assert_eq!(script.run(&Plain).await.unwrap(), 80_000_200_000_i64);
    }
    let endless = std::sync::Arc::new(
        Script::compile("endless", "while true do end", Limits::default()).unwrap(),
    );
    for _ in 0..5 {
        assert_eq!(endless.run(&Plain).await, Err(Failure::Time(Limits::default().time)));
    }
}

#[test]
fn lists_stay_lists_and_numbers_keep_their_digits() {
    for (text, expected) in [
        ("return json.decode('[]')", "[]"),
        ("return json.decode('{}')", "{}"),
        ("return {}", "{}"),
        (
            "return json.decode('{\"a\":[],\"b\":{},\"c\":[[],{},[[]]]}')",
            "{\"a\":[],\"b\":{},\"c\":[[],{},[[]]]}",
        ),
        ("return json.encode(json.decode('[[]]'))", "\"[[]]\""),
        // A list that was emptied is one still, and one that was given names is none.
        ("local t = json.decode('[1]') table.remove(t) return t", "[]"),
        ("local t = json.decode('[]') t[1] = 5 return t", "[5]"),
        ("local t = json.decode('[]') t.a = 5 return t", "{\"a\":5}"),
        ("return json.array({})", "[]"),
        ("return {tags = json.array({}), x = {}}", "{\"tags\":[],\"x\":{}}"),
        // To the script it is a table as any other.
        (
            "local t = json.decode('[]') return {getmetatable(t) == nil, #t, next(t) == nil, type(t)}",
            "[true,0,true,\"table\"]",
        ),
        (
            "local t = setmetatable(json.decode('[]'), {__index = function(_, k) return k end}) return {t.a, t[1]}",
            "[\"a\",1]",
        ),
        ("return json.decode('9223372036854775807')", "9223372036854775807"),
        ("return json.decode('-9223372036854775808')", "-9223372036854775808"),
        ("return json.decode('9223372036854775808')", "\"9223372036854775808\""),
        ("return json.decode('18446744073709551615')", "\"18446744073709551615\""),
        (
            "return json.decode('{\"id\":18446744073709551614}').id .. ''",
            "\"18446744073709551614\"",
        ),
        ("return tonumber(json.decode('18446744073709551615')) > 1e19", "true"),
        ("return json.decode('1.5')", "1.5"),
    ] {
        let got = ask(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(got.to_string(), expected, "{text}");
    }
}

/// What goes in and is not touched comes out as it was.
#[test]
fn what_is_not_touched_comes_out_as_it_was() {
    let lua = Lua::new();
    json::prepare(&lua).unwrap();
    for text in
        ["[]", "{}", "[[],{}]", "{\"a\":[],\"b\":[1,2.5,\"x\",true]}", "9223372036854775807", "-1"]
    {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let there = json::to_lua(&lua, &value).unwrap();
        assert_eq!(json::from_lua(&there, 1 << 20).unwrap(), value, "{text}");
    }
    let large = json::to_lua(&lua, &serde_json::json!(u64::MAX)).unwrap();
    assert_eq!(json::from_lua(&large, 1 << 20).unwrap(), "18446744073709551615");
}

#[test]
fn strings_are_repeated_as_lua_does() {
    for (call, expected) in [
        ("('ab'):rep(3)", "ababab"),
        ("('ab'):rep(3, '-')", "ab-ab-ab"),
        ("('ab'):rep(1, '-')", "ab"),
        ("('ab'):rep(2, '-')", "ab-ab"),
        ("('ab'):rep(7, '---')", "ab---ab---ab---ab---ab---ab---ab"),
        ("('ab'):rep(0, '-')", ""),
        ("('ab'):rep(-5)", ""),
        ("(''):rep(4, '-')", "---"),
        ("(''):rep(1, '-')", ""),
        ("string.rep(12, 2)", "1212"),
        ("string.rep('x', 3.0)", "xxx"),
        ("string.rep('x', '2')", "xx"),
        ("string.rep('x', math.mininteger)", ""),
    ] {
        assert_eq!(ask(&format!("return {call}")).unwrap(), expected, "{call}");
    }
    for (length, times, separator) in [(1, 1000, 0), (1, 4097, 1), (3, 333, 2), (100, 77, 5)] {
        let (text, separator) = ("x".repeat(length), "-".repeat(separator));
        let expected = vec![text.as_str(); times].join(&separator);
        let call = format!("return ('{text}'):rep({times}, '{separator}')");
        assert_eq!(ask(&call).unwrap(), expected.as_str(), "{length} {times}");
    }
    for wrong in ["string.rep()", "string.rep('x')", "string.rep({}, 2)", "string.rep('x', 1.5)"] {
        assert!(matches!(ask(&format!("return {wrong}")), Err(Failure::Error(_))), "{wrong}");
    }
}

/// What one call would make is known before it is made: on a thread that serves requests nothing is
/// begun that is large, and nowhere what the limit does not allow.
#[test]
fn what_is_too_large_is_not_begun() {
    let run =
        |text: &str, limits: Limits| Script::compile("t", text, limits).unwrap().run_here(&Plain);
    let large = Limits::new(Duration::from_secs(60), 1 << 30);
    let brief = Limits { brief_memory: Some(1 << 20), ..large };
    for text in [
        "return #('x'):rep(1 << 23)",
        "return #('x'):rep(1 << 22, ',')",
        "return #(('x'):rep(1 << 10)):rep(1 << 13)",
        "local s = ('x'):rep(1 << 19) return #s:rep(4)",
    ] {
        let (result, account) = run(text, brief);
        assert_eq!(result, Err(Failure::Time(large.time)), "{text}");
        assert!(account.memory < 2 << 20, "{text}: {}", account.memory);
        assert!(run(text, large).0.is_ok(), "{text}");
        let small = Limits::new(large.time, 1 << 20);
        assert_eq!(run(text, small).0, Err(Failure::Memory(1 << 20)), "{text}");
    }
    // However much a script may have, one call makes no more than this.
    assert_eq!(run("return #('x'):rep(1 << 28)", large).0, Err(Failure::Memory(1 << 30)));
    // Walks over a whole text check the time.
    let short = Limits::new(Duration::from_millis(50), 64 << 20);
    for walk in ["upper", "lower", "reverse", "sub", "byte"] {
        let text = format!("local s = ('x'):rep(1 << 24) while true do s:{walk}(1, 1) end");
        assert!(run(&text, short).0.is_err(), "{walk}");
    }
}

/// Counts how many runs are under way.
#[derive(Clone)]
struct Counted(
    std::sync::Arc<std::sync::atomic::AtomicUsize>,
    std::sync::Arc<std::sync::atomic::AtomicUsize>,
);

impl Job for Counted {
    type Answer = ();
    type Owned = Self;

    fn globals(&self, _: &Globals<'_>) -> mlua::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let now = self.0.fetch_add(1, SeqCst) + 1;
        self.1.fetch_max(now, SeqCst);
        Ok(())
    }

    fn answer(&self, _: Value) -> Result<(), String> {
        Ok(())
    }

    fn own(&self) -> Self {
        self.clone()
    }
}

/// However many scripts work for long, half of the processors are left to others.
#[tokio::test]
async fn all_scripts_together_are_bounded() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    let (now, most) =
        (std::sync::Arc::new(AtomicUsize::new(0)), std::sync::Arc::new(AtomicUsize::new(0)));
    // Large scripts are never tried on this thread, so that each run has a place.
    let limits = Limits::new(Duration::from_millis(20), 1 << 30);
    let scripts = (0..10).map(|n| Script::compile(&format!("s{n}"), "while true do end", limits));
    let scripts: Vec<_> = scripts.map(|script| std::sync::Arc::new(script.unwrap())).collect();
    let runs = scripts.iter().flat_map(|script| (0..6).map(move |_| script)).map(async |script| {
        let job = Counted(std::sync::Arc::clone(&now), std::sync::Arc::clone(&most));
        let result = script.run(&job).await;
        if result == Err(Failure::Busy) {
            return;
        }
        assert_eq!(result, Err(Failure::Time(limits.time)));
        // It ended before its answer came here: until then it counts as under way.
        now.fetch_sub(1, SeqCst);
    });
    futures::future::join_all(runs).await;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = most.load(SeqCst);
    // One that has ended may still be counted when the next one begins.
    assert!(most <= 2 * (cores / 2).max(1) + 1, "{most} at the same time");
    assert_eq!(now.load(SeqCst), 0);
}

/// Globals are shared by calls that set none: no call finds what another has set or removed.
#[test]
fn globals_are_as_at_first_in_every_call() {
    let compile = |text| Script::compile("test", text, Limits::default()).unwrap();
    let look = compile(
        "return {left == nil, api_key == 'sk-a', headers['x-a'] == 'a', tostring(1) == '1'}",
    );
    let fresh = serde_json::json!(vec![true; 4]);
    for (text, expected) in [
        ("left = 1 return left", serde_json::json!(1)),
        ("left = 1 left = nil return {left == nil}", serde_json::json!([true])),
        ("api_key = nil return {api_key == nil}", serde_json::json!([true])),
        (
            "api_key = nil headers = nil return {api_key == nil, headers == nil}",
            serde_json::json!([true, true]),
        ),
        (
            "api_key = 'x' left = headers headers = 2 return {api_key, left['x-a'], headers}",
            serde_json::json!(["x", "a", 2]),
        ),
        ("tostring = 1 return tostring", serde_json::json!(1)),
        ("tostring = 1 tostring = nil return tostring(2)", serde_json::json!("2")),
        ("function left() return api_key end return left()", serde_json::json!("sk-a")),
        ("if api_key == 'sk-a' then left = 1 end error('x')", serde_json::Value::Null),
        ("pcall(function() left = 1 error('x') end) return left", serde_json::json!(1)),
    ] {
        let script = compile(text);
        for _ in 0..3 {
            let result = script.run_here(&Plain).0;
            assert_eq!(result.unwrap_or_default(), expected, "{text}");
            assert_eq!(look.run_here(&Plain).0.unwrap(), fresh, "after {text}");
        }
    }
}

/// Keys that are numbers are no names, though Lua writes them alike.
#[test]
fn numbers_are_no_names_of_objects() {
    for text in [
        "return {[5] = 1}",
        "return {[1.5] = 1}",
        "return {[math.huge] = 1}",
        "return {[-1] = 1, a = 2}",
        "return {['5'] = 1, [5] = 2}",
        "return {[true] = 1}",
        "return {['\\xff'] = 1}",
    ] {
        assert!(matches!(ask(text), Err(Failure::Answer(_))), "{text}");
    }
    for (text, expected) in [
        ("return {['5'] = 1}", "{\"5\":1}"),
        ("return {['inf'] = 1, ['-1'] = 2, name = 3}", "{\"-1\":2,\"inf\":1,\"name\":3}"),
    ] {
        assert_eq!(ask(text).unwrap().to_string(), expected, "{text}");
    }
}
