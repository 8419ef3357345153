//! Child processes that cannot outlive this one.

use std::{
    ffi::OsStr,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid, User, chown, geteuid},
};
use tokio::net::TcpSocket;

/// How long a server may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to end after a signal.
const TIMEOUT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(10);
/// How many ports a server is started on before giving up: another process may have taken one meanwhile.
const STARTS_MAX: usize = 5;
/// How many lines of its log are shown of a server that did not answer.
const LOG_LINES: usize = 5;

/// As which user a server is run that refuses to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunAs {
    /// As the user of this process, who is not root.
    Caller,
    /// In a user namespace that maps root to another id; files still belong to root.
    Namespace,
    /// As a user of the system, who must own the directory.
    User { uid: Uid, gid: Gid },
    /// None of these users exists.
    NoUser,
}

/// The users who may run a server, in this order: Debian's package creates `postgres`; `nobody` exists if Postgres was
/// installed otherwise.
const USERS: [&str; 2] = ["postgres", "nobody"];
const NO_USER: &str = "Postgres cannot run as root, user namespaces are forbidden, and neither the user postgres nor \
    the user nobody exists: create one of them, or run this as another user than root";

fn first_user(names: &[&str]) -> RunAs {
    let found = names.iter().find_map(|name| User::from_name(name).ok().flatten());
    found.map_or(RunAs::NoUser, |user| RunAs::User { uid: user.uid, gid: user.gid })
}

fn run_as() -> RunAs {
    static CHOSEN: OnceLock<RunAs> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        if !geteuid().is_root() {
            return RunAs::Caller;
        }
        let mut probe = Command::new("unshare");
        probe.args(["-U", "--map-user=1000", "--map-group=1000", "true"]);
        probe.stdout(Stdio::null()).stderr(Stdio::null());
        match probe.status() {
            Ok(status) if status.success() => RunAs::Namespace,
            Ok(_) | Err(_) => first_user(&USERS),
        }
    })
}

/// A command that does not run as root, and that `signal` ends when this process ends.
pub(super) fn unprivileged(program: &Path, signal: &str) -> Command {
    let before = match run_as() {
        // Without such a user `prepare_dir` has failed before.
        RunAs::Caller | RunAs::NoUser => vec![],
        RunAs::Namespace => {
            ["unshare", "-U", "--map-user=1000", "--map-group=1000"].map(str::to_owned).to_vec()
        }
        RunAs::User { uid, gid } => {
            let (uid, gid) = (format!("--reuid={uid}"), format!("--regid={gid}"));
            vec!["setpriv".to_owned(), uid, gid, "--clear-groups".to_owned()]
        }
    };
    run_by(&before, &ending_with_parent(program, signal))
}

/// A copy of the command, run by another program with its arguments, such as `strace` or `env`, if one is given.
pub(super) fn run_by<W: AsRef<OsStr>>(program: &[W], command: &Command) -> Command {
    let program = program.iter().map(AsRef::as_ref).chain([command.get_program()]);
    let mut words = program.chain(command.get_args());
    let mut copy = Command::new(words.next().unwrap_or_default());
    copy.args(words);
    if let Some(dir) = command.get_current_dir() {
        copy.current_dir(dir);
    }
    copy
}

/// A command that `signal` ends when this process ends.
pub(super) fn ending_with_parent(program: &Path, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

/// Makes a directory that an unprivileged command may write.
pub(super) fn prepare_dir(dir: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot prepare {}", dir.display());
    fs::create_dir_all(dir).with_context(context)?;
    match run_as() {
        RunAs::Caller | RunAs::Namespace => Ok(()),
        RunAs::User { uid, gid } => chown(dir, Some(uid), Some(gid)).with_context(context),
        RunAs::NoUser => bail!(NO_USER),
    }
}

/// A command to spawn, and where the child is sent.
type SpawnRequest = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Spawns from a thread that runs as long as this process, because the kernel ends a child when the thread
/// that spawned it ends.
fn spawn(command: &Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::SyncSender<SpawnRequest>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, received) = mpsc::sync_channel::<SpawnRequest>(1);
        thread::spawn(move || {
            for (mut command, answer) in received {
                drop(answer.send(command.spawn()));
            }
        });
        requests
    });
    let ended = || io::Error::other("the thread that starts child processes has ended");
    let mut command = run_by::<&str>(&[], command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (answer, answered) = mpsc::sync_channel(1);
    spawner.send((command, answer)).map_err(|_| ended())?;
    answered.recv().map_err(|_| ended())?
}

/// A server with a directory and a port that it keeps when it is restarted.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) dir: PathBuf,
    name: &'static str,
    port: Port,
    command: Command,
    answers: Answers,
    child: Child,
}

/// Whether the server with this directory, port and process id answers: another process may answer on the port.
type Answers = fn(&Path, u16, u32) -> bool;

impl Server {
    /// Starts the command for a free port, and waits until the server answers. Its log is `name.log` in its directory.
    pub(super) fn start(
        dir: &Path,
        name: &'static str,
        command: impl Fn(u16) -> Command,
        answers: Answers,
    ) -> anyhow::Result<Self> {
        let mut starts = 1;
        loop {
            let port = Port::free().context("cannot reserve a port")?;
            let command = command(port.number);
            let child = spawn(&command).with_context(|| format!("cannot run {name}"))?;
            let mut server = Self { dir: dir.to_owned(), name, port, command, answers, child };
            match server.wait() {
                Err(_) if starts < STARTS_MAX => starts += 1,
                started => return started.map(|()| server),
            }
        }
    }

    /// Starts it again on the same port, after it has ended.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.command).with_context(|| format!("cannot run {}", self.name))?;
        self.wait()
    }

    /// Waits until it answers. It may end before, for example because its port is in use.
    fn wait(&mut self) -> anyhow::Result<()> {
        let limit = Instant::now() + START_LIMIT;
        while Instant::now() < limit && self.is_running() {
            if (self.answers)(&self.dir, self.port(), self.child.id()) {
                return Ok(());
            }
            thread::sleep(STEP);
        }
        self.kill();
        let log = fs::read(self.dir.join(format!("{}.log", self.name))).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        Err(anyhow!("{} did not answer after its start; its log ends with:\n{last}", self.name))
    }

    pub(super) fn port(&self) -> u16 {
        self.port.number
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether a signal has stopped each of its threads.
    pub(super) fn is_stopped(&self) -> bool {
        let is_stopped =
            |thread: fs::DirEntry| matches!(state_and_parent(&thread.path()), Some(('T' | 't', _)));
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        threads.is_ok_and(|threads| threads.flatten().all(is_stopped))
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended since.
        let _ended = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Asks the server to end, and kills it after a time.
    pub(super) fn stop(&mut self, signal: Signal) {
        if !self.is_running() {
            return;
        }
        self.signal(signal);
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if !self.is_running() {
                return;
            }
            thread::sleep(STEP);
        }
        self.kill();
    }

    pub(super) fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// The processes that the server has started itself.
    pub(super) fn children(&self) -> Vec<Pid> {
        children_of(self.child.id())
    }
}

/// The processes whose parent is this one, from `/proc`.
fn children_of(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let children = processes
        .filter(|process| state_and_parent(&process.path()).is_some_and(|(_, of)| of == parent));
    let pid = |child: fs::DirEntry| child.file_name().to_str()?.parse().ok();
    children.filter_map(pid).map(Pid::from_raw).collect()
}

/// The state of a process or thread, and its parent, from its directory in `/proc`; `None` when it has ended.
fn state_and_parent(process: &Path) -> Option<(char, u32)> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The name before these fields is in parentheses, and may contain any character.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Waits until these processes have ended; their new parent may still have to reap them.
pub(super) fn wait_for_end(processes: &[Pid]) {
    let deadline = Instant::now() + TIMEOUT;
    let runs = |pid: &Pid| {
        let state = state_and_parent(Path::new(&format!("/proc/{pid}")));
        state.is_some_and(|(state, _)| state != 'Z')
    };
    while Instant::now() < deadline && processes.iter().any(runs) {
        thread::sleep(STEP);
    }
}

/// How many ports are tried before giving up.
const PORTS_TRIED: usize = 100;

/// A port on loopback, reserved until this is dropped, even while no server listens on it: every other [`Port`] is
/// another one, and the server can restart on it. It is outside the range of ephemeral ports.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    /// Bound, never listening.
    _reservation: TcpSocket,
}

impl Port {
    /// Any port that is not in use.
    pub(super) fn free() -> io::Result<Self> {
        let mut last = io::Error::other("no port was tried");
        for _ in 0..PORTS_TRIED {
            match Self::reserve(rand::random_range(10_000..32_000)) {
                Ok(port) => return Ok(port),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn reserve(number: u16) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // Without address reuse this fails if any process has bound the port, even if it does not listen.
        socket.set_reuseaddr(false)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))?;
        // With address reuse from now on, a server that allows it as well can bind the port and listen.
        socket.set_reuseaddr(true)?;
        Ok(Self { number, _reservation: socket })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn server_runs_as_nobody_if_there_is_no_user_postgres() {
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let expected = RunAs::User { uid: nobody.uid, gid: nobody.gid };
        assert_eq!(first_user(&["no-such-user", USERS[1]]), expected);
        assert_eq!(first_user(&["no-such-user"]), RunAs::NoUser);
        assert!(USERS.iter().all(|user| NO_USER.contains(user)), "{NO_USER}");
    }

    #[test]
    fn children_of_a_process_are_found_and_waited_for() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(children_of(std::process::id()).contains(&pid));
        assert!(!children_of(child.id()).contains(&pid));
        child.kill().unwrap();
        // It has ended and has not been reaped.
        wait_for_end(&[pid]);
        child.wait().unwrap();
        assert!(!children_of(std::process::id()).contains(&pid));
    }

    #[test]
    fn reserved_port_is_not_reserved_twice_and_its_server_can_restart() {
        let port = Port::free().unwrap();
        assert!(Port::reserve(port.number).is_err(), "the port was reserved twice");
        for _ in 0..2 {
            // As the servers do, a listener of the standard library reuses addresses.
            let server = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number)).unwrap();
            assert!(Port::reserve(port.number).is_err(), "the port was reserved twice");
            drop(server);
        }
        let number = port.number;
        drop(port);
        let listens = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
        assert!(Port::reserve(number).is_err(), "another process listens there");
        drop(listens);
        drop(Port::reserve(number).unwrap());
    }
}
