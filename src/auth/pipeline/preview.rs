//! What would be decided about a request that nobody has made: for the list of models.

use serde_json::Map;

use super::{Auth, Found, reason};
use crate::{
    auth::{
        Call,
        decision::{Question, Verdict},
    },
    base::period::now,
    config::plan::Reason,
    lua::Failure,
};

impl Auth {
    /// Whether the decision about this caller may depend on the model: the rules never look at it,
    /// a script may.
    pub fn may_ask_for_the_model(&self, found: &Found) -> bool {
        found.known.iter().any(|(i, _)| self.stages[*i].plan.script.is_some())
    }

    /// Whether [`Self::decide`] would let a request pass. Nothing is counted, logged or asked for
    /// at the providers. `None`: scripts have too much to do to say.
    pub async fn would_allow(&self, found: &Found, key: &str, call: Call<'_>) -> Option<bool> {
        let passes = |reason| self.plan.answers.of(reason).allow;
        let mut metadata = Map::new();
        for (i, record) in &found.known {
            let allowed = match &self.stages[*i].plan.script {
                _ if record.limits.is_err() => false,
                None => match &record.terms {
                    Err(_) => false,
                    Ok(terms) => match terms.check(now(), call.ip, |why| passes(reason(why))) {
                        Ok(()) => passes(Reason::Active),
                        Err(why) => passes(reason(why)),
                    },
                },
                Some(script) => {
                    let question = Question { key, data: &record.data, call, metadata: &metadata };
                    match script.run_quietly(&question).await {
                        Ok(Verdict { allow: true, metadata: told, .. }) => {
                            metadata.extend(told);
                            passes(Reason::Active)
                        }
                        Err(Failure::Busy) => return None,
                        Ok(_) | Err(_) => false,
                    }
                }
            };
            if !allowed {
                return Some(false);
            }
        }
        Some(true)
    }
}
