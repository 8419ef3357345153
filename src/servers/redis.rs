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
    child::{Port, Running, Start, tied, under},
};

/// When Redis makes an answer durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendFsync {
    /// Before it is given.
    Always,
    /// Within about a second.
    Everysec,
}

/// A redis-server of our own.
#[derive(Debug)]
pub struct RedisServer {
    running: Running,
    port: Port,
    dir: PathBuf,
    fsync: AppendFsync,
    wrapper: Vec<String>,
}

impl RedisServer {
    /// Starts one on a free port; what `dir` holds from before is loaded.
    ///
    /// # Errors
    ///
    /// See [`ServerError`].
    pub fn start(dir: &Path, fsync: AppendFsync) -> Result<Self, ServerError> {
        Self::start_under(dir, fsync, &[])
    }

    /// As [`RedisServer::start`], run by another program with its arguments, also after a restart. That
    /// program must become the server (as `env` does), so that signals and our end reach it.
    ///
    /// # Errors
    ///
    /// See [`ServerError`].
    pub fn start_under(
        dir: &Path,
        fsync: AppendFsync,
        wrapper: &[&str],
    ) -> Result<Self, ServerError> {
        let wrapper: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
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

    /// Starts it again on the same port with what it has on disk.
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

    /// Where its data is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.number())
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        self.running.stop(Signal::SIGTERM);
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// Freezes it: connections stay, nothing is answered.
    pub fn pause(&self) {
        self.running.signal(Signal::SIGSTOP);
    }

    /// Whether it stands still: [`RedisServer::pause`] only asks for it.
    pub fn is_paused(&self) -> bool {
        self.running.is_stopped()
    }

    /// Lets it go on.
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
    let mut command = tied(&program, "TERM");
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
    Running::start(under(wrapper, command), "redis-server", |pid| {
        answers(port, pid).unwrap_or(false)
    })
}

/// Whether the process that we started answers on this port; another Redis may be there.
fn answers(port: u16, pid: u32) -> std::io::Result<bool> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    // It answers PING only when it has loaded what it has on disk.
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
