//! The clock of Redis jumps by two hours, forward and back: windows, request ids and idle times jump with it,
//! and no order is stored twice or answered differently. Request ids are also remembered for days.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use yoink::{
    app::Role,
    servers::{AppendFsync, RedisServer},
    stream::PendingEntry,
};

use super::answer_log::AnswerLog;
use crate::harness::{Service, TestEnv, eventually, product, reason, run_yoink, scratch_dir};

const HOUR_MS: i64 = 3_600_000;
/// How much time a bucket of request ids covers.
const BUCKET_MS: i64 = 12 * HOUR_MS;

/// The clock of one Redis. At first a bucket of request ids is about to end in an hour, so that each jump of
/// two hours forward leaves it and each jump back returns to it.
struct Clock {
    offset: File,
    base_s: i64,
}

impl Clock {
    /// A Redis with a clock of its own, which does not jump yet.
    async fn of_a_redis() -> (Self, TestEnv) {
        let dir = scratch_dir("clock");
        let (library, offset) = (dir.join("clock.so"), dir.join("offset"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fault/clock.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
        let compiled = cc.output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let base_s = (BUCKET_MS - real_ms() % BUCKET_MS - HOUR_MS) / 1000;
        let clock = Self { offset: File::create(&offset).unwrap(), base_s };
        clock.set(0);
        let preload = format!("LD_PRELOAD={}", library.display());
        let offset = format!("CLOCK_OFFSET={}", offset.display());
        let mut env = TestEnv::new().await;
        let start = || {
            let wrapper = ["env", &preload, &offset];
            RedisServer::start_under(&dir.join("redis"), AppendFsync::Always, &wrapper).unwrap()
        };
        env.redis = Some(block_in_place(start));
        (clock, env)
    }

    fn set(&self, hours: i64) {
        self.offset.write_all_at(&(self.base_s + hours * 3600).to_ne_bytes(), 0).unwrap();
    }

    /// The time of the clock without any jump.
    fn now_ms(&self) -> i64 {
        real_ms() + self.base_s * 1000
    }

    /// Sets it, and checks that Redis uses it.
    async fn jump(&self, env: &TestEnv, hours: i64) {
        self.set(hours);
        let before = self.now_ms() + hours * HOUR_MS;
        let time: (i64, i64) = redis::cmd("TIME").query_async(&mut env.cli().await).await.unwrap();
        let reported = time.0 * 1000 + time.1 / 1000;
        let after = self.now_ms() + hours * HOUR_MS;
        assert!(
            (before - 1000..=after + 1000).contains(&reported),
            "it is {reported}, not {before}"
        );
    }
}

fn real_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// The answers of a sale window, a limit and a remembered request id at this time.
async fn rules_hold(service: &Service, hours: i64, remembered: &[(&str, &str)]) {
    let refusal = async |product: &str| {
        let answer = service.buy(product, &format!("visitor-{hours}"), "r").await;
        answer.err().map_or("sold".to_owned(), |status| reason(&status))
    };
    let (opens_in_an_hour, closes_in_an_hour) = match hours {
        2 => ("sold", "SALE_CLOSED"),
        _ => ("SALE_NOT_OPEN", "sold"),
    };
    assert_eq!(refusal("opening").await, opens_in_an_hour, "at {hours} h");
    assert_eq!(refusal("closing").await, closes_in_an_hour, "at {hours} h");
    assert_eq!(service.refusal("limited", "ann", "other").await, "LIMIT_REACHED", "at {hours} h");
    for (user, id) in remembered {
        let again = service.buy("shoe", user, "r").await.unwrap();
        assert_eq!((again.duplicate, again.reservation_id.as_str()), (true, *id), "at {hours} h");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_jump_under_load_changes_no_answer_and_stores_no_order_twice() {
    let (clock, env) = Clock::of_a_redis().await;
    let settings = [("takeover_idle_ms", "1000")];
    let service = env.serve(Role::All, &settings).await;
    let second = env.serve(Role::Worker, &settings).await;
    service.create(product("shoe", 1_000_000)).await;
    let mut limited = product("limited", 10);
    limited.sale.per_user_limit = Some(1);
    service.create(limited).await;
    let (mut opening, mut closing) = (product("opening", 10), product("closing", 10));
    opening.sale.opens_at_ms = Some(clock.now_ms() + HOUR_MS);
    closing.sale.closes_at_ms = Some(clock.now_ms() + HOUR_MS);
    service.create(opening).await;
    service.create(closing).await;
    service.buy("limited", "ann", "r").await.unwrap();

    let enough = CancellationToken::new();
    let jumps = async {
        let mut remembered: Vec<(String, String)> = Vec::new();
        let stored = "SELECT count(*) FROM reservations";
        for (round, hours) in [0, 2, 0, -2, 0].into_iter().enumerate() {
            clock.jump(&env, hours).await;
            let user = format!("repeat-{round}");
            let bought = service.buy("shoe", &user, "r").await.unwrap();
            remembered.push((user, bought.reservation_id));
            let known: Vec<(&str, &str)> =
                remembered.iter().map(|(user, id)| (user.as_str(), id.as_str())).collect();
            rules_hold(&service, hours, &known).await;
            let report = env.audit().await;
            assert!(report.violations.is_empty(), "at {hours} h: {:?}", report.violations);
            let before = env.count(stored).await;
            eventually("orders are stored at this hour", async || {
                (env.count(stored).await > before + 100).then_some(())
            })
            .await;
        }
        enough.cancel();
        remembered
    };
    let (answers, remembered) = tokio::join!(AnswerLog::on(&service, "shoe", 8, &enough), jumps);
    let report = env.assert_audit_holds().await;
    assert_eq!(answers.account_for(&env, &report).await, 0);
    let shoe = report.products.iter().find(|units| units.product.as_str() == "shoe").unwrap();
    let sold = i64::try_from(answers.accepted.len() + remembered.len()).unwrap();
    assert_eq!((shoe.confirmed, shoe.stock), (sold, 1_000_000 - sold));
    for (user, id) in answers.accepted.iter().take(50) {
        let again = service.buy("shoe", user, "r").await.unwrap();
        assert_eq!((again.duplicate, &again.reservation_id), (true, id));
    }
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_made_idle_by_a_clock_jump_are_taken_over_and_stored_once() {
    let (clock, env) = Clock::of_a_redis().await;
    let app = env.app(&[]).await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 100)).await;
    for n in 0..20 {
        service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
    }
    let stores = app.stores();
    let partition = stores.deployment.partitions.of(&"shoe".parse().unwrap());
    let mut reader = stores.reader(partition).await.unwrap();
    let held = stores.streams.read_new(&mut reader, partition, "alive", (500, 0)).await.unwrap();
    assert_eq!(held.len(), 20);
    // Half an hour is enough for everything but a jump.
    let idle_ms = 1_800_000;
    let taken = stores.streams.claim(partition, "second", None, (idle_ms, 500)).await.unwrap();
    assert!(taken.is_empty(), "its consumer is alive");
    clock.jump(&env, 2).await;
    let taken = stores.streams.claim(partition, "second", None, (idle_ms, 500)).await.unwrap();
    assert_eq!(taken, held, "all at once, and no delivery is counted");
    clock.jump(&env, 0).await;

    // Both consumers treat the entries as their own.
    let epoch = stores.stock.partitions().epoch(partition).unwrap();
    let store = async |held: &[PendingEntry]| {
        let order =
            |pending: &PendingEntry| pending.entry.order(partition, &pending.entry.id).unwrap();
        let orders: Vec<_> = held.iter().map(order).collect();
        let orders: Vec<_> = orders.iter().collect();
        let stored = stores.ledger.store(partition, epoch, &orders).await.unwrap();
        let ids: Vec<&str> = held.iter().map(|pending| pending.entry.id.as_str()).collect();
        stores.streams.settle(partition, &ids).await.unwrap();
        (stored.inserted, stored.mismatched.len())
    };
    let (first, second) = tokio::join!(store(&held), store(&taken));
    assert_eq!((first.0 + second.0, first.1 + second.1), (20, 0));
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (20, 80));
}

/// What `idempotency_window_ms` was by default before.
const TWELVE_HOURS: (&str, &str) = ("idempotency_window_ms", "43200000");

async fn until_stored(env: &TestEnv, rows: i64) {
    eventually("they are stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == rows).then_some(())
    })
    .await;
}

async fn is_remembered(service: &Service, id: &str) {
    let again = service.buy("shoe", "ann", "r").await.unwrap();
    assert_eq!((again.duplicate, again.reservation_id.as_str()), (true, id));
}

#[tokio::test(flavor = "multi_thread")]
async fn request_id_from_71_hours_ago_is_a_duplicate_even_after_a_rebuild() {
    let (clock, env) = Clock::of_a_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let bought = service.buy("shoe", "ann", "r").await.unwrap();
    until_stored(&env, 1).await;
    clock.jump(&env, 71).await;
    is_remembered(&service, &bought.reservation_id).await;
    env.assert_audit_holds().await;
    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild", "--all"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    eventually("it sells again", async || service.buy("shoe", "bob", "r").await.ok()).await;
    is_remembered(&service, &bought.reservation_id).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn lengthening_the_idempotency_window_keeps_remembered_request_ids() {
    let (clock, env) = Clock::of_a_redis().await;
    // Twelve hours were the default of earlier versions, which wrote the same keys.
    let before = env.serve(Role::All, &[TWELVE_HOURS]).await;
    before.create(product("shoe", 10)).await;
    let bought = before.buy("shoe", "ann", "r").await.unwrap();
    until_stored(&env, 1).await;
    before.stop().await;
    clock.jump(&env, 11).await;
    let service = env.serve(Role::All, &[]).await;
    is_remembered(&service, &bought.reservation_id).await;
    // Under the window before, the key would have ended 13 hours after it was written.
    clock.jump(&env, 71).await;
    is_remembered(&service, &bought.reservation_id).await;
    env.assert_audit_holds().await;
    service.stop().await;
    let service = env.serve(Role::All, &[("idempotency_window_ms", "604800000")]).await;
    is_remembered(&service, &bought.reservation_id).await;
    clock.jump(&env, 167).await;
    is_remembered(&service, &bought.reservation_id).await;
    let report = env.audit().await;
    assert!(report.violations.is_empty(), "{report:?}");
    assert_eq!(report.products[0].confirmed, 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_after_lengthening_the_window_notes_request_ids_that_had_expired() {
    let (clock, env) = Clock::of_a_redis().await;
    let service = env.serve(Role::All, &[TWELVE_HOURS]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    until_stored(&env, 1).await;
    clock.jump(&env, 26).await;
    let report = env.assert_audit_holds().await;
    let noted = report.notes.iter().any(|note| note.contains("the request ids of 1 orders"));
    assert!(noted, "{:?}", report.notes);
    service.stop().await;
    // A rebuild has them from the ledger again.
    let service = env.serve(Role::All, &[]).await;
    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild", "--all"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    eventually("it sells again", async || service.buy("shoe", "bob", "r").await.ok()).await;
    assert!(service.buy("shoe", "ann", "r").await.unwrap().duplicate);
    let report = env.assert_audit_holds().await;
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    service.stop().await;
}
