//! `lua/reserve.lua`, `release.lua`, `set_supply.lua` and `write_terms.lua` against a model in plain Rust: any
//! sequence of calls gives the model's answers and leaves the model's numbers.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::join_all;
use proptest::{prelude::*, test_runner::TestRunner};
use yoink::{
    app::Stores,
    domain::{Outcome, Product, ProductId, ProductStatus, ReservationId, ReserveRequest, Sale},
    stock::{ReleaseFrom, ReleaseOutcome},
};

use crate::harness::{TestEnv, product};

const PRODUCTS: [&str; 3] = ["shoe", "hat", "ghost"];

#[derive(Debug, Clone)]
enum Step {
    /// Requests that go out together: product, user, request id.
    Reserve(Vec<(usize, usize, Option<usize>)>),
    /// An accepted order is voided and released, by its place among the accepted.
    Release(usize),
    Grant(usize, i64),
    Offer(usize, Option<u32>, ProductStatus),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let request = (0..PRODUCTS.len(), 0..3usize, prop::option::of(0..3usize));
    let status = prop_oneof![
        6 => Just(ProductStatus::OnSale),
        1 => Just(ProductStatus::Stopped),
        1 => Just(ProductStatus::Retired),
    ];
    let step = prop_oneof![
        6 => prop::collection::vec(request, 1..12).prop_map(Step::Reserve),
        2 => any::<usize>().prop_map(Step::Release),
        1 => (0..2usize, 1..4i64).prop_map(|(product, units)| Step::Grant(product, units)),
        1 => (0..2usize, prop::option::of(1..3u32), status).prop_map(|(p, l, s)| Step::Offer(p, l, s)),
    ];
    prop::collection::vec(step, 1..25)
}

/// What the scripts should do.
#[derive(Default)]
struct Model {
    products: BTreeMap<usize, ModelProduct>,
    requests: HashMap<(usize, usize, usize), ReservationId>,
    bought: HashMap<(usize, usize), u32>,
}

struct ModelProduct {
    stock: i64,
    supply: i64,
    limit: Option<u32>,
    status: ProductStatus,
}

impl Model {
    /// Checks one answer and takes over what it changed.
    fn check(&mut self, (p, user, request): (usize, usize, Option<usize>), answer: Outcome) {
        let key = request.map(|request| (p, user, request));
        if let Some(id) = key.and_then(|key| self.requests.get(&key)) {
            let Outcome::Duplicate(receipt) = answer else { panic!("no duplicate: {answer:?}") };
            assert_eq!(receipt.reservation_id, *id);
            assert_eq!(receipt.remaining, self.products[&p].stock);
            return;
        }
        let Some(product) = self.products.get_mut(&p) else {
            assert_eq!(answer, Outcome::ProductNotFound);
            return;
        };
        let bought = self.bought.get(&(user, p)).copied().unwrap_or(0);
        let refusal = match (product.status, product.limit) {
            (ProductStatus::Stopped, _) => Some(Outcome::SaleStopped),
            (ProductStatus::Retired, _) => Some(Outcome::SaleClosed { closes_at_ms: None }),
            (ProductStatus::OnSale, Some(limit)) if bought >= limit => {
                Some(Outcome::LimitReached { limit })
            }
            (ProductStatus::OnSale, _) if product.stock == 0 => Some(Outcome::SoldOut),
            (ProductStatus::OnSale, _) => None,
        };
        if let Some(refusal) = refusal {
            assert_eq!(answer, refusal);
            return;
        }
        let Outcome::Accepted(receipt) = answer else { panic!("not accepted: {answer:?}") };
        product.stock -= 1;
        assert_eq!(receipt.remaining, product.stock, "the model has another stock");
        if product.limit.is_some() {
            *self.bought.entry((user, p)).or_default() += 1;
        }
        if let Some(key) = key {
            self.requests.insert(key, receipt.reservation_id);
        }
    }
}

/// An accepted order as the test remembers it.
struct Accepted {
    id: ReservationId,
    request: (usize, usize, Option<usize>),
    limited: bool,
}

struct Run {
    stores: Stores,
    users: Vec<String>,
    requests: Vec<String>,
    model: Model,
    accepted: Vec<Accepted>,
    accepts: u64,
    version: i64,
}

impl Run {
    fn id(p: usize) -> ProductId {
        PRODUCTS[p].parse().unwrap()
    }

    fn product(p: usize) -> Product {
        Product { id: Self::id(p), sale: product("x", 1).sale, version: 0, supply: 0 }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Reserve(requests) => self.reserve(requests).await,
            Step::Release(at) => self.release(at).await,
            Step::Grant(p, units) => {
                let product = self.model.products.get_mut(&p).unwrap();
                product.supply += units;
                product.stock += units;
                let supply = product.supply;
                self.grant(p, supply).await;
                // Repeated, and with an older total: no further effect.
                self.grant(p, supply).await;
                self.grant(p, supply - units).await;
            }
            Step::Offer(p, limit, status) => {
                self.version += 1;
                self.offer(p, limit, status, self.version).await;
                let product = self.model.products.get_mut(&p).unwrap();
                (product.limit, product.status) = (limit, status);
                // An older version arrives late: it changes nothing.
                self.offer(p, Some(1), ProductStatus::Stopped, self.version - 1).await;
            }
        }
    }

    async fn reserve(&mut self, requests: Vec<(usize, usize, Option<usize>)>) {
        let asked = requests.iter().map(|(p, user, request)| {
            self.stores.stock.reserve(ReserveRequest {
                product: Self::id(*p),
                user: self.users[*user].parse().unwrap(),
                request: request.map(|request| self.requests[request].parse().unwrap()),
                traceparent: None,
            })
        });
        for (request, answer) in requests.iter().zip(join_all(asked).await) {
            let answer = answer.unwrap();
            self.model.check(*request, answer);
            if let Outcome::Accepted(receipt) = answer {
                self.accepts += 1;
                let limited = self.model.products[&request.0].limit.is_some();
                let id = receipt.reservation_id;
                self.accepted.push(Accepted { id, request: *request, limited });
            }
        }
    }

    async fn release(&mut self, at: usize) {
        if self.accepted.is_empty() {
            return;
        }
        let Accepted { id, request: (p, user, request), limited } =
            self.accepted.swap_remove(at % self.accepted.len());
        let partition = self.stores.deployment.partitions.of(&Self::id(p));
        for expected in [ReleaseOutcome::Released, ReleaseOutcome::AlreadyReleased] {
            let released =
                self.stores.stock.release(partition, ReleaseFrom::Orders, &id.entry_id()).await;
            assert_eq!(released.unwrap(), expected);
        }
        self.model.products.get_mut(&p).unwrap().stock += 1;
        if let Some(request) = request {
            let key = (p, user, request);
            assert_eq!(self.model.requests.remove(&key), Some(id));
        }
        if limited {
            *self.model.bought.get_mut(&(user, p)).unwrap() -= 1;
        }
    }

    async fn grant(&self, p: usize, supply: i64) {
        let partition = self.stores.deployment.partitions.of(&Self::id(p));
        let product = Product { supply, ..Self::product(p) };
        self.stores.stock.set_supply(partition, &[product]).await.unwrap();
    }

    async fn offer(&self, p: usize, limit: Option<u32>, status: ProductStatus, version: i64) {
        let partition = self.stores.deployment.partitions.of(&Self::id(p));
        let sale = Sale { per_user_limit: limit, status, ..Self::product(p).sale };
        let product = Product { version, sale, ..Self::product(p) };
        self.stores.stock.write_terms(partition, &[product]).await.unwrap();
    }

    /// Redis holds what the model holds.
    async fn compare(&self) {
        let (mut entries, mut seqs) = (0, 0);
        for partition in self.stores.deployment.partitions.all() {
            let cut = self.stores.streams.cut(partition, 259_200_000).await.unwrap();
            seqs += u64::try_from(cut.seq).unwrap();
            entries += cut.in_streams.len();
            for (p, product) in &self.model.products {
                if self.stores.deployment.partitions.of(&Self::id(*p)) == partition {
                    let found = cut.products[&Self::id(*p)];
                    let expected = (product.stock, product.supply);
                    assert_eq!(
                        (found.stock, found.supply),
                        expected,
                        "the model has another stock"
                    );
                }
            }
        }
        assert_eq!(entries, self.accepted.len());
        assert_eq!(seqs, self.accepts, "seq counts accepts and nothing else");
    }
}

/// Three users and three request ids that give the same text in several ways when they are joined to a product by
/// slashes, or when what was escaped is escaped no further.
fn confusable_ids() -> impl Strategy<Value = (Vec<String>, Vec<String>)> {
    let product = prop::sample::select(&["shoe", "hat"][..]);
    ("[a/%|:]{1,2}", product, "[a/%|:]{1,2}").prop_map(|(user, product, request)| {
        let users = [user.clone(), format!("{user}/{product}"), format!("{user}%2F{product}")];
        let requests =
            [request.clone(), format!("{product}/{request}"), format!("{product}%2F{request}")];
        (users.to_vec(), requests.to_vec())
    })
}

/// Runs steps with these users and request ids, and compares Redis with the model.
async fn run_steps(users: Vec<String>, requests: Vec<String>, steps: Vec<Step>) {
    let env = TestEnv::new().await;
    let stores = env.app(&[]).await.stores().clone();
    let mut run = Run {
        stores,
        users,
        requests,
        model: Model::default(),
        accepted: Vec::new(),
        accepts: 0,
        version: 1,
    };
    for p in 0..2 {
        let (supply, status) = (3, ProductStatus::OnSale);
        run.grant(p, supply).await;
        run.offer(p, None, status, 1).await;
        let product = ModelProduct { stock: supply, supply, limit: None, status };
        run.model.products.insert(p, product);
    }
    for step in steps {
        run.step(step).await;
    }
    run.compare().await;
}

#[test]
fn random_call_sequences_match_the_model() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(ProptestConfig { cases: 60, ..ProptestConfig::default() });
    let ids = |kind: &str| (0..3).map(|n| format!("{kind}{n}")).collect::<Vec<_>>();
    let played = runner.run(&steps(), |steps| {
        runtime.block_on(run_steps(ids("user-"), ids("r:"), steps));
        Ok(())
    });
    played.unwrap();
}

#[test]
fn ids_with_separators_never_collide() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(ProptestConfig { cases: 60, ..ProptestConfig::default() });
    let strategy = (confusable_ids(), steps());
    let played = runner.run(&strategy, |((users, requests), steps)| {
        runtime.block_on(run_steps(users, requests, steps));
        Ok(())
    });
    played.unwrap();
}
