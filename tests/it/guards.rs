//! Guards through the binary: what backends get, what clients get back, and what is refused.

mod breaking;
mod caps;
mod denying;
pub mod echo;
mod masking;
mod services;
mod together;
mod twins;

use serde_json::Value;

use self::echo::{Echo, Judge};
use super::{
    languages::{
        Heard, LANGUAGES, PATIENT, ask, events, first_and_second, hear, line, refusal, says,
    },
    support::{Gateway, Receiver},
};

/// A gateway with one backend, which is asked in this language.
async fn before(url: &str, language: &str, more: &str) -> Gateway {
    Gateway::start(&format!("backends:\n{}{more}", line("a", url, language, ""))).await
}

/// A metric of findings.
async fn findings(gateway: &Gateway, guard: &str, kind: &str, action: &str) -> f64 {
    let name = "llmproxy_guard_findings_total";
    let labels = format!("action=\"{action}\",guard=\"{guard}\",kind=\"{kind}\"");
    gateway.metric(&format!("{name}{{{labels}}}")).await
}

/// Asks and reads a good answer.
async fn heard(gateway: &Gateway, language: &str, headers: &str, body: &Value) -> Heard {
    let answer = ask(gateway, language, headers, body).await;
    let case = format!("{language}: {}", answer.text());
    assert_eq!(answer.status, 200, "{case}");
    let heard = hear(language, body["stream"] == true, &answer);
    assert!(heard.error.is_none() && !heard.open && heard.end.is_some(), "{case}");
    heard
}

/// Two keys.
const KEYS: &str = "
auth:
  pipeline:
    - type: static
      static:
        keys:
          - {key: sk-ann-00000001, id: k-ann, user_id: ann, name: Ann}
          - {key: sk-bob-00000001, id: k-bob, user_id: bob, name: Bob}
";

fn bearer(who: &str) -> String {
    format!("Authorization: Bearer sk-{who}-00000001\r\n")
}
