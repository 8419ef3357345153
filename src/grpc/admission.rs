//! Where buyers are served: so many at once, and each user so often.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Services,
    error::ApiError,
    limits::{Limits, RateLimit},
};
use crate::{
    domain::{Ack, Outcome, Receipt, Reserve, UserId},
    telemetry,
};

/// What the buyers' handlers work on.
pub(super) struct Admission {
    pub(super) services: Arc<Services>,
    permits: Arc<Semaphore>,
    users: RateLimit<UserId>,
    pub(super) call_timeout: Duration,
}

impl Admission {
    pub(super) fn new(services: Arc<Services>, limits: &Limits) -> Self {
        Self {
            services,
            permits: Arc::new(Semaphore::new(limits.concurrency_max_calls)),
            users: RateLimit::per_second(limits.user_calls_per_second),
            call_timeout: limits.call_timeout,
        }
    }

    /// A permit, to be held until the whole answer is there. Taken once the message is: who only opens a
    /// call and sends nothing holds nothing.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| ApiError::Overloaded);
        permit.inspect_err(|error| self.count_refusal(error))
    }

    /// Asks for one unit, and waits until it may be answered; whether it is a duplicate comes with the receipt.
    pub(super) async fn take(
        &self,
        request: Reserve,
        ack: Option<Ack>,
    ) -> Result<(Receipt, bool), ApiError> {
        let decided = self.decide(request, ack).await;
        let (outcome, ack) = decided.inspect_err(|error| self.count_refusal(error))?;
        let taken = ApiError::refusal(outcome)?;
        let reservation_id = taken.0.reservation_id;
        telemetry::record_reservation(reservation_id);
        tracing::debug!(reservation.id = %reservation_id, duplicate = taken.1, "order accepted");
        self.services.acks.wait(ack, reservation_id).await?;
        Ok(taken)
    }

    async fn decide(&self, request: Reserve, ack: Option<Ack>) -> Result<(Outcome, Ack), ApiError> {
        let ack = self.services.acks.choose(ack)?;
        let limited = |wait| ApiError::RateLimited { whose: "user", wait };
        self.users.check(&request.user).map_err(limited)?;
        Ok((self.services.stock.reserve(request).await?, ack))
    }

    /// Counts a call that a limit refused.
    pub(super) fn count_refusal(&self, error: &ApiError) {
        if error.is_shed() {
            self.services.stock.partitions().metrics().refused(error.reason());
        }
    }
}
