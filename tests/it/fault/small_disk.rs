//! A disk of a few megabytes: a tmpfs in a mount namespace of its own. It ends with the process that
//! keeps the namespace, which ends with this one: nothing is ever mounted where others see it.

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::harness::{not_tried, scratch_dir};

pub struct SmallDisk {
    keeper: Child,
    dir: PathBuf,
}

impl SmallDisk {
    /// A disk of so many megabytes; `None`, which is reported, if mounting is not permitted.
    pub fn new(megabytes: u32) -> Option<Self> {
        let dir = scratch_dir("disk");
        // The keeper ends with its standard input.
        let script = "owner=$(stat -c uid=%u,gid=%g \"$0\") &&
            mount -t tmpfs -o \"size=$1m,mode=755,$owner\" tmpfs \"$0\" && echo mounted && exec cat";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&dir).arg(megabytes.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut disk = Self { keeper: command.spawn().unwrap(), dir };
        let mut message = String::new();
        BufReader::new(disk.keeper.stdout.take().unwrap()).read_line(&mut message).unwrap();
        if message.trim() == "mounted" {
            return Some(disk);
        }
        not_tried("a full disk (mounting a tmpfs needs root)");
        None
    }

    /// The command line that runs a server in the namespace of this disk.
    pub fn wrapper(&self) -> [String; 4] {
        let pid = self.keeper.id().to_string();
        ["nsenter".to_owned(), "--mount".to_owned(), "--target".to_owned(), pid]
    }

    /// The path of the disk in that namespace.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn filler(&self) -> PathBuf {
        let root = format!("/proc/{}/root{}", self.keeper.id(), self.dir.display());
        Path::new(&root).join("filler")
    }

    /// Fills it to the last page.
    pub fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        let full = loop {
            if let Err(error) = filler.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    /// Frees the space again.
    pub fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Its standard input may have closed already.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}
