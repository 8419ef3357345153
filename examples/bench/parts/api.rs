//! Calls to a service in role `api`: nothing is stored while it sells.

use super::{Measured, Setup};
use crate::{
    deployment::{Deployment, Products, Service},
    figure::Figure,
    load::{self, Call, Callers, Pace, Phase},
};

/// One hot product, and one that is sold out after its only unit.
const PRODUCTS: [Products; 2] =
    [Products::plenty("hot-", 1), Products { prefix: "scarce-", count: 1, units: 1 }];
pub(super) const ACCEPTED: Call = Call::reserve("hot-");
pub(super) const SOLD_OUT: Call = Call::reserve("scarce-");

/// The running service, and what is measured with it.
struct Run<'a> {
    setup: &'a Setup,
    deployment: &'a Deployment,
    service: &'a Service,
    measured: Measured,
}

impl Run<'_> {
    async fn phase(
        &mut self,
        name: &str,
        call: Call,
        (callers, pace): (Callers, Pace),
    ) -> anyhow::Result<Phase> {
        let phase = load::run(self.deployment, self.service, name, call, (callers, pace)).await?;
        Ok(self.measured.keep(phase.checked()?))
    }

    /// A phase of callers on few connections.
    async fn few(&mut self, name: &str, call: Call) -> anyhow::Result<Phase> {
        let pace = Pace::Closed(self.setup.sizes.time());
        self.phase(name, call, (self.setup.sizes.callers(), pace)).await
    }

    /// A phase of callers on a connection each.
    async fn many(&mut self, name: &str, call: Call) -> anyhow::Result<Phase> {
        let callers = Callers { connections: self.setup.sizes.connections, streams: 1 };
        self.phase(name, call, (callers, Pace::Closed(self.setup.sizes.time()))).await
    }

    /// Returns how many calls were accepted per second.
    async fn on_few_connections(&mut self) -> anyhow::Result<f64> {
        let products = self.setup.sizes.products;
        let empty = self.few("empty", Call::Empty).await?;
        let accepted = self.few("accepted", ACCEPTED).await?.all_accepted()?;
        let sold_out = self.few("sold out", SOLD_OUT).await?;
        let with_ids = self.few("with request ids", ACCEPTED.with_request_ids()).await?;
        let with_ids = with_ids.all_accepted()?;
        let many = self.few("many products", Call::reserve_of("many-", products)).await?;
        let many = many.all_accepted()?;
        self.deployment.redis.set_appendfsync("always").await?;
        let always = self.few("appendfsync always", ACCEPTED).await?.all_accepted()?;
        self.deployment.redis.set_appendfsync("everysec").await?;
        for (figure, value) in [
            (Figure::EmptyRate, empty.rate),
            (Figure::AcceptedRate, accepted.rate),
            (Figure::SoldOutRate, sold_out.rate),
            (Figure::AcceptedToEmpty, accepted.rate / empty.rate),
            (Figure::SoldOutToEmpty, sold_out.rate / empty.rate),
            (Figure::RequestIds, with_ids.rate / accepted.rate),
            (Figure::ManyProducts, many.rate / accepted.rate),
            (Figure::FsyncAlways, always.rate / accepted.rate),
        ] {
            self.measured.add(figure, value);
        }
        Ok(accepted.rate)
    }

    async fn on_many_connections(&mut self) -> anyhow::Result<()> {
        let empty = self.many("empty, many connections", Call::Empty).await?;
        let accepted = self.many("accepted, many connections", ACCEPTED).await?.all_accepted()?;
        let sold_out = self.many("sold out, many connections", SOLD_OUT).await?;
        self.measured.add(Figure::AcceptedToEmptyMany, accepted.rate / empty.rate);
        self.measured.add(Figure::SoldOutToEmptyMany, sold_out.rate / empty.rate);
        Ok(())
    }

    /// Calls that begin at a rate, whatever the answers.
    async fn at_a_rate(&mut self, rate: f64) -> anyhow::Result<()> {
        let pace = Pace::Open { rate: rate.max(1.0), time: self.setup.sizes.time() };
        let paced = (self.setup.sizes.callers(), pace);
        let empty = self.phase("empty, half the rate", Call::Empty, paced).await?;
        let accepted = self.phase("accepted, half the rate", ACCEPTED, paced).await?;
        self.measured.add(Figure::P99ToEmpty, accepted.p99_us / empty.p99_us);
        Ok(())
    }
}

pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let [hot, scarce] = PRODUCTS;
    let all = [hot, scarce, Products::plenty("many-", setup.sizes.products)];
    // Nothing is stored, so that every order waits.
    let settings = ["backlog_max_entries=1000000000"];
    let deployment = Deployment::create(&setup.programs, &all, &settings).await?;
    let service = deployment.serve("api").await?;
    let measured = Measured::default();
    let mut run = Run { setup, deployment: &deployment, service: &service, measured };
    for _ in 0..setup.sizes.rounds {
        let accepted = run.on_few_connections().await?;
        run.on_many_connections().await?;
        run.at_a_rate(accepted / 2.0).await?;
    }
    let measured = run.measured;
    deployment.finish(service).await?;
    Ok(measured)
}
