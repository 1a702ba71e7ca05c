//! The order of the queue: fairness between keys, and queue classes.

use super::*;

/// A backend that notes the ids of requests, and answers one for each permit added to `answers`.
#[derive(Clone)]
struct Gate {
    url: String,
    order: Arc<Mutex<Vec<String>>>,
    answers: Arc<Semaphore>,
}

impl Gate {
    async fn new() -> Self {
        let (order, answers) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let mut gate = Self { url: String::new(), order, answers };
        let app = Router::new().route(PATH, post(Self::answer)).with_state(gate.clone());
        gate.url = serve(app).await;
        gate
    }

    /// Takes the body, as an unread body closes the connection.
    async fn answer(State(gate): State<Self>, headers: HeaderMap, _: Bytes) -> &'static str {
        let id = headers["x-request-id"].to_str().unwrap().to_owned();
        gate.order.lock().unwrap().push(id);
        gate.answers.acquire().await.unwrap().forget();
        "{}"
    }

    fn order(&self) -> Vec<String> {
        self.order.lock().unwrap().clone()
    }

    /// Waits until `n` requests have arrived.
    async fn seen(&self, n: usize) {
        eventually(&format!("{n} requests at the backend"), async || self.order().len() == n).await;
    }
}

/// Sends a chat request with a request id.
async fn send_with_id(gateway: &Gateway, key: &str, id: &str) -> Client {
    let mut client = gateway.client().await;
    let headers = format!("{}X-Request-Id: {id}\r\n", bearer(key));
    client.post_with(PATH, &headers, chat(false).as_bytes()).await;
    client
}

#[tokio::test]
async fn a_key_with_many_waiting_requests_does_not_delay_another_key() {
    let gate = Gate::new().await;
    let more = format!(
        "{KEYS}rate_limit: {{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 1000, queue_timeout: 1h}}}}\n"
    );
    let gateway = Gateway::before(std::slice::from_ref(&gate.url), &more).await;
    let mut many = vec![send_with_id(&gateway, A, "a").await];
    gate.seen(1).await;
    for _ in 0..500 {
        many.push(send_with_id(&gateway, A, "a").await);
    }
    wait_for_queue(&gateway, 500).await;
    // The other key arrives after ten of them have been served.
    gate.answers.add_permits(10);
    gate.seen(11).await;
    wait_for_queue(&gateway, 490).await;
    let mut one = send_with_id(&gateway, B, "b").await;
    wait_for_queue(&gateway, 491).await;
    let before = gate.order().len();
    gate.answers.add_permits(492);
    assert_eq!(one.answer().await.status, 200);
    for client in &mut many {
        assert_eq!(client.answer().await.status, 200);
    }
    let order = gate.order();
    assert_eq!(order.len(), 502);
    let place = order.iter().position(|id| id == "b").unwrap();
    // One request was at the backend already; one more may be admitted before it.
    assert!(place <= before + 1, "{place} after {before}");
    wait_for_queue(&gateway, 0).await;
}

#[tokio::test]
async fn a_full_queue_drops_the_newest_request_of_the_key_with_most() {
    let gate = Gate::new().await;
    let more = format!(
        "{KEYS}rate_limit: {{per_model: {{max_concurrent: 1}}, queue: {{max_queue_size: 3, queue_timeout: 1h}}}}\n"
    );
    let gateway = Gateway::before(std::slice::from_ref(&gate.url), &more).await;
    let mut many = Vec::new();
    for n in 0..4 {
        many.push(send_with_id(&gateway, A, &format!("a{n}")).await);
        if n == 0 { gate.seen(1).await } else { wait_for_queue(&gateway, n).await }
    }
    assert_eq!(refusal(&gateway.ask_as(A).await), no_slot(429));
    let mut one = send_with_id(&gateway, B, "b").await;
    let newest = many.pop().unwrap().answer().await;
    assert_eq!(refusal(&newest), no_slot(429));
    wait_for_queue(&gateway, 3).await;
    gate.answers.add_permits(4);
    assert_eq!(one.answer().await.status, 200);
    for client in &mut many {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(gate.order(), ["a0", "a1", "b", "a2"]);
}

#[tokio::test]
async fn a_higher_queue_class_goes_first_and_displaces_a_lower_one() {
    let gate = Gate::new().await;
    let keys = KEYS.replace("user_002}", "user_002, tier: vip}");
    let more = format!(
        "{keys}tiers: {{vip: {{queue_class: 1}}}}\n\
         rate_limit: {{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 3, queue_timeout: 1h}}}}\n"
    );
    let gateway = Gateway::before(std::slice::from_ref(&gate.url), &more).await;
    let mut under_way = send_with_id(&gateway, A, "a0").await;
    gate.seen(1).await;
    let mut low = Vec::new();
    for n in 1..4 {
        low.push(send_with_id(&gateway, A, &format!("a{n}")).await);
        wait_for_queue(&gateway, n).await;
    }
    // Each new request displaces one, also when its key then has as many waiting as the other key.
    let mut high = Vec::new();
    for n in 0..2 {
        high.push(send_with_id(&gateway, B, &format!("b{n}")).await);
        let newest = low.pop().unwrap().answer().await;
        assert_eq!(refusal(&newest), no_slot(429));
        wait_for_queue(&gateway, 3).await;
    }
    // A lower class never displaces a higher one.
    assert_eq!(refusal(&gateway.ask_as(SAME_USER_AS_A).await), no_slot(429));
    gate.answers.add_permits(4);
    for client in [&mut under_way].into_iter().chain(&mut high).chain(&mut low) {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(gate.order(), ["a0", "b0", "b1", "a1"]);
}

#[tokio::test]
async fn a_script_sets_the_tier_and_an_unknown_tier_is_ignored() {
    let gate = Gate::new().await;
    let receiver = Receiver::start().await;
    let script = "return {tier = ({[A] = 'vip', [B] = 'tin'})[api_key]}"
        .replace("[A]", &format!("['{A}']"))
        .replace("[B]", &format!("['{B}']"));
    let text = format!(
        "{}tiers: {{vip: {{queue_class: 1}}}}\n{}\
         rate_limit: {{global: {{max_concurrent: 1}}, queue: {{max_queue_size: 9, queue_timeout: 1h}}}}\n",
        with_script(&gate.url, &script),
        receiver.hook(),
    );
    let gateway = Gateway::start(&text).await;
    let mut clients = vec![send_with_id(&gateway, FREE, "none").await];
    gate.seen(1).await;
    let later = [(B, "unknown"), (B, "unknown"), (FREE, "none"), (A, "vip")];
    for (n, (key, id)) in later.into_iter().enumerate() {
        clients.push(send_with_id(&gateway, key, id).await);
        wait_for_queue(&gateway, n + 1).await;
    }
    gate.answers.add_permits(5);
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(gate.order(), ["none", "vip", "unknown", "none", "unknown"]);
    let records = receiver.wait_for(5).await;
    assert_eq!(records.iter().filter(|record| record["tier"] == "vip").count(), 1);
    let log = gateway.log();
    assert_eq!(log.matches("there is no tier \"tin\"").count(), 1, "{log}");
}

#[tokio::test]
async fn queue_order_holds_across_different_rules() {
    // Requests that wait for a slot of their key must not take a slot of the model before a
    // request that waits for that slot only.
    let gate = Gate::new().await;
    let rules = "{per_model: {max_concurrent: 2}, per_key: {max_concurrent: 1}, \
                 queue: {max_queue_size: 100, queue_timeout: 60s}}";
    let more = format!("{KEYS}rate_limit: {rules}\n");
    let gateway = Gateway::before(std::slice::from_ref(&gate.url), &more).await;
    let mut clients = Vec::new();
    for id in ["a1", "c1"] {
        let key = if id == "a1" { A } else { FREE };
        clients.push(send_with_id(&gateway, key, id).await);
    }
    gate.seen(2).await;
    for n in 2..20 {
        clients.push(send_with_id(&gateway, A, &format!("a{n}")).await);
    }
    wait_for_queue(&gateway, 18).await;
    clients.push(send_with_id(&gateway, B, "b1").await);
    wait_for_queue(&gateway, 19).await;
    // Two slots become free, one after the other.
    gate.answers.add_permits(1);
    gate.seen(3).await;
    gate.answers.add_permits(1);
    gate.seen(4).await;
    let order = gate.order();
    assert!(order[2..4].contains(&"b1".to_owned()), "{order:?}");
}
