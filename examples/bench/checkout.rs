//! The program of another commit, built from a git worktree of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::process::{Process, command};

/// A worktree; dropping it removes it, but not what was built, so that the next build is short.
struct Worktree {
    dir: PathBuf,
}

impl Worktree {
    /// Checks out a commit.
    async fn add(root: &Path, dir: PathBuf, commit: &str) -> anyhow::Result<Self> {
        let worktree = Self { dir };
        // An interrupted run may have left one.
        worktree.remove();
        let mut git = command("git");
        git.args(["worktree", "add", "--force", "--detach"]).arg(&worktree.dir).arg(commit);
        git.current_dir(root);
        finish("git worktree add", git, &worktree.dir.with_extension("log")).await?;
        Ok(worktree)
    }

    fn remove(&self) {
        let mut git = Command::new("git");
        git.args(["worktree", "remove", "--force"]).arg(&self.dir);
        git.current_dir(env!("CARGO_MANIFEST_DIR"));
        // It fails if there is none.
        drop(git.output());
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Runs a command to its end. If this is interrupted, what the command has started ends with it: the compilers of cargo.
async fn finish(name: &str, command: Command, log: &Path) -> anyhow::Result<()> {
    let status = Process::start_group(name, command, log)?.ended().await?;
    let log = || std::fs::read_to_string(log).unwrap_or_default();
    ensure!(status.success(), "{name} failed ({status}): {}", log());
    Ok(())
}

/// Builds the `yoink` of a commit, with optimization if this program has it; returns its path.
pub(crate) async fn build(commit: &str) -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bench = root.join("target/bench");
    std::fs::create_dir_all(&bench)?;
    let worktree = Worktree::add(root, bench.join("base"), commit).await?;
    let (profile, built) =
        if cfg!(debug_assertions) { ("dev", "debug") } else { ("release", "release") };
    let target = bench.join("base-target");
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--bin", "yoink", "--profile", profile]);
    cargo.current_dir(&worktree.dir).env("CARGO_TARGET_DIR", &target);
    crate::progress(&format!("building {commit}; the first build takes minutes"));
    finish("cargo build", cargo, &bench.join("base.log")).await?;
    let program = target.join(built).join("yoink");
    let copy = bench.join("base-yoink");
    std::fs::copy(&program, &copy).context("cargo built no program")?;
    Ok(copy)
}
