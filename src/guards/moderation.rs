//! Services that judge requests: OpenAI's moderations, or any HTTP service.

use serde_json::{Value, json};

use super::{finding::Finding, role::in_roles};
use crate::{
    base::Rejection,
    config::{
        choices::{ModerationFail, ModerationForm, ModerationMode},
        plan::ModerationPlan,
    },
    dialect::texts::RequestText,
    store::{StoreError, http},
    wire::literal::Literal,
};

/// A service.
pub struct Moderation {
    pub(super) plan: ModerationPlan,
    client: reqwest::Client,
}

/// What a service is asked about.
#[derive(Clone, PartialEq, Eq)]
pub struct Question {
    /// The texts of the request, at most `max_text` bytes of them.
    pub texts: Vec<String>,
    pub model: String,
    /// Ids, empty if unknown.
    pub user: String,
    pub key: String,
}

/// What a service says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request may pass.
    Allowed,
    /// It may not.
    Blocked { rejection: Rejection, finding: Finding },
    /// The service failed: `why` is for the log. `rejection` is `None` where requests pass then.
    Failed { why: String, rejection: Option<Rejection>, finding: Finding },
}

impl Moderation {
    pub(super) fn new(plan: ModerationPlan, client: reqwest::Client) -> Self {
        Self { plan, client }
    }

    /// Whether it is asked before the request goes to a backend, or beside it.
    pub fn is_before(&self) -> bool {
        self.plan.mode == ModerationMode::Before
    }

    /// Its URL without what may be secret, for logs.
    pub fn name(&self) -> &str {
        self.plan.url.split(['?', '#']).next().unwrap_or_default()
    }

    /// What it is asked about a request; `None` if the request has none of the texts that it judges. Of more
    /// than `max_text` bytes it gets the last ones.
    pub fn question(
        &self,
        texts: &[RequestText],
        body: &[u8],
        model: &str,
        (user, key): (&str, &str),
    ) -> Option<Question> {
        let mut left = self.plan.max_text;
        let mut told = Vec::new();
        for text in texts.iter().rev().filter(|text| in_roles(&self.plan.roles, text.role)) {
            let Some(literal) = body.get(text.range.clone()).and_then(Literal::read) else {
                continue;
            };
            let mut from = literal.text.len().saturating_sub(left);
            while !literal.text.is_char_boundary(from) {
                from += 1;
            }
            let part = &literal.text[from..];
            left -= part.len();
            if !part.trim().is_empty() {
                told.push(part.to_owned());
            }
            if left == 0 || from > 0 {
                break;
            }
        }
        told.reverse();
        let (model, user, key) = (model.to_owned(), user.to_owned(), key.to_owned());
        (!told.is_empty()).then_some(Question { texts: told, model, user, key })
    }

    /// Asks. Takes at most `timeout`.
    pub async fn ask(&self, question: &Question) -> Verdict {
        let finding = |kind: &str, action| Finding {
            guard: "moderation",
            kind: kind.to_owned(),
            action,
            count: 1,
        };
        match self.answer(question).await.and_then(|answer| self.read(&answer)) {
            Ok(None) => Verdict::Allowed,
            Ok(Some(message)) => Verdict::Blocked {
                rejection: Rejection::content_blocked(self.plan.status, &message),
                finding: finding("flagged", "refuse"),
            },
            Err(why) => {
                let closed = self.plan.fail == ModerationFail::Closed;
                let action = if closed { "refuse" } else { "pass" };
                Verdict::Failed {
                    why: why.to_string(),
                    rejection: closed.then(Rejection::moderation_unavailable),
                    finding: finding("unavailable", action),
                }
            }
        }
    }

    async fn answer(&self, question: &Question) -> Result<Value, StoreError> {
        let body = self.words(question).to_string();
        let request = self.client.post(&self.plan.url).timeout(self.plan.timeout);
        let (status, body) = http::ask(request, &self.plan.headers, body, "the moderation").await?;
        if !status.is_success() {
            return Err(StoreError::new(format!("the moderation answered {status}")));
        }
        let read = serde_json::from_slice(&body);
        read.map_err(|_| StoreError::new("the moderation's answer is not JSON"))
    }

    fn words(&self, question: &Question) -> Value {
        match self.plan.form {
            ModerationForm::Openai => {
                let mut words = json!({"input": question.texts});
                if let Some(model) = &self.plan.model {
                    words["model"] = model.as_str().into();
                }
                words
            }
            ModerationForm::Generic => json!({
                "texts": question.texts,
                "model": question.model,
                "user": question.user,
                "key": question.key,
            }),
        }
    }

    /// The message for the client if the request must not pass.
    fn read(&self, answer: &Value) -> Result<Option<String>, StoreError> {
        let blocked = match self.plan.form {
            ModerationForm::Openai => {
                let results = answer["results"].as_array();
                let results = results.ok_or(StoreError::new("the moderation has no `results`"))?;
                results.iter().any(|result| self.flags(result))
            }
            ModerationForm::Generic => {
                let allow = answer["allow"].as_bool();
                !allow.ok_or(StoreError::new("the moderation's `allow` is no boolean"))?
            }
        };
        let own = || match self.plan.form {
            ModerationForm::Generic => answer["message"].as_str(),
            ModerationForm::Openai => None,
        };
        Ok(blocked.then(|| own().unwrap_or(&self.plan.message).to_owned()))
    }

    fn flags(&self, result: &Value) -> bool {
        let category = |name: &String| result["categories"][name.as_str()] == true;
        match self.plan.categories.is_empty() {
            true => result["flagged"] == true,
            false => self.plan.categories.iter().any(category),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::choices::GuardRole,
        dialect::texts::{RequestText, Role},
    };

    fn service(form: ModerationForm, categories: &[&str]) -> Moderation {
        let plan = ModerationPlan {
            when: crate::config::plan::WhenPlan::default(),
            mode: ModerationMode::Before,
            form,
            url: "http://127.0.0.1:1/x?key=1".to_owned(),
            headers: Vec::new(),
            model: None,
            categories: categories.iter().map(|name| (*name).to_owned()).collect(),
            timeout: std::time::Duration::from_secs(1),
            fail: ModerationFail::Closed,
            max_text: 8,
            roles: vec![GuardRole::User],
            message: "No.".to_owned(),
            status: 403,
        };
        Moderation::new(plan, http::outside())
    }

    #[test]
    fn both_forms_are_read() {
        use ModerationForm::{Generic, Openai};
        let flagged = json!({"results": [{"flagged": false}, {"flagged": true, "categories": {"hate": true}}]});
        for (form, categories, answer, message) in [
            (Openai, &[][..], flagged.clone(), Ok(Some("No."))),
            (Openai, &["hate"], flagged.clone(), Ok(Some("No."))),
            (Openai, &["violence"], flagged, Ok(None)),
            (Openai, &[], json!({"results": [{"flagged": false}]}), Ok(None)),
            (Openai, &[], json!({"allow": true}), Err(())),
            (Generic, &[], json!({"allow": true, "message": "x"}), Ok(None)),
            (Generic, &[], json!({"allow": false, "message": "x"}), Ok(Some("x"))),
            (Generic, &[], json!({"allow": false}), Ok(Some("No."))),
            (Generic, &[], json!({"allow": "yes"}), Err(())),
        ] {
            let read = service(form, categories).read(&answer).map_err(|_| ());
            assert_eq!(read, message.map(|text| text.map(str::to_owned)), "{answer}");
        }
    }

    #[test]
    fn it_gets_the_end_of_the_conversation() {
        let body = "\"first\"\"äöü\"\"a tool\"\"last\"";
        let text = |range, role| RequestText { range, role, embedded: false, sealed: false };
        let texts = [
            text(0..7, Role::User),
            text(7..15, Role::User),
            text(15..23, Role::Tool),
            text(23..29, Role::User),
        ];
        let service = service(ModerationForm::Generic, &[]);
        let asked = service.question(&texts, body.as_bytes(), "m", ("u", "k")).unwrap();
        assert_eq!(asked.texts, ["öü", "last"]);
        let words = service.words(&asked);
        assert_eq!(words, json!({"texts": ["öü", "last"], "model": "m", "user": "u", "key": "k"}));
        assert!(service.question(&texts[2..3], body.as_bytes(), "m", ("", "")).is_none());
        assert_eq!(service.name(), "http://127.0.0.1:1/x");
    }
}
