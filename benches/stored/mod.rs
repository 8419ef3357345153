//! Stores with many rows, for the benches.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::Instant,
};

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

/// A private Redis and a private Postgres in a directory for temporary files.
pub(super) async fn servers(name: &str) -> anyhow::Result<(RedisServer, PostgresServer, PathBuf)> {
    let dir = std::env::temp_dir().join(format!("yoink-{name}-{}", std::process::id()));
    let here = dir.clone();
    let servers = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let redis = RedisServer::start(&here.join("redis"), AppendFsync::Everysec)?;
        Ok((redis, PostgresServer::start(&here.join("postgres"), &[])?))
    });
    let (redis, postgres) = servers.await??;
    Ok((redis, postgres, dir))
}

/// Stops the servers and removes their directory.
pub(super) async fn stop(servers: (RedisServer, PostgresServer, PathBuf)) -> anyhow::Result<()> {
    let (redis, postgres, dir) = servers;
    tokio::task::spawn_blocking(move || drop((redis, postgres))).await?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Both stores, with one partition and one product.
pub(super) struct Bench {
    pub(super) stores: Stores,
    sql: tokio_postgres::Client,
    prefix: String,
}

impl Bench {
    pub(super) async fn new(
        redis: &RedisServer,
        postgres: &PostgresServer,
        name: &str,
        per_user_limit: Option<u32>,
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
            per_user_limit,
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

    /// Inserts the rows of these seqs of epoch 1, as sales would. The last one was accepted `ago_ms` ago, each of the others
    /// `apart_ms` before the next.
    pub(super) async fn store(
        &self,
        seqs: Range<i64>,
        ago_ms: i64,
        apart_ms: f64,
    ) -> anyhow::Result<()> {
        let Range { start, end } = seqs;
        let id = ReservationId::new(0, Epoch(1), 0, 0)?.to_uuid().to_string();
        let mut first = start;
        while first < end {
            let last = end.min(first + 500_000) - 1;
            // The ids of `ReservationId`, whose random part may as well be 0.
            let sql = format!(
                "INSERT INTO reservations (reservation_id, state, product_id, user_id, units, request_id,
                                           partition, epoch, seq, reserved_at)
                 SELECT (left('{id}', 9) || lpad(to_hex(n >> 20), 4, '0') || '-8' ||
                         lpad(to_hex((n >> 8) & 4095), 3, '0') || '-' ||
                         to_hex(32768 | ((n & 255) << 6)) || '-000000000000')::uuid,
                        'confirmed', 'shoe', 'user-' || n, 1, 'r-' || n, 0, 1, n,
                        now() - ({ago_ms} + ({end} - n) * {apart_ms}) * interval '1 ms'
                   FROM generate_series({first}, {last}) n"
            );
            self.sql.batch_execute(&sql).await?;
            first = last + 1;
        }
        let sold = format!("UPDATE products SET sold = {end} - 1; ANALYZE reservations");
        self.sql.batch_execute(&sold).await?;
        Ok(())
    }

    /// Adds this many entries to the orders stream, as buyers would, each with its unit.
    pub(super) async fn accept(&self, entries: i64) -> anyhow::Result<()> {
        let script = "local epoch = redis.call('HGET', KEYS[1], 'epoch')
            local seq = redis.call('HINCRBY', KEYS[1], 'seq', ARGV[1])
            for n = seq - ARGV[1] + 1, seq do
              local text = string.format('%.0f', n)
              redis.call('XADD', KEYS[2], epoch .. '-' .. text, 'v', '3', 't', '1700000000000', 'o',
                'ab shoe user-' .. text)
            end
            redis.call('HINCRBY', KEYS[3], 'shoe', -ARGV[1])";
        let key = |name: &str| format!("{}:{{0}}:{name}", self.prefix);
        let partition = self.row().await?.partition;
        let mut connection = self.stores.stock.partitions().connection(partition);
        let mut left = entries;
        while left > 0 {
            let now = left.min(10_000);
            let mut call = redis::cmd("EVAL");
            call.arg(script).arg(3).arg(key("meta")).arg(key("orders")).arg(key("stock")).arg(now);
            let () = call.query_async(&mut connection).await?;
            left -= now;
        }
        Ok(())
    }

    /// Closes the partition and rebuilds it; returns how long that took, in seconds.
    pub(super) async fn rebuild(&self) -> anyhow::Result<f64> {
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

    /// The only partition.
    pub(super) async fn row(&self) -> anyhow::Result<yoink::ledger::PartitionRow> {
        let rows = self.stores.ledger.partitions(self.stores.deployment.partitions).await?;
        rows.into_iter().next().context("there is no partition")
    }
}
