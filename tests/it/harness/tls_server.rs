//! A Redis that speaks TLS on a port beside its own, also to other nodes.

use std::path::Path;

use yoink::servers::RedisServer;

use super::{Authority, scratch_dir};

/// How many ports are tried: another process may use one.
const PORTS_TRIED: usize = 20;

/// The options of a Redis, or of a Sentinel, that uses the certificate `server` of an authority.
fn tls_options(authority: &Authority, port: u16) -> [(&'static str, String); 7] {
    let file = |name: &str| authority.dir().join(name).display().to_string();
    [
        ("tls-port", port.to_string()),
        ("tls-cert-file", file("server.pem")),
        ("tls-key-file", file("server.key")),
        ("tls-ca-cert-file", file("ca.pem")),
        ("tls-auth-clients", "no".to_owned()),
        ("tls-replication", "yes".to_owned()),
        ("tls-cluster", "yes".to_owned()),
    ]
}

/// Starts a server on a free port; returns it and that port. `start` gets a directory, and the options as the end of a
/// shell's command line.
pub(super) async fn start_with_tls(
    authority: &Authority,
    start: impl Fn(&Path, &str) -> anyhow::Result<RedisServer> + Clone + Send + 'static,
) -> (RedisServer, u16) {
    let mut last = None;
    for _ in 0..PORTS_TRIED {
        // Not a port that the kernel gives to connections.
        let port: u16 = rand::random_range(10_000..32_000);
        let options = tls_options(authority, port);
        let options = options.map(|(name, value)| format!("--{name} '{value}'")).join(" ");
        let (dir, start) = (scratch_dir("tls-server"), start.clone());
        let started = tokio::task::spawn_blocking(move || start(&dir, &options));
        match started.await.unwrap() {
            Ok(server) => return (server, port),
            Err(error) => last = Some(error),
        }
    }
    panic!("no server with TLS could be started: {last:?}");
}
