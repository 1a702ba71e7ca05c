//! Budgets: spending per key and per user, periods, and their storage.

use super::*;

/// Each token costs 1: a chat 25.
const PRICES: &str = "prices: {\"*\": {input: 1000000, output: 1000000}}";

fn budget_exceeded() -> (u16, String, String) {
    error(429, "insufficient_quota", "budget_exceeded")
}

#[tokio::test]
async fn a_spent_budget_refuses() {
    let sim = sim().await;
    let limits = format!("{{{PRICES}, per_key: {{budget: 30, budget_period: never}}}}");
    let gateway = gateway_with(&sim, &limits).await;
    let mut client = gateway.client().await;
    // The budget covers one request and part of a second.
    for _ in 0..2 {
        assert_eq!(ask(&mut client, A, &chat(false)).await.status, 200);
    }
    let no = ask(&mut client, A, &chat(false)).await;
    assert_eq!(refusal(&no), budget_exceeded());
    let message = no.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("Budget used up: per_key.budget allows 30."), "{message}");
    assert_eq!(refusals_by(&gateway, "per_key.budget").await, 1.0);
    assert_eq!(ask(&mut client, B, &chat(false)).await.status, 200);
    assert_eq!(ask(&mut client, SAME_USER_AS_A, &chat(false)).await.status, 200);
}

#[tokio::test]
async fn a_part_with_a_price_of_its_own_is_spent_at_that_price() {
    let sim = sim_with(|b| b.reasoning_tokens = 5).await;
    for (price, admitted) in [("reasoning: 1000000", 2), ("cache_write: 1000000", 9)] {
        // A chat costs 5, or nothing.
        let limits = format!(
            "{{prices: {{\"*\": {{input: 0, output: 0, {price}}}}}, \
             per_key: {{budget: 6, budget_period: never}}}}"
        );
        let gateway = gateway_with(&sim, &limits).await;
        let mut client = gateway.client().await;
        for _ in 0..admitted {
            assert_eq!(ask(&mut client, A, &chat(false)).await.status, 200, "{price}");
        }
        let last = ask(&mut client, A, &chat(false)).await;
        match admitted {
            2 => assert_eq!(refusal(&last), budget_exceeded()),
            _ => assert_eq!(last.status, 200),
        }
    }
}

#[tokio::test]
async fn a_user_budget_is_shared_by_all_keys_of_the_user() {
    let sim = sim().await;
    let limits = format!("{{{PRICES}, per_user: {{budget: 20, budget_period: never}}}}");
    let gateway = gateway_with(&sim, &limits).await;
    let mut client = gateway.client().await;
    assert_eq!(ask(&mut client, A, &chat(true)).await.status, 200);
    assert_eq!(refusal(&ask(&mut client, SAME_USER_AS_A, &chat(false)).await), budget_exceeded());
    assert_eq!(ask(&mut client, B, &chat(false)).await.status, 200);
}

#[tokio::test]
async fn a_refusal_by_budget_says_when_the_next_period_begins() {
    const DAY: u64 = 24 * 3600;
    let sim = sim().await;
    for (period, longest) in
        [("", 31 * DAY), (", budget_period: weekly", 7 * DAY), (", budget_period: daily", DAY)]
    {
        let limits = format!("{{{PRICES}, per_key: {{budget: 20{period}}}}}");
        let gateway = gateway_with(&sim, &limits).await;
        let mut client = gateway.client().await;
        let mut answer = ask(&mut client, A, &chat(false)).await;
        assert_eq!(answer.status, 200);
        // If midnight UTC passes during the test, a second budget is available.
        for _ in 0..2 {
            if answer.status == 200 {
                answer = ask(&mut client, A, &chat(false)).await;
            }
        }
        assert_eq!(refusal(&answer), budget_exceeded());
        assert!(header_number(&answer, "retry-after") <= longest, "{answer:?}");
    }
}

async fn stored_spend(file: &Path) -> f64 {
    let url = format!("sqlite://{}?mode=ro", file.display());
    let Ok(pool) = sqlx::SqlitePool::connect(&url).await else {
        return 0.0;
    };
    sqlx::query_scalar("SELECT SUM(amount) FROM spent").fetch_one(&pool).await.unwrap_or(0.0)
}

#[tokio::test]
async fn budgets_survive_a_restart() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("limits.db");
    let limits = format!(
        "{{{PRICES}, per_key: {{budget: 30, budget_period: never}}, db_path: \"{}\"}}",
        file.display()
    );
    let mut gateway = gateway_with(&sim, &limits).await;
    assert_eq!(gateway.ask_as(A).await.status, 200);
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    assert_eq!(stored_spend(&file).await, 25.0);

    let mut gateway = gateway_with(&sim, &limits).await;
    assert_eq!(gateway.ask_as(A).await.status, 200, "5 of the budget were left");
    eventually("the spend is stored", async || stored_spend(&file).await == 50.0).await;
    gateway.signal("KILL");
    assert!(!gateway.ended().await.success());

    let gateway = gateway_with(&sim, &limits).await;
    assert_eq!(refusal(&gateway.ask_as(A).await), budget_exceeded());
    assert_eq!(gateway.ask_as(B).await.status, 200);
}
