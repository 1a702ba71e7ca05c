//! Phases, deadlines and limits of connections.

use super::*;
use crate::telemetry::Metrics;

const LIMITS: ConnectionLimits = ConnectionLimits {
    head: Some(Duration::from_secs(1000)),
    idle: Some(Duration::from_secs(3000)),
    write: Some(Duration::from_secs(2000)),
    head_size: 100,
};

fn connections() -> (Arc<Connections>, Metrics) {
    let metrics = Metrics::new();
    (Arc::new(Connections::new(metrics.connections.clone())), metrics)
}

fn seconds(connection: &ClientConnection) -> Option<u64> {
    let left = connection.due()?.saturating_duration_since(Instant::now());
    // To the nearest hundred: the clock runs.
    Some((left.as_secs() + 50) / 100 * 100)
}

#[test]
fn each_phase_has_its_deadline() {
    let (all, _) = connections();
    let max = MaxConnections { total: 0, per_address: 0 };
    let connection = all.admit(None, max, LIMITS).unwrap();
    assert_eq!((connection.phase(), seconds(&connection)), (Phase::Opening, Some(1000)));
    connection.received(60);
    assert_eq!((connection.phase(), seconds(&connection)), (Phase::Head, Some(1000)));
    assert_eq!(connection.head_failure(), None);
    connection.received(60);
    assert_eq!(connection.head_failure(), Some(HeadFailure::TooLarge));
    let (first, second) = (connection.begin(), connection.begin());
    assert_eq!((connection.phase(), connection.due()), (Phase::Busy, None));
    connection.set_blocked(true);
    assert_eq!(seconds(&connection), Some(2000));
    connection.set_blocked(false);
    drop(first);
    assert_eq!((connection.phase(), connection.due()), (Phase::Busy, None));
    drop(second);
    assert_eq!((connection.phase(), seconds(&connection)), (Phase::Idle, Some(3000)));
    // The next head is counted from 0.
    connection.received(60);
    assert_eq!((connection.phase(), connection.head_failure()), (Phase::Head, None));
    connection.close();
    assert_eq!(connection.overdue(), Some(DeadlineAction::Close));
}

#[test]
fn slots_are_released() {
    let (all, metrics) = connections();
    let max = MaxConnections { total: 3, per_address: 2 };
    let admit = |address: &str| all.admit(Some(address.parse().unwrap()), max, LIMITS);
    let first = admit("192.0.2.1").unwrap();
    let second = admit("::ffff:192.0.2.1").unwrap();
    assert_eq!(admit("192.0.2.1").err(), Some(ReachedLimit::Address));
    let third = admit("192.0.2.2").unwrap();
    assert_eq!(admit("192.0.2.3").err(), Some(ReachedLimit::Total));
    assert_eq!((all.open(), metrics.connections.open.get()), (3, 3));
    drop((first, third));
    assert!(admit("192.0.2.1").is_ok());
    drop(second);
    assert_eq!((all.open(), metrics.connections.open.get()), (0, 0));
    assert!(lock(&all.addresses).is_empty());
    for (reason, count) in [("address", 1), ("total", 1)] {
        assert_eq!(metrics.connections.refused.with_label_values(&[reason]).get(), count);
    }
}

#[test]
fn a_network_of_ipv6_counts_as_one_address() {
    let (all, _) = connections();
    let max = MaxConnections { total: 0, per_address: 1 };
    let admit = |address: &str| all.admit(Some(address.parse().unwrap()), max, LIMITS);
    let _first = admit("2001:db8::1").unwrap();
    assert_eq!(admit("2001:db8::ffff:1").err(), Some(ReachedLimit::Address));
    assert!(admit("2001:db8:0:1::1").is_ok());
    // A trusted proxy has no limit of its own.
    assert!(all.admit(None, max, LIMITS).is_ok());
}

#[test]
fn idle_connections_make_room_when_slots_are_short() {
    let (all, _) = connections();
    let max = MaxConnections { total: 4, per_address: 0 };
    let mut open: Vec<_> = (0..4).map(|_| all.admit(None, max, LIMITS).unwrap()).collect();
    for (count, idle) in [(4, 0), (3, 3000)] {
        open.truncate(count);
        drop(open[0].begin());
        assert_eq!(seconds(&open[0]), Some(idle), "{count} of 4 slots");
    }
}

#[test]
fn an_http2_connection_gets_goaway_before_it_is_closed() {
    let (all, _) = connections();
    let limits = ConnectionLimits { idle: Some(Duration::ZERO), ..LIMITS };
    let connection = all.admit(None, MaxConnections { total: 0, per_address: 0 }, limits).unwrap();
    let (goaway, received) = watch::channel(false);
    connection.set_http2(goaway);
    connection.ready();
    assert_eq!(connection.overdue(), Some(DeadlineAction::Continue));
    assert!(*received.borrow());
    assert_eq!((connection.phase(), connection.overdue()), (Phase::Ending, None));
    // A request that crossed with it is served to its end.
    let request = connection.begin();
    assert_eq!(connection.due(), None);
    drop(request);
    assert!(connection.due().is_some());
}
