//! A circuit breaker for a database server: while the server is unavailable, queries fail at once instead
//! of waiting for it.
//!
//! A slow or failed query starts a probe in the background, which opens a connection of its own. The
//! circuit opens when a probe fails, and closes when one succeeds.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, Database, Pool};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::value::cause;
use crate::{base::lock, store::error::StoreError};

/// A query without an answer after this time starts a probe. While the circuit is open, a query waits this
/// long for a running probe.
const PATIENCE: Duration = Duration::from_millis(100);

/// The shortest time between two probes. A server that has answered a query within it is available.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest time between two probes for one unanswered query.
const LONGEST: Duration = Duration::from_secs(10);

/// A server to which no connection can be made within this time is unavailable, unless the last connection
/// took longer.
const CONNECT: Duration = Duration::from_secs(2);

/// How long the ping of an idle connection may take.
const PING: Duration = Duration::from_secs(1);

type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<(), sqlx::Error>> + Send + Sync>;

/// The kind of statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A query, which is cancelled when the server becomes unavailable.
    Read,
    /// A change. It is not started while the server is unavailable; once started it is not cancelled, because
    /// its outcome would be unknown.
    Change,
}

/// Why a server is unavailable.
#[derive(Clone, Debug, PartialEq)]
struct Outage {
    why: StoreError,
    /// The server refuses new connections; existing connections may still work.
    refuses: bool,
}

/// The circuit breaker of one server.
pub struct Circuit {
    connect: Connect,
    /// How long connecting may take.
    patience: Duration,
    /// Why the circuit is open, if it is. Every failed probe marks it as changed.
    open: watch::Sender<Option<Outage>>,
    probes: Mutex<ProbeState>,
}

/// What probes and answered queries have shown.
#[derive(Default)]
struct ProbeState {
    /// When the last probe began or ended.
    at: Option<Instant>,
    is_running: bool,
    /// The running probe has opened the circuit and still waits for its connection.
    is_slow: bool,
    /// How long the last successful connection took.
    took: Duration,
    /// How long the last failed probe waited: the next one waits twice as long.
    failed_wait: Duration,
    /// When a query was last answered.
    answered: Option<Instant>,
}

impl ProbeState {
    fn answered_recently(&self) -> bool {
        self.answered.is_some_and(|at| at.elapsed() < PAUSE)
    }
}

/// Marks a probe as running until it is dropped, even if its task panics.
struct ProbeGuard<'a>(&'a Circuit);

impl Drop for ProbeGuard<'_> {
    fn drop(&mut self) {
        let mut probes = lock(&self.0.probes);
        // The pause counts from the end of a probe, so that a long one is not followed by the next at once.
        probes.at = Some(Instant::now());
        (probes.is_running, probes.is_slow) = (false, false);
    }
}

impl Circuit {
    /// For the server of these options, and the pool of connections to it. Connecting may take as long as
    /// `patience`.
    pub fn new<D: Database>(
        pool: Pool<D>,
        options: <D::Connection as Connection>::Options,
        patience: Duration,
    ) -> Arc<Self> {
        let connect = move || -> BoxFuture<'static, Result<(), sqlx::Error>> {
            let (pool, options) = (pool.clone(), options.clone());
            Box::pin(async move {
                // An idle connection that answers is enough: the server may have no room for another one.
                if let Some(mut idle) = pool.try_acquire() {
                    if let Ok(Ok(())) = timeout(PING, idle.ping()).await {
                        return Ok(());
                    }
                    drop(idle.detach());
                }
                let connection = options.connect().await?;
                // An error while closing says nothing about the next connection.
                let _ = connection.close().await;
                Ok(())
            })
        };
        Self::with(Box::new(connect), patience)
    }

    fn with(connect: Connect, patience: Duration) -> Arc<Self> {
        let (open, probes) = (watch::Sender::new(None), Mutex::default());
        Arc::new(Self { connect, patience, open, probes })
    }

    /// Waits for an answer while the server is available. `cold`: there is no connection to it yet.
    ///
    /// # Errors
    /// The error of the query, or why the server is unavailable.
    pub async fn guard<T>(
        self: &Arc<Self>,
        cold: bool,
        operation: Operation,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut open = self.open.subscribe();
        let why = open.borrow_and_update().clone();
        if let Some(Outage { why, .. }) = why {
            self.probe();
            let may_close = {
                let probes = lock(&self.probes);
                probes.is_running && !probes.is_slow
            };
            if may_close {
                // The probe closes the circuit, or finds the server unavailable again.
                let _ = timeout(PATIENCE, open.changed()).await;
            }
            if open.borrow_and_update().is_some() {
                return Err(why);
            }
        } else if cold {
            self.probe();
        }
        let mut answer = pin!(answer);
        let mut wait = PATIENCE;
        let gone =
            |open: &Option<Outage>| open.as_ref().is_some_and(|outage| cold || !outage.refuses);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    match &answer {
                        Ok(_) => lock(&self.probes).answered = Some(Instant::now()),
                        Err(_) => self.probe(),
                    }
                    return answer;
                }
                Ok(outage) = open.wait_for(gone), if operation == Operation::Read => {
                    let why = outage.as_ref().map(|outage| outage.why.clone());
                    return Err(why.unwrap_or_else(|| StoreError::new("unavailable")));
                }
                () = sleep(wait) => {
                    self.probe();
                    // Soon again, in case another query probed just before; then less and less often.
                    wait = (wait * 2).clamp(PAUSE, LONGEST);
                }
            }
        }
    }

    /// Starts a probe in the background, unless one is running or has just ended.
    fn probe(self: &Arc<Self>) {
        {
            let mut probes = lock(&self.probes);
            let recently = probes.at.is_some_and(|at| at.elapsed() < PAUSE);
            if recently || probes.is_running {
                return;
            }
            (probes.at, probes.is_running) = (Some(Instant::now()), true);
        }
        let circuit = Arc::clone(self);
        tokio::spawn(async move {
            let guard = ProbeGuard(&circuit);
            let outage = circuit.try_connection().await;
            drop(guard);
            circuit.set(outage);
        });
    }

    /// Why the server is unavailable, if it is. Opens the circuit as soon as connecting takes longer than
    /// usual, and continues to wait for the connection.
    async fn try_connection(&self) -> Option<Outage> {
        let (usual, limit) = {
            let probes = lock(&self.probes);
            let usual = (probes.took * 2).max(CONNECT);
            (usual, (probes.failed_wait * 2).max(usual * 2))
        };
        let (usual, limit) = (usual.min(self.patience), limit.min(self.patience));
        let timed_out = || {
            let why = "the database cannot be reached: no connection within";
            Outage { why: StoreError::new(format!("{why} {usual:?}")), refuses: false }
        };
        let began = Instant::now();
        let mut connect = pin!(timeout(limit, (self.connect)()));
        let connected = match timeout(usual, &mut connect).await {
            Ok(connected) => connected,
            Err(_) => {
                {
                    let mut probes = lock(&self.probes);
                    if probes.answered_recently() {
                        return None;
                    }
                    probes.is_slow = true;
                }
                self.set(Some(timed_out()));
                connect.await
            }
        };
        let mut probes = lock(&self.probes);
        let outage = match connected {
            Ok(Ok(())) => {
                (probes.took, probes.failed_wait) = (began.elapsed(), Duration::ZERO);
                return None;
            }
            Ok(Err(error)) if is_full(&error) => return None,
            Ok(Err(error)) => {
                let refuses = matches!(error, sqlx::Error::Database(_));
                Outage { why: cause(error), refuses }
            }
            Err(_) => {
                probes.failed_wait = limit;
                timed_out()
            }
        };
        // A server that answers other queries is available: it only takes no new connections.
        (!probes.answered_recently()).then_some(outage)
    }

    fn set(&self, outage: Option<Outage>) {
        self.open.send_if_modified(|open| {
            match (&*open, &outage) {
                (None, None) => return false,
                (None, Some(Outage { why, .. })) => {
                    log::warn!("{why}; queries fail until it is available again");
                }
                (Some(_), None) => log::info!("the database is available again"),
                (Some(_), Some(_)) => {}
            }
            *open = outage;
            true
        });
    }
}

/// Whether the server is available but has reached its limit of connections.
fn is_full(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    // PostgreSQL's too many connections, and PgBouncer's; MySQL's, of the server and of a user.
    let mysql = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>();
    has_no_room(mysql.map(|error| error.number()), &error.code().unwrap_or_default())
}

fn has_no_room(mysql: Option<u16>, code: &str) -> bool {
    match mysql {
        Some(number) => matches!(number, 1040 | 1203 | 1226),
        None => matches!(code, "53300" | "08P01"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// 0: refuses connections, 1: accepts them, 2: never answers.
    fn circuit(state: &Arc<AtomicU32>, probes: &Arc<AtomicU32>) -> Arc<Circuit> {
        let (state, probes) = (Arc::clone(state), Arc::clone(probes));
        let connect = move || -> BoxFuture<'static, Result<(), sqlx::Error>> {
            probes.fetch_add(1, Ordering::Relaxed);
            let state = state.load(Ordering::Relaxed);
            Box::pin(async move {
                match state {
                    0 => Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into())),
                    1 => Ok(()),
                    _ => std::future::pending().await,
                }
            })
        };
        Circuit::with(Box::new(connect), Duration::from_secs(60))
    }

    #[test]
    fn a_server_without_room_is_there() {
        for code in ["53300", "08P01"] {
            assert!(has_no_room(None, code), "{code}");
        }
        for code in ["57P03", "28P01", "08006", ""] {
            assert!(!has_no_room(None, code), "{code}");
        }
        assert!(has_no_room(Some(1040), "08004") && !has_no_room(Some(1045), "28000"));
    }

    async fn answers() -> Result<u32, StoreError> {
        Ok(7)
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_and_who_comes_later_does_not_wait() {
        for (state, first) in [(0, Duration::from_millis(110)), (2, Duration::from_millis(2200))] {
            let (state, probes) = (Arc::new(AtomicU32::new(state)), Arc::default());
            let circuit = circuit(&state, &probes);
            let never = || std::future::pending::<Result<u32, StoreError>>();
            let took = async |most: Duration| {
                let began = Instant::now();
                assert!(circuit.guard(false, Operation::Read, never()).await.is_err());
                assert!(began.elapsed() <= most, "{:?}", began.elapsed());
            };
            took(first).await;
            for _ in 0..1000 {
                took(PATIENCE).await;
                sleep(Duration::from_millis(1)).await;
            }
            let probes = probes.load(Ordering::Relaxed);
            assert!((1..100).contains(&probes), "{probes}: now and then, not for each question");
            state.store(1, Ordering::Relaxed);
            // A running probe must end before the next one.
            sleep(2 * CONNECT + PAUSE).await;
            assert_eq!(circuit.guard(false, Operation::Read, answers()).await, Ok(7));
            assert_eq!(circuit.guard(false, Operation::Read, answers()).await, Ok(7));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_has_just_been_there_is_looked_at_again() {
        let (state, probes) = (Arc::new(AtomicU32::new(1)), Arc::default());
        let circuit = circuit(&state, &probes);
        circuit.probe();
        sleep(Duration::from_millis(1)).await;
        state.store(2, Ordering::Relaxed);
        let began = Instant::now();
        let never = std::future::pending::<Result<u32, StoreError>>();
        assert!(circuit.guard(false, Operation::Read, never).await.is_err());
        assert!(began.elapsed() < CONNECT + 2 * PAUSE, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_there_is_waited_for() {
        let (state, probes) = (Arc::new(AtomicU32::new(1)), Arc::default());
        let circuit = circuit(&state, &probes);
        let slow = async {
            sleep(Duration::from_secs(20)).await;
            Ok(7)
        };
        assert_eq!(circuit.guard(true, Operation::Read, slow).await, Ok(7));
        assert!((1..10).contains(&probes.load(Ordering::Relaxed)));
        // An error in its answer does not make the server unavailable.
        let no = async { Err::<u32, _>(StoreError::new("no such table")) };
        assert_eq!(
            circuit.guard(false, Operation::Read, no).await,
            Err(StoreError::new("no such table"))
        );
        assert_eq!(circuit.guard(false, Operation::Read, answers()).await, Ok(7));
    }

    /// A circuit to a server with slow connections.
    fn slow(state: &Arc<Mutex<Duration>>, patience: Duration) -> Arc<Circuit> {
        let state = Arc::clone(state);
        let connect = move || -> BoxFuture<'static, Result<(), sqlx::Error>> {
            let takes = *lock(&state);
            Box::pin(async move {
                sleep(takes).await;
                Ok(())
            })
        };
        Circuit::with(Box::new(connect), patience)
    }

    fn is_open(circuit: &Circuit) -> bool {
        circuit.open.borrow().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_connections_take_long_is_used() {
        let seconds = Duration::from_secs;
        for (takes, patience) in [(3, 5), (4, 5), (2, 3), (9, 10), (29, 30)] {
            let takes = Arc::new(Mutex::new(seconds(takes)));
            let circuit = slow(&takes, seconds(patience));
            let needs = *lock(&takes);
            let question = async || {
                let answer = async {
                    sleep(needs).await;
                    Ok(7)
                };
                circuit.guard(true, Operation::Read, answer).await
            };
            let began = Instant::now();
            while question().await.is_err() {
                sleep(seconds(1)).await;
                assert!(began.elapsed() < 10 * seconds(patience), "{needs:?} {patience}");
            }
            assert!(!is_open(&circuit));
            // A server that is known to be slow does not open the circuit again.
            for _ in 0..20 {
                assert_eq!(question().await, Ok(7), "{needs:?} of {patience}");
                sleep(seconds(1)).await;
            }
            // But no query waits longer than allowed.
            *lock(&takes) = seconds(1000);
            sleep(seconds(1000)).await;
            let began = Instant::now();
            let never = std::future::pending::<Result<u32, StoreError>>();
            assert!(circuit.guard(false, Operation::Read, never).await.is_err());
            assert!(began.elapsed() < seconds(patience) + 2 * PAUSE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_others_is_there() {
        for state in [0, 2] {
            let (state, probes) = (Arc::new(AtomicU32::new(state)), Arc::default());
            let circuit = circuit(&state, &probes);
            assert_eq!(circuit.guard(false, Operation::Read, answers()).await, Ok(7));
            let others = Arc::clone(&circuit);
            let others = tokio::spawn(async move {
                loop {
                    sleep(PATIENCE).await;
                    let _ = others.guard(false, Operation::Read, answers()).await;
                }
            });
            let slow = async {
                sleep(Duration::from_secs(20)).await;
                Ok(7)
            };
            assert_eq!(circuit.guard(false, Operation::Read, slow).await, Ok(7));
            assert!(probes.load(Ordering::Relaxed) > 1);
            others.abort();
            let never = std::future::pending::<Result<u32, StoreError>>();
            assert!(circuit.guard(false, Operation::Read, never).await.is_err(), "now it is away");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_connections_answers_over_those_there_are() {
        let (state, probes) = (Arc::new(AtomicU32::new(1)), Arc::default());
        let circuit = circuit(&state, &probes);
        let away = Outage { why: StoreError::new("no more"), refuses: true };
        let slow = || async {
            circuit.set(Some(away.clone()));
            sleep(PATIENCE / 2).await;
            Ok(7)
        };
        assert_eq!(circuit.guard(false, Operation::Read, slow()).await, Ok(7));
        circuit.set(None);
        // Without existing connections the query must fail.
        assert_eq!(circuit.guard(true, Operation::Read, slow()).await, Err(away.why.clone()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_not_broken_off_and_none_is_begun_while_the_server_is_away() {
        let (state, probes) = (Arc::new(AtomicU32::new(0)), Arc::default());
        let circuit = circuit(&state, &probes);
        let change = async {
            sleep(Duration::from_secs(5)).await;
            Ok(7)
        };
        assert_eq!(circuit.guard(false, Operation::Change, change).await, Ok(7));
        assert!(is_open(&circuit));
        sleep(PAUSE).await;
        let begun = AtomicU32::new(0);
        let change = async {
            begun.fetch_add(1, Ordering::Relaxed);
            answers().await
        };
        assert!(circuit.guard(false, Operation::Change, change).await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_panics_is_followed_by_others() {
        let probes = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&probes);
        let connect = move || -> BoxFuture<'static, Result<(), sqlx::Error>> {
            assert!(count.fetch_add(1, Ordering::Relaxed) > 0, "the first one panics");
            Box::pin(async { Ok(()) })
        };
        let circuit = Circuit::with(Box::new(connect), CONNECT);
        circuit.set(Some(Outage { why: StoreError::new("away"), refuses: false }));
        assert!(circuit.guard(false, Operation::Read, answers()).await.is_err());
        sleep(PAUSE).await;
        assert_eq!(circuit.guard(false, Operation::Read, answers()).await, Ok(7));
        assert_eq!(probes.load(Ordering::Relaxed), 2);
    }
}
