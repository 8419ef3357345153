//! Calls to a service in role `api`: nothing is stored while it sells.

use super::{Measured, Setup};
use crate::{
    deployment::{Deployment, Products},
    figure::Figure,
    load::{self, Call, Callers, Pace, Phase},
};

/// One hot product, and one that is sold out after its only unit.
const PRODUCTS: [Products; 2] =
    [Products::plenty("hot-", 1), Products { prefix: "scarce-", count: 1, units: 1 }];
pub(super) const ACCEPTED: Call = Call::reserve("hot-");
pub(super) const SOLD_OUT: Call = Call::reserve("scarce-");

pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let products = setup.sizes.products;
    let [hot, scarce] = PRODUCTS;
    let all = [hot, scarce, Products::plenty("many-", products)];
    // Nothing is stored, so that every order waits.
    let settings = ["backlog_max_entries=1000000000"];
    let deployment = Deployment::create(&setup.programs, &all, &settings).await?;
    let service = deployment.serve("api").await?;
    let time = setup.sizes.time();
    let mut measured = Measured::default();
    let phase = async |name: &str, call: Call, callers: Callers, pace: Pace| {
        load::run(&deployment, &service, name, call, (callers, pace)).await?.checked()
    };
    let few = async |name: &str, call: Call| -> anyhow::Result<Phase> {
        phase(name, call, setup.sizes.callers(), Pace::Closed(time)).await
    };

    let empty = measured.keep(few("empty", Call::Empty).await?);
    let accepted = measured.keep(few("accepted", ACCEPTED).await?.all_accepted()?);
    let sold_out = measured.keep(few("sold out", SOLD_OUT).await?);
    measured.add(Figure::EmptyRate, empty.rate);
    measured.add(Figure::AcceptedRate, accepted.rate);
    measured.add(Figure::SoldOutRate, sold_out.rate);
    measured.add(Figure::AcceptedToEmpty, accepted.rate / empty.rate);
    measured.add(Figure::SoldOutToEmpty, sold_out.rate / empty.rate);

    let with_ids = few("with request ids", ACCEPTED.with_request_ids()).await?;
    let with_ids = measured.keep(with_ids.all_accepted()?);
    measured.add(Figure::RequestIds, with_ids.rate / accepted.rate);
    let many = Call::reserve_of("many-", products);
    let many = measured.keep(few("many products", many).await?.all_accepted()?);
    measured.add(Figure::ManyProducts, many.rate / accepted.rate);

    deployment.set_appendfsync("always").await?;
    let always = measured.keep(few("appendfsync always", ACCEPTED).await?.all_accepted()?);
    deployment.set_appendfsync("everysec").await?;
    measured.add(Figure::FsyncAlways, always.rate / accepted.rate);

    let callers = Callers { connections: setup.sizes.connections, streams: 1 };
    let many = async |name: &str, call: Call| -> anyhow::Result<Phase> {
        phase(name, call, callers, Pace::Closed(time)).await
    };
    let empty = measured.keep(many("empty, many connections", Call::Empty).await?);
    let accepted_many = many("accepted, many connections", ACCEPTED).await?;
    let accepted_many = measured.keep(accepted_many.all_accepted()?);
    let sold_out = measured.keep(many("sold out, many connections", SOLD_OUT).await?);
    measured.add(Figure::AcceptedToEmptyMany, accepted_many.rate / empty.rate);
    measured.add(Figure::SoldOutToEmptyMany, sold_out.rate / empty.rate);

    let half = Pace::Open { rate: (accepted.rate / 2.0).max(1.0), time };
    let open = async |name: &str, call: Call| phase(name, call, setup.sizes.callers(), half).await;
    let empty = measured.keep(open("empty, half the rate", Call::Empty).await?);
    let accepted = measured.keep(open("accepted, half the rate", ACCEPTED).await?);
    measured.add(Figure::P99ToEmpty, accepted.p99_us / empty.p99_us);
    deployment.finish(service).await?;
    Ok(measured)
}
