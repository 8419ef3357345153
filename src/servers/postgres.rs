//! A private Postgres.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use super::child::{Server, prepare_dir, run_by, unprivileged, wait_for_end};

/// The roles of the service, for psql.
const ROLES: &str = include_str!("../../deploy/postgres/roles.sql");

/// A private Postgres on loopback, with the superuser `postgres`, the roles of `deploy/postgres/roles.sql`, and no password. Calls fail when a program is not
/// installed, or fails, or when the server does not answer.
#[derive(Debug)]
pub struct PostgresServer {
    server: Server,
}

impl PostgresServer {
    /// Starts one on a free port, making its data directory under `dir` if there is none. `settings`
    /// are `name=value`, on top of its defaults.
    pub fn start(dir: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        Self::start_under(dir, settings, &[])
    }

    /// As [`PostgresServer::start`], run by another program with its arguments, even after a restart.
    /// That program must exec the server.
    pub fn start_under(dir: &Path, settings: &[&str], wrapper: &[&str]) -> anyhow::Result<Self> {
        prepare_dir(dir)?;
        let data = dir.join("data");
        if !data.join("PG_VERSION").exists() {
            let mut initdb = unprivileged(&Self::program("initdb")?, "KILL");
            initdb.args(["--username=postgres", "--auth=trust", "--no-sync"]);
            initdb.args(["--encoding=UTF8", "--locale=C.UTF-8", "-D"]).arg(&data).current_dir(dir);
            finish(initdb, "initdb")?;
        }
        let program = Self::program("postgres")?;
        let log_directory = format!("log_directory={}", dir.display());
        let defaults = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "logging_collector=on",
            "log_filename=postgres.log",
            "log_truncate_on_rotation=off",
            &log_directory,
        ];
        let command = |port: u16| {
            let mut command = unprivileged(&program, "QUIT");
            command.arg("-D").arg(&data).args(["-p", &port.to_string()]).current_dir(dir);
            for setting in defaults.iter().chain(settings) {
                command.args(["-c", setting]);
            }
            run_by(wrapper, &command)
        };
        Ok(Self { server: Server::start(dir, "postgres", command, accepts_connections)? })
    }

    /// Restarts it on the same port with its data.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.stop();
        self.server.restart()
    }

    /// Creates a database if it does not exist, and the roles of the service in it.
    pub fn create_database(&self, name: &str) -> anyhow::Result<()> {
        let psql = |database: &str, what: &[&OsStr]| {
            let mut psql = Command::new(Self::program("psql")?);
            psql.args(["-h", "127.0.0.1", "-p", &self.port().to_string(), "-U", "postgres"]);
            psql.args(["-X", "-A", "-t", "-q", "-d", database]).args(what);
            finish(psql, "psql")
        };
        let exists = format!("SELECT 1 FROM pg_database WHERE datname = '{name}'");
        if psql("postgres", &["-c".as_ref(), exists.as_ref()])?.trim() != "1" {
            let create = format!("CREATE DATABASE \"{name}\"");
            psql("postgres", &["-c".as_ref(), create.as_ref()])?;
        }
        let roles = self.server.dir.join("roles.sql");
        fs::write(&roles, ROLES).context("cannot write the roles of Postgres")?;
        // Data of an earlier version belong to the superuser.
        psql(name, &["-v".as_ref(), "old=postgres".as_ref(), "-f".as_ref(), roles.as_ref()])
            .map(drop)
    }

    /// A program such as `pg_basebackup` of the first complete Postgres: in the PATH, or in Debian's directories, the
    /// newest first. So the first directory of the PATH chooses the version, and programs of two versions are never
    /// mixed.
    pub fn program(name: &str) -> anyhow::Result<PathBuf> {
        let version = |dir: &Path| {
            dir.file_name().and_then(OsStr::to_str).and_then(|name| name.parse::<u32>().ok())
        };
        let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut versions: Vec<PathBuf> = installed.map(|entry| entry.path()).collect();
        versions.sort_by_key(|dir| std::cmp::Reverse(version(dir)));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let in_path: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let debian = versions.into_iter().map(|dir| dir.join("bin"));
        let first = first_complete(in_path.iter().cloned().chain(debian));
        // Debian's psql is in the PATH, apart from its servers.
        let mut dirs = first.into_iter().chain(in_path);
        let found = dirs.find_map(|dir| Some(dir.join(name)).filter(|program| program.exists()));
        found.context("postgresql is not installed: run `make install`")
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The address of one of its databases for the role of the service.
    pub fn url(&self, database: &str) -> String {
        self.url_of("yoink_serve", database)
    }

    /// The same for the owner, who migrates it.
    pub fn owner_url(&self, database: &str) -> String {
        self.url_of("yoink_owner", database)
    }

    /// The same for the superuser.
    pub fn superuser_url(&self, database: &str) -> String {
        self.url_of("postgres", database)
    }

    fn url_of(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port())
    }

    /// Stops it and closes every connection. When this returns, all its processes have ended, including its
    /// logger, which ends last.
    pub fn stop(&mut self) {
        let children = self.server.children();
        self.server.stop(Signal::SIGINT);
        wait_for_end(&children);
    }

    /// Kills all its processes at once, as a crash does.
    pub fn kill(&mut self) {
        if !self.server.is_running() {
            return;
        }
        // While it is stopped it starts no other process.
        self.server.signal(Signal::SIGSTOP);
        let children = self.server.children();
        for child in &children {
            // It may have ended since.
            let _ended = nix::sys::signal::kill(*child, Signal::SIGKILL);
        }
        self.server.kill();
        wait_for_end(&children);
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The directory of the first server that comes with its `initdb`. Links are followed, because the PATH may have
/// links to only some of the programs.
fn first_complete(mut dirs: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let complete = |dir: &PathBuf| ["initdb", "postgres"].iter().all(|it| dir.join(it).exists());
    let server = fs::canonicalize(dirs.find(complete)?.join("postgres")).ok()?;
    server.parent().map(Path::to_owned)
}

/// Whether the file of the postmaster that we started shows that it accepts connections: another process may
/// answer on its port.
fn accepts_connections(dir: &Path, _port: u16, pid: u32) -> bool {
    let Ok(file) = fs::read_to_string(dir.join("data/postmaster.pid")) else { return false };
    let mut lines = file.lines();
    let ours = lines.next() == Some(pid.to_string().as_str());
    // The eighth line is the state.
    ours && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}

/// Runs a command to its end; returns what it printed.
fn finish(mut command: Command, program: &str) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn first_complete_server_is_used_and_links_are_followed() {
        let root = std::env::temp_dir().join(format!("yoink-servers-{}", std::process::id()));
        let dirs = ["half", "links", "whole", "other"].map(|name| root.join(name));
        for dir in &dirs {
            fs::create_dir_all(dir).unwrap();
        }
        let [half, links, whole, other] = dirs;
        fs::write(half.join("postgres"), "").unwrap();
        for dir in [&whole, &other] {
            for program in ["initdb", "postgres", "pg_basebackup"] {
                fs::write(dir.join(program), "").unwrap();
            }
        }
        for program in ["initdb", "postgres"] {
            symlink(whole.join(program), links.join(program)).unwrap();
        }
        let chosen = first_complete([half.clone(), links, other].into_iter());
        assert_eq!(chosen, Some(fs::canonicalize(&whole).unwrap()));
        assert_eq!(first_complete([half].into_iter()), None);
        fs::remove_dir_all(root).unwrap();
    }
}
