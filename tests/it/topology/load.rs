//! Buyers of a cluster with replicas during a failover, and the count of what it lost.

use std::time::Duration;

use yoink::audit::Report;

use super::cluster::create_products;
use crate::harness::{Account, BuyerLoad, RunningLoad, Service, TestEnv};

/// Buyers of partition 3, which is alone on its master, and buyers of the other partitions.
pub(super) struct Loads {
    own: RunningLoad,
    pub(super) others: RunningLoad,
}

/// The epoch in which partition 3 is open; 0 while it is closed.
pub(super) async fn epoch(env: &TestEnv) -> i64 {
    let sql =
        "SELECT CASE status WHEN 'open' THEN epoch ELSE 0 END FROM partitions WHERE partition = 3";
    env.count(sql).await
}

impl Loads {
    /// Starts them, with more units than they buy.
    pub(super) async fn start(env: &TestEnv, service: &Service) -> Self {
        let products = create_products(env, service, 100_000).await;
        let names: Vec<&str> = products.iter().map(String::as_str).collect();
        let start = |name: &str, products: &[&str]| {
            let buyers = BuyerLoad::new(name, 4, products).paced(Duration::from_millis(2));
            buyers.start(vec![service.channel()])
        };
        Self { own: start("own", &names[3..]), others: start("other", &names[..3]) }
    }

    /// Waits until each of them has bought this many units more.
    pub(super) async fn sell(&self, more: usize) {
        tokio::join!(self.own.sells(more), self.others.sells(more));
    }

    /// Ends them. What a buyer was answered is stored once, or was lost and counted. Nothing was lost on other masters.
    pub(super) async fn end_and_count(self, env: &TestEnv, service: &Service) {
        let (others, own) = (self.others.end().await, self.own.end().await);
        let others = others.assert_all_answers_kept(env, service).await;
        let own = own.account(env, service).await;
        let report = env.assert_audit_holds().await;
        assert!(report.lost.iter().all(|lost| lost.partition.number() == 3), "{report:?}");
        assert_every_loss_is_counted(&own, &report);
        assert!(own.confirmed > 0 && others.confirmed > 0, "{own:?} {others:?}");
    }
}

/// Asserts that the audit has counted as many orders as lost as buyers have answers of that are missing, and at most those in
/// addition whose outcome no buyer knew.
pub(super) fn assert_every_loss_is_counted(account: &Account, report: &Report) {
    assert!(report.lost.iter().all(|lost| lost.exact), "{report:?}");
    let counted: u64 = report.lost.iter().map(|lost| lost.count).sum();
    let (counted, known) = (usize::try_from(counted).unwrap(), account.lost.len());
    assert!(
        (known..=known + account.unknown).contains(&counted),
        "{counted}: {account:?} {report:?}"
    );
    assert_eq!(account.voided, 0, "{account:?}");
}
