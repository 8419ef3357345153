//! Many buyers at the same time, through the generated client: `load` and `demo` measure their calls.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::grpc::pb::{self, ReserveUnitRequest, inventory_service_client::InventoryServiceClient};

pub(super) type Client = InventoryServiceClient<Channel>;

/// What the buyers buy, and with how many calls.
#[derive(Debug, Clone)]
pub(super) struct SaleRun {
    pub(super) product: String,
    pub(super) attempts: u64,
    /// Buyers at the same time.
    pub(super) buyers: u64,
    /// Part of the user ids and request ids, so that those of two runs differ.
    pub(super) run_id: String,
    /// What each answer waits for.
    pub(super) ack: pb::Ack,
}

/// The answers that the buyers got.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    /// Reservation ids of accepted buyers.
    pub(super) accepted: Vec<String>,
    /// Refusals by reason.
    pub(super) refused: BTreeMap<String, u64>,
    /// Latency of every call, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// From the first call to the last answer.
    pub(super) duration: Duration,
}

impl Answers {
    /// How many calls were answered, accepted or refused.
    pub(super) fn count(&self) -> u64 {
        self.latency.len()
    }

    /// How many calls were refused with this reason.
    pub(super) fn refused_with(&self, reason: &str) -> u64 {
        self.refused.get(reason).copied().unwrap_or(0)
    }
}

/// Opens connections to one service.
pub(super) async fn connect(target: &str, connections: usize) -> anyhow::Result<Vec<Client>> {
    let endpoint = Endpoint::from_shared(target.to_owned())
        .context("--target must be an address such as http://127.0.0.1:50051")?;
    let endpoint = endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(5));
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        let channel = endpoint.connect().await;
        let channel = channel.with_context(|| format!("cannot connect to {target}"))?;
        clients.push(Client::new(channel));
    }
    Ok(clients)
}

/// Runs the sale to its end, or until `stop`; `done` counts the answered calls meanwhile.
pub(super) async fn run(
    sale: &SaleRun,
    clients: &[Client],
    done: Arc<AtomicU64>,
    stop: &CancellationToken,
) -> anyhow::Result<Answers> {
    let latency = Histogram::new_with_bounds(1, 120_000_000, 3)?;
    let (accepted, refused) = (Vec::new(), BTreeMap::new());
    let total = Answers { accepted, refused, latency, duration: Duration::ZERO };
    let (total, next) = (Arc::new(Mutex::new(total)), Arc::new(AtomicU64::new(0)));
    let started = Instant::now();
    let tasks = TaskTracker::new();
    for (buyer, client) in (0..sale.buyers).zip(clients.iter().cycle()) {
        let (sale, mut client) = (sale.clone(), client.clone());
        let (total, next, done, stop) = (total.clone(), next.clone(), done.clone(), stop.clone());
        tasks.spawn(async move {
            let mut answers = Vec::new();
            while !stop.is_cancelled() {
                let attempt = next.fetch_add(1, Ordering::Relaxed);
                if attempt >= sale.attempts {
                    break;
                }
                let request = ReserveUnitRequest {
                    product_id: sale.product.clone(),
                    user_id: format!("{}-buyer-{buyer}-{attempt}", sale.run_id),
                    request_id: format!("{}-{attempt}", sale.run_id),
                    ack: sale.ack.into(),
                };
                let started = Instant::now();
                let answer = client.reserve_unit(request).await;
                let reservation = answer.map(|answer| answer.into_inner().reservation);
                let answer = reservation.map(|taken| taken.unwrap_or_default().reservation_id);
                answers.push((started.elapsed(), answer));
                done.fetch_add(1, Ordering::Relaxed);
            }
            add(&total, answers);
        });
    }
    tasks.close();
    tasks.wait().await;
    let total = total.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(Answers { duration: started.elapsed(), ..total.clone() })
}

fn add(total: &Mutex<Answers>, answers: Vec<(Duration, Result<String, Status>)>) {
    let mut total = total.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for (latency, answer) in answers {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        total.latency.saturating_record(micros.max(1));
        match answer {
            Ok(id) => total.accepted.push(id),
            Err(status) => *total.refused.entry(reason(&status)).or_default() += 1,
        }
    }
}

/// The reason of the service, or the status code of an error without a reason.
fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map_or_else(|| format!("{:?}", status.code()), |info| info.reason)
}
