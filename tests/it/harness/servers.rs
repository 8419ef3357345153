//! One private Redis and one private Postgres a run; the kernel ends them with this process.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::OnceCell;
use yoink::servers::{AppendFsync, PostgresServer, RedisServer};

use super::{ClusterOptions, RedisCluster};

/// The servers that tests share; each test has its own key prefix and database.
pub struct Shared {
    pub redis: RedisServer,
    pub postgres: PostgresServer,
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned()
}

/// A new directory of this run; those of runs that have ended are removed.
pub fn scratch_dir(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static CLEANED: OnceLock<()> = OnceLock::new();
    CLEANED.get_or_init(remove_ended_runs);
    let dir = run_dir().join(format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn run_dir() -> PathBuf {
    base().join(format!("it-{}", std::process::id()))
}

/// One test binary at a time removes the files of runs that have ended, and what an earlier process with our
/// own id left.
fn remove_ended_runs() {
    fs::create_dir_all(base()).unwrap();
    let lock = fs::File::create(base().join("cleaning")).unwrap();
    lock.lock().unwrap();
    for entry in fs::read_dir(base()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ended = |pid: &str| {
            pid == std::process::id().to_string() || !Path::new("/proc").join(pid).exists()
        };
        if name.strip_prefix("it-").is_some_and(ended) {
            // A server of that run may still be ending, and writing: the next run removes what is left.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    assert!(!run_dir().exists(), "{} cannot be removed", run_dir().display());
}

/// The settings of a test's Postgres: these tests do not crash the machine.
pub const POSTGRES_SETTINGS: [&str; 2] = ["fsync=off", "max_connections=500"];

/// The shared servers, started by the first test that needs them.
pub fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = scratch_dir("shared");
        Shared {
            redis: RedisServer::start(&dir.join("redis"), AppendFsync::Everysec).unwrap(),
            postgres: PostgresServer::start(&dir.join("postgres"), &POSTGRES_SETTINGS).unwrap(),
        }
    })
}

/// The shared Redis Cluster, started by the first test that needs it.
pub async fn shared_cluster() -> &'static RedisCluster {
    static SHARED: OnceCell<RedisCluster> = OnceCell::const_new();
    SHARED.get_or_init(|| RedisCluster::start(ClusterOptions::default())).await
}
