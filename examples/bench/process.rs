//! Child processes that end with this one, and what the kernel counts of them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::time::sleep;

const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The unit of the times in `/proc`: the kernel shows them in hundredths of a second on every architecture.
const TICK_MS: u64 = 10;

/// A command that the kernel ends when the thread that started it ends: this is the main thread, because no task of this
/// program starts processes.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).stdin(Stdio::null());
    command
}

/// A running child; dropping it kills it.
pub(crate) struct Process {
    name: String,
    child: Child,
    /// Whether it leads a process group of its own, which is killed with it.
    leads_group: bool,
}

impl Process {
    /// Starts it. What it prints is written to a file.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        Ok(Self { name: name.to_owned(), child, leads_group: false })
    }

    /// Starts it with a process group of its own, so that the processes that it starts are killed with it.
    pub(crate) fn start_group(
        name: &str,
        mut command: Command,
        log: &Path,
    ) -> anyhow::Result<Self> {
        command.process_group(0);
        let mut process = Self::start(name, command, log)?;
        process.leads_group = true;
        Ok(process)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "{} ended: {ended:?}", self.name);
        Ok(())
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.ended().await?;
        ensure!(status.success(), "{} failed at its end: {status}", self.name);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only while it is not waited for: afterwards, its id may be that of another group.
        if self.leads_group && matches!(self.child.try_wait(), Ok(None)) {
            let _ended = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        }
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The processor time that a process has used so far.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before these fields is in parentheses, and may contain any character. User and system time are the 14th
    // and 15th field.
    let fields = stat.rsplit_once(')').context("/proc has another form")?.1;
    let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = times.sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * TICK_MS))
}

/// A line of `/proc/PID/status` that is in kB, such as `VmRSS`, in MB.
pub(crate) fn memory_mb(pid: u32, line: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let number = found.and_then(|text| text.trim().strip_suffix(" kB"));
    let kb: f64 = number.with_context(|| format!("/proc has no {line}"))?.trim().parse()?;
    Ok(kb * 1024.0 / 1e6)
}
