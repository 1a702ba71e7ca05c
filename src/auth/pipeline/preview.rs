//! Decides about hypothetical requests, for the list of models.

use serde_json::Map;

use super::{Auth, IdentifiedKey, reason};
use crate::{
    auth::decision::{RequestView, ScriptInput, Verdict},
    base::period::now,
    config::plan::Reason,
    lua::Failure,
};

impl Auth {
    /// Whether the decision about this caller may depend on the model: scripts can see it, the default
    /// rules do not.
    pub fn depends_on_model(&self, identified: &IdentifiedKey) -> bool {
        identified.records.iter().any(|(i, _)| self.stages[*i].plan.script.is_some())
    }

    /// Whether [`Self::decide`] would accept a request. Nothing is counted or logged, and no provider is
    /// asked. `None`: scripts are too busy to decide.
    pub async fn would_allow(
        &self,
        identified: &IdentifiedKey,
        key: &str,
        request: RequestView<'_>,
    ) -> Option<bool> {
        let passes = |reason| self.plan.answers.of(reason).allow;
        let mut metadata = Map::new();
        for (i, record) in &identified.records {
            let allowed = match &self.stages[*i].plan.script {
                _ if record.limits.is_err() => false,
                None => match &record.terms {
                    Err(_) => false,
                    Ok(terms) => match terms.check(now(), request.ip, |why| passes(reason(why))) {
                        Ok(()) => passes(Reason::Active),
                        Err(why) => passes(reason(why)),
                    },
                },
                Some(script) => {
                    let question =
                        ScriptInput { key, data: &record.data, request, metadata: &metadata };
                    match script.run_quietly(&question).await {
                        Ok(Verdict { allow: true, metadata: more, .. }) => {
                            metadata.extend(more);
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
