//! Values that pass through a script, and the time zone of its dates.

use serde_json::json;

use super::{
    scripts::with_script,
    support::{Gateway, Receiver, sim},
};

/// An unknown zone in the environment must not silently mean UTC.
#[tokio::test]
async fn an_unknown_time_zone_is_an_error() {
    let sim = sim().await;
    let script = "
if api_key == 'sk-utc' then return {metadata = {user_id = os.date('!%Y') .. tostring(os.time() > 0) .. now()}} end
if api_key == 'sk-local' then return {metadata = {user_id = os.date('%H')}} end
if api_key == 'sk-table' then return os.time({year = 2030, month = 1, day = 1}) > 0 end";
    for (zone, known) in
        [("No/Such_Zone", false), ("UTC", true), ("CET-1CEST,M3.5.0,M10.5.0/3", true)]
    {
        let set = format!("TZ={zone}");
        let gateway = Gateway::wrapped(&with_script(&sim.url(), script), &["env", &set]).await;
        assert_eq!(gateway.ask_as("sk-utc").await.status, 200, "{zone}");
        for key in ["sk-local", "sk-table"] {
            let answer = gateway.ask_as(key).await;
            assert_eq!(answer.status, if known { 200 } else { 403 }, "{zone} {key}");
        }
        if !known {
            gateway.logs("the time zone 'No/Such_Zone' (TZ) is not known here").await;
            gateway.logs("uses dates, but the time zone `No/Such_Zone`").await;
        }
    }
}

/// Values that a script passes on are unchanged in the record.
#[tokio::test]
async fn empty_lists_and_large_numbers_pass_through_a_script() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let metadata = r#"{"list": [], "object": {}, "deep": [[], {}], "large": 18446744073709551615, "whole": 9223372036854775807}"#;
    let text = format!(
        "backends: [{{url: \"{}\"}}]\nauth:\n  pipeline:\n    - type: static\n      static: {{keys: [{{key: sk-a-12345678, metadata: {metadata}}}]}}\n      lua_script: |\n        return {{metadata = data.metadata}}\n",
        sim.url()
    ) + &receiver.hook();
    let gateway = Gateway::start(&text).await;
    assert_eq!(gateway.ask_as("sk-a-12345678").await.status, 200);
    assert_eq!(
        receiver.one().await["metadata"],
        json!({"list": [], "object": {}, "deep": [[], {}], "large": "18446744073709551615", "whole": 9_223_372_036_854_775_807_i64})
    );
}
