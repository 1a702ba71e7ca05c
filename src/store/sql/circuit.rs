//! A database that is away is not waited for by each question: while one connection after the other
//! is tried in the background, questions fail at once.
//!
//! The circuit opens when a connection of its own cannot be made, which is tried as soon as a
//! question takes long or fails, and closes when one can.

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

use super::cause;
use crate::{base::lock, store::StoreError};

/// A question that has no answer after this has the server looked at; while the circuit is open, it
/// waits for so long for a look that is under way.
const PATIENCE: Duration = Duration::from_millis(100);

/// The server is looked at no more often than this. It is not away if it has answered so lately.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest time between two looks for one question that has no answer.
const LONGEST: Duration = Duration::from_secs(10);

/// A server to which no connection was made for so long is away, unless the last one took longer.
const CONNECT: Duration = Duration::from_secs(2);

/// A connection that nobody uses shows within this that the server is there.
const PING: Duration = Duration::from_secs(1);

type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<(), sqlx::Error>> + Send + Sync>;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A question, which is broken off when the server is away.
    Read,
    /// A change. It is not begun while the server is away; once begun it is not broken off, because
    /// nobody would know whether it was made.
    Change,
}

/// Why a server is away.
#[derive(Clone, Debug, PartialEq)]
struct Away {
    why: StoreError,
    /// It speaks, and refuses new connections: those that there are may be good.
    refuses: bool,
}

/// Whether a server can be reached.
pub struct Circuit {
    connect: Connect,
    /// How long making a connection may take.
    patience: Duration,
    /// Why it is open, if it is. Marked as changed by each look that finds the server away.
    open: watch::Sender<Option<Away>>,
    looks: Mutex<Looks>,
}

/// What is known from looks and answers.
#[derive(Default)]
struct Looks {
    /// When the last one began or ended.
    at: Option<Instant>,
    under_way: bool,
    /// The one under way has found the server away, and goes on waiting for its connection.
    late: bool,
    /// How long the last connection took.
    took: Duration,
    /// How long the last look waited that had no connection: the next one waits twice as long.
    in_vain: Duration,
    /// When a question was answered.
    answered: Option<Instant>,
}

impl Looks {
    fn answered_lately(&self) -> bool {
        self.answered.is_some_and(|at| at.elapsed() < PAUSE)
    }
}

/// A look under way, which ends whatever becomes of its task.
struct UnderWay<'a>(&'a Circuit);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut looks = lock(&self.0.looks);
        // From the end of a look on: one that takes long is not followed by the next at once.
        looks.at = Some(Instant::now());
        (looks.under_way, looks.late) = (false, false);
    }
}

impl Circuit {
    /// Of the server to which these options lead, and the connections to it. Making one may take as
    /// long as `patience`.
    pub fn new<D: Database>(
        pool: Pool<D>,
        options: <D::Connection as Connection>::Options,
        patience: Duration,
    ) -> Arc<Self> {
        let connect = move || -> BoxFuture<'static, Result<(), sqlx::Error>> {
            let (pool, options) = (pool.clone(), options.clone());
            Box::pin(async move {
                // One that answers shows more than a new one, for which there may be no room.
                if let Some(mut idle) = pool.try_acquire() {
                    if let Ok(Ok(())) = timeout(PING, idle.ping()).await {
                        return Ok(());
                    }
                    drop(idle.detach());
                }
                let connection = options.connect().await?;
                // That it does not hear a goodbye says nothing of the next connection.
                let _ = connection.close().await;
                Ok(())
            })
        };
        Self::with(Box::new(connect), patience)
    }

    fn with(connect: Connect, patience: Duration) -> Arc<Self> {
        let (open, looks) = (watch::Sender::new(None), Mutex::default());
        Arc::new(Self { connect, patience, open, looks })
    }

    /// Waits for an answer as long as the server is there. `cold`: nothing is known about it yet.
    ///
    /// # Errors
    /// The answer's own, or why the server is away.
    pub async fn guard<T>(
        self: &Arc<Self>,
        cold: bool,
        work: Work,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut open = self.open.subscribe();
        let why = open.borrow_and_update().clone();
        if let Some(Away { why, .. }) = why {
            self.look();
            let fresh = {
                let looks = lock(&self.looks);
                looks.under_way && !looks.late
            };
            if fresh {
                // Either it closes, or it is found open once more.
                let _ = timeout(PATIENCE, open.changed()).await;
            }
            if open.borrow_and_update().is_some() {
                return Err(why);
            }
        } else if cold {
            self.look();
        }
        let mut answer = pin!(answer);
        let mut wait = PATIENCE;
        let gone = |open: &Option<Away>| open.as_ref().is_some_and(|away| cold || !away.refuses);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    match &answer {
                        Ok(_) => lock(&self.looks).answered = Some(Instant::now()),
                        Err(_) => self.look(),
                    }
                    return answer;
                }
                Ok(away) = open.wait_for(gone), if work == Work::Read => {
                    let why = away.as_ref().map(|away| away.why.clone());
                    return Err(why.unwrap_or_else(|| StoreError::new("away")));
                }
                () = sleep(wait) => {
                    self.look();
                    // Once more, if somebody had looked just before; and then seldom.
                    wait = (wait * 2).clamp(PAUSE, LONGEST);
                }
            }
        }
    }

    /// Tries a connection in the background, if none has been tried of late.
    fn look(self: &Arc<Self>) {
        {
            let mut looks = lock(&self.looks);
            let lately = looks.at.is_some_and(|at| at.elapsed() < PAUSE);
            if lately || looks.under_way {
                return;
            }
            (looks.at, looks.under_way) = (Some(Instant::now()), true);
        }
        let circuit = Arc::clone(self);
        tokio::spawn(async move {
            let under_way = UnderWay(&circuit);
            let away = circuit.try_connection().await;
            drop(under_way);
            circuit.set(away);
        });
    }

    /// Why the server is away, if it is. Tells of it as soon as a connection takes longer than usual,
    /// and goes on waiting for that one.
    async fn try_connection(&self) -> Option<Away> {
        let (usual, limit) = {
            let looks = lock(&self.looks);
            let usual = (looks.took * 2).max(CONNECT);
            (usual, (looks.in_vain * 2).max(usual * 2))
        };
        let (usual, limit) = (usual.min(self.patience), limit.min(self.patience));
        let late = || {
            let why = "the database cannot be reached: no connection within";
            Away { why: StoreError::new(format!("{why} {usual:?}")), refuses: false }
        };
        let began = Instant::now();
        let mut connect = pin!(timeout(limit, (self.connect)()));
        let connected = match timeout(usual, &mut connect).await {
            Ok(connected) => connected,
            Err(_) => {
                {
                    let mut looks = lock(&self.looks);
                    if looks.answered_lately() {
                        return None;
                    }
                    looks.late = true;
                }
                self.set(Some(late()));
                connect.await
            }
        };
        let mut looks = lock(&self.looks);
        let away = match connected {
            Ok(Ok(())) => {
                (looks.took, looks.in_vain) = (began.elapsed(), Duration::ZERO);
                return None;
            }
            Ok(Err(error)) if is_full(&error) => return None,
            Ok(Err(error)) => {
                let refuses = matches!(error, sqlx::Error::Database(_));
                Away { why: cause(error), refuses }
            }
            Err(_) => {
                looks.in_vain = limit;
                late()
            }
        };
        // Who answers others is there, and takes no new connection.
        (!looks.answered_lately()).then_some(away)
    }

    fn set(&self, away: Option<Away>) {
        self.open.send_if_modified(|open| {
            match (&*open, &away) {
                (None, None) => return false,
                (None, Some(Away { why, .. })) => {
                    log::warn!("{why}; questions fail until it is there again");
                }
                (Some(_), None) => log::info!("the database can be reached again"),
                (Some(_), Some(_)) => {}
            }
            *open = away;
            true
        });
    }
}

/// Whether the server is there, and has no room for one more connection than there are.
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

    /// 0: refuses, 1: accepts, 2: says nothing.
    fn circuit(state: &Arc<AtomicU32>, looks: &Arc<AtomicU32>) -> Arc<Circuit> {
        let (state, looks) = (Arc::clone(state), Arc::clone(looks));
        let connect = move || -> BoxFuture<'static, Result<(), sqlx::Error>> {
            looks.fetch_add(1, Ordering::Relaxed);
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
            let (state, looks) = (Arc::new(AtomicU32::new(state)), Arc::default());
            let circuit = circuit(&state, &looks);
            let never = || std::future::pending::<Result<u32, StoreError>>();
            let took = async |most: Duration| {
                let began = Instant::now();
                assert!(circuit.guard(false, Work::Read, never()).await.is_err());
                assert!(began.elapsed() <= most, "{:?}", began.elapsed());
            };
            took(first).await;
            for _ in 0..1000 {
                took(PATIENCE).await;
                sleep(Duration::from_millis(1)).await;
            }
            let looks = looks.load(Ordering::Relaxed);
            assert!((1..100).contains(&looks), "{looks}: now and then, not for each question");
            state.store(1, Ordering::Relaxed);
            // A look that is under way must end before the next one.
            sleep(2 * CONNECT + PAUSE).await;
            assert_eq!(circuit.guard(false, Work::Read, answers()).await, Ok(7));
            assert_eq!(circuit.guard(false, Work::Read, answers()).await, Ok(7));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_has_just_been_there_is_looked_at_again() {
        let (state, looks) = (Arc::new(AtomicU32::new(1)), Arc::default());
        let circuit = circuit(&state, &looks);
        circuit.look();
        sleep(Duration::from_millis(1)).await;
        state.store(2, Ordering::Relaxed);
        let began = Instant::now();
        let never = std::future::pending::<Result<u32, StoreError>>();
        assert!(circuit.guard(false, Work::Read, never).await.is_err());
        assert!(began.elapsed() < CONNECT + 2 * PAUSE, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_there_is_waited_for() {
        let (state, looks) = (Arc::new(AtomicU32::new(1)), Arc::default());
        let circuit = circuit(&state, &looks);
        let slow = async {
            sleep(Duration::from_secs(20)).await;
            Ok(7)
        };
        assert_eq!(circuit.guard(true, Work::Read, slow).await, Ok(7));
        assert!((1..10).contains(&looks.load(Ordering::Relaxed)));
        // What it refuses is its answer, and no reason to think that it is away.
        let no = async { Err::<u32, _>(StoreError::new("no such table")) };
        assert_eq!(
            circuit.guard(false, Work::Read, no).await,
            Err(StoreError::new("no such table"))
        );
        assert_eq!(circuit.guard(false, Work::Read, answers()).await, Ok(7));
    }

    /// A circuit to a server whose connections take so long.
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
                circuit.guard(true, Work::Read, answer).await
            };
            let began = Instant::now();
            while question().await.is_err() {
                sleep(seconds(1)).await;
                assert!(began.elapsed() < 10 * seconds(patience), "{needs:?} {patience}");
            }
            assert!(!is_open(&circuit));
            // Known to take so long, it is not taken for away again.
            for _ in 0..20 {
                assert_eq!(question().await, Ok(7), "{needs:?} of {patience}");
                sleep(seconds(1)).await;
            }
            // Nor is it waited for longer than allowed.
            *lock(&takes) = seconds(1000);
            sleep(seconds(1000)).await;
            let began = Instant::now();
            let never = std::future::pending::<Result<u32, StoreError>>();
            assert!(circuit.guard(false, Work::Read, never).await.is_err());
            assert!(began.elapsed() < seconds(patience) + 2 * PAUSE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_others_is_there() {
        for state in [0, 2] {
            let (state, looks) = (Arc::new(AtomicU32::new(state)), Arc::default());
            let circuit = circuit(&state, &looks);
            assert_eq!(circuit.guard(false, Work::Read, answers()).await, Ok(7));
            let others = Arc::clone(&circuit);
            let others = tokio::spawn(async move {
                loop {
                    sleep(PATIENCE).await;
                    let _ = others.guard(false, Work::Read, answers()).await;
                }
            });
            let slow = async {
                sleep(Duration::from_secs(20)).await;
                Ok(7)
            };
            assert_eq!(circuit.guard(false, Work::Read, slow).await, Ok(7));
            assert!(looks.load(Ordering::Relaxed) > 1);
            others.abort();
            let never = std::future::pending::<Result<u32, StoreError>>();
            assert!(circuit.guard(false, Work::Read, never).await.is_err(), "now it is away");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_connections_answers_over_those_there_are() {
        let (state, looks) = (Arc::new(AtomicU32::new(1)), Arc::default());
        let circuit = circuit(&state, &looks);
        let away = Away { why: StoreError::new("no more"), refuses: true };
        let slow = || async {
            circuit.set(Some(away.clone()));
            sleep(PATIENCE / 2).await;
            Ok(7)
        };
        assert_eq!(circuit.guard(false, Work::Read, slow()).await, Ok(7));
        circuit.set(None);
        // Where there are none, nothing can come.
        assert_eq!(circuit.guard(true, Work::Read, slow()).await, Err(away.why.clone()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_not_broken_off_and_none_is_begun_while_the_server_is_away() {
        let (state, looks) = (Arc::new(AtomicU32::new(0)), Arc::default());
        let circuit = circuit(&state, &looks);
        let change = async {
            sleep(Duration::from_secs(5)).await;
            Ok(7)
        };
        assert_eq!(circuit.guard(false, Work::Change, change).await, Ok(7));
        assert!(is_open(&circuit));
        sleep(PAUSE).await;
        let begun = AtomicU32::new(0);
        let change = async {
            begun.fetch_add(1, Ordering::Relaxed);
            answers().await
        };
        assert!(circuit.guard(false, Work::Change, change).await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_panics_is_followed_by_others() {
        let looks = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&looks);
        let connect = move || -> BoxFuture<'static, Result<(), sqlx::Error>> {
            assert!(count.fetch_add(1, Ordering::Relaxed) > 0, "the first one panics");
            Box::pin(async { Ok(()) })
        };
        let circuit = Circuit::with(Box::new(connect), CONNECT);
        circuit.set(Some(Away { why: StoreError::new("away"), refuses: false }));
        assert!(circuit.guard(false, Work::Read, answers()).await.is_err());
        sleep(PAUSE).await;
        assert_eq!(circuit.guard(false, Work::Read, answers()).await, Ok(7));
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }
}
