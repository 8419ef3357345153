//! One Redis, and a Redis Cluster of three masters on the same machine: what a service in role `api` accepts with each of
//! them, in turn.

use super::{Measured, Setup};
use crate::{
    deployment::{Deployment, Products, Service},
    figure::Figure,
    load::{self, Call, Pace},
    measure::stores::Redis,
};

/// As many as the other parts have by default, so that each master has two at least.
const PARTITIONS: &str = "partitions=8";

async fn started(setup: &Setup, redis: Redis) -> anyhow::Result<(Deployment, Service)> {
    let products = [Products::plenty("many-", setup.sizes.products)];
    // Nothing is stored, so that every order waits.
    let settings = ["backlog_max_entries=1000000000", PARTITIONS];
    let deployment = Deployment::create_on(redis, &setup.programs, &products, &settings).await?;
    let service = deployment.serve("api").await?;
    Ok((deployment, service))
}

pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let one = started(setup, Redis::One).await?;
    let cluster = started(setup, Redis::Cluster).await?;
    let call = Call::reserve_of("many-", setup.sizes.products);
    let paced = (setup.sizes.callers(), Pace::Closed(setup.sizes.time()));
    let phase = async |name: &str, (deployment, service): &(Deployment, Service)| {
        load::run(deployment, service, name, call, paced).await?.all_accepted()
    };
    for _ in 0..setup.sizes.rounds {
        let of_one = measured.keep(phase("accepted, one Redis", &one).await?);
        let of_cluster = measured.keep(phase("accepted, three masters", &cluster).await?);
        measured.add(Figure::ClusterRate, of_cluster.rate);
        measured.add(Figure::ClusterToOne, of_cluster.rate / of_one.rate);
    }
    for (deployment, service) in [one, cluster] {
        deployment.finish(service).await?;
    }
    Ok(measured)
}
