//! `on_complete`: after the end. The scripts run apart from the request, and change nothing.

use std::sync::{Arc, atomic::Ordering};

use pingora_proxy::Session;

use super::{described, run::subject_of, usage};
use crate::{
    base::Stage,
    gateway::ctx::Ctx,
    hooks::{Global, Hook, Input},
    runtime::Carry,
    usage::Draft,
};

/// Scripts of one request; the end of the process waits for them.
struct Completing(Arc<Carry>);

impl Completing {
    fn begin(carry: &Arc<Carry>) -> Self {
        carry.completing.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(carry))
    }
}

impl Drop for Completing {
    fn drop(&mut self) {
        self.0.completing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Begins the scripts; they end when they do.
pub fn begin(session: &Session, ctx: &Ctx, draft: &Draft) {
    let snapshot = Arc::clone(&ctx.snapshot);
    let applies = |hook: &&Arc<Hook>| hook.applies(&subject_of(draft, ctx));
    let hooks: Vec<Arc<Hook>> =
        snapshot.hooks.at(Stage::Complete).iter().filter(applies).cloned().collect();
    if hooks.is_empty() {
        return;
    }
    let words = described::owned(session.req_header(), ctx).at(draft.backend_url.as_deref());
    let words = words.of_record(draft.model.as_deref(), draft.who.clone());
    let kept = ctx.hooks.as_ref().and_then(|state| state.kept.clone());
    let result = usage::table(usage::record(draft));
    let completing = Completing::begin(&ctx.carry);
    let status = draft.status;
    tokio::spawn(async move {
        let _completing = completing;
        for hook in hooks {
            let body = || serde_json::from_slice(kept.as_ref()?).ok().map(Arc::new);
            let view = words.borrow();
            let mut globals: Vec<Global> = vec![view.request(&hook, body)];
            view.others(&hook, &mut globals);
            globals.push(("result", result.clone()));
            let response = Input::Fields(vec![("status_code", Input::Integer(status.into()))]);
            globals.push(("response", response));
            // What it returns has no meaning; a failure has been logged.
            if hook.run(globals).await.is_ok() {
                hook.count("nothing");
            }
        }
    });
}
