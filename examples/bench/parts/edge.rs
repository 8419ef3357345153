//! Calls over REST, through Envoy, and over gRPC, on as many connections.

use super::{
    Measured, Setup,
    api::{ACCEPTED, SOLD_OUT},
};
use crate::{
    deployment::{Deployment, Products},
    figure::Figure,
    load::{self, Callers, Pace},
    rest::{Answer, Envoy},
};

pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let products =
        [Products::plenty("hot-", 1), Products { prefix: "scarce-", count: 1, units: 1 }];
    let settings = ["backlog_max_entries=1000000000"];
    let deployment = Deployment::create(&setup.programs, &products, &settings).await?;
    let service = deployment.serve("api").await?;
    let (time, connections) = (setup.sizes.time(), setup.sizes.rest_connections);
    let mut measured = Measured::default();
    // It takes the only unit, so that REST finds none.
    let one = (Callers { connections: 1, streams: 1 }, Pace::Calls(1));
    let one = load::run(&deployment, &service, "the only unit", SOLD_OUT, one).await?;
    one.all_accepted()?;
    let envoy = Envoy::start(&deployment, &service).await?;
    let callers = (Callers { connections, streams: 1 }, Pace::Closed(time));
    for _ in 0..setup.sizes.rounds {
        let grpc =
            load::run(&deployment, &service, "accepted over gRPC", ACCEPTED, callers).await?;
        let grpc = measured.keep(grpc.all_accepted()?);
        let accepted = envoy.buy("hot-0", Answer::Accepted, connections, time).await?;
        let sold_out = envoy.buy("scarce-0", Answer::SoldOut, connections, time).await?;
        measured.add(Figure::RestAcceptedRate, accepted);
        measured.add(Figure::RestSoldOutRate, sold_out);
        measured.add(Figure::RestToGrpc, accepted / grpc.rate);
    }
    envoy.stop().await?;
    deployment.finish(service).await?;
    Ok(measured)
}
