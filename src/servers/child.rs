//! Child processes that cannot outlive this one.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid, User, chown, geteuid},
};
use tokio::net::TcpSocket;

use super::ServerError;

/// How long a server may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to end after a signal.
const TIMEOUT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(10);

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
    match run_as() {
        // Without such a user `prepare_dir` has failed before.
        RunAs::Caller | RunAs::NoUser => ending_with_parent(program, signal),
        RunAs::Namespace => {
            let mut command = Command::new("unshare");
            command.args(["-U", "--map-user=1000", "--map-group=1000"]);
            command.args(["setpriv", "--pdeathsig", signal]).arg(program);
            command
        }
        RunAs::User { uid, gid } => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            command.arg("--clear-groups");
            command.args(["--pdeathsig", signal]).arg(program);
            command
        }
    }
}

/// A command run by another program, such as `strace` or `env`; unchanged without one.
pub(super) fn wrapped_by(wrapper: &[String], command: Command) -> Command {
    let [program, args @ ..] = wrapper else { return command };
    let mut wrapped = Command::new(program);
    wrapped.args(args).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    wrapped
}

/// A command that `signal` ends when this process ends.
pub(super) fn ending_with_parent(program: &Path, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

/// Makes a directory that an unprivileged command may write.
pub(super) fn prepare_dir(dir: &Path) -> Result<(), ServerError> {
    let failed = |source| ServerError::Directory { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    match run_as() {
        RunAs::Caller | RunAs::Namespace => Ok(()),
        RunAs::User { uid, gid } => {
            chown(dir, Some(uid), Some(gid)).map_err(|error| failed(error.into()))
        }
        RunAs::NoUser => Err(ServerError::NoUser(USERS)),
    }
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Spawns from a thread that runs as long as this process, because the kernel ends a child when the thread
/// that spawned it ends.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, received) = mpsc::sync_channel::<Order>(1);
        thread::spawn(move || {
            for (mut command, answer) in received {
                drop(answer.send(command.spawn()));
            }
        });
        orders
    });
    let ended = || io::Error::other("the thread that starts child processes has ended");
    let (answer, answered) = mpsc::sync_channel(1);
    spawner.send((command, answer)).map_err(|_| ended())?;
    answered.recv().map_err(|_| ended())?
}

/// A running server.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
}

/// Whether a server that has just been started answers.
pub(super) enum Start {
    /// It answers.
    Answers(Running),
    /// It ended before it answered: try another port.
    Ended,
    /// It runs and does not answer.
    Silent,
}

impl Running {
    /// Starts a server and waits until `answers` is true. It gets the process id of the server, because another
    /// process may answer at the address.
    pub(super) fn start(
        mut command: Command,
        program: &str,
        answers: impl Fn(u32) -> bool,
    ) -> Result<Start, ServerError> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(command)
            .map_err(|source| ServerError::Run { program: program.to_owned(), source })?;
        let mut running = Self { child };
        let limit = Instant::now() + START_LIMIT;
        while Instant::now() < limit {
            if !running.is_running() {
                return Ok(Start::Ended);
            }
            if answers(running.child.id()) {
                return Ok(Start::Answers(running));
            }
            thread::sleep(STEP);
        }
        running.kill();
        Ok(Start::Silent)
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether a signal has stopped each of its threads.
    pub(super) fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat"));
        let stopped = |stat: String| {
            let state =
                stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
            matches!(state, Some('T' | 't'))
        };
        threads.is_ok_and(|threads| threads.flatten().all(|thread| stat(thread).is_ok_and(stopped)))
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

    /// Kills the server.
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
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent))
        .map(Pid::from_raw)
        .collect()
}

/// A process's state and its parent; `None` when it has ended.
fn state_and_parent(pid: i32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before these fields is in parentheses, and may contain any character.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Waits until these processes have ended; their new parent may still have to reap them.
pub(super) fn wait_for_end(processes: &[Pid]) {
    let deadline = Instant::now() + TIMEOUT;
    let runs = |pid: &Pid| state_and_parent(pid.as_raw()).is_some_and(|(state, _)| state != 'Z');
    while Instant::now() < deadline && processes.iter().any(runs) {
        thread::sleep(STEP);
    }
}

/// How many ports are tried before giving up.
const PORTS_TRIED: usize = 100;

/// A port on loopback, reserved until this is dropped, even while no server listens on it: every other [`Port`] is
/// another one, and the server can restart on it.
///
/// It is outside the range of ephemeral ports.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
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

    pub(super) fn number(&self) -> u16 {
        self.number
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
        let message = ServerError::NoUser(USERS).to_string();
        assert!(message.contains("postgres") && message.contains("nobody"), "{message}");
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
        assert!(Port::reserve(port.number()).is_err(), "the port was reserved twice");
        for _ in 0..2 {
            // As the servers do, a listener of the standard library reuses addresses.
            let server = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).unwrap();
            assert!(Port::reserve(port.number()).is_err(), "the port was reserved twice");
            drop(server);
        }
        let number = port.number();
        drop(port);
        let listens = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
        assert!(Port::reserve(number).is_err(), "another process listens there");
        drop(listens);
        drop(Port::reserve(number).unwrap());
    }
}
