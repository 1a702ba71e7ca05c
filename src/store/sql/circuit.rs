//! A database that is away is not waited for by each question: while one connection after the other
//! is tried in the background, questions fail at once.
//!
//! The circuit opens when a connection of its own cannot be made, which is tried as soon as a
//! question takes long or fails, and closes when one can.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, Database};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::cause;
use crate::{base::lock, store::StoreError};

/// A question that has no answer after this has the server looked at; while the circuit is open, it
/// waits for so long for a look that is under way.
const PATIENCE: Duration = Duration::from_millis(100);

/// The server is looked at no more often than this.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest time between two looks for one question that has no answer.
const LONGEST: Duration = Duration::from_secs(10);

/// A server to which no connection was made for so long is away.
const CONNECT: Duration = Duration::from_secs(2);

type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<(), sqlx::Error>> + Send + Sync>;

/// Whether a server can be reached.
pub struct Circuit {
    connect: Connect,
    patience: Duration,
    /// Why it is open, if it is. Marked as changed by each look that finds the server away.
    open: watch::Sender<Option<StoreError>>,
    looked: Mutex<Option<Instant>>,
    looking: AtomicBool,
}

impl Circuit {
    /// Of the server to which these options lead. A connection may take as long as `patience`.
    pub fn new<D: Database>(
        options: <D::Connection as Connection>::Options,
        patience: Duration,
    ) -> Arc<Self> {
        let connect = move || -> BoxFuture<'static, Result<(), sqlx::Error>> {
            let options = options.clone();
            Box::pin(async move {
                let connection = options.connect().await?;
                // That it does not hear a goodbye says nothing of the next connection.
                let _ = connection.close().await;
                Ok(())
            })
        };
        Self::with(Box::new(connect), patience)
    }

    fn with(connect: Connect, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            connect,
            patience: patience.min(CONNECT),
            open: watch::Sender::new(None),
            looked: Mutex::default(),
            looking: AtomicBool::new(false),
        })
    }

    /// Waits for an answer as long as the server is there. `cold`: nothing is known about it yet.
    ///
    /// # Errors
    /// The answer's own, or why the server is away.
    pub async fn guard<T>(
        self: &Arc<Self>,
        cold: bool,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut open = self.open.subscribe();
        let why = open.borrow_and_update().clone();
        if let Some(why) = why {
            self.look();
            if self.looking.load(Ordering::Acquire) {
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
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    if answer.is_err() {
                        self.look();
                    }
                    return answer;
                }
                Ok(why) = open.wait_for(Option::is_some) => {
                    return Err(why.clone().unwrap_or_else(|| StoreError::new("away")));
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
            let mut looked = lock(&self.looked);
            let lately = looked.is_some_and(|at| at.elapsed() < PAUSE);
            if lately || self.looking.swap(true, Ordering::AcqRel) {
                return;
            }
            *looked = Some(Instant::now());
        }
        let circuit = Arc::clone(self);
        tokio::spawn(async move {
            let connected = timeout(circuit.patience, (circuit.connect)()).await;
            let away = match connected {
                Ok(Ok(())) => None,
                Ok(Err(error)) if is_full(&error) => None,
                Ok(Err(error)) => Some(cause(error)),
                Err(_) => {
                    let patience = circuit.patience;
                    Some(StoreError::new(format!(
                        "the database cannot be reached: no connection within {patience:?}"
                    )))
                }
            };
            // From the end of a look on: one that takes long is not followed by the next at once.
            *lock(&circuit.looked) = Some(Instant::now());
            circuit.looking.store(false, Ordering::Release);
            circuit.set(away);
        });
    }

    fn set(&self, away: Option<StoreError>) {
        self.open.send_if_modified(|open| {
            match (&*open, &away) {
                (None, None) => return false,
                (None, Some(why)) => log::warn!("{why}; questions fail until it is there again"),
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
    // PostgreSQL's too many connections; MySQL's, of the server and of a user.
    let mysql = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>();
    match mysql {
        Some(error) => matches!(error.number(), 1040 | 1203 | 1226),
        None => error.code().is_some_and(|code| code == "53300"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

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
                assert!(circuit.guard(false, never()).await.is_err());
                assert!(began.elapsed() <= most, "{:?}", began.elapsed());
            };
            took(first).await;
            for _ in 0..1000 {
                took(PATIENCE).await;
                sleep(Duration::from_millis(1)).await;
            }
            let looks = looks.load(Ordering::Relaxed);
            assert!((2..100).contains(&looks), "{looks}: now and then, not for each question");
            state.store(1, Ordering::Relaxed);
            // A look that is under way must end before the next one.
            sleep(CONNECT + PAUSE).await;
            assert_eq!(circuit.guard(false, answers()).await, Ok(7));
            assert_eq!(circuit.guard(false, answers()).await, Ok(7));
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
        assert!(circuit.guard(false, never).await.is_err());
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
        assert_eq!(circuit.guard(true, slow).await, Ok(7));
        assert!((1..10).contains(&looks.load(Ordering::Relaxed)));
        // What it refuses is its answer, and no reason to think that it is away.
        let no = async { Err::<u32, _>(StoreError::new("no such table")) };
        assert_eq!(circuit.guard(false, no).await, Err(StoreError::new("no such table")));
        assert_eq!(circuit.guard(false, answers()).await, Ok(7));
    }
}
