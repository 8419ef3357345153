//! How the time of a rebuild grows: with stored orders, with request ids to restore, with a backlog to drain.
//!
//! `make bench-rebuild` prints a table; `ROWS=1000,1000000 make bench-rebuild` chooses its sizes. Each row is a rebuild by the real
//! steps on a private Redis and a private Postgres, the median of three.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::{path::Path, time::Instant};

use anyhow::{Context as _, ensure};
use tokio_postgres::NoTls;
use tokio_util::task::TaskTracker;
use yoink::{
    app::Stores,
    config::Config,
    domain::{Epoch, NewProduct, PartitionCount, Price, ProductStatus, ReservationId, Sale},
    ledger::PartitionStatus,
    servers::{AppendFsync, PostgresServer, RedisServer},
};

const SIZES: &str = "1000,10000,100000";
const RUNS: usize = 3;
const DAY_MS: i64 = 86_400_000;

/// What a row has many of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Stored orders, older than any request id is remembered.
    Orders,
    /// Stored orders whose request ids are remembered.
    RequestIds,
    /// Accepted orders that are not stored.
    Backlog,
}

struct Bench {
    stores: Stores,
    sql: tokio_postgres::Client,
    prefix: String,
}

impl Bench {
    async fn new(
        redis: &RedisServer,
        postgres: &PostgresServer,
        name: &str,
    ) -> anyhow::Result<Self> {
        postgres.create_database(name)?;
        yoink::ledger::migrate(&postgres.superuser_url(name).parse()?).await?;
        let flags = [
            ("redis_url", redis.admin_url()),
            ("postgres_url", postgres.superuser_url(name)),
            ("key_prefix", name.to_owned()),
            ("partitions", "1".to_owned()),
        ];
        let config = Config::load(Path::new("no-file.toml"), false, &flags)?;
        let stores = Stores::connect(&config).await?;
        stores.recovery().refresh().await?;
        let sale = Sale {
            name: "Shoe".to_owned(),
            price: Price::parse("1", "EUR")?,
            opens_at_ms: None,
            closes_at_ms: None,
            per_user_limit: None,
            status: ProductStatus::OnSale,
        };
        let shoe = NewProduct { id: "shoe".parse()?, sale, units: 100_000_000 };
        let one = PartitionCount::try_from(1)?;
        stores.ledger.create_products(&[shoe], one, "bench").await?;
        let (sql, connection) =
            tokio_postgres::connect(&postgres.superuser_url(name), NoTls).await?;
        // It ends with its client.
        TaskTracker::new().spawn(connection);
        Ok(Self { stores, sql, prefix: name.to_owned() })
    }

    /// Inserts this many rows of epoch 1, as sales would; they were accepted `ago_ms` ago.
    async fn store(&self, rows: i64, ago_ms: i64) -> anyhow::Result<()> {
        let first = ReservationId::new(0, Epoch(1), 0, 0)?.to_uuid().to_string();
        // The ids of `ReservationId`, whose random part may as well be 0.
        let sql = format!(
            "INSERT INTO reservations (reservation_id, state, product_id, user_id, units, request_id,
                                       partition, epoch, seq, reserved_at)
             SELECT (left('{first}', 9) || lpad(to_hex(n >> 20), 4, '0') || '-8' ||
                     lpad(to_hex((n >> 8) & 4095), 3, '0') || '-' ||
                     to_hex(32768 | ((n & 255) << 6)) || '-000000000000')::uuid,
                    'confirmed', 'shoe', 'user-' || n, 1, 'r-' || n, 0, 1, n,
                    now() - {ago_ms} * interval '1 ms'
               FROM generate_series(1, {rows}) n"
        );
        self.sql.batch_execute(&sql).await?;
        let sold = format!("UPDATE products SET sold = {rows}; ANALYZE reservations");
        self.sql.batch_execute(&sold).await?;
        Ok(())
    }

    /// Adds this many entries to the orders stream, as buyers would.
    async fn accept(&self, entries: i64) -> anyhow::Result<()> {
        let script = "local seq = tonumber(redis.call('HGET', KEYS[1], 'seq'))
            for n = seq + 1, seq + tonumber(ARGV[1]) do
              redis.call('XADD', KEYS[2], '1-' .. string.format('%.0f', n), 'v', '3', 't',
                '1700000000000', 'o', 'ab shoe user-' .. string.format('%.0f', n))
            end
            redis.call('HINCRBY', KEYS[1], 'seq', ARGV[1])";
        let key = |name: &str| format!("{}:{{0}}:{name}", self.prefix);
        let mut left = entries;
        while left > 0 {
            let now = left.min(10_000);
            let mut call = redis::cmd("EVAL");
            call.arg(script).arg(2).arg(key("meta")).arg(key("orders")).arg(now);
            let mut connection = self.stores.stock.partitions().connection();
            let () = call.query_async(&mut connection).await?;
            left -= now;
        }
        Ok(())
    }

    /// Closes the partition and rebuilds it; returns how long that took, in seconds.
    async fn rebuild(&self) -> anyhow::Result<f64> {
        let row = self.row().await?;
        self.stores.stock.partitions().set_epoch(row.partition, Some(row.epoch));
        self.stores.lifecycle.close(row.partition).await?;
        let recovery = self.stores.recovery();
        let started = Instant::now();
        let rebuilt = recovery.rebuild(row).await?;
        let took = started.elapsed().as_secs_f64();
        ensure!(rebuilt.is_some(), "another process rebuilt it");
        ensure!(self.row().await?.status == PartitionStatus::Open, "it is not open");
        Ok(took)
    }

    async fn row(&self) -> anyhow::Result<yoink::ledger::PartitionRow> {
        let rows = self.stores.ledger.partitions(self.stores.deployment.partitions).await?;
        rows.into_iter().next().context("there is no partition")
    }
}

async fn measure(
    (redis, postgres): (&RedisServer, &PostgresServer),
    load: Load,
    size: i64,
) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for run in 0..RUNS {
        let name = format!("{load:?}_{size}_{run}").to_lowercase();
        let bench = Bench::new(redis, postgres, &name).await?;
        match load {
            Load::Orders => bench.store(size, 3 * DAY_MS).await?,
            Load::RequestIds => bench.store(size, 0).await?,
            Load::Backlog => bench.accept(size).await?,
        }
        times.push(bench.rebuild().await?);
        let () = redis::cmd("FLUSHALL")
            .query_async(&mut bench.stores.stock.partitions().connection())
            .await?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let sizes = std::env::var("ROWS").unwrap_or_else(|_| SIZES.to_owned());
    let sizes: Vec<i64> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let dir = std::env::temp_dir().join(format!("yoink-bench-{}", std::process::id()));
    let here = dir.clone();
    let servers = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let redis = RedisServer::start(&here.join("redis"), AppendFsync::Everysec)?;
        Ok((redis, PostgresServer::start(&here.join("postgres"), &[])?))
    });
    let (redis, postgres) = servers.await??;
    println!("{:>10} {:>12} {:>14} {:>12}", "rows", "old orders", "request ids", "backlog");
    for size in sizes {
        let mut cells = Vec::new();
        for load in [Load::Orders, Load::RequestIds, Load::Backlog] {
            let took = measure((&redis, &postgres), load, size).await?;
            cells.push(format!("{took:.2} s"));
        }
        println!("{size:>10} {:>12} {:>14} {:>12}", cells[0], cells[1], cells[2]);
    }
    tokio::task::spawn_blocking(move || drop((redis, postgres))).await?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
