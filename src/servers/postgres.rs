//! A private Postgres.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use super::{
    ServerError,
    child::{Port, Running, Start, prepare_dir, unprivileged, wait_for_end, wrapped_by},
};

/// A private Postgres on loopback, with the superuser `postgres` and without a password.
#[derive(Debug)]
pub struct PostgresServer {
    running: Running,
    port: Port,
    dir: PathBuf,
    settings: Vec<String>,
    wrapper: Vec<String>,
}

impl PostgresServer {
    /// Starts one on a free port, making its data directory under `dir` if there is none. `settings`
    /// are `name=value`, on top of its defaults.
    ///
    /// # Errors
    ///
    /// See [`ServerError`].
    pub fn start(dir: &Path, settings: &[&str]) -> Result<Self, ServerError> {
        Self::start_under(dir, settings, &[])
    }

    /// As [`PostgresServer::start`], run by another program with its arguments, even after a restart.
    /// That program must exec the server.
    ///
    /// # Errors
    ///
    /// See [`ServerError`].
    pub fn start_under(
        dir: &Path,
        settings: &[&str],
        wrapper: &[&str],
    ) -> Result<Self, ServerError> {
        prepare_dir(dir)?;
        let data = dir.join("data");
        if !data.join("PG_VERSION").exists() {
            let mut initdb = unprivileged(&program("initdb")?, "KILL");
            initdb.args(["--username=postgres", "--auth=trust", "--no-sync"]);
            initdb.args(["--encoding=UTF8", "--locale=C.UTF-8", "-D"]).arg(&data).current_dir(dir);
            finish(initdb, "initdb")?;
        }
        let failed = |source| ServerError::Directory { path: dir.to_owned(), source };
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let (settings, wrapper): (Vec<String>, Vec<String>) = (owned(settings), owned(wrapper));
        for _ in 0..5 {
            let port = Port::free().map_err(failed)?;
            if let Start::Answers(running) = launch(dir, port.number(), &settings, &wrapper)? {
                return Ok(Self { running, port, dir: dir.to_owned(), settings, wrapper });
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
        match launch(&self.dir, self.port.number(), &self.settings, &self.wrapper)? {
            Start::Answers(running) => self.running = running,
            Start::Ended | Start::Silent => return Err(silent(&self.dir)),
        }
        Ok(())
    }

    /// Creates a database if it does not exist.
    ///
    /// # Errors
    ///
    /// See [`ServerError`].
    pub fn create_database(&self, name: &str) -> Result<(), ServerError> {
        let psql = |sql: String| {
            let mut psql = Command::new(program("psql")?);
            psql.args(["-h", "127.0.0.1", "-p", &self.port().to_string(), "-U", "postgres"]);
            psql.args(["-X", "-A", "-t", "-q", "-c", &sql, "postgres"]);
            finish(psql, "psql")
        };
        if psql(format!("SELECT 1 FROM pg_database WHERE datname = '{name}'"))?.trim() == "1" {
            return Ok(());
        }
        psql(format!("CREATE DATABASE \"{name}\"")).map(drop)
    }

    /// Another program of the same version, such as `pg_basebackup`.
    ///
    /// # Errors
    ///
    /// When it is not installed.
    pub fn program(name: &str) -> Result<PathBuf, ServerError> {
        program(name)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The address of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port.number())
    }

    /// Stops it and closes every connection. When this returns, all its processes have ended, including its
    /// logger, which ends last.
    pub fn stop(&mut self) {
        let children = self.running.children();
        self.running.stop(Signal::SIGINT);
        wait_for_end(&children);
    }

    /// Kills all its processes at once, as a crash does.
    pub fn kill(&mut self) {
        if !self.running.is_running() {
            return;
        }
        // While it is stopped it starts no other process.
        self.running.signal(Signal::SIGSTOP);
        let children = self.running.children();
        for child in &children {
            // It may have ended since.
            let _ended = nix::sys::signal::kill(*child, Signal::SIGKILL);
        }
        self.running.kill();
        wait_for_end(&children);
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn silent(dir: &Path) -> ServerError {
    ServerError::Silent { program: "postgres", log: dir.join("postgres.log") }
}

/// A program of the first complete Postgres: in the PATH, or in Debian's directories, the newest first. So the
/// first directory of the PATH chooses the version, and programs of two versions are never mixed.
fn program(name: &str) -> Result<PathBuf, ServerError> {
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
    found.ok_or(ServerError::Missing("postgresql"))
}

/// The directory of the first server that comes with its `initdb`. Links are followed, because the PATH may have
/// links to only some of the programs.
fn first_complete(mut dirs: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let complete = |dir: &PathBuf| ["initdb", "postgres"].iter().all(|it| dir.join(it).exists());
    let server = fs::canonicalize(dirs.find(complete)?.join("postgres")).ok()?;
    server.parent().map(Path::to_owned)
}

fn launch(
    dir: &Path,
    port: u16,
    settings: &[String],
    wrapper: &[String],
) -> Result<Start, ServerError> {
    let mut command = unprivileged(&program("postgres")?, "QUIT");
    command.arg("-D").arg(dir.join("data")).args(["-p", &port.to_string()]).current_dir(dir);
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "logging_collector=on",
        "log_filename=postgres.log",
        "log_truncate_on_rotation=off",
    ] {
        command.args(["-c", setting]);
    }
    command.arg("-c").arg(format!("log_directory={}", dir.display()));
    for setting in settings {
        command.args(["-c", setting]);
    }
    Running::start(wrapped_by(wrapper, command), "postgres", |pid| accepts_connections(dir, pid))
}

/// Whether the file of the postmaster that we started shows that it accepts connections: another process may
/// answer on its port.
fn accepts_connections(dir: &Path, pid: u32) -> bool {
    let Ok(file) = fs::read_to_string(dir.join("data/postmaster.pid")) else { return false };
    let mut lines = file.lines();
    let ours = lines.next() == Some(pid.to_string().as_str());
    // The eighth line is the state.
    ours && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}

/// Runs a command to its end; returns what it printed.
fn finish(mut command: Command, program: &str) -> Result<String, ServerError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ServerError::Run { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ServerError::Failed { program: program.to_owned(), output: message })
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
