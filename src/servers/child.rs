//! Child processes that cannot outlive this one.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, chown, geteuid},
};

use super::ServerError;

/// How long a server may take to answer after its start, or to end after a signal.
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(10);

/// How a server that refuses to be root is run when we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disguise {
    /// We are not root.
    None,
    /// In a user namespace where we have another id; files stay ours.
    Namespace,
    /// As the user `postgres`, who must own its directory.
    Postgres,
}

fn disguise() -> Disguise {
    static CHOSEN: OnceLock<Disguise> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        if !geteuid().is_root() {
            return Disguise::None;
        }
        let mut probe = Command::new("unshare");
        probe.args(["-U", "--map-user=1000", "--map-group=1000", "true"]);
        probe.stdout(Stdio::null()).stderr(Stdio::null());
        match probe.status() {
            Ok(status) if status.success() => Disguise::Namespace,
            Ok(_) | Err(_) => Disguise::Postgres,
        }
    })
}

/// A command that runs as somebody else than root, and ends by `signal` when this process ends.
pub(super) fn unprivileged(program: &Path, signal: &str) -> Command {
    match disguise() {
        Disguise::None => tied(program, signal),
        Disguise::Namespace => {
            let mut command = Command::new("unshare");
            command.args(["-U", "--map-user=1000", "--map-group=1000"]);
            command.args(["setpriv", "--pdeathsig", signal]).arg(program);
            command
        }
        Disguise::Postgres => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
            command.args(["--pdeathsig", signal]).arg(program);
            command
        }
    }
}

/// A command run by another program, as `strace` or `env` run one; by itself without any.
pub(super) fn under(wrapper: &[String], command: Command) -> Command {
    let [program, args @ ..] = wrapper else { return command };
    let mut wrapped = Command::new(program);
    wrapped.args(args).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    wrapped
}

/// A command that ends by `signal` when this process ends.
pub(super) fn tied(program: &Path, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

/// Makes a directory that an unprivileged command may write.
pub(super) fn prepare_dir(dir: &Path) -> Result<(), ServerError> {
    let failed = |source| ServerError::Directory { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    if disguise() == Disguise::Postgres {
        let user = User::from_name("postgres").map_err(|error| failed(error.into()))?;
        let user = user.ok_or(ServerError::Missing("postgresql"))?;
        chown(dir, Some(user.uid), Some(user.gid)).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Spawns from a thread that lives as long as this process: the kernel ends a child with the thread
/// that spawned it.
fn spawn(command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (orders, asked) = mpsc::sync_channel::<Order>(1);
        thread::spawn(move || {
            for (mut command, answer) in asked {
                drop(answer.send(command.spawn()));
            }
        });
        orders
    });
    let gone = || io::Error::other("the thread that keeps children has ended");
    let (answer, answered) = mpsc::sync_channel(1);
    keeper.send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

/// A running server.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
}

/// Whether a server that has just been started answers.
pub(super) enum Start {
    /// It does.
    Answers(Running),
    /// It ended before it did: try another port.
    Ended,
    /// It runs and does not answer.
    Silent,
}

impl Running {
    /// Starts a server and waits until `answers`.
    pub(super) fn start(
        mut command: Command,
        program: &str,
        answers: impl Fn() -> bool,
    ) -> Result<Start, ServerError> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(command)
            .map_err(|source| ServerError::Run { program: program.to_owned(), source })?;
        let mut running = Self { child };
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            if !running.is_running() {
                return Ok(Start::Ended);
            }
            if answers() {
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

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended by itself since: nothing is left to signal then.
        let _ended = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Asks the server to end, and makes it when it does not.
    pub(super) fn stop(&mut self, signal: Signal) {
        if !self.is_running() {
            return;
        }
        self.signal(signal);
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            if !self.is_running() {
                return;
            }
            thread::sleep(STEP);
        }
        self.kill();
    }

    /// Ends the server at once, as a crash would.
    pub(super) fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A port that was free a moment ago, of those that the system gives to nobody who just connects: a server
/// that restarts on it finds it free.
pub(super) fn free_port() -> io::Result<u16> {
    let mut last = io::Error::other("no port was tried");
    for _ in 0..100 {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, rand::random_range(10_000..32_000))) {
            Ok(listener) => return Ok(listener.local_addr()?.port()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
