//! The limits of buyers: calls in progress at once, and calls of each user per second.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Services,
    error::ApiError,
    limits::{Limits, RateLimit},
    reason::Reason,
};
use crate::{
    domain::{Ack, Outcome, Receipt, ReserveRequest, UserId},
    telemetry,
};

/// What the handlers of buyers' calls use.
pub(super) struct Admission {
    pub(super) services: Arc<Services>,
    permits: Arc<Semaphore>,
    users: RateLimit<UserId>,
    pub(super) call_timeout: Duration,
    require_request_id: bool,
}

/// A unit that was taken, now or by an earlier call of the same request.
pub(super) struct Taken {
    pub(super) receipt: Receipt,
    /// An earlier call took it.
    pub(super) duplicate: bool,
    /// What the call has waited for.
    pub(super) ack: Ack,
}

impl Admission {
    pub(super) fn new(services: Arc<Services>, limits: &Limits) -> Self {
        Self {
            services,
            permits: Arc::new(Semaphore::new(limits.concurrency_max_calls)),
            users: RateLimit::per_second(limits.user_calls_per_second),
            call_timeout: limits.call_timeout,
            require_request_id: limits.require_request_id,
        }
    }

    /// A permit, to be held until the response is complete. It is taken after the message has arrived, so that a client that
    /// opens a call and sends nothing holds none.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = self.permits.clone().try_acquire_owned();
        permit.map_err(|_| Reason::Overloaded.into()).inspect_err(|error| self.count_shed(error))
    }

    /// Takes one unit, and waits for what `ack`, or else the setting, requires.
    pub(super) async fn take(
        &self,
        request: ReserveRequest,
        ack: Option<Ack>,
    ) -> Result<Taken, ApiError> {
        if self.require_request_id && request.request.is_none() {
            return Err(ApiError::bad_field(
                "request_id",
                "must not be empty: the setting require_request_id is on",
            ));
        }
        let decided = self.decide(request, ack).await;
        let (outcome, ack) = decided.inspect_err(|error| self.count_shed(error))?;
        let (receipt, duplicate) = ApiError::accepted_or_refused(outcome)?;
        telemetry::record_reservation(receipt.reservation_id);
        tracing::debug!(reservation.id = %receipt.reservation_id, duplicate, "order accepted");
        self.services.acks.wait(ack, receipt.reservation_id).await?;
        Ok(Taken { receipt, duplicate, ack })
    }

    async fn decide(
        &self,
        request: ReserveRequest,
        ack: Option<Ack>,
    ) -> Result<(Outcome, Ack), ApiError> {
        let partition = self.services.stock.partitions().count().of(&request.product);
        let ack = self.services.acks.choose(ack, partition)?;
        let checked = self.users.check(&request.user);
        checked.map_err(|wait| ApiError::rate_limited("user", wait))?;
        Ok((self.services.stock.reserve(request).await?, ack))
    }

    /// Counts the call if it was shed.
    pub(super) fn count_shed(&self, error: &ApiError) {
        if error.is_shed() {
            self.services.metrics.record_shed(error.reason.as_str());
        }
    }
}
