//! The resident memory of the service, with many connections at full load.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Measured, Setup};
use crate::{
    deployment::{Deployment, Products},
    figure::Figure,
    load::{self, Call, Callers, Pace},
    process::memory_mb,
};

const PRODUCTS: u32 = 64;
/// How often the memory is read during a run.
const READINGS: u32 = 300;
/// Request ids are remembered for this time, so that Redis does not become full; further orders are refused while this many
/// wait.
const SETTINGS: [&str; 2] = ["idempotency_window_ms=60000", "backlog_max_entries=50000"];

pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let products = [Products::plenty("many-", PRODUCTS)];
    let deployment = Deployment::create(&setup.programs, &products, &SETTINGS).await?;
    let service = deployment.serve("all").await?;
    let mut measured = Measured::default();
    let time = Duration::from_secs_f64(setup.sizes.memory_seconds);
    let call = Call::reserve_of("many-", PRODUCTS).with_request_ids();
    let callers = Callers { connections: setup.sizes.connections, streams: 1 };
    let paced = (callers, Pace::Closed(time));
    let load = load::start(&deployment, &service, "with many connections", call, paced)?;
    let (started, mut readings) = (Instant::now(), Vec::new());
    while started.elapsed() < time {
        sleep(time / READINGS).await;
        readings.push(memory_mb(service.pid(), "VmRSS")?);
    }
    measured.keep(load.ended().await?.accepted_or_backlog_full()?);
    measured.add(Figure::MemoryPeak, memory_mb(service.pid(), "VmHWM")?);
    let tenth = (readings.len() / 10).max(1);
    let middle = &readings[readings.len() / 2..];
    let (half, end) =
        (mean(&middle[..tenth.min(middle.len())]), mean(&readings[readings.len() - tenth..]));
    measured.add(Figure::MemoryGrowth, (end - half).max(0.0));
    deployment.wait_until_stored().await?;
    deployment.finish(service).await?;
    Ok(measured)
}

#[expect(clippy::cast_precision_loss, reason = "a few readings")]
fn mean(readings: &[f64]) -> f64 {
    readings.iter().sum::<f64>() / readings.len() as f64
}
