//! Databases that are slow, unavailable, or do not allow what the gateway needs: records wait for them.

use std::time::Duration;

use llmproxy::usage::{sink::DeliveryError, store::Filter};

use super::{
    super::support::{
        eventually,
        servers::{MariaDb, PASSWORD, Postgres},
    },
    Process, entries, record,
};

/// An index of a large table, and rows of an earlier version, can take longer than a delivery may.
#[tokio::test]
async fn a_table_is_prepared_once_at_a_time() {
    let server = Postgres::start().await;
    let process = Process::postgres(&server.url());
    process.run("CREATE TABLE usage_records (id INT)").await;
    process.run("CREATE TABLE enough (id INT)").await;
    let slow = process.other();
    let slow = tokio::spawn(async move {
        let hold = "DO $$ BEGIN LOCK TABLE usage_records IN SHARE MODE; \
                    WHILE NOT EXISTS (SELECT FROM enough) LOOP PERFORM pg_sleep(0.02); END LOOP; END $$";
        slow.run(hold).await;
    });
    let locks = "SELECT COUNT(*) FROM pg_locks WHERE mode = 'ShareLock' AND granted \
                 AND relation = to_regclass('usage_records')";
    eventually("the table is held", async || server.run(locks) == "1").await;

    let preparing =
        || server.run("SELECT COUNT(*) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE%'");
    let (sink, store) = (process.sink(), process.store());
    let short = Duration::from_millis(200);
    for _ in 0..3 {
        // One that was made anew, as after a change of its configuration, has to wait as well.
        for sink in [&sink, &process.sink()] {
            let records = entries(&[record(1)]);
            assert!(tokio::time::timeout(short, sink.deliver(&records)).await.is_err());
        }
        let any = Filter::default();
        assert!(tokio::time::timeout(short, store.records(&any, None, 5)).await.is_err());
        eventually("the table is being prepared", async || preparing() != "0").await;
        assert_eq!(preparing(), "1");
    }
    process.run("INSERT INTO enough VALUES (1)").await;
    slow.await.unwrap();
    process.put(&[record(1)]).await;
    assert_eq!(process.ids(&Filter::default()).await.len(), 1);
}

/// Away, then back; and rights that are not there, and just enough.
async fn waits_for_its_database(
    server: impl AsyncFn(bool),
    process: &Process,
    (poor, url): (&str, impl Fn(&str) -> Process),
) {
    process.put(&[record(1)]).await;
    let sink = process.sink();
    sink.deliver(&entries(&[record(2)])).await.unwrap();
    server(false).await;
    let away = sink.deliver(&entries(&[record(3)])).await.unwrap_err();
    assert!(matches!(away, DeliveryError::Unavailable { .. }), "{away:?}");
    let store = process.store();
    assert!(store.records(&Filter::default(), None, 5).await.is_err());
    server(true).await;
    eventually("records go in again", async || sink.deliver(&entries(&[record(3)])).await.is_ok())
        .await;
    eventually("it can be asked again", async || {
        store.records(&Filter::default(), None, 5).await.is_ok_and(|page| page.items.len() == 3)
    })
    .await;
    // Of a table that is complete it only needs to read and to insert.
    let limited = url(poor);
    limited.put(&[record(4)]).await;
    assert_eq!(limited.ids(&Filter::default()).await.len(), 4);
    let mut other = limited.other();
    other.plan.table = "other_records".to_owned();
    process.run("CREATE TABLE other_records (id INT)").await;
    let refused = other.sink().deliver(&entries(&[record(5)])).await.unwrap_err();
    assert!(matches!(refused, DeliveryError::Unavailable { .. }), "{refused:?}");
    assert!(!refused.why().contains(PASSWORD) && !refused.why().contains("poor-pass"));
    process.run("REVOKE INSERT ON usage_records FROM poor").await;
    let refused = limited.sink().deliver(&entries(&[record(5)])).await.unwrap_err();
    assert!(matches!(refused, DeliveryError::Unavailable { .. }), "{refused:?}");
    assert!(refused.why().contains("; grant this privilege to the database user"), "{refused:?}");
    assert!(refused.why().contains("usage_records"), "{refused:?}");
    let mut wrong = url("poor:wrong-pass");
    let refused = wrong.sink().deliver(&entries(&[record(5)])).await.unwrap_err();
    assert!(matches!(refused, DeliveryError::Unavailable { .. }), "{refused:?}");
    assert!(!refused.why().contains("wrong-pass"), "{refused:?}");
    // A table that goes is made again.
    process.run("DROP TABLE usage_records").await;
    eventually("the table is there again", async || {
        sink.deliver(&entries(&[record(6)])).await.is_ok()
    })
    .await;
    assert_eq!(process.count().await, 1);
    // A column of which nobody knows what it should hold: records wait.
    wrong = process.other();
    wrong.plan.table = "odd_records".to_owned();
    wrong.run("CREATE TABLE odd_records (id INT, shoe_size INT NOT NULL)").await;
    let refused = wrong.sink().deliver(&entries(&[record(5)])).await.unwrap_err();
    assert!(matches!(refused, DeliveryError::Unavailable { .. }), "{refused:?}");
    assert!(refused.why().contains("shoe_size"), "{refused:?}");
}

#[tokio::test]
async fn records_wait_for_postgres() {
    let server = Postgres::start().await;
    let (process, address) = (Process::postgres(&server.url()), server.address);
    process.put(&[record(1)]).await;
    process.run("CREATE USER poor PASSWORD 'poor-pass'").await;
    process.run("GRANT SELECT, INSERT ON usage_records TO poor").await;
    process.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
    // Records wait until the column is what it should be.
    let mut typed = process.other();
    typed.plan.table = "typed_records".to_owned();
    typed.run("CREATE TABLE typed_records (latency_ms DATE)").await;
    let sink = typed.sink();
    let refused = sink.deliver(&entries(&[record(1)])).await.unwrap_err();
    assert!(matches!(refused, DeliveryError::Unavailable { .. }), "{refused:?}");
    for part in ["\"latency_ms\" is of type date", "bigint; change the column to the type"] {
        assert!(refused.why().contains(part), "{refused:?}");
    }
    typed.run("ALTER TABLE typed_records ALTER COLUMN latency_ms TYPE BIGINT USING 0").await;
    sink.deliver(&entries(&[record(1)])).await.unwrap();
    let server = tokio::sync::Mutex::new(server);
    let power = async |on: bool| match on {
        true => server.lock().await.restart().await,
        false => server.lock().await.stop(),
    };
    let login = |login: &str| Process::postgres(&format!("postgres://{login}@{address}/llmproxy"));
    waits_for_its_database(power, &process, ("poor:poor-pass", login)).await;
}

#[tokio::test]
async fn records_wait_for_mariadb() {
    let server = MariaDb::start().await;
    let (process, address) = (Process::mysql(&server.url()), server.address);
    process.put(&[record(1)]).await;
    process.run("CREATE USER poor IDENTIFIED BY 'poor-pass'").await;
    process.run("GRANT SELECT, INSERT, UPDATE ON llmproxy.usage_records TO poor").await;
    let server = tokio::sync::Mutex::new(server);
    let power = async |on: bool| match on {
        true => server.lock().await.restart().await,
        false => server.lock().await.stop(),
    };
    let login = |login: &str| Process::mysql(&format!("mysql://{login}@{address}/llmproxy"));
    waits_for_its_database(power, &process, ("poor:poor-pass", login)).await;
}
