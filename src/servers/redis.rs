//! A private redis-server.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    ServerError,
    child::{Port, Running, Start, ending_with_parent, wrapped_by},
};

/// When Redis flushes a write to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendFsync {
    /// Before it answers.
    Always,
    /// Within about a second.
    Everysec,
}

/// A private redis-server.
#[derive(Debug)]
pub struct RedisServer {
    running: Running,
    port: Port,
    dir: PathBuf,
    fsync: AppendFsync,
    wrapper: Vec<String>,
}

impl RedisServer {
    /// Starts one on a free port; existing data in `dir` is loaded.
    ///
    /// # Errors
    ///
    /// See [`ServerError`].
    pub fn start(dir: &Path, fsync: AppendFsync) -> Result<Self, ServerError> {
        Self::start_under(dir, fsync, &[])
    }

    /// As [`RedisServer::start`], run by another program with its arguments, even after a restart. That
    /// program must exec the server (as `env` does), so that signals reach it.
    ///
    /// # Errors
    ///
    /// See [`ServerError`].
    pub fn start_under(
        dir: &Path,
        fsync: AppendFsync,
        wrapper: &[&str],
    ) -> Result<Self, ServerError> {
        let wrapper: Vec<String> = wrapper.iter().map(|text| (*text).to_owned()).collect();
        let failed = |source| ServerError::Directory { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        for _ in 0..5 {
            let port = Port::free().map_err(failed)?;
            if let Start::Answers(running) = launch(dir, port.number(), fsync, &wrapper)? {
                return Ok(Self { running, port, dir: dir.to_owned(), fsync, wrapper });
            }
        }
        Err(silent(dir))
    }

    /// Restarts it on the same port with its data.
    ///
    /// # Errors
    ///
    /// See [`ServerError`].
    pub fn restart(&mut self) -> Result<(), ServerError> {
        self.stop();
        match launch(&self.dir, self.port.number(), self.fsync, &self.wrapper)? {
            Start::Answers(running) => self.running = running,
            Start::Ended | Start::Silent => return Err(silent(&self.dir)),
        }
        Ok(())
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.number())
    }

    /// Stops it.
    pub fn stop(&mut self) {
        self.running.stop(Signal::SIGTERM);
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// Stops it by SIGSTOP: connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.running.signal(Signal::SIGSTOP);
    }

    /// Whether it has stopped: [`RedisServer::pause`] only sends the signal.
    pub fn is_paused(&self) -> bool {
        self.running.is_stopped()
    }

    /// Continues it.
    pub fn resume(&self) {
        self.running.signal(Signal::SIGCONT);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.resume();
        self.stop();
    }
}

fn silent(dir: &Path) -> ServerError {
    ServerError::Silent { program: "redis-server", log: dir.join("redis.log") }
}

fn launch(
    dir: &Path,
    port: u16,
    fsync: AppendFsync,
    wrapper: &[String],
) -> Result<Start, ServerError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|dir| dir.join("redis-server")).find(|p| p.exists());
    let program = found.ok_or(ServerError::Missing("redis-server"))?;
    let mut command = ending_with_parent(&program, "TERM");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--daemonize", "no"]);
    command.args(["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]);
    // As in deploy/redis.conf.
    command.args(["--maxmemory", "2gb", "--lazyfree-lazy-expire", "yes"]);
    command.args(["--repl-backlog-ttl", "0", "--no-appendfsync-on-rewrite", "no"]);
    command.args([
        "--appendfsync",
        match fsync {
            AppendFsync::Always => "always",
            AppendFsync::Everysec => "everysec",
        },
    ]);
    command.arg("--dir").arg(dir).arg("--logfile").arg(dir.join("redis.log"));
    Running::start(wrapped_by(wrapper, command), "redis-server", |pid| {
        answers(port, pid).unwrap_or(false)
    })
}

/// Whether the process that we started answers on this port: it may be another Redis.
fn answers(port: u16, pid: u32) -> std::io::Result<bool> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    // It answers PING only after it has loaded its data.
    connection.write_all(b"INFO server\r\nPING\r\n")?;
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
