//! Takes claims in Redis.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use super::{
    amounts::Amounts,
    credit::{CreditDecision, Credits, Loan},
    failures::{Action, Failures},
    holdings::Holdings,
    outage::Outage,
    replica::{self, Replica},
    reservation::Reservation,
    script::{BucketRequest, ScriptClient, TakeReply, TakeRequest},
    settings::Settings,
};
use crate::{
    limit::claim::{Charge, ClaimKind, Claims, FailedClaim, Spend},
    store::{
        StoreError,
        redis::{Redis, ScriptError, ScriptOutcome},
    },
    telemetry::Metrics,
};

/// The limits in one Redis, as one replica sees them.
pub struct RedisCounter {
    replica: Arc<Replica>,
}

/// A request whose claims Redis decides.
struct TakeJob {
    request: TakeRequest,
    reservation: Reservation,
    loan: Option<Loan>,
}

/// The result of a [`TakeJob`].
struct Decision {
    result: Result<Reservation, FailedClaim>,
    request: TakeRequest,
    reply: TakeReply,
}

impl RedisCounter {
    /// Does not connect yet. `runtime` is the runtime of the stores.
    pub fn new(
        server: Arc<Redis>,
        mut settings: Settings,
        runtime: Handle,
        metrics: &Metrics,
    ) -> Arc<Self> {
        settings.timeout = settings.timeout.min(settings.ttl);
        let credits = settings.lease.clone().map(|lease| Arc::new(Credits::new(lease)));
        let replica = Arc::new(Replica {
            client: Arc::new(ScriptClient::new(server, settings.prefix.clone(), settings.ttl)),
            runtime,
            holdings: Holdings::default(),
            outage: Outage::default(),
            credits,
            amounts: Amounts::default(),
            failures: Arc::new(Failures::new(metrics.limits.store_errors.clone())),
            pending: metrics.limits.pending.clone(),
            settings,
        });
        let weak = Arc::downgrade(&replica);
        replica.runtime.spawn(replica::renew(weak.clone(), replica.settings.ttl));
        if let Some(lease) = &replica.settings.lease {
            replica.runtime.spawn(replica::tidy(weak, lease.lifetime / 4));
        }
        Arc::new(Self { replica })
    }

    /// Number of calls to Redis so far.
    pub fn round_trips(&self) -> u64 {
        self.replica.client.trips()
    }

    /// Gives back all units taken ahead, for the end of the process. Returns at once;
    /// [`crate::telemetry::LimitMetrics::pending`] shows when it is done.
    pub fn give_back(&self) {
        self.replica.give_back();
    }

    /// Takes all claims or none, and records in them what is left. In the leased mode that is what
    /// Redis last reported plus the units taken ahead.
    ///
    /// If the future is dropped, what was taken is given back.
    ///
    /// # Errors
    /// If Redis did not decide. Then nothing is held.
    pub async fn take(
        &self,
        claims: &mut Claims,
    ) -> Result<Result<Reservation, FailedClaim>, StoreError> {
        match &self.replica.credits {
            _ if claims.is_empty() => Ok(Ok(self.draft(claims))),
            None => self.take_exactly(claims).await,
            Some(credits) => self.take_leased(credits, claims).await,
        }
    }

    /// Adds amounts that were spent while the claims were held elsewhere. Returns at once; failures
    /// are tried again for as long as a hold would last.
    pub fn spend(&self, spends: &[Spend], charge: &Charge) {
        if !spends.is_empty() {
            let claims = Claims { takes: Vec::new(), spends: spends.to_vec() };
            self.draft(&claims).settle(charge);
        }
    }

    fn draft(&self, claims: &Claims) -> Reservation {
        Reservation::draft(&self.replica, claims)
    }

    async fn take_exactly(
        &self,
        claims: &mut Claims,
    ) -> Result<Result<Reservation, FailedClaim>, StoreError> {
        let buckets = claims.takes.iter().enumerate();
        let buckets = buckets.map(|(i, claim)| BucketRequest::exact(i, claim)).collect();
        let request = TakeRequest { buckets, spends: claims.spends.clone() };
        let reservation = self.draft(claims);
        let decision = self.ask(TakeJob { request, reservation, loan: None }).await?;
        decision.reply.record(&decision.request, claims);
        Ok(decision.result)
    }

    async fn take_leased(
        &self,
        credits: &Arc<Credits>,
        claims: &mut Claims,
    ) -> Result<Result<Reservation, FailedClaim>, StoreError> {
        let loan = match self.loan(credits, claims).await {
            Ok(loan) => loan,
            Err(failed) => return Ok(Err(failed)),
        };
        let lifetime = credits.lifetime();
        let known = self.replica.amounts.check(&claims.spends, lifetime, Instant::now());
        if let Some(Err(failed)) = known {
            return Ok(Err(failed));
        }
        let takes = claims.takes.iter().enumerate();
        let slots = takes.filter(|(_, claim)| claim.dim.kind() == ClaimKind::Slot);
        let slots = slots.map(|(i, claim)| BucketRequest::exact(i, claim));
        let buckets: Vec<_> = loan.requests().cloned().chain(slots).collect();
        let reservation = self.draft(claims);
        if buckets.is_empty() && known.is_some() {
            loan.keep();
            return Ok(Ok(reservation));
        }
        let request = TakeRequest { buckets, spends: claims.spends.clone() };
        let decision = self.ask(TakeJob { request, reservation, loan: Some(loan) }).await?;
        decision.reply.record(&decision.request, claims);
        Ok(decision.result)
    }

    /// Takes the units that are here, and waits for other requests that are asking Redis for missing
    /// ones, but not for ever: many may ask one after the other, and each gets at most a share.
    async fn loan(&self, credits: &Arc<Credits>, claims: &mut Claims) -> Result<Loan, FailedClaim> {
        let start = Instant::now();
        loop {
            let patience = self.replica.settings.timeout.saturating_sub(start.elapsed());
            let patient = !patience.is_zero() && !self.replica.outage.is_on();
            match credits.plan(&mut claims.takes, patient, Instant::now()) {
                CreditDecision::Proceed(loan) => return Ok(loan),
                CreditDecision::Refuse(shortfall) => {
                    return Err(FailedClaim::Bucket(shortfall));
                }
                // The sender is dropped when Redis has answered.
                CreditDecision::Wait(mut asking) => {
                    _ = timeout(patience, asking.changed()).await;
                }
            }
        }
    }

    /// Asks Redis, on the runtime of the stores: the answer is processed even if the caller is gone.
    async fn ask(&self, job: TakeJob) -> Result<Decision, StoreError> {
        if let Err(why) = self.replica.outage.may_ask(Instant::now()) {
            job.reservation.discard();
            return Err(why);
        }
        let (sender, receiver) = oneshot::channel();
        let (replica, pending) = (Arc::clone(&self.replica), self.replica.pending_call());
        self.replica.runtime.spawn(async move {
            answer(&replica, job, sender).await;
            drop(pending);
        });
        receiver.await.unwrap_or_else(|_| Err(StoreError::new("the call to Redis was aborted")))
    }
}

async fn answer(
    replica: &Replica,
    job: TakeJob,
    sender: oneshot::Sender<Result<Decision, StoreError>>,
) {
    let limit: Duration = replica.settings.timeout;
    let mut decision = pin!(decide(replica, job));
    // A decision that no caller receives gives back what it holds when it is dropped.
    match timeout(limit, &mut decision).await {
        Ok(Ok(decision)) => {
            replica.outage.over();
            let _ = sender.send(Ok(decision));
        }
        Ok(Err(error)) => {
            // A server that refuses what is stored at one key serves the others.
            match error.outcome {
                ScriptOutcome::Refused => replica.outage.over(),
                ScriptOutcome::Unable | ScriptOutcome::Broken | ScriptOutcome::Unknown => {
                    replica.outage.failed(error.why.clone(), Instant::now());
                }
            }
            replica.failures.report(Action::Take, &error.why);
            let _ = sender.send(Err(error.why));
        }
        Err(_) => {
            let why = StoreError::new(format!("no answer within {limit:?}"));
            replica.outage.failed(why.clone(), Instant::now());
            replica.failures.report(Action::Take, &why);
            let _ = sender.send(Err(why));
            let _ = decision.await;
        }
    }
}

async fn decide(replica: &Replica, job: TakeJob) -> Result<Decision, ScriptError> {
    let TakeJob { request, reservation, loan } = job;
    // Each pooled connection may have broken since its last use; a failed call replaces it.
    let mut left = replica.client.connections();
    let mut sure = true;
    let reply = loop {
        match replica.client.take(&reservation.holding, &request).await {
            Ok(reply) => break reply,
            Err(error) if error.outcome == ScriptOutcome::Broken && left > 0 => {
                left -= 1;
                sure = false;
            }
            Err(error) => {
                let undone =
                    matches!(error.outcome, ScriptOutcome::Refused | ScriptOutcome::Unable);
                reservation.refused(undone && sure);
                return Err(error);
            }
        }
    };
    let now = Instant::now();
    if replica.credits.is_some() {
        replica.amounts.note(&request.spends, &reply.spent, now);
    }
    let failed = reply.failed(&request);
    if let Some(loan) = loan {
        loan.answered(failed.is_none(), &reply.buckets, now);
    }
    let result = match failed {
        None => {
            replica.holdings.begin(&reservation.holding);
            Ok(reservation)
        }
        Some(failed) => {
            reservation.refused(sure);
            Err(failed)
        }
    };
    Ok(Decision { result, request, reply })
}
