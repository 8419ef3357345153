//! The real program as a process.

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::transport::Channel;

use super::{Yard, eventually};

fn yoink(yard: &Yard, more: &[(&'static str, &str)]) -> Command {
    // The kernel ends it with this test, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_yoink")]);
    for (name, value) in yard.settings(more) {
        command.arg("--set").arg(format!("{name}={value}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub fn run_yoink(yard: &Yard, args: &[&str]) -> Output {
    yoink(yard, &[]).args(args).output().unwrap()
}

/// A running `yoink serve`.
pub struct Binary {
    child: Child,
    pub grpc: SocketAddr,
}

impl Binary {
    /// Starts it; with a crash point, it ends itself there.
    pub fn serve(yard: &Yard, more: &[(&'static str, &str)], crash_point: Option<&str>) -> Self {
        let port = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let (grpc, http) = (port(), port());
        let (grpc_text, http_text) = (grpc.to_string(), http.to_string());
        let mut settings = vec![("grpc_listen", &*grpc_text), ("http_listen", &*http_text)];
        settings.extend_from_slice(more);
        let mut command = yoink(yard, &settings);
        command.arg("serve").stdout(Stdio::null());
        if let Some(point) = crash_point {
            command.env("YOINK_CRASH_POINT", point);
        }
        Self { child: command.spawn().unwrap(), grpc }
    }

    /// A connection, as soon as it answers.
    pub async fn channel(&mut self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).unwrap();
        eventually("the program answers", async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status}: {}", self.stderr());
            }
            endpoint.connect().await.ok()
        })
        .await
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end; returns how it ended and how long that took.
    pub async fn ended(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        let status = eventually("the program ends", async || self.child.try_wait().unwrap()).await;
        (status, started.elapsed())
    }

    /// What it said; once it has ended.
    pub fn stderr(&mut self) -> String {
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.as_mut() {
            stderr.read_to_string(&mut said).unwrap();
        }
        said
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
