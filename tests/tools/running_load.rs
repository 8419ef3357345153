//! Buyers who buy until they are stopped.

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yoink::grpc::pb::ReserveUnitRequest;

use crate::harness::Service;

/// Four buyers, each of whom makes one call after the other and ignores the answers.
pub struct RunningLoad {
    stop: CancellationToken,
    buying: Vec<JoinHandle<()>>,
}

impl RunningLoad {
    pub fn on(service: &Service, product: &str) -> Self {
        let stop = CancellationToken::new();
        let buying = (0..4).map(|buyer| {
            let (mut buyers, stop) = (service.buyers(), stop.clone());
            let product_id = product.to_owned();
            TaskTracker::new().spawn(async move {
                // A hundred calls a second are enough to be seen.
                let mut beat = tokio::time::interval(std::time::Duration::from_millis(40));
                let mut n = 0;
                while !stop.is_cancelled() {
                    n += 1;
                    let request = ReserveUnitRequest {
                        product_id: product_id.clone(),
                        user_id: format!("user-{buyer}-{n}"),
                        request_id: String::new(),
                        ..Default::default()
                    };
                    beat.tick().await;
                    drop(buyers.reserve_unit(request).await);
                }
            })
        });
        Self { buying: buying.collect(), stop }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        for buyer in self.buying {
            buyer.await.unwrap();
        }
    }
}
