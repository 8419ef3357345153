//! Buyers who buy during faults and record every answer, which is compared with the service afterwards.
//!
//! What they buy follows from a seed. A run that fails prints it; `FAULT_SEED` repeats its choices, but not those
//! of the scheduler.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;
use yoink::grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient};

use super::{Bought, Schedule, answers::Answers, reason};

/// How long a buyer waits for one answer, and before it repeats a request.
const CALL_LIMIT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// One request, which may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ask {
    pub product: String,
    pub user: String,
    pub request: String,
}

/// The outcome of one attempt.
pub(super) enum Attempt {
    /// It was accepted.
    Accepted(Bought),
    /// It was refused, finally.
    Refused(String),
    /// It was not applied; a later attempt may be.
    Later,
    /// It may have been applied; repeat it with the same request id.
    Open,
}

/// The answers to one request.
#[derive(Debug, Default, Clone)]
pub(super) struct Record {
    /// Every reservation id ever answered, in order, without repetition.
    pub(super) ids: Vec<String>,
    /// The last attempt's outcome is unknown.
    pub(super) open: bool,
    /// How many attempts had an unknown outcome.
    pub(super) unknown: usize,
    /// Its last answer, if that was a final refusal.
    pub(super) refused: Option<String>,
}

/// A number of buyers and the products they buy.
#[derive(Debug, Clone)]
pub struct BuyerLoad {
    name: String,
    seed: u64,
    buyers: usize,
    products: Vec<String>,
    pace: Duration,
}

impl BuyerLoad {
    /// Buyers of these products; two loads of one environment need different names.
    pub fn new(name: &str, buyers: usize, products: &[&str]) -> Self {
        Self::seeded(name, buyers, products, Schedule::new().seed())
    }

    /// As [`BuyerLoad::new`], whose choices follow from a seed.
    pub fn seeded(name: &str, buyers: usize, products: &[&str], seed: u64) -> Self {
        let products = products.iter().map(|product| (*product).to_owned()).collect();
        Self { name: name.to_owned(), seed, buyers, products, pace: Duration::ZERO }
    }

    /// The least time between two requests of a buyer.
    pub fn paced(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// Begins to buy through these connections.
    pub fn start(self, channels: Vec<Channel>) -> RunningLoad {
        let (channels, seen) = watch::channel(channels);
        let (stop, accepted) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let longest_gap_ms: Arc<AtomicU64> = Arc::default();
        let records: Arc<Mutex<HashMap<Ask, Record>>> = Arc::default();
        let tasks = TaskTracker::new();
        let buyers = (0..self.buyers).map(|number| {
            let buyer = Buyer {
                buyers: self.clone(),
                number,
                dice: Schedule::of(self.seed).branch(number),
                channels: seen.clone(),
                records: records.clone(),
                accepted: accepted.clone(),
                last_accepted: None,
                longest_gap_ms: longest_gap_ms.clone(),
                stop: stop.clone(),
            };
            tasks.spawn(buyer.run())
        });
        let buyers = buyers.collect();
        RunningLoad {
            seed: Schedule::of(self.seed),
            channels,
            stop,
            accepted,
            longest_gap_ms,
            records,
            buyers,
        }
    }
}

/// Buyers that are buying.
pub struct RunningLoad {
    seed: Schedule,
    channels: watch::Sender<Vec<Channel>>,
    stop: CancellationToken,
    accepted: Arc<AtomicUsize>,
    longest_gap_ms: Arc<AtomicU64>,
    records: Arc<Mutex<HashMap<Ask, Record>>>,
    buyers: Vec<JoinHandle<()>>,
}

impl RunningLoad {
    /// Replaces the connections; without any, the buyers wait.
    pub fn go_to(&self, channels: Vec<Channel>) {
        self.channels.send_replace(channels);
    }

    /// How many requests were accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The longest time from one acceptance of a buyer to the next, so far. For people: a busy machine makes it longer.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_millis(self.longest_gap_ms.load(Ordering::SeqCst))
    }

    /// How many requests have an unknown outcome now.
    pub fn open(&self) -> usize {
        self.records.lock().unwrap().values().filter(|record| record.open).count()
    }

    /// Waits until `more` requests are accepted.
    pub async fn sells(&self, more: usize) {
        let goal = self.accepted() + more;
        super::eventually("the buyers continue to buy", async || {
            (self.accepted() >= goal).then_some(())
        })
        .await;
    }

    /// Stops the buyers; calls in flight are awaited.
    pub async fn end(mut self) -> Answers {
        self.stop.cancel();
        for ended in join_all(std::mem::take(&mut self.buyers)).await {
            ended.unwrap();
        }
        let records = std::mem::take(&mut *self.records.lock().unwrap());
        Answers::new(self.seed.seed(), records.into_iter().collect())
    }
}

impl Drop for RunningLoad {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Buyer {
    buyers: BuyerLoad,
    number: usize,
    dice: Schedule,
    channels: watch::Receiver<Vec<Channel>>,
    records: Arc<Mutex<HashMap<Ask, Record>>>,
    accepted: Arc<AtomicUsize>,
    last_accepted: Option<Instant>,
    longest_gap_ms: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Buyer {
    async fn run(mut self) {
        let mut asked: Vec<Ask> = Vec::new();
        let mut pace = tokio::time::interval(self.buyers.pace.max(Duration::from_micros(1)));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.stop.run_until_cancelled(pace.tick()).await.is_some() {
            // One in eight repeats an earlier request: it must get the earlier answer.
            let ask = if !asked.is_empty() && self.dice.below(8) == 0 {
                asked[self.dice.below(asked.len())].clone()
            } else {
                let product = &self.buyers.products[self.dice.below(self.buyers.products.len())];
                let user = format!("{}-{}", self.buyers.name, self.number);
                let request = format!("r{}", asked.len());
                asked.push(Ask { product: product.clone(), user, request });
                asked[asked.len() - 1].clone()
            };
            self.ask_until_decided(&ask).await;
            tokio::task::yield_now().await;
        }
    }

    /// Repeats a request until it is decided, or until the load is stopped.
    async fn ask_until_decided(&mut self, ask: &Ask) {
        let mut again = tokio::time::interval(RETRY_INTERVAL);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.stop.run_until_cancelled(again.tick()).await.is_some() {
            let Some(channel) = self.channel().await else { return };
            let reported = send(channel, ask).await;
            let done = matches!(reported, Attempt::Accepted(_) | Attempt::Refused(_));
            if matches!(reported, Attempt::Accepted(_)) {
                self.note_gap();
            }
            self.record(ask, |record| record.note(reported));
            if done {
                return;
            }
        }
    }

    /// One of the connections, once there is one.
    async fn channel(&mut self) -> Option<Channel> {
        let some = self.channels.wait_for(|channels| !channels.is_empty());
        let channels = self.stop.run_until_cancelled(some).await?.ok()?.clone();
        Some(channels[self.dice.below(channels.len())].clone())
    }

    fn note_gap(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last_accepted.replace(now) {
            let gap_ms = u64::try_from((now - last).as_millis()).unwrap();
            self.longest_gap_ms.fetch_max(gap_ms, Ordering::SeqCst);
        }
    }

    fn record(&self, ask: &Ask, change: impl FnOnce(&mut Record)) {
        let mut records = self.records.lock().unwrap();
        let record = records.entry(ask.clone()).or_default();
        let before = record.ids.len();
        change(record);
        self.accepted.fetch_add(record.ids.len() - before, Ordering::SeqCst);
    }
}

impl Record {
    pub(super) fn note(&mut self, reported: Attempt) {
        match reported {
            Attempt::Accepted(answer) => {
                (self.open, self.refused) = (false, None);
                if self.ids.contains(&answer.reservation_id) {
                    assert!(answer.duplicate, "answered as new for the second time: {answer:?}");
                } else {
                    self.ids.push(answer.reservation_id);
                }
            }
            Attempt::Refused(why) => (self.open, self.refused) = (false, Some(why)),
            Attempt::Open => {
                self.open = true;
                self.unknown += 1;
            }
            // An earlier attempt may still have been applied.
            Attempt::Later => {}
        }
    }
}

/// One attempt.
pub(super) async fn send(channel: Channel, ask: &Ask) -> Attempt {
    let mut request = Request::new(ReserveUnitRequest {
        product_id: ask.product.clone(),
        user_id: ask.user.clone(),
        request_id: ask.request.clone(),
        ..Default::default()
    });
    request.set_timeout(CALL_LIMIT);
    match InventoryServiceClient::new(channel).reserve_unit(request).await {
        Ok(answer) => {
            let answer = Bought::from(answer.into_inner());
            assert_eq!((&answer.product_id, &answer.user_id), (&ask.product, &ask.user));
            Attempt::Accepted(answer)
        }
        Err(status) => assess(&status),
    }
}

fn assess(status: &Status) -> Attempt {
    let info = status.get_details_error_info();
    let applied = info.and_then(|info| info.metadata.get("applied").cloned());
    let broken = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown];
    let no_error_info = status.get_details_error_info().is_none();
    match (status.code(), applied.as_deref()) {
        (Code::FailedPrecondition, _) => Attempt::Refused(reason(status)),
        (Code::Unavailable | Code::ResourceExhausted, Some("maybe")) => Attempt::Open,
        (Code::ResourceExhausted, _) | (Code::Unavailable, Some("no")) => Attempt::Later,
        (code, _) => {
            // A broken connection does not show whether the call was applied.
            let open = broken.contains(&code) || (code == Code::Internal && no_error_info);
            assert!(open, "an answer that no buyer may get: {status:?}");
            Attempt::Open
        }
    }
}
