//! Tests of what reaches beyond a script: modules, the store, HTTP, and calls that are started again.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Failure, HttpObserver, HttpSettings, Library, Limits, Modules, Origin, Scope, Script,
    ScriptStore, StoreSettings,
    tests::{Plain, patient},
};
use crate::store::Stores;

fn script(text: &str, library: &Arc<Library>, stage: &'static str) -> Arc<Script> {
    let scope = Scope::of_stage(stage);
    Arc::new(Script::compile_with("test", text, patient(), library, scope).unwrap())
}

fn ask(text: &str, library: &Arc<Library>) -> Result<serde_json::Value, Failure> {
    script(text, library, "on_request").run_here(&Plain).0
}

fn with_http(hosts: &[String]) -> Library {
    let hosts = hosts.iter().map(|host| Origin::parse(host).unwrap()).collect();
    let http = HttpSettings {
        hosts,
        timeout: Duration::from_millis(400),
        max_response: 1000,
        ..HttpSettings::default()
    };
    Library::new([].into(), Modules::default(), StoreSettings::default(), http)
}

fn with_modules(files: &[(&str, &str)]) -> Arc<Library> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let loaded = Modules::load(folder.path());
    assert_eq!(loaded.problems, Vec::<String>::new());
    let (store, http) = (StoreSettings::default(), HttpSettings::default());
    Arc::new(Library::new(
        [("REGION".to_owned(), "eu".to_owned())].into(),
        loaded.modules,
        store,
        http,
    ))
}

#[test]
fn modules_are_loaded_once_in_each_call() {
    let library = with_modules(&[
        ("counter.lua", "local n = 0 return {next = function() n = n + 1 return n end}"),
        ("deep/names.lua", "local c = require('counter') return {n = c.next(), name = ...}"),
        (
            "sees.lua",
            "return {api_key == nil, headers == nil, type(string), type(http), env.REGION}",
        ),
        ("sets.lua", "leaks = 1 string_utils = nil"),
        ("a.lua", "return require('b')"),
        ("b.lua", "return require('a')"),
        ("fails.lua", "\nerror('no')"),
        ("endless.lua", "while true do end"),
    ]);
    let twice = "local a, b = require('counter'), require('deep.names') return {a.next(), b.n, b.name, a == require('counter')}";
    for _ in 0..3 {
        assert_eq!(ask(twice, &library).unwrap(), json!([2, 1, "deep.names", true]));
    }
    let sees = ask("return require('sees')", &library).unwrap();
    assert_eq!(sees, json!([true, true, "table", "table", "eu"]));
    let text = "return {require('sets'), leaks == nil, type(string_utils)}";
    assert_eq!(ask(text, &library).unwrap(), json!([true, true, "table"]));
    for (name, part) in [
        ("a", "requires itself"),
        ("none", "there is no module 'none'"),
        ("../a", "there is no module"),
        ("fails", "fails.lua:2: no"),
    ] {
        match ask(&format!("return require('{name}')"), &library) {
            Err(Failure::Error(why)) => assert!(why.contains(part), "{name}: {why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let brief = Limits::new(Duration::from_millis(50), 10 << 20);
    let text = "pcall(require, 'endless') while true do end";
    let endless = Script::compile_with("t", text, brief, &library, Scope::AUTH).unwrap();
    assert_eq!(endless.run_here(&Plain).0, Err(Failure::Time(brief.time)));
    assert_eq!(ask("return env.REGION", &library).unwrap(), "eu");
    assert!(ask("return require({})", &library).is_err());
}

#[test]
fn values_are_kept_in_the_store() {
    let library = Arc::default();
    for (text, expected) in [
        ("return store.get('x')", json!(null)),
        (
            "store.set('x', {a = {1, 'b'}, c = json.null}) return store.get('x')",
            json!({"a": [1, "b"], "c": null}),
        ),
        (
            "store.set('s', '5') return {store.get('s') == '5', store.get('s') == 5}",
            json!([true, false]),
        ),
        (
            "store.set('n', 5) return {store.incr('n'), store.incr('n', -2), store.get('n')}",
            json!([6, 4, 4]),
        ),
        ("store.set('b', false) return store.get('b') == false", json!(true)),
        ("store.set('x', nil) return store.get('x') == nil", json!(true)),
        (
            "return {store.delete('b'), store.delete('b'), store.expire('n', 60), store.expire('none', 60)}",
            json!([true, false, true, false]),
        ),
        ("return {store.incr('new', 3, 60), store.incr('new', 3, 60)}", json!([3, 6])),
    ] {
        assert_eq!(ask(text, &library).unwrap(), expected, "{text}");
    }
    // It outlives the library.
    let (stores, memory) = (Stores::default(), Arc::new(ScriptStore::default()));
    for n in 1..4 {
        let library = Arc::new(Library::default());
        library.connect(&stores, &memory, None);
        assert_eq!(ask("return store.incr('reloads')", &library).unwrap(), n);
    }
}

/// What is done on a serving thread is not done again elsewhere, whatever the order of a table is.
#[tokio::test]
async fn effects_are_not_repeated() {
    let library = Arc::new(Library::default());
    let text = "
        local names, seen = {}, {}
        for i = 1, 20 do names['name' .. i] = i end
        for name in pairs(names) do seen[#seen + 1] = store.incr(name) end
        local first, at, random = uuid(), now_ms(), math.random(1 << 50)
        store.set('first', first) store.set('at', at) store.set('random', random)
        for i = 1, 400000 do end
        return {seen, store.get('first') == first, store.get('at') == at, store.get('random') == random}";
    let moves = script(text, &library, "on_usage");
    let run = |n: i32| {
        let (moves, n) = (Arc::clone(&moves), n);
        async move {
            let answer = moves.run(&Plain).await.unwrap();
            assert_eq!(answer, json!([vec![n; 20], true, true, true]));
        }
    };
    for n in 1..7 {
        run(n).await;
    }
    let stats = moves.stats();
    assert!(stats.moved.load(Relaxed) >= 1);
    assert_eq!((stats.calls.load(Relaxed), stats.errors.load(Relaxed)), (6, 0));
}

/// A server that answers each request with this, after a while; the requests that it got.
fn server(answer: &'static str, after: Duration) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, requests) = (stream.unwrap(), Arc::clone(&requests));
            std::thread::spawn(move || {
                let (mut text, mut piece) = (String::new(), [0; 4096]);
                while !text.contains("\r\n\r\n") || text.contains("POST") && !text.contains("END") {
                    match stream.read(&mut piece) {
                        Ok(n) if n > 0 => text += &String::from_utf8_lossy(&piece[..n]),
                        _ => return,
                    }
                }
                requests.lock().unwrap().push(text);
                std::thread::sleep(after);
                stream.write_all(answer.as_bytes()).ok();
            });
        }
    });
    (origin, seen)
}

/// The threads that wait are counted in the process: tests that wait run one after the other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const FINE: &str =
    "HTTP/1.1 201 Created\r\nx-one: 1\r\ncontent-length: 8\r\nconnection: close\r\n\r\n{\"a\": 1}";

#[derive(Default)]
struct Seen(Mutex<Vec<(String, &'static str)>>);

impl HttpObserver for Seen {
    fn request(&self, host: &str, result: &'static str, _: Duration) {
        self.0.lock().unwrap().push((host.to_owned(), result));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_listed_hosts_only() {
    let _alone = ALONE.lock().await;
    let (origin, requests) = server(FINE, Duration::ZERO);
    let seen = Arc::new(Seen::default());
    let library = Arc::new(with_http(std::slice::from_ref(&origin)));
    let (stores, memory) = (Stores::default(), Arc::default());
    library.connect(&stores, &memory, Some(Arc::clone(&seen) as Arc<dyn HttpObserver>));
    let text = format!(
        "local r = http.post('{origin}/x', {{b = 'END', a = json.null}}, {{headers = {{['X-Mine'] = 7}}}})
         return {{r.status, r.headers['X-ONE'], json.decode(r.body).a}}"
    );
    let posts = script(&text, &library, "on_request");
    for _ in 0..5 {
        assert_eq!(posts.run(&Plain).await.unwrap(), json!([201, "1", 1]));
    }
    assert_eq!(seen.0.lock().unwrap()[..], vec![(origin.clone(), "2xx"); 5]);
    {
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), 5);
        let lower = requests[0].to_lowercase();
        assert!(lower.starts_with("post /x http/1.1\r\n"), "{lower}");
        assert!(
            lower.contains("x-mine: 7\r\n") && lower.contains("content-type: application/json")
        );
        assert!(requests[0].ends_with("{\"a\":null,\"b\":\"END\"}"), "{}", requests[0]);
    }
    for (call, part) in [
        ("http.get('http://127.0.0.1:1/')".to_owned(), "not in the configured list"),
        ("http.get('file:///etc/passwd')".to_owned(), "not in the configured list"),
        ("http.get({})".to_owned(), ""),
        ("http.get()".to_owned(), ""),
        ("http.request(1)".to_owned(), "options"),
        (
            format!("http.get('{origin}', {{headers = {{host = 'x'}}}})"),
            "belongs to the connection",
        ),
        (format!("http.get('{origin}', {{headers = {{x = {{}}}}}})"), "not text"),
        (format!("http.get('{origin}', {{timeout = -1}})"), "timeout"),
        (format!("http.post('{origin}', ('x'):rep(1100000))"), "too large"),
        (format!("http.request{{method = 'CONNECT', url = '{origin}'}}"), "method"),
    ] {
        match script(&format!("return {call}"), &library, "on_route").run(&Plain).await {
            Err(Failure::Error(why)) => assert!(why.contains(part), "{call}: {why}"),
            other => panic!("{call}: {other:?}"),
        }
    }
    assert_eq!(requests.lock().unwrap().len(), 5);
    // The word is absent in other stages, in their modules too.
    let absent = script("return http == nil", &library, "on_response");
    assert_eq!(absent.run(&Plain).await.unwrap(), true);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_bounded() {
    let _alone = ALONE.lock().await;
    const LARGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n";
    const MOVED: &str = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (slow, _) = server(FINE, Duration::from_secs(3));
    let (moved, _) = server(MOVED, Duration::ZERO);
    let (large, _) = server(LARGE, Duration::ZERO);
    let library = Arc::new(with_http(&[slow.clone(), moved.clone(), large.clone()]));
    let get =
        |origin: &str| script(&format!("return http.get('{origin}/').status"), &library, "on_auth");
    let began = Instant::now();
    assert!(
        matches!(get(&slow).run(&Plain).await, Err(Failure::Error(why)) if why.contains("no answer"))
    );
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(get(&moved).run(&Plain).await.unwrap(), 302);
    assert!(matches!(get(&large).run(&Plain).await, Err(Failure::Error(_))));
    // A failure can be caught.
    let text = format!(
        "local fine, why = pcall(http.get, '{slow}/') return {{fine, (why:gsub('%d+', 'N'))}}"
    );
    let caught = script(&text, &library, "on_auth").run(&Plain).await.unwrap();
    assert_eq!(caught, json!([false, "test:N: http: http://N.N.N.N:N: no answer within Nms"]));
}

/// Waiting is not the script's time, and it holds no permit: others run meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_script_delays_no_other() {
    let _alone = ALONE.lock().await;
    let (slow, requests) = server(FINE, Duration::from_millis(300));
    let library = Arc::new(with_http(std::slice::from_ref(&slow)));
    let limits = Limits::new(Duration::from_millis(100), 1 << 20);
    let text = format!("return http.get('{slow}/').status");
    let scope = Scope::of_stage("on_request");
    let waits = Arc::new(Script::compile_with("w", &text, limits, &library, scope).unwrap());
    let began = Instant::now();
    let waiting = futures::future::join_all((0..30).map(|_| waits.run(&Plain)));
    let text = "local n = 0 for i = 1, 400000 do n = n + 1 end return n";
    let works = script(text, &library, "on_usage");
    let working = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = Instant::now();
        assert_eq!(works.run(&Plain).await.unwrap(), 400_000);
        began.elapsed()
    };
    let (waited, worked) = futures::future::join(waiting, working).await;
    assert!(waited.iter().all(|status| *status == Ok(json!(201))), "{waited:?}");
    assert_eq!(requests.lock().unwrap().len(), 30);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(worked < Duration::from_millis(1500), "{worked:?}");
}

/// More than wait at all are rejected, and a dead host is not asked for ever.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_those_that_wait_is_bounded() {
    let _alone = ALONE.lock().await;
    let (slow, _) = server(FINE, Duration::from_millis(350));
    let library = Arc::new(with_http(std::slice::from_ref(&slow)));
    let waits = script(&format!("return http.get('{slow}/').status"), &library, "on_request");
    let runs = futures::future::join_all((0..200).map(|_| waits.run(&Plain))).await;
    let busy = runs.iter().filter(|run| **run == Err(Failure::Busy)).count();
    let other =
        runs.iter().filter(|run| !matches!(run, Err(Failure::Busy | Failure::Error(_)) | Ok(_)));
    assert_eq!(other.count(), 0, "{runs:?}");
    // They may also have waited one after the other.
    assert!(busy < 200, "{busy}");
}
