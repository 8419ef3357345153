//! Calls to a service in role `all`, until the last order is stored.

use std::time::Instant;

use super::{Measured, Setup, api::ACCEPTED};
use crate::{
    deployment::{Deployment, Products},
    figure::Figure,
    load::{self, Call, Pace},
};

pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let products = [Products::plenty("hot-", 1)];
    let deployment = Deployment::create(&setup.programs, &products, &[]).await?;
    let service = deployment.serve("all").await?;
    let (time, orders) = (setup.sizes.time(), setup.sizes.orders);
    let callers = setup.sizes.callers();
    let mut measured = Measured::default();
    let phase = async |name: &str, call: Call, pace: Pace| {
        load::run(&deployment, &service, name, call, (callers, pace)).await?.all_accepted()
    };
    let empty = measured.keep(phase("empty", Call::Empty, Pace::Closed(time)).await?);
    let started = Instant::now();
    measured.keep(phase("until stored", ACCEPTED, Pace::Calls(orders)).await?);
    deployment.wait_until_sold(orders).await?;
    let stored = per_second(orders, started);
    measured.add(Figure::StoredRate, stored);
    measured.add(Figure::StoredToEmpty, stored / empty.rate);

    for _ in 0..setup.sizes.rounds {
        let pace = Pace::Closed(time);
        let memory = measured.keep(phase("ack = memory", ACCEPTED.with_ack("memory"), pace).await?);
        deployment.wait_until_stored().await?;
        let ledger = measured.keep(phase("ack = ledger", ACCEPTED.with_ack("ledger"), pace).await?);
        deployment.wait_until_stored().await?;
        measured.add(Figure::AckLedger, ledger.rate / memory.rate);
    }
    deployment.finish(service).await?;
    Ok(measured)
}

#[expect(clippy::cast_precision_loss, reason = "a count of orders")]
pub(crate) fn per_second(orders: u64, started: Instant) -> f64 {
    orders as f64 / started.elapsed().as_secs_f64()
}
