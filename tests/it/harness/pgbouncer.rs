//! A PgBouncer between the service and a Postgres.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::unistd::geteuid;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::eventually;

/// Debian keeps it out of the PATH of users.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// A PgBouncer of the test's own, on a free port of loopback; ends with the test.
pub struct PgBouncer {
    child: Child,
    port: u16,
    settings: PathBuf,
}

impl PgBouncer {
    /// In front of the Postgres on this port. `mode`: `session`, `transaction` or `statement`. Nothing else is
    /// changed that a startup parameter depends on.
    pub async fn start(postgres: u16, mode: &str) -> Self {
        eventually("PgBouncer answers", async || {
            let (mut child, port, settings) = launch(postgres, mode);
            // Another server may have taken the port meanwhile and answer in its place.
            let answers = async || conffile(port).await.is_some_and(|file| file == settings);
            loop {
                // Its port was taken: another one is tried.
                if child.try_wait().unwrap().is_some() {
                    std::fs::remove_file(&settings).unwrap();
                    return None;
                }
                if answers().await && child.try_wait().unwrap().is_none() {
                    return Some(Self { child, port, settings });
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.settings));
    }
}

/// The settings that the PgBouncer on this port has read.
async fn conffile(port: u16) -> Option<PathBuf> {
    let console = format!("postgres://postgres@127.0.0.1:{port}/pgbouncer");
    let (client, connection) = tokio_postgres::connect(&console, NoTls).await.ok()?;
    let ask = async move { client.simple_query("SHOW CONFIG").await.ok() };
    let (answer, _ended) = tokio::join!(ask, connection);
    answer?.into_iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        row.get(1).filter(|_| row.get(0) == Some("conffile")).map(PathBuf::from)
    })
}

fn launch(postgres: u16, mode: &str) -> (Child, u16, PathBuf) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    // Where another user may read it: PgBouncer refuses to be root.
    let name = format!("yoink-pgbouncer-{}-{port}.ini", std::process::id());
    let settings = std::env::temp_dir().join(name);
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={postgres} user=postgres\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = {mode}\nmax_client_conn = 500\ndefault_pool_size = 100\n"
    );
    std::fs::write(&settings, text).unwrap();
    let mut command = Command::new("setpriv");
    if geteuid().is_root() {
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "KILL", PROGRAM]).arg(&settings);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (command.spawn().unwrap(), port, settings)
}
