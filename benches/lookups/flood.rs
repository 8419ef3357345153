//! Many look-ups of reservations that do not exist, from a process of their own.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;
use yoink::{
    domain::{Epoch, ReservationId},
    grpc::pb::{GetReservationRequest, inventory_service_client::InventoryServiceClient},
};

/// Calls that share a connection; half of what a connection may have in progress.
const CALLS_PER_CONNECTION: u32 = 500;
/// As many as the service has.
const PARTITIONS: u16 = 2;

/// What a refused caller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It waits for the delay of `RetryInfo`.
    AfterDelay,
    /// It does not wait.
    AtOnce,
}

impl FromStr for Retry {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "AfterDelay" => Ok(Self::AfterDelay),
            "AtOnce" => Ok(Self::AtOnce),
            _ => Err(format!("{word} is not a way to retry")),
        }
    }
}

/// The process of the flood; it ends with this one.
pub struct Flood {
    child: Child,
    output: BufReader<ChildStdout>,
    started: Instant,
}

impl Flood {
    /// Starts it, and returns once all its calls are in progress.
    pub fn start(service: SocketAddr, lookups: u32, retry: Retry) -> Self {
        let mut command = Command::new("setpriv");
        // Callers are on other machines: theirs is the last process to get a processor.
        command.args(["--pdeathsig", "KILL", "nice", "-n", "19"]);
        command.arg(std::env::current_exe().unwrap());
        command.args(["flood", &service.to_string(), &lookups.to_string(), &format!("{retry:?}")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        output.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Self { child, output, started: Instant::now() }
    }

    /// Ends it; returns how many look-ups a second were answered, refused as OVERLOADED, and ended otherwise.
    pub fn end(mut self) -> [f64; 3] {
        drop(self.child.stdin.take());
        let mut counts = String::new();
        self.output.read_to_string(&mut counts).unwrap();
        let seconds = self.started.elapsed().as_secs_f64();
        assert!(self.child.wait().unwrap().success());
        let mut counts = counts.split_whitespace().map(|count| count.parse::<f64>().unwrap());
        [(); 3].map(|()| counts.next().unwrap() / seconds)
    }
}

/// Look-ups by how they ended.
#[derive(Default)]
struct Counts {
    begun: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
    other: AtomicU64,
}

impl Counts {
    fn ended(&self, code: Code) -> &AtomicU64 {
        if code == Code::NotFound {
            &self.answered
        } else if code == Code::ResourceExhausted {
            &self.refused
        } else {
            &self.other
        }
    }
}

/// One caller: one look-up after the other.
async fn look_up(channel: Channel, retry: Retry, counts: Arc<Counts>, end: CancellationToken) {
    let mut buyers = InventoryServiceClient::new(channel);
    while !end.is_cancelled() {
        let (partition, seq) = (rand::random_range(0..PARTITIONS), rand::random_range(1..1 << 30));
        let id = ReservationId::new(partition, Epoch(1), seq, ReservationId::draw_random());
        let request = GetReservationRequest { reservation_id: id.unwrap().to_string() };
        counts.begun.fetch_add(1, Ordering::Relaxed);
        let status = buyers.get_reservation(request).await.unwrap_err();
        counts.ended(status.code()).fetch_add(1, Ordering::Relaxed);
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
        if let (Retry::AfterDelay, Some(delay)) = (retry, delay) {
            // Waits until the end, or until the delay has passed.
            let _either = tokio::time::timeout(delay, end.cancelled()).await;
        }
    }
}

/// The process itself: prints `ready`, continues until its standard input ends, and prints its counts.
pub async fn look_up_until_end(service: SocketAddr, lookups: u32, retry: Retry) {
    let (calls, counts) = (TaskTracker::new(), Arc::new(Counts::default()));
    let end = CancellationToken::new();
    let endpoint = Channel::from_shared(format!("http://{service}")).unwrap();
    for first in (0..lookups).step_by(CALLS_PER_CONNECTION as usize) {
        let channel = endpoint.connect().await.unwrap();
        for _ in first..lookups.min(first + CALLS_PER_CONNECTION) {
            calls.spawn(look_up(channel.clone(), retry, counts.clone(), end.clone()));
        }
    }
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    while counts.begun.load(Ordering::Relaxed) < u64::from(lookups) {
        ticks.tick().await;
    }
    println!("ready");
    let wait_for_end = || std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    tokio::task::spawn_blocking(wait_for_end).await.unwrap();
    end.cancel();
    calls.close();
    calls.wait().await;
    let [answered, refused, other] = [&counts.answered, &counts.refused, &counts.other]
        .map(|count| count.load(Ordering::Relaxed));
    println!("{answered} {refused} {other}");
}
