//! Calls at full rate while Postgres is away: each order waits in Redis until Postgres has returned.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Measured, Setup};
use crate::{
    deployment::{Deployment, Products},
    figure::Figure,
    load::{self, Call, Pace},
};

/// As many products, so that the limit of a partition's backlog does not end the sale.
const PRODUCTS: u32 = 64;
/// Orders before Postgres goes away: after them every partition has sold.
const FIRST_ORDERS: u64 = 2_000;

#[expect(clippy::cast_precision_loss, reason = "bytes and counts")]
pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let products = [Products::plenty("many-", PRODUCTS)];
    let deployment = Deployment::create(&setup.programs, &products, &[]).await?;
    let service = deployment.serve("all").await?;
    let callers = setup.sizes.callers();
    let mut measured = Measured::default();
    let call = Call::reserve_of("many-", PRODUCTS).with_request_ids();
    let phase = async |name: &str, pace: Pace| {
        load::run(&deployment, &service, name, call, (callers, pace)).await
    };
    measured.keep(phase("before", Pace::Calls(FIRST_ORDERS)).await?.all_accepted()?);
    deployment.wait_until_stored().await?;

    deployment.stores.stop_postgres().await?;
    let before = deployment.redis.bytes().await?;
    let time = Duration::from_secs_f64(setup.sizes.away_seconds);
    let away = phase("Postgres is away", Pace::Closed(time)).await?;
    // On a fast machine the limit of the backlog may be reached. Then Redis uses 1 GB, and is not full with less than 2 GB.
    let away = measured.keep(away.accepted_or_backlog_full()?);
    let (with_orders, waiting) =
        (deployment.redis.bytes().await?, deployment.orders_in_streams().await?);
    ensure!(waiting >= away.succeeded, "{waiting} orders wait: fewer than were accepted");
    deployment.stores.restart_postgres().await?;
    let returned = Instant::now();
    deployment.wait_until_stored().await?;
    measured.add(Figure::DrainSeconds, returned.elapsed().as_secs_f64());
    let waited = waiting as f64;
    measured.add(Figure::OrderBytes, (with_orders as f64 - before as f64) / waited);
    measured.add(Figure::StreamBytesLeft, deployment.redis.stream_bytes().await? as f64 / waited);
    deployment.finish(service).await?;
    Ok(measured)
}
