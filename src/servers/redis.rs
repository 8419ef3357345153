//! A private redis-server.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::child::{Port, Server, ending_with_parent, run_by};

/// The users of Redis, without passwords.
const USERS: &str = include_str!("../../deploy/redis.acl");
/// The password of every user. Only this machine reaches the server, and only as long as this process runs.
const PASSWORD: &str = "private";

/// When Redis flushes a write to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendFsync {
    /// Before it answers.
    Always,
    /// Within about a second.
    Everysec,
}

/// A private redis-server with the users of `deploy/redis.acl`. Calls fail when it is not installed or does not answer.
#[derive(Debug)]
pub struct RedisServer {
    server: Server,
    /// The port on which the nodes of a cluster talk to one another.
    bus: Option<Port>,
}

/// How soon the nodes of a private cluster find that one of them is down. A busy machine must not look like that.
const NODE_TIMEOUT_MS: &str = "5000";

impl RedisServer {
    /// Starts one on a free port; existing data in `dir` is loaded.
    pub fn start(dir: &Path, fsync: AppendFsync) -> anyhow::Result<Self> {
        Self::start_under(dir, fsync, &[])
    }

    /// As [`RedisServer::start`], run by another program with its arguments, even after a restart. That
    /// program must exec the server (as `env` does), so that signals reach it.
    pub fn start_under(dir: &Path, fsync: AppendFsync, wrapper: &[&str]) -> anyhow::Result<Self> {
        Self::start_as(dir, fsync, wrapper, None)
    }

    /// Starts a node of a Redis Cluster, which knows no other node and has no slot, run as by
    /// [`RedisServer::start_under`]. The slots of a master that is down are unavailable, and the others are not. A replica
    /// may be promoted however old its data are.
    pub fn start_node(dir: &Path, fsync: AppendFsync, wrapper: &[&str]) -> anyhow::Result<Self> {
        let bus = Port::free().context("cannot reserve a port")?;
        Self::start_as(dir, fsync, wrapper, Some(bus))
    }

    fn start_as(
        dir: &Path,
        fsync: AppendFsync,
        wrapper: &[&str],
        bus: Option<Port>,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot prepare {}", dir.display()))?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut programs = std::env::split_paths(&path).map(|dir| dir.join("redis-server"));
        let program = programs.find(|program| program.exists());
        let program = program.context("redis-server is not installed: run `make install`")?;
        let fsync = match fsync {
            AppendFsync::Always => "always",
            AppendFsync::Everysec => "everysec",
        };
        let command = |port: u16| {
            let mut command = ending_with_parent(&program, "TERM");
            command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--daemonize", "no"]);
            command.args(["--appendonly", "yes", "--appendfsync", fsync, "--save", ""]);
            // As in deploy/redis.conf.
            command.args(["--maxmemory", "2gb", "--maxmemory-policy", "noeviction"]);
            command.args(["--lazyfree-lazy-expire", "yes", "--repl-backlog-ttl", "0"]);
            command.args(["--no-appendfsync-on-rewrite", "no"]);
            for user in USERS.lines().filter(|line| !line.is_empty()) {
                command.args(user_option(user));
            }
            // If it becomes a replica, of another private server.
            command.args(["--masteruser", "replica", "--masterauth", PASSWORD]);
            if let Some(bus) = &bus {
                command.args([
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &bus.number.to_string(),
                ]);
                command.args(["--cluster-node-timeout", NODE_TIMEOUT_MS]);
                command.args(["--cluster-require-full-coverage", "no"]);
                command.args(["--cluster-replica-validity-factor", "0"]);
                command.args(["--repl-diskless-sync-delay", "0"]);
            }
            command.arg("--dir").arg(dir).arg("--logfile").arg(dir.join("redis.log"));
            run_by(wrapper, &command)
        };
        let answers = |_: &Path, port, pid| answers(port, pid).unwrap_or(false);
        let server = Server::start(dir, "redis", command, answers)?;
        Ok(Self { server, bus })
    }

    /// Restarts it on the same port with its data.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.stop();
        self.server.restart()
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The port of the cluster's own links.
    pub fn bus_port(&self) -> Option<u16> {
        self.bus.as_ref().map(|bus| bus.number)
    }

    /// Its data directory.
    pub fn dir(&self) -> &Path {
        &self.server.dir
    }

    /// Its address for the user of the service.
    pub fn url(&self) -> String {
        Self::url_at(self.port())
    }

    /// Such an address, for a proxy on this port in front of a private server.
    pub fn url_at(port: u16) -> String {
        format!("redis://yoink:{PASSWORD}@127.0.0.1:{port}")
    }

    /// Its address for an administrator.
    pub fn admin_url(&self) -> String {
        format!("redis://admin:{PASSWORD}@127.0.0.1:{}", self.port())
    }

    /// Stops it.
    pub fn stop(&mut self) {
        self.server.stop(Signal::SIGTERM);
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Stops it by SIGSTOP: connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.server.signal(Signal::SIGSTOP);
    }

    /// Whether it has stopped: [`RedisServer::pause`] only sends the signal.
    pub fn is_paused(&self) -> bool {
        self.server.is_stopped()
    }

    /// Continues it.
    pub fn resume(&self) {
        self.server.signal(Signal::SIGCONT);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.resume();
        self.stop();
    }
}

/// A line of the users as an option, with a password if the user may log in.
fn user_option(line: &str) -> Vec<String> {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    if let Some(user) = words.first_mut() {
        user.insert_str(0, "--");
    }
    if words.get(2).is_some_and(|state| state == "on") {
        words.push(format!(">{PASSWORD}"));
    }
    words
}

/// Whether the process that we started answers on this port: it may be another Redis.
fn answers(port: u16, pid: u32) -> std::io::Result<bool> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    // It answers PING only after it has loaded its data.
    let commands = format!("AUTH admin {PASSWORD}\r\nINFO server\r\nPING\r\n");
    connection.write_all(commands.as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"+PONG\r\n") {
        match connection.read(&mut part)? {
            0 => return Ok(false),
            read => answer.extend_from_slice(&part[..read]),
        }
    }
    let process = format!("process_id:{pid}");
    Ok(String::from_utf8_lossy(&answer).lines().any(|line| line == process))
}
