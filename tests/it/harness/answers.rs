//! The answers that buyers got, compared with what the service then knows.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt as _, stream};
use tonic::{Code, Status};
use yoink::grpc::pb::Reservation;

use super::{
    Schedule, Service, TestEnv,
    buyer_load::{Ask, Attempt, Record, send},
    eventually, reason,
};

/// The most concurrent calls.
const CONCURRENCY_MAX: usize = 64;

/// Every answer that buyers got.
pub struct Answers {
    seed: Schedule,
    records: BTreeMap<Ask, Record>,
}

/// The final state of the reservations of buyers.
#[derive(Debug, Default)]
pub struct Account {
    /// Confirmed in the ledger, and repeated requests still get them.
    pub confirmed: usize,
    /// Voided, their units given back.
    pub voided: usize,
    /// Accepted, and in no store.
    pub lost: Vec<String>,
    /// Attempts whose outcome was unknown to the buyer.
    pub unknown: usize,
    /// Final refusals by reason.
    pub refused: BTreeMap<String, usize>,
}

impl Answers {
    pub(super) fn new(seed: u64, records: BTreeMap<Ask, Record>) -> Self {
        Self { seed: Schedule::of(seed), records }
    }

    /// How many reservations were answered.
    pub fn accepted(&self) -> usize {
        self.records.values().map(|record| record.ids.len()).sum()
    }

    /// Asserts that everything the service accepted is confirmed once.
    pub async fn assert_all_answers_kept(self, env: &TestEnv, service: &Service) -> Account {
        let seed = self.seed.seed();
        let account = self.account(env, service).await;
        assert_eq!((account.voided, account.lost.len()), (0, 0), "{account:?}, seed {seed}");
        account
    }

    /// As [`Answers::assert_all_answers_kept`], but orders may have been voided, or lost by Redis.
    pub async fn account(self, env: &TestEnv, service: &Service) -> Account {
        let Self { seed, mut records } = self;
        let (mut account, seed) = (Account::default(), seed.seed());
        env.assert_audit_holds().await;
        // Requests with an unknown outcome are repeated until they are decided.
        let open: Vec<Ask> =
            records.iter().filter(|(_, r)| r.open).map(|(a, _)| a.clone()).collect();
        let decided = stream::iter(open.into_iter().map(|ask| async move {
            let reported = decided(service, &ask).await;
            (ask, reported)
        }));
        for (ask, reported) in decided.buffer_unordered(CONCURRENCY_MAX).collect::<Vec<_>>().await {
            records.get_mut(&ask).unwrap().note(reported);
        }
        env.assert_audit_holds().await;
        let states = stream::iter(
            records.iter().map(|(ask, record)| check_reservations(service, ask, record)),
        );
        let states: Vec<Held> = states.buffer_unordered(CONCURRENCY_MAX).collect().await;
        let mut owners: HashMap<&str, &Ask> = HashMap::new();
        for (ask, record) in &records {
            for id in &record.ids {
                let other = owners.insert(id, ask);
                assert!(other.is_none(), "{id} is {other:?}'s and {ask:?}'s, seed {seed}");
            }
            account.unknown += record.unknown;
            if let Some(why) = &record.refused {
                *account.refused.entry(why.clone()).or_default() += 1;
            }
        }
        for held in states {
            assert!(held.confirmed.len() <= 1, "sold twice to one request: {held:?}, seed {seed}");
            account.confirmed += held.confirmed.len();
            account.voided += held.voided;
            account.lost.extend(held.lost);
        }
        // Nothing is stored for them beyond what they were answered.
        let users: Vec<&str> = records.keys().map(|ask| ask.user.as_str()).collect();
        let sql =
            "SELECT count(*) FROM reservations WHERE state = 'confirmed' AND user_id = ANY($1)";
        let stored: i64 = env.sql().await.query_one(sql, &[&users]).await.unwrap().get(0);
        assert_eq!(usize::try_from(stored).unwrap(), account.confirmed, "seed {seed}");
        let over = env.count("SELECT count(*) FROM products WHERE sold > supply").await;
        assert_eq!(over, 0, "oversold, seed {seed}");
        account
    }
}

/// Repeats a request until it is decided.
async fn decided(service: &Service, ask: &Ask) -> Attempt {
    eventually("an open request is decided", async || {
        let reported = send(service.channel(), ask).await;
        matches!(reported, Attempt::Accepted(_) | Attempt::Refused(_)).then_some(reported)
    })
    .await
}

/// A reservation, or NOT_FOUND.
async fn looked_up(service: &Service, id: &str) -> Result<Reservation, Status> {
    eventually("a reservation can be looked up", async || {
        let found = service.reservation(id).await;
        (!matches!(&found, Err(status) if status.code() != Code::NotFound)).then_some(found)
    })
    .await
}

/// The final state of the reservations of one request.
#[derive(Debug, Default)]
struct Held {
    confirmed: Vec<String>,
    voided: usize,
    lost: Vec<String>,
}

/// Looks up every reservation of a request, and asks once more for the one that is confirmed.
async fn check_reservations(service: &Service, ask: &Ask, record: &Record) -> Held {
    let mut held = Held::default();
    for id in &record.ids {
        match looked_up(service, id).await {
            Ok(found) if found.state().as_str_name() == "RESERVATION_STATE_VOIDED" => {
                held.voided += 1;
            }
            Ok(found) => {
                assert_eq!(found.state().as_str_name(), "RESERVATION_STATE_CONFIRMED", "{ask:?}");
                assert_eq!((&found.product_id, &found.user_id), (&ask.product, &ask.user));
                held.confirmed.push(id.clone());
            }
            Err(status) => {
                assert_eq!(reason(&status), "LOST_OR_UNKNOWN", "{id} of {ask:?}");
                held.lost.push(id.clone());
            }
        }
    }
    if let Some(id) = held.confirmed.last() {
        assert_eq!(record.refused, None, "{ask:?} has {id}, and was refused after that");
        let Attempt::Accepted(again) = decided(service, ask).await else {
            panic!("{ask:?} has {id}, and is refused now");
        };
        assert_eq!((&again.reservation_id, again.duplicate), (id, true), "{ask:?}");
    }
    held
}
