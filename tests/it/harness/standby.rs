//! A standby of a Postgres, which streams from it, asynchronously.

use std::{path::Path, process::Command};

use tokio_postgres::NoTls;
use tokio_util::task::TaskTracker;
use yoink::servers::PostgresServer;

use super::{eventually, scratch_dir, servers::POSTGRES_SETTINGS};

/// Starts a standby with a copy of a primary, which lies under `primary` and is reached through `port` of
/// loopback, now and as long as it streams.
pub fn standby(primary: &Path, port: u16) -> PostgresServer {
    let dir = scratch_dir("standby");
    let data = dir.join("data");
    let mut copy = Command::new(PostgresServer::program("pg_basebackup").unwrap());
    copy.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-U",
        "postgres",
        "-R",
        "-c",
        "fast",
        "-D",
    ]);
    let copied = copy.arg(&data).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    // The standby runs as the user of the primary.
    let owner = format!("--reference={}", primary.join("data").display());
    assert!(Command::new("chown").arg("-R").arg(owner).arg(&data).status().unwrap().success());
    PostgresServer::start(&dir, &POSTGRES_SETTINGS).unwrap()
}

/// Makes a standby a primary, and waits until it takes writes.
pub async fn promote(standby: &PostgresServer) {
    let connected = tokio_postgres::connect(&standby.superuser_url("postgres"), NoTls).await;
    let (client, connection) = connected.unwrap();
    // It ends with its client.
    TaskTracker::new().spawn(connection);
    client.batch_execute("SELECT pg_promote()").await.unwrap();
    eventually("the standby is promoted", async || {
        let row = client.query_one("SELECT NOT pg_is_in_recovery()", &[]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
}
