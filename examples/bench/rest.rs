//! Load over REST: the real Envoy in front of the service, as `make edge` runs it, and callers that each keep one connection of
//! HTTP/1.1. They are tasks of this process, because the callers of k6 need more processor time than Envoy and the service
//! together.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
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

    /// Buys a product for a time on this many connections; returns how many answers of each kind came in a second. After a
    /// warm-up.
    pub(crate) async fn buy(
        &self,
        product: &str,
        connections: u32,
        time: Duration,
    ) -> anyhow::Result<Rates> {
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
                let mut counts = [0_u64; 2];
                loop {
                    let sold_out = caller.call().await?;
                    let now = Instant::now();
                    if now >= until {
                        return anyhow::Ok(counts);
                    }
                    counts[usize::from(sold_out)] += u64::from(now >= from);
                }
            });
        }
        let mut counts = [0_u64; 2];
        while let Some(caller) = callers.join_next().await {
            let of_caller = caller??;
            (0..2).for_each(|kind| counts[kind] += of_caller[kind]);
        }
        let seconds = time.as_secs_f64();
        Ok(Rates { accepted: rate(counts[0], seconds), sold_out: rate(counts[1], seconds) })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of calls")]
fn rate(calls: u64, seconds: f64) -> f64 {
    calls as f64 / seconds
}

/// Answers a second.
pub(crate) struct Rates {
    pub(crate) accepted: f64,
    pub(crate) sold_out: f64,
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

    /// Buys a unit; returns whether the product is sold out.
    async fn call(&mut self) -> anyhow::Result<bool> {
        self.answer.clear();
        self.stream.write_all(&self.request).await?;
        let status =
            timeout(CALL_TIMEOUT, self.read()).await.context("Envoy does not answer")??;
        match status {
            202 => Ok(false),
            409 => Ok(true),
            _ => bail!("Envoy answered {status}: {}", String::from_utf8_lossy(&self.answer)),
        }
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
