//! Load over REST: the real Envoy in front of the service, as `make edge` runs it, and callers that each keep one connection of
//! HTTP/1.1. They are tasks of this process, because the callers of k6 need more processor time than Envoy and the service
//! together.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    deployment::{Deployment, Service},
    listening::listening,
    process::{Process, command},
};

const ENVOY: &str = ".tools/venv/bin/envoy";
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Calls that are not counted are made for this time first.
const WARM_UP: Duration = Duration::from_millis(400);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const ANSWER_MAX: usize = 65_536;

/// A running Envoy in front of a service.
pub(crate) struct Envoy {
    process: Process,
    address: SocketAddr,
}

impl Envoy {
    /// Starts it with the configuration that is deployed.
    pub(crate) async fn start(deployment: &Deployment, service: &Service) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        ensure!(root.join(ENVOY).exists(), "Envoy is not installed: run `make tools`");
        let mut command = command("scripts/beside.sh");
        command.arg("edge").current_dir(root).env("YOINK", &deployment.programs.service);
        command.env("DIR", deployment.file("envoy")).env("PORT", "0").env("GRPC", &service.address);
        let mut process = Process::start("Envoy", command, &deployment.file("log"))?;
        let started = Instant::now();
        let address = loop {
            process.check()?;
            if let Some(address) = listening(process.id()) {
                break address;
            }
            ensure!(started.elapsed() < START_TIMEOUT, "Envoy does not listen");
            sleep(POLL_INTERVAL).await;
        };
        Ok(Self { process, address })
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.process.stop().await
    }

    /// Buys a product for a time on this many connections; returns how many answers came in a second. After a warm-up.
    /// Fails if a call, also one of the warm-up, gets another answer than this one.
    pub(crate) async fn buy(
        &self,
        product: &str,
        expected: Answer,
        connections: u32,
        time: Duration,
    ) -> anyhow::Result<f64> {
        let address = self.address;
        let from = Instant::now() + WARM_UP;
        let until = from + time;
        let product: Arc<str> = product.into();
        // The tasks end when the set is dropped.
        let mut callers = JoinSet::new();
        for number in 0..connections {
            let product = product.clone();
            callers.spawn(async move {
                let mut caller = Caller::connect(address, &product, number).await?;
                let mut count = 0_u64;
                loop {
                    caller.call(expected).await?;
                    let now = Instant::now();
                    if now >= until {
                        return anyhow::Ok(count);
                    }
                    count += u64::from(now >= from);
                }
            });
        }
        let mut count = 0;
        while let Some(of_caller) = callers.join_next().await {
            count += of_caller??;
        }
        ensure!(count > 0, "Envoy answered no call");
        Ok(rate(count, time.as_secs_f64()))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of calls")]
fn rate(calls: u64, seconds: f64) -> f64 {
    calls as f64 / seconds
}

/// What a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted,
    SoldOut,
}

/// One connection.
struct Caller {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Caller {
    async fn connect(address: SocketAddr, product: &str, number: u32) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let body = format!(r#"{{"productId":"{product}","userId":"user-{number}"}}"#);
        let request = format!(
            "POST /v1/reservations HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self { stream, request: request.into_bytes(), answer: Vec::new() })
    }

    /// Buys a unit; fails on another answer.
    async fn call(&mut self, expected: Answer) -> anyhow::Result<()> {
        self.answer.clear();
        self.stream.write_all(&self.request).await?;
        let status =
            timeout(CALL_TIMEOUT, self.read()).await.context("Envoy does not answer")??;
        let answer = String::from_utf8_lossy(&self.answer);
        let is_expected = match expected {
            Answer::Accepted => status == 202,
            // Other refusals have this status as well.
            Answer::SoldOut => status == 409 && answer.contains("\"SOLD_OUT\""),
        };
        ensure!(is_expected, "Envoy answered {status} in place of {expected:?}: {answer}");
        Ok(())
    }

    /// Reads one answer; returns its status.
    async fn read(&mut self) -> anyhow::Result<u16> {
        loop {
            ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "Envoy closed a connection");
            ensure!(self.answer.len() < ANSWER_MAX, "an answer of Envoy is too long");
            if let Some(status) = complete(&self.answer)? {
                return Ok(status);
            }
        }
    }
}

/// The status of an answer, if all of it is there. It ends where its head states, or with its last chunk.
fn complete(answer: &[u8]) -> anyhow::Result<Option<u16>> {
    let Some(head) = answer.windows(4).position(|part| part == b"\r\n\r\n") else {
        return Ok(None);
    };
    let (head, body) = (std::str::from_utf8(&answer[..head])?, &answer[head + 4..]);
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    };
    let is_complete = match field("content-length") {
        Some(length) => body.len() >= length.parse()?,
        None => body.ends_with(b"0\r\n\r\n"),
    };
    let status = head.split(' ').nth(1).context("Envoy sent no status")?.parse()?;
    Ok(is_complete.then_some(status))
}
