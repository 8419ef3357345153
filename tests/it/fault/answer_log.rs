//! Buyers who continue to buy during a fault and record their answers.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_types::StatusExt as _;
use yoink::audit::Report;

use crate::harness::{Service, TestEnv, reason};

/// The answers to the buyers of one product.
#[derive(Default)]
pub struct AnswerLog {
    /// The reservation of each user who was accepted.
    pub accepted: HashMap<String, String>,
    /// Users with an unknown outcome: the answer was `applied = maybe`.
    pub open: HashSet<String>,
    /// How often each reason was given.
    pub refused: HashMap<String, usize>,
}

impl AnswerLog {
    /// Buyers who each buy one unit after the other under new user ids, until `enough`.
    pub async fn on(
        service: &Service,
        product: &str,
        buyers: u32,
        enough: &CancellationToken,
    ) -> Self {
        let buyers = join_all((0..buyers).map(|buyer| async move {
            let mut answers = Self::default();
            let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
            for n in 0.. {
                if enough.is_cancelled() {
                    break;
                }
                let user = format!("buyer-{buyer}-{n}");
                let answer = service.buy(product, &user, "r").await;
                let refused = answer.is_err();
                answers.note(user, answer.map(|bought| bought.reservation_id));
                if refused {
                    ticks.tick().await;
                }
            }
            answers
        }));
        let mut all = Self::default();
        for answers in buyers.await {
            all.add(answers);
        }
        all
    }

    /// Adds the answers of another log.
    pub fn add(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.open.extend(other.open);
        for (reason, times) in other.refused {
            *self.refused.entry(reason).or_default() += times;
        }
    }

    /// Notes an answer to a user who asked once.
    pub fn note(&mut self, user: String, answer: Result<String, Status>) {
        match answer {
            Ok(id) => drop(self.accepted.insert(user, id)),
            Err(status) => {
                *self.refused.entry(reason(&status)).or_default() += 1;
                let info = status.get_details_error_info();
                if info
                    .is_some_and(|info| info.metadata.get("applied").is_some_and(|a| a == "maybe"))
                {
                    self.open.insert(user);
                }
            }
        }
    }

    /// Asserts that every accepted reservation is stored or counted as lost, and that no refused one is stored.
    /// Returns how many are lost. Call it when everything is settled and every gateway has reported its marks.
    pub async fn account_for(&self, env: &TestEnv, report: &Report) -> u64 {
        let sql = "SELECT user_id, reservation_id::text FROM reservations
                   WHERE state = 'confirmed' AND user_id LIKE 'buyer-%'";
        let rows = env.sql().await.query(sql, &[]).await.unwrap();
        let mut stored = HashMap::new();
        for row in rows {
            let (user, id): (String, String) = (row.get(0), row.get(1));
            assert!(stored.insert(user.clone(), id).is_none(), "{user} has two reservations");
        }
        for (user, id) in &stored {
            match self.accepted.get(user) {
                Some(accepted) => assert_eq!(accepted, id, "{user} keeps the answer"),
                None => assert!(
                    self.open.contains(user),
                    "{user} was refused and has the reservation {id}"
                ),
            }
        }
        let gone = self.accepted.keys().filter(|user| !stored.contains_key(*user)).count();
        let lost: u64 = report.lost.iter().map(|lost| lost.count).sum();
        assert!(report.lost.iter().all(|lost| lost.exact), "{:?}", report.lost);
        // Redis may also have lost calls that it accepted and could not answer.
        let most = u64::try_from(gone + self.open.len()).unwrap();
        let gone = u64::try_from(gone).unwrap();
        assert!((gone..=most).contains(&lost), "{gone} reservations are gone, {lost} are reported");
        lost
    }
}
