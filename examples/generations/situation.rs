//! The situations in which each design sells, and what is counted in each. Load and counts are the same for all designs.

use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::ensure;
use serde::Serialize;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use yoink::load::{self, Pace, Plan};

use crate::{
    database::PRODUCT,
    designs::{Generation, Running},
    measure::stores::Stores,
    service::NO_CONNECTION,
};

/// The expiry of the stock key in the original. No run lasts as long.
const STOCK_EXPIRY: Duration = Duration::from_secs(3600);
/// How long storing the orders that wait may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const CONNECTIONS: usize = 8;
/// More units than are bought.
const PLENTY: i64 = 10_000_000;

/// How large the load is.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Sizes {
    /// Buyers at the same time.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) buyers: u32,
    /// Units of the flash sale; ten times as many are in the sale in which the stock key expires.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    pub(crate) units: i64,
    /// Calls of the flash sale.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) attempts: u64,
    /// How long Postgres is down, and how long the run with plenty of units lasts.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(crate) seconds: u32,
    /// Calls per second in the run in which Postgres is down.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
}

/// What happens during the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Situation {
    /// Few units, many buyers.
    FlashSale,
    /// More units, and the stock key of the queue expires every few seconds instead of every hour.
    KeyExpires,
    /// Every call can be accepted.
    Plenty,
    /// Every call can be accepted, and Postgres is stopped in the second third of the run.
    PostgresDown,
}

/// What a second of a run brought.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Second {
    pub(crate) accepted: u64,
    pub(crate) errors: u64,
    pub(crate) stored: u64,
}

/// The counts of one run, taken after the last waiting order was stored or given up.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) supply: i64,
    pub(crate) calls: u64,
    pub(crate) accepted: u64,
    /// Calls without an answer, calls that had no connection to a store, and failed attempts to connect.
    pub(crate) connection_errors: u64,
    /// Calls that were neither accepted nor refused because the product was sold out.
    pub(crate) errors: u64,
    pub(crate) p95_ms: f64,
    /// Accepted calls in the fastest second.
    pub(crate) peak_accepted: u64,
    /// Orders per second, from the first call until the last order was stored.
    pub(crate) stored_per_second: f64,
    /// Orders in Postgres.
    pub(crate) orders: u64,
    /// Units that buyers can still buy.
    pub(crate) stock: i64,
    /// Orders in Postgres beyond the supply.
    pub(crate) oversold: u64,
    /// Accepted calls whose order is not in Postgres.
    pub(crate) accepted_lost: u64,
    /// Units that cannot be bought any more and are in no order.
    pub(crate) units_lost: u64,
    pub(crate) seconds: Vec<Second>,
}

impl Situation {
    /// Its name for people, while it runs.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::FlashSale => "a flash sale",
            Self::KeyExpires => "a sale in which the stock key expires",
            Self::Plenty => "plenty of units",
            Self::PostgresDown => "Postgres is down for a moment",
        }
    }

    fn supply(self, sizes: &Sizes) -> i64 {
        match self {
            Self::FlashSale => sizes.units,
            Self::KeyExpires => sizes.units * 10,
            Self::Plenty | Self::PostgresDown => PLENTY,
        }
    }

    fn stock_expiry(self, sizes: &Sizes) -> Duration {
        match self {
            Self::KeyExpires => seconds(sizes) / 2,
            Self::FlashSale | Self::Plenty | Self::PostgresDown => STOCK_EXPIRY,
        }
    }

    fn plan(self, sizes: &Sizes, target: String) -> anyhow::Result<Plan> {
        let buyers = usize::try_from(sizes.buyers)?;
        let mut plan = Plan::new(target, [PRODUCT]);
        plan.connections = CONNECTIONS.min(buyers);
        plan.streams = buyers.div_ceil(plan.connections);
        plan.keep_accepted_ids = true;
        plan.timeout = Duration::from_secs(30);
        plan.duration = match self {
            Self::FlashSale => None,
            Self::KeyExpires => Some(2 * seconds(sizes)),
            Self::Plenty => Some(seconds(sizes)),
            Self::PostgresDown => Some(3 * seconds(sizes)),
        };
        plan.calls = (self == Self::FlashSale).then_some(sizes.attempts);
        if self == Self::PostgresDown {
            plan.pace = Pace::Open { rate: f64::from(sizes.rate) };
        }
        Ok(plan)
    }
}

fn seconds(sizes: &Sizes) -> Duration {
    Duration::from_secs(sizes.seconds.into())
}

/// An order in Postgres.
struct StoredOrder {
    id: Uuid,
    /// When it was stored, in milliseconds since 1970.
    at_ms: i64,
}

/// Every order that Postgres holds, by a statement that returns its id and its time in milliseconds.
async fn stored_orders(stores: &Stores, sql: &str) -> anyhow::Result<Vec<StoredOrder>> {
    let rows = stores.query(sql).await?;
    Ok(rows.iter().map(|row| StoredOrder { id: row.get(0), at_ms: row.get(1) }).collect())
}

/// Runs one design in one situation, on servers of its own.
pub(crate) async fn measure(
    generation: Generation,
    situation: Situation,
    sizes: &Sizes,
) -> anyhow::Result<Measured> {
    let stores = Stores::start("generations").await?;
    let supply = situation.supply(sizes);
    let running = generation.start(&stores, supply, situation.stock_expiry(sizes)).await?;
    let plan = situation.plan(sizes, running.address.to_string())?;
    let started_ms = now_ms()?;
    let load = load::run(plan, CancellationToken::new(), |_| {});
    let report = if situation == Situation::PostgresDown {
        let (report, down) = tokio::join!(load, postgres_down(&stores, seconds(sizes)));
        down?;
        report?
    } else {
        load.await?
    };
    wait_until_stored(&running).await?;
    let stock = running.stock().await?;
    let orders = stored_orders(&stores, generation.orders_sql()).await?;
    running.stop().await?;
    stores.stop().await?;
    count(supply, stock, &report, &orders, started_ms)
}

/// Stops Postgres for a time, after the same time.
async fn postgres_down(stores: &Stores, time: Duration) -> anyhow::Result<()> {
    let started = tokio::time::Instant::now();
    sleep_until(started + time).await;
    stores.stop_postgres().await?;
    sleep_until(started + 2 * time).await;
    stores.restart_postgres().await
}

async fn wait_until_stored(running: &Running) -> anyhow::Result<()> {
    let started = Instant::now();
    while running.waiting().await != Some(0) {
        ensure!(started.elapsed() < STORE_TIMEOUT, "orders still wait after {STORE_TIMEOUT:?}");
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn now_ms() -> anyhow::Result<i64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis().try_into()?)
}

/// What a call without a connection to a store answers: designs 1 to 4, then this program.
const CONNECTION_REASONS: [&str; 3] = [NO_CONNECTION, "REDIS_UNAVAILABLE", "LEDGER_UNAVAILABLE"];

fn count(
    supply: i64,
    stock: i64,
    report: &load::Report,
    orders: &[StoredOrder],
    started_ms: i64,
) -> anyhow::Result<Measured> {
    let mut seconds: Vec<Second> = Vec::new();
    for second in &report.seconds {
        let (accepted, errors) = (second.outcomes.named("accepted"), second.outcomes.errors());
        seconds.push(Second { accepted, errors, stored: 0 });
    }
    let mut last_ms = 0;
    for order in orders {
        let after_ms = (order.at_ms - started_ms).max(0);
        last_ms = last_ms.max(after_ms);
        let number = usize::try_from(after_ms / 1000)?;
        if seconds.len() <= number {
            seconds.resize_with(number + 1, Second::default);
        }
        seconds[number].stored += 1;
    }
    let in_postgres: HashSet<Uuid> = orders.iter().map(|order| order.id).collect();
    let ids = report.accepted_ids.iter().map(|id| id.parse::<Uuid>());
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let stored = i64::try_from(orders.len())?;
    let positive = |units: i64| u64::try_from(units).unwrap_or(0);
    let no_connection = CONNECTION_REASONS.iter().map(|reason| report.outcomes.named(reason));
    Ok(Measured {
        supply,
        calls: report.calls(),
        accepted: report.accepted(),
        connection_errors: report.connection_errors() + no_connection.sum::<u64>(),
        errors: report.errors(),
        p95_ms: report.latency_at(0.95).as_secs_f64() * 1000.0,
        peak_accepted: seconds.iter().map(|second| second.accepted).max().unwrap_or(0),
        stored_per_second: per_second(orders.len(), last_ms),
        orders: positive(stored),
        stock,
        oversold: positive(stored - supply),
        accepted_lost: ids.iter().filter(|id| !in_postgres.contains(id)).count() as u64,
        units_lost: positive(supply - stock - stored),
        seconds,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a rounded number for people")]
fn per_second(orders: usize, last_ms: i64) -> f64 {
    orders as f64 * 1000.0 / last_ms.max(1) as f64
}
