//! Redis sends malformed replies: another program's data is under the keys of the service.

use std::collections::BTreeMap;

use redis::AsyncCommands as _;
use tokio::task::block_in_place;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use yoink::{
    app::{Role, Stores},
    domain::{Partition, Product, ReservationId, ReserveRequest},
    grpc::pb::GetProductRequest,
    redis::RedisCallError,
    stock::{ReleaseFrom, StockError},
    stream::DeadEntry,
};

use crate::harness::{TestEnv, eventually, get, move_to_dead, product, reason, run_yoink};

async fn key(env: &TestEnv, name: &str) -> String {
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    format!("{}:{{{partition}}}:{name}", env.prefix)
}

/// Asserts an internal error that is not reported as an unavailable Redis; returns its `applied`.
fn internal(status: &Status) -> String {
    assert_eq!(
        (status.code(), reason(status).as_str()),
        (Code::Internal, "INTERNAL"),
        "{status:?}"
    );
    assert!(!status.message().contains("unavailable"), "{status:?}");
    status.get_details_error_info().unwrap().metadata["applied"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_script_reply_is_an_internal_error() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let bought = service.buy("shoe", "ann", "r").await.unwrap();
    let mut cli = env.cli().await;

    // A remembered request id without a valid reservation id: the script returns it as it is.
    let pattern = format!("{}:*", key(&env, "idempotency").await);
    let windows: Vec<String> = cli.keys(pattern).await.unwrap();
    let remembered: String = cli.hget(&windows[0], "ann/shoe/r").await.unwrap();
    let () = cli.hset(&windows[0], "ann/shoe/r", "nonsense").await.unwrap();
    assert_eq!(internal(&service.buy("shoe", "ann", "r").await.unwrap_err()), "maybe");
    let () = cli.hset(&windows[0], "ann/shoe/r", remembered).await.unwrap();

    // A stock that is not a whole number: the script fails, and so does every reader of it.
    let stock = key(&env, "stock").await;
    for bad in ["many", "12.5", "5.0", "1e3"] {
        let () = cli.hset(&stock, "shoe", bad).await.unwrap();
        assert_eq!(internal(&service.buy("shoe", "bob", "r").await.unwrap_err()), "maybe");
        let request = GetProductRequest { product_id: "shoe".to_owned() };
        internal(&service.buyers().get_product(request).await.unwrap_err());
        let now: String = cli.hget(&stock, "shoe").await.unwrap();
        assert_eq!(now, bad, "nothing was written");
    }
    let () = cli.hset(&stock, "shoe", 9).await.unwrap();

    // A key that is not a stream: a look-up has changed nothing.
    let (orders, aside) = (key(&env, "orders").await, key(&env, "aside").await);
    let mut swap = redis::pipe();
    swap.atomic().rename(&orders, &aside).set(&orders, "x");
    let () = swap.query_async(&mut cli).await.unwrap();
    let status = service.reservation(&bought.reservation_id).await.unwrap_err();
    assert_eq!(internal(&status), "no");
    let () = cli.rename(&aside, &orders).await.unwrap();

    let again = service.buy("shoe", "ann", "r").await.unwrap();
    assert_eq!((again.duplicate, &again.reservation_id), (true, &bought.reservation_id));
    let worker = env.serve(Role::Worker, &[]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_reports_malformed_redis_replies_and_recovers() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    let (orders, aside) = (key(&env, "orders").await, key(&env, "aside").await);
    let mut swap = redis::pipe();
    swap.atomic().rename(&orders, &aside).set(&orders, "x");
    let () = swap.query_async(&mut env.cli().await).await.unwrap();
    let ready = eventually("readiness names it", async || {
        let ready = get(service.http, "/readyz").await;
        ready.contains("does not understand").then_some(ready)
    })
    .await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(!ready.contains("unavailable"), "{ready}");
    let () = env.cli().await.rename(&aside, &orders).await.unwrap();
    eventually("it is ready again", async || {
        get(service.http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    service.buy("shoe", "bob", "r").await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
}

/// Everything that Redis holds of this test.
async fn contents(env: &TestEnv) -> BTreeMap<String, Vec<u8>> {
    let mut cli = env.cli().await;
    let keys: Vec<String> = cli.keys(format!("{}:*", env.prefix)).await.unwrap();
    let mut contents = BTreeMap::new();
    for key in keys {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(&mut cli).await.unwrap();
        contents.insert(key, dump);
    }
    contents
}

/// An order in `orders` and one in `dead`, and what the scripts that change numbers are called with.
struct Calls {
    stores: Stores,
    partition: Partition,
    shoe: Product,
    in_orders: ReservationId,
    dead: DeadEntry,
}

impl Calls {
    const NAMES: [&str; 5] =
        ["reserve", "release from orders", "release from dead", "set_supply", "write_terms"];

    /// Runs one of the scripts.
    async fn run(&self, name: &str) -> Result<(), RedisCallError> {
        let Self { stores: Stores { stock, .. }, partition, shoe, in_orders, dead } = self;
        match name {
            "reserve" => {
                let (product, user) = (shoe.id.clone(), "ann".parse().unwrap());
                let request = ReserveRequest { product, user, request: None, traceparent: None };
                match stock.reserve(request).await {
                    Err(StockError::Redis(error)) => Err(error),
                    decided => panic!("{decided:?}"),
                }
            }
            "release from orders" => {
                let id = in_orders.entry_id();
                stock.release(*partition, ReleaseFrom::Orders, &id).await.map(drop)
            }
            "release from dead" => {
                let from = ReleaseFrom::Dead { dead_key: dead.dead_key() };
                stock.release(*partition, from, dead.dead_id()).await.map(drop)
            }
            "set_supply" => {
                let more = Product { supply: shoe.supply + 5, ..shoe.clone() };
                stock.set_supply(*partition, &[more]).await
            }
            "write_terms" => {
                let newer = Product { version: shoe.version + 1, ..shoe.clone() };
                stock.write_terms(*partition, &[newer]).await
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn number_that_is_not_whole_stops_each_script_before_its_first_write() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    let mut limited = product("shoe", 10);
    limited.sale.per_user_limit = Some(5);
    service.create(limited).await;
    let ann = service.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    let bob = move_to_dead(&env, &service, ("shoe", None), ["bob".to_owned()]).await[0];
    let stores = env.stores().await;
    let calls = Calls {
        partition: stores.deployment.partitions.of(&"shoe".parse().unwrap()),
        shoe: stores.ledger.products(&["shoe"]).await.unwrap().remove(0),
        in_orders: ann.parse().unwrap(),
        dead: stores.dead_letters.find(bob).await.unwrap().unwrap(),
        stores,
    };
    let mut cli = env.cli().await;
    let [reserve, from_orders, from_dead, set_supply, write_terms] = Calls::NAMES;
    for (hash, field, stopped) in [
        ("stock", "shoe", &[reserve, from_orders, from_dead, set_supply][..]),
        ("bought", "ann/shoe", &[reserve, from_orders]),
        ("bought", "bob/shoe", &[from_dead]),
        ("supply", "shoe", &[set_supply]),
        ("catalogue", "shoe", &[write_terms]),
        ("meta", "seq", &[reserve]),
    ] {
        let hash = key(&env, hash).await;
        let right: String = cli.hget(&hash, field).await.unwrap();
        for wrong in ["many", "1.5", "5.0", "1e3", "-0", " 5", "", "9007199254740993"] {
            let () = cli.hset(&hash, field, wrong).await.unwrap();
            let before = contents(&env).await;
            for name in stopped {
                let error = calls.run(name).await.unwrap_err();
                let RedisCallError::Malformed(message) = &error else {
                    panic!("{name}, {field} = {wrong:?}: {error:?}")
                };
                assert!(message[0].contains(" is not a whole number"), "{name}: {message:?}");
            }
            assert!(before == contents(&env).await, "{field} = {wrong:?}: something was written");
        }
        let () = cli.hset(&hash, field, right).await.unwrap();
    }
    let all = service.buy("shoe", "cid", "r").await.unwrap();
    assert_eq!(all.remaining, 7);
    let worker = env.serve(Role::Worker, &[]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voided_order_keeps_its_entry_while_the_stock_is_malformed_and_a_rebuild_repairs_it() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let id = move_to_dead(&env, &service, ("shoe", None), ["ann".to_owned()]).await[0];
    let stock = key(&env, "stock").await;
    let () = env.cli().await.hset(&stock, "shoe", "9.5").await.unwrap();
    let run = |args: &[&str]| {
        let output = block_in_place(|| run_yoink(&env, args));
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
    };
    let (code, printed) = run(&["dead", "release", &id.to_string()]);
    assert_eq!(code, Some(2), "{printed}");
    assert!(printed.contains("stock of shoe is not a whole number"), "{printed}");
    let dead: i64 = env.cli().await.xlen(key(&env, "dead").await).await.unwrap();
    assert_eq!(dead, 1, "its unit can still be given back");

    let partition = id.partition().to_string();
    let (code, printed) = run(&["rebuild", "--partition", &partition]);
    assert_eq!(code, Some(0), "{printed}");
    eventually("it sells again", async || service.buy("shoe", "bob", "r").await.ok()).await;
    let worker = env.serve(Role::Worker, &[]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_replaces_what_another_program_wrote_in_place_of_request_ids() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let bought = service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    let mut cli = env.cli().await;
    let buckets: Vec<String> =
        cli.keys(format!("{}:*", key(&env, "idempotency").await)).await.unwrap();
    let lost = key(&env, "lost").await;
    for other in [&buckets[0], &format!("{}:old", buckets[0]), &lost] {
        let () = cli.set(other, "of another program").await.unwrap();
    }
    internal(&service.buy("shoe", "bob", "r").await.unwrap_err());
    let args = ["rebuild", "--all"];
    let rebuilt = block_in_place(|| run_yoink(&env, &args));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stdout));
    eventually("it sells again", async || service.buy("shoe", "bob", "r").await.ok()).await;
    let again = service.buy("shoe", "ann", "r").await.unwrap();
    assert_eq!((again.duplicate, again.reservation_id), (true, bought.reservation_id));
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
}
