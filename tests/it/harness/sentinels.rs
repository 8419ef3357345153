//! A Redis with a replica, watched by three private Sentinels.

use std::path::Path;

use yoink::servers::{AppendFsync, RedisServer};

use super::{Authority, eventually, redis_command, scratch_dir, tls_server::start_with_tls};

const COUNT: usize = 3;

/// The servers and the Sentinels.
pub struct Sentinels {
    /// The first master and its replica. Failovers change the roles.
    pub servers: Vec<RedisServer>,
    /// Where the servers are reached, by the Sentinels too.
    server_ports: Vec<u16>,
    sentinels: Vec<RedisServer>,
    /// Where the Sentinels are reached.
    sentinel_ports: Vec<u16>,
    tls: bool,
}

/// Starts a server, which speaks TLS with a certificate of this authority. `line` makes the command line of a shell from
/// the options for that. Returns the server and the port where it is reached.
async fn start(
    name: &'static str,
    tls: Option<&Authority>,
    line: impl Fn(&str) -> String + Clone + Send + 'static,
) -> (RedisServer, u16) {
    let start = move |dir: &Path, options: &str| {
        let wrapper = ["sh", "-c", &line(options), "sh"];
        RedisServer::start_under(dir, AppendFsync::Always, &wrapper)
    };
    if let Some(authority) = tls {
        return start_with_tls(authority, start).await;
    }
    let dir = scratch_dir(name);
    let server = tokio::task::spawn_blocking(move || start(&dir, "").unwrap()).await.unwrap();
    let port = server.port();
    (server, port)
}

/// Starts a Sentinel of the master on this port. The command line of a server is `setpriv`, its two arguments, the server,
/// `--bind`, its argument, `--port`, its argument, and more.
async fn start_sentinel(port: u16, tls: Option<&Authority>) -> (RedisServer, u16) {
    let conf = scratch_dir("sentinel-conf").join("sentinel.conf");
    let text = format!(
        "bind 127.0.0.1\n\
         user admin on >private ~* &* +@all\n\
         user yoink on >private ~* &* -@all +auth +hello +ping +sentinel|master +sentinel|get-master-addr-by-name\n\
         sentinel monitor shop 127.0.0.1 {port} 2\n\
         sentinel auth-user shop admin\n\
         sentinel auth-pass shop private\n\
         sentinel down-after-milliseconds shop 5000\n\
         sentinel failover-timeout shop 10000\n"
    );
    std::fs::write(&conf, text).unwrap();
    let line = move |options: &str| {
        format!(r#"exec "$1" "$2" "$3" "$4" {} --sentinel --port "$8" {options}"#, conf.display())
    };
    start("sentinel", tls, line).await
}

impl Sentinels {
    /// Without an authority, nothing uses TLS.
    pub async fn start(tls: Option<&Authority>) -> Self {
        let server = |options: &str| format!(r#"exec "$@" {options}"#);
        let (master, master_port) = start("master", tls, server).await;
        let (replica, replica_port) = start("replica", tls, server).await;
        let follow = ["REPLICAOF", "127.0.0.1", &master_port.to_string()];
        let () = redis_command(&replica.admin_url(), &follow).await;
        let mut this = Self {
            servers: vec![master, replica],
            server_ports: vec![master_port, replica_port],
            sentinels: Vec::new(),
            sentinel_ports: Vec::new(),
            tls: tls.is_some(),
        };
        for _ in 0..COUNT {
            let (sentinel, port) = start_sentinel(master_port, tls).await;
            this.sentinels.push(sentinel);
            this.sentinel_ports.push(port);
        }
        this.know_each_other().await;
        this
    }

    async fn know_each_other(&self) {
        for sentinel in &self.sentinels {
            eventually("each Sentinel knows the others and the replica", async || {
                let fields: Vec<String> =
                    redis_command(&sentinel.admin_url(), &["SENTINEL", "MASTER", "shop"]).await;
                let value = |name: &str| {
                    fields.iter().position(|field| field == name).map(|at| fields[at + 1].clone())
                };
                let others = value("num-other-sentinels") == Some((COUNT - 1).to_string());
                let healthy = value("flags") == Some("master".to_owned());
                let replicas: Vec<Vec<String>> =
                    redis_command(&sentinel.admin_url(), &["SENTINEL", "REPLICAS", "shop"]).await;
                // The state of the link, as the replica reports it.
                let linked = replicas.iter().flatten().any(|value| value == "ok");
                (others && healthy && linked).then_some(())
            })
            .await;
        }
    }

    /// For the user of the service.
    pub fn url(&self) -> String {
        let addresses = self.sentinel_ports.iter().map(|port| format!("127.0.0.1:{port}"));
        format!(
            "{}+sentinel://yoink:private@{}/shop?sentinel_user=yoink&sentinel_pass=private",
            if self.tls { "rediss" } else { "redis" },
            addresses.collect::<Vec<_>>().join(",")
        )
    }

    /// Where one of the servers is reached.
    pub fn server_port(&self, number: usize) -> u16 {
        self.server_ports[number]
    }

    /// Begins a planned failover.
    pub async fn fail_over(&self) {
        let () =
            redis_command(&self.sentinels[0].admin_url(), &["SENTINEL", "FAILOVER", "shop"]).await;
    }

    /// The number of the server that this Sentinel names as the master.
    pub async fn master(&self) -> usize {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shop"];
        let (_, port): (String, u16) = redis_command(&self.sentinels[0].admin_url(), &words).await;
        self.server_ports.iter().position(|own| *own == port).unwrap()
    }

    /// Waits until the Sentinels name another master than this one.
    pub async fn failed_over(&self, from: usize) {
        eventually("the Sentinels name the new master", async || {
            (self.master().await != from).then_some(())
        })
        .await;
    }
}
