//! A Redis with a replica, watched by three private Sentinels.

use yoink::servers::{AppendFsync, RedisServer};

use super::{eventually, redis_command, scratch_dir};

const COUNT: usize = 3;

/// The servers and the Sentinels.
pub struct Sentinels {
    /// The first master and its replica. Failovers change the roles.
    pub servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

async fn start(dir: &'static str, wrapper: Vec<String>) -> RedisServer {
    let dir = scratch_dir(dir);
    let start = move || {
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        RedisServer::start_under(&dir, AppendFsync::Always, &wrapper).unwrap()
    };
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// The command line of a server is `setpriv`, its two arguments, the server, `--bind`, its argument, `--port`, its
/// argument, and more.
async fn start_sentinel(port: u16) -> RedisServer {
    let conf = scratch_dir("sentinel-conf").join("sentinel.conf");
    let text = format!(
        "bind 127.0.0.1\n\
         user admin on >private ~* &* +@all\n\
         user yoink on >private ~* &* -@all +auth +hello +ping +sentinel|master +sentinel|get-master-addr-by-name\n\
         sentinel monitor shop 127.0.0.1 {port} 2\n\
         sentinel auth-user shop admin\n\
         sentinel auth-pass shop private\n\
         sentinel down-after-milliseconds shop 5000\n\
         sentinel failover-timeout shop 20000\n"
    );
    std::fs::write(&conf, text).unwrap();
    let line = format!(r#"exec "$1" "$2" "$3" "$4" {} --sentinel --port "$8""#, conf.display());
    start("sentinel", ["sh", "-c", &line, "sh"].map(str::to_owned).to_vec()).await
}

impl Sentinels {
    pub async fn start() -> Self {
        let (master, replica) = (start("master", vec![]).await, start("replica", vec![]).await);
        let port = master.port().to_string();
        let () = redis_command(&replica.admin_url(), &["REPLICAOF", "127.0.0.1", &port]).await;
        let mut sentinels = Vec::new();
        for _ in 0..COUNT {
            sentinels.push(start_sentinel(master.port()).await);
        }
        let this = Self { servers: vec![master, replica], sentinels };
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
        let ports: Vec<String> = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.port()))
            .collect();
        format!(
            "redis+sentinel://yoink:private@{}/shop?sentinel_user=yoink&sentinel_pass=private",
            ports.join(",")
        )
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
        self.servers.iter().position(|server| server.port() == port).unwrap()
    }

    /// Waits until the Sentinels name another master than this one.
    pub async fn failed_over(&self, from: usize) {
        eventually("the Sentinels name the new master", async || {
            (self.master().await != from).then_some(())
        })
        .await;
    }
}
