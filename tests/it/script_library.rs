//! What scripts reach beyond their own values: modules, the store, other servers.

use super::{
    scripts::with_script,
    support::{Gateway, servers::Redis, sim},
};

/// Counts each key twice and then asks for a status that shows the sums.
const COUNTS: &str = "
local sum = store.incr('calls:' .. api_key, 1, 60)
local list = store.get('list') or {}
list[#list + 1] = sum
store.set('list', list)
return {allow = false, message = json.encode(store.get('list')), status = 418}";

#[tokio::test]
async fn values_in_redis_are_those_of_all_replicas() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let text = with_script(&sim.url(), COUNTS)
        + &format!(
            "storage:\n  caches: [{{name: main, addr: \"{}\"}}]\nlua:\n  store: {{type: redis, storage: main, timeout: 5s}}\n",
            redis.address
        );
    let (one, two) = (Gateway::start(&text).await, Gateway::start(&text).await);
    for (gateway, list) in [(&one, "[1]"), (&two, "[1,2]"), (&one, "[1,2,3]")] {
        let answer = gateway.ask_as("sk-a").await;
        assert_eq!(answer.status, 418, "{list}");
        assert_eq!(answer.json()["error"]["message"], list);
    }
}

#[tokio::test]
async fn a_redis_that_is_away_is_an_error_that_can_be_caught() {
    let sim = sim().await;
    let script = "
local fine, why = pcall(store.get, 'x')
return {allow = false, message = tostring(fine) .. ' ' .. why, status = 418}";
    let text = with_script(&sim.url(), script)
        + "storage:\n  caches: [{name: main, addr: \"127.0.0.1:1\", password: secret-word}]\nlua:\n  store: {type: redis, storage: main}\n";
    let gateway = Gateway::start(&text).await;
    for _ in 0..5 {
        let answer = gateway.ask_as("sk-a").await;
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(
            message.starts_with("false script:2: store.get: the storage `main`: "),
            "{message}"
        );
        assert!(!message.contains("secret-word"), "{message}");
    }
}

#[tokio::test]
async fn a_changed_module_acts_and_the_store_survives() {
    let sim = sim().await;
    let script = "
return {allow = false, message = require('names').greeting .. store.incr('n'), status = 418}";
    let modules = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(modules.path().join("names.lua"), text).unwrap();
    write("return {greeting = 'hello '}");
    let folder = modules.path().display();
    let text = with_script(&sim.url(), script) + &format!("lua: {{modules: \"{folder}\"}}\n");
    let gateway = Gateway::start(&text).await;
    let said = async || gateway.ask_as("sk-a").await.json()["error"]["message"].clone();
    assert_eq!(said().await, "hello 1");
    write("return {greeting = 'bye '}");
    gateway.logs("configuration 2 is in force").await;
    assert_eq!(said().await, "bye 2");
    write("return {");
    gateway.logs("lua.modules: names.lua:1: unexpected symbol").await;
    assert_eq!(said().await, "bye 3");
}
