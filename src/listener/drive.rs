//! Runs a connection until it ends by itself or its deadline passes.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::runtime::connections::{ClientConnection, DeadlineAction};

/// Where a timer stands that has not been set yet.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// Runs `serving`. One timer serves all deadlines of the connection: it is only reset when it has fired
/// or a deadline is earlier.
pub async fn run(serving: impl Future<Output = ()>, connection: &ClientConnection) {
    let mut serving = pin!(serving);
    let mut timer = pin!(tokio::time::sleep(FAR));
    let mut set_to: Option<Instant> = None;
    poll_fn(|cx: &mut Context<'_>| {
        connection.register(cx.waker());
        if serving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while let Some(due) = connection.due() {
            if set_to.is_none_or(|at| due < at) {
                timer.as_mut().reset(due.into());
                set_to = Some(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            set_to = None;
            match connection.overdue() {
                None => {}
                Some(DeadlineAction::Close) => return Poll::Ready(()),
                // Only another poll lets `serving` see what has happened.
                Some(DeadlineAction::Continue) if serving.as_mut().poll(cx).is_ready() => {
                    return Poll::Ready(());
                }
                Some(DeadlineAction::Continue) => {}
            }
        }
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use super::*;
    use crate::{
        runtime::connections::{ConnectionLimits, Connections, MaxConnections},
        telemetry::Metrics,
    };

    fn connection(head: Duration, idle: Duration) -> Arc<ClientConnection> {
        let all = Arc::new(Connections::new(Metrics::new().connections.clone()));
        let limits = ConnectionLimits {
            head: Some(head),
            idle: Some(idle),
            write: Some(Duration::from_secs(3600)),
            head_size: 1000,
        };
        all.admit(None, MaxConnections { total: 0, per_address: 0 }, limits).unwrap()
    }

    #[tokio::test]
    async fn a_silent_connection_ends() {
        let connection = connection(Duration::from_millis(20), Duration::from_secs(3600));
        run(pending(), &connection).await;
    }

    #[tokio::test]
    async fn a_request_is_not_ended_and_idleness_after_it_is() {
        let connection = connection(Duration::from_millis(20), Duration::from_millis(20));
        let request = connection.begin();
        let turns = AtomicU32::new(0);
        // Ends by itself: there is no deadline while a request is in flight.
        let serving = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                turns.fetch_add(1, Ordering::Relaxed);
            }
        };
        run(serving, &connection).await;
        assert_eq!(turns.load(Ordering::Relaxed), 20);
        // Another task ends the request, as with HTTP/2, while this one sleeps without a deadline.
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(request);
        });
        run(pending(), &connection).await;
    }
}
