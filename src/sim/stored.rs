//! The responses that a client can retrieve or continue, in the memory of the engine.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// The most responses that are kept, and the most bytes of their conversations; the oldest goes first.
const KEPT: (usize, usize) = (256, 64 << 20);

/// The responses that are kept.
#[derive(Default)]
pub struct StoredResponses {
    all: VecDeque<Stored>,
    /// Of all conversations.
    bytes: usize,
}

struct Stored {
    response: Value,
    /// The items of its own request.
    input: Vec<Value>,
    /// All turns up to its end.
    turns: Vec<Value>,
    /// Of these turns.
    bytes: usize,
    /// Until then, a response in the background is in progress.
    ready: Option<Instant>,
}

impl Stored {
    fn id(&self) -> &str {
        self.response["id"].as_str().unwrap_or_default()
    }

    fn in_progress(&self) -> bool {
        self.ready.is_some_and(|ready| Instant::now() < ready)
    }

    fn now(&self) -> Value {
        let mut response = self.response.clone();
        if self.in_progress() {
            begin(&mut response, "in_progress");
        }
        response
    }
}

/// Takes from a complete response what is not known until then.
fn begin(response: &mut Value, status: &str) {
    response["status"] = status.into();
    response["output"] = json!([]);
    response["incomplete_details"] = Value::Null;
    response["usage"] = Value::Null;
}

impl StoredResponses {
    /// Keeps a response that continues `previous` turns with `input`; `bytes` is about how long all of them are.
    pub fn keep(&mut self, response: Value, previous: &[Value], input: Vec<Value>, bytes: usize) {
        self.remove(response["id"].as_str().unwrap_or_default());
        let output = response["output"].as_array().into_iter().flatten();
        let turns = previous.iter().chain(&input).chain(output).cloned().collect();
        self.bytes += bytes;
        self.all.push_back(Stored { response, input, turns, bytes, ready: None });
        while self.all.len() > KEPT.0 || self.all.len() > 1 && self.bytes > KEPT.1 {
            let Some(oldest) = self.all.pop_front() else { break };
            self.bytes -= oldest.bytes;
        }
    }

    /// Keeps a response in progress for so long. Returns how it begins.
    pub fn delay(&mut self, id: &str, time: Duration) -> Value {
        let Some(at) = self.at(id) else {
            return Value::Null;
        };
        let stored = &mut self.all[at];
        stored.ready = Some(Instant::now() + time);
        let mut response = stored.response.clone();
        begin(&mut response, "queued");
        response
    }

    fn at(&self, id: &str) -> Option<usize> {
        self.all.iter().position(|stored| stored.id() == id)
    }

    /// A response as it is now.
    pub fn get(&self, id: &str) -> Option<Value> {
        self.at(id).map(|at| self.all[at].now())
    }

    /// The turns of a conversation up to a response.
    pub fn turns(&self, id: &str) -> Option<Vec<Value>> {
        self.at(id).map(|at| self.all[at].turns.clone())
    }

    /// The items of the request for a response.
    pub fn input(&self, id: &str) -> Option<Vec<Value>> {
        self.at(id).map(|at| self.all[at].input.clone())
    }

    pub fn remove(&mut self, id: &str) -> bool {
        let removed = self.at(id).and_then(|at| self.all.remove(at));
        self.bytes -= removed.as_ref().map_or(0, |stored| stored.bytes);
        removed.is_some()
    }

    /// Cancels a response; `Some(None)` if it is in progress no more.
    #[expect(clippy::option_option, reason = "unknown, too late and cancelled are three things")]
    pub fn cancel(&mut self, id: &str) -> Option<Option<Value>> {
        let at = self.at(id)?;
        let stored = &mut self.all[at];
        if !stored.in_progress() {
            return Some(None);
        }
        stored.ready = None;
        begin(&mut stored.response, "cancelled");
        Some(Some(stored.response.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(id: &str) -> Value {
        json!({"id": id, "status": "completed", "output": [{"type": "message", "id": id}], "usage": {}})
    }

    #[test]
    fn the_oldest_is_forgotten_and_an_id_is_kept_once() {
        let mut all = StoredResponses::default();
        for n in 0..=KEPT.0 {
            all.keep(response(&n.to_string()), &[], Vec::new(), 1);
            all.keep(response("same"), &[], Vec::new(), 2);
        }
        assert_eq!((all.all.len(), all.bytes), (KEPT.0, KEPT.0 + 1));
        assert!(all.get("1").is_none() && all.get("2").is_some());
        assert!(all.remove("same") && !all.remove("same"));
        assert_eq!(all.bytes, KEPT.0 - 1);
        all.keep(response("large"), &[], Vec::new(), KEPT.1 + 1);
        assert_eq!(
            (all.all.len(), all.bytes),
            (1, KEPT.1 + 1),
            "the last is kept whatever its size"
        );
        all.keep(response("small"), &[], Vec::new(), 1);
        assert!(all.get("large").is_none() && all.bytes == 1);
    }

    #[test]
    fn a_conversation_has_all_turns_and_a_request_its_own() {
        let mut all = StoredResponses::default();
        all.keep(response("a"), &[], vec![json!(1)], 1);
        let before = all.turns("a").unwrap();
        all.keep(response("b"), &before, vec![json!(2)], 1);
        assert_eq!(all.turns("b").unwrap().len(), 4);
        assert_eq!(all.input("b").unwrap(), [json!(2)]);
    }

    #[test]
    fn only_what_is_in_progress_is_cancelled() {
        let mut all = StoredResponses::default();
        all.keep(response("a"), &[], Vec::new(), 1);
        assert_eq!(all.cancel("a"), Some(None));
        assert_eq!(all.cancel("b"), None);
        assert_eq!(all.delay("a", Duration::from_secs(3600))["status"], "queued");
        assert_eq!(all.get("a").unwrap()["status"], "in_progress");
        assert_eq!(all.get("a").unwrap()["output"], json!([]));
        assert_eq!(all.cancel("a").unwrap().unwrap()["status"], "cancelled");
        assert_eq!(all.get("a").unwrap()["status"], "cancelled");
        assert_eq!(all.cancel("a"), Some(None));
        all.delay("a", Duration::ZERO);
        assert_eq!(all.get("a").unwrap()["status"], "cancelled");
    }
}
