//! One process of each role, and two of each: orders that are accepted and stored, and how evenly the workers store them.
//! Then calls that wait for the ledger, to one process of role `all` and to two.

use std::time::Instant;

use anyhow::ensure;
use futures_util::future::try_join_all;

use super::{Measured, Setup, stored::per_second};
use crate::{
    deployment::{Deployment, Products, Service},
    figure::Figure,
    load::{self, Call, Callers, Pace, Phase},
};

pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let (one, _) = stored(setup, 1, &mut measured).await?;
    let (two, evenness) = stored(setup, 2, &mut measured).await?;
    measured.add(Figure::SpreadRate, two);
    measured.add(Figure::SpreadToOne, two / one);
    measured.add(Figure::SpreadEvenness, evenness);
    let (one, two) = ack_ledger(setup, &mut measured).await?;
    measured.add(Figure::SpreadAckLedger, two / one);
    Ok(measured)
}

fn products(setup: &Setup) -> [Products; 1] {
    [Products::plenty("many-", setup.sizes.products)]
}

/// Calls to these services at the same time, by as many callers in all as one service would have.
async fn calls(
    deployment: &Deployment,
    services: &[Service],
    (name, call): (&str, Call),
    setup: &Setup,
    pace: Pace,
) -> anyhow::Result<Vec<Phase>> {
    let number = u32::try_from(services.len())?;
    let callers = Callers::on_few_connections((setup.sizes.streams / number).max(1));
    let pace = match pace {
        Pace::Calls(calls) => Pace::Calls(calls / u64::from(number)),
        Pace::Closed(_) | Pace::Open { .. } => pace,
    };
    let name = format!("{name}, {number} of each");
    let running: anyhow::Result<Vec<_>> = services
        .iter()
        .map(|service| load::start(deployment, service, &name, call, (callers, pace)))
        .collect();
    let phases = try_join_all(running?.into_iter().map(load::Running::ended)).await?;
    phases.into_iter().map(Phase::all_accepted).collect()
}

/// Orders that are accepted and stored a second by so many processes of each role, and the orders of the worker that
/// stored the fewest, compared with the one that stored the most.
async fn stored(setup: &Setup, number: u64, measured: &mut Measured) -> anyhow::Result<(f64, f64)> {
    let deployment = Deployment::create(&setup.programs, &products(setup), &[]).await?;
    let (mut apis, mut workers) = (Vec::new(), Vec::new());
    for _ in 0..number {
        apis.push(deployment.serve("api").await?);
        workers.push(deployment.serve_beside("worker", &[]).await?);
    }
    deployment.wait_until_spread(&mut workers).await?;
    let orders = setup.sizes.orders / number * number;
    let call = Call::reserve_of("many-", setup.sizes.products);
    let started = Instant::now();
    let phases =
        calls(&deployment, &apis, ("until stored", call), setup, Pace::Calls(orders)).await?;
    measured.phases.extend(phases);
    deployment.wait_until_sold(orders).await?;
    let rate = per_second(orders, started);
    let by_worker = try_join_all(workers.iter().map(Service::stored)).await?;
    let (least, most) =
        by_worker.iter().fold((f64::INFINITY, 0.0_f64), |(least, most), &orders| {
            (least.min(orders), most.max(orders))
        });
    ensure!(most > 0.0, "the workers report no stored orders");
    for worker in workers {
        worker.stop().await?;
    }
    let last = apis.pop();
    for api in apis {
        api.stop().await?;
    }
    if let Some(api) = last {
        deployment.finish(api).await?;
    }
    Ok((rate, least / most))
}

/// The rates of calls with `ack = ledger`, to one process of role `all` and to two.
async fn ack_ledger(setup: &Setup, measured: &mut Measured) -> anyhow::Result<(f64, f64)> {
    let deployment = Deployment::create(&setup.programs, &products(setup), &[]).await?;
    let call = Call::reserve_of("many-", setup.sizes.products).with_ack("ledger");
    let (mut services, mut rates) = (Vec::new(), Vec::<f64>::new());
    for _ in 0..2 {
        services.push(deployment.serve("all").await?);
        deployment.wait_until_spread(&mut services).await?;
        let pace = Pace::Closed(setup.sizes.time());
        let phases = calls(&deployment, &services, ("ack = ledger", call), setup, pace).await?;
        rates.push(phases.iter().map(|phase| phase.rate).sum());
        measured.phases.extend(phases);
        deployment.wait_until_stored().await?;
    }
    let last = services.pop();
    for service in services {
        service.stop().await?;
    }
    if let Some(service) = last {
        deployment.finish(service).await?;
    }
    Ok((rates[0], rates[1]))
}
