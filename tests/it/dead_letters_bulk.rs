//! Dead entries by the hundred: filters, dry runs, pages, and a failure on the way.

use prost_types::Duration;
use tonic::Code;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    dead_letters::{DeadFilter, PAGE, Selection},
    domain::ReservationId,
    grpc::pb::{
        DeadEntryFilter, ListDeadEntriesRequest, ReleaseDeadEntriesRequest,
        ReleaseDeadEntriesResponse, RetryDeadEntriesRequest, RetryDeadEntriesResponse,
    },
    ledger::{ActionBy, VoidRequest},
};

use crate::harness::{Service, TestEnv, dead_entries, eventually, move_to_dead, product, reason};

fn users(name: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{name}-{n}"))
}

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

async fn listed(service: &Service, asked: ListDeadEntriesRequest) -> Vec<String> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListDeadEntriesRequest { page_token, ..asked.clone() };
        let page = service.admin().list_dead_entries(request).await.unwrap().into_inner();
        assert!(asked.page_size == 0 || page.entries.len() <= asked.page_size.try_into().unwrap());
        found.extend(page.entries.into_iter().map(|entry| entry.user_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            found.sort();
            return found;
        }
    }
}

/// Makes a dead entry older than it is: it is moved to the dead stream anew, as if two hours ago.
async fn grow_old(env: &TestEnv, id: ReservationId) {
    let stores = env.stores().await;
    let dead = stores.dead_letters.find(id).await.unwrap().unwrap();
    let key = |name: &str| format!("{}:{{{}}}:{name}", env.prefix, dead.partition);
    let at = (dead.moved_at_ms() - 2 * 3_600_000).to_string();
    let mut add = redis::cmd("XADD");
    add.arg(key("dead")).arg("*");
    for (name, value) in &dead.entry.fields {
        add.arg(name).arg(if name == "at" { &at } else { value });
    }
    let mut cli = env.cli().await;
    let anew: String = add.query_async(&mut cli).await.unwrap();
    let mut pipe = redis::pipe();
    pipe.hset(key("dead_index"), dead.dead_key(), anew).xdel(key("dead"), &[dead.dead_id()]);
    let _: (i64, i64) = pipe.query_async(&mut cli).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_entries_that_match_all_of_them() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    for id in ["shoe", "hat"] {
        service.create(product(id, 10)).await;
    }
    move_to_dead(&env, &service, ("shoe", Some("23514")), users("shoe-check", 3)).await;
    let long = move_to_dead(&env, &service, ("shoe", Some("22001")), users("shoe-long", 2)).await;
    move_to_dead(&env, &service, ("shoe", None), users("shoe-other", 1)).await;
    move_to_dead(&env, &service, ("hat", Some("23514")), users("hat-check", 2)).await;
    grow_old(&env, long[0]).await;

    let matching = |product: &str, sqlstate: &str, older_than| DeadEntryFilter {
        product_id: product.to_owned(),
        sqlstate: sqlstate.to_owned(),
        older_than,
    };
    let filter = |product: &str, sqlstate: &str, older_than| ListDeadEntriesRequest {
        page_size: 1,
        filter: Some(matching(product, sqlstate, older_than)),
        ..Default::default()
    };
    let hour = seconds(3600);
    let found: [(_, &[&str]); 9] = [
        (filter("hat", "", None), &["hat-check-0", "hat-check-1"]),
        (filter("", "22001", None), &["shoe-long-0", "shoe-long-1"]),
        (filter("", "none", None), &["shoe-other-0"]),
        (filter("", "", hour), &["shoe-long-0"]),
        (filter("shoe", "22001", None), &["shoe-long-0", "shoe-long-1"]),
        (filter("shoe", "22001", hour), &["shoe-long-0"]),
        (filter("hat", "23514", seconds(0)), &["hat-check-0", "hat-check-1"]),
        (filter("hat", "22001", None), &[]),
        (filter("ghost", "", None), &[]),
    ];
    for (asked, users) in found {
        assert_eq!(listed(&service, asked.clone()).await, users, "{asked:?}");
    }
    assert_eq!(listed(&service, filter("", "", None)).await.len(), 8);

    // Actions take the same filters.
    let release = |product: &str, sqlstate: &str, older_than| ReleaseDeadEntriesRequest {
        selector: dead_entries::matching(matching(product, sqlstate, older_than)),
        ..Default::default()
    };
    for (request, released) in [
        (release("hat", "22001", None), 0),
        (release("shoe", "22001", hour), 1),
        (release("", "23514", None), 5),
        (release("", "", None), 2),
    ] {
        let answer = service.admin().release_dead_entries(request).await.unwrap().into_inner();
        assert_eq!((answer.released, answer.decided), (released, 0));
    }
    let report = env.assert_audit_holds().await;
    assert!(report.products.iter().all(|units| units.stock == 10), "{report:#?}");
}

/// Everything that an action on dead entries may change, as text.
async fn everything(env: &TestEnv) -> String {
    let mut cli = env.cli().await;
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("{}:*", env.prefix)).query_async(&mut cli).await.unwrap();
    let mut all: Vec<String> = Vec::new();
    for key in keys {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(&mut cli).await.unwrap();
        all.push(format!("{key} {dump:02x?}"));
    }
    all.sort();
    let sql = env.sql().await;
    for table in ["reservations", "products", "dead_actions"] {
        let rows = format!("SELECT t::text FROM {table} t ORDER BY 1");
        let rows = sql.query(&rows, &[]).await.unwrap();
        all.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    all.join("\n")
}

/// Dead entries: two that can be stored, one that is refused again, one that is stored already, one that is voided and
/// not released, two that are unrecognized (one of them has the id of the voided order and an invalid product id), and
/// one of another product.
async fn of_each_kind(env: &TestEnv, service: &Service) {
    for id in ["shoe", "hat"] {
        service.create(product(id, 10)).await;
    }
    move_to_dead(env, service, ("shoe", Some("23514")), users("good", 2)).await;
    let bad = move_to_dead(env, service, ("shoe", Some("23514")), users("bad", 3)).await;
    move_to_dead(env, service, ("hat", Some("22001")), users("hat", 1)).await;
    let stores = env.stores().await;
    let (partition, epoch) =
        (stores.deployment.partitions.of(&"shoe".parse().unwrap()), bad[0].epoch());
    let stored = stores.dead_letters.find(bad[0]).await.unwrap().unwrap().order().unwrap();
    stores.ledger.store(partition, epoch, &[&stored]).await.unwrap();
    let by = ActionBy { actor: "a process".to_owned(), reason: String::new() };
    let void = VoidRequest { id: bad[1], reserved_at_ms: 0, reason: "x".to_owned(), entry: vec![] };
    stores.ledger.void(partition, epoch, &void, &by).await.unwrap();
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'bad-2')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let dead = format!("{}:{{{partition}}}:dead", env.prefix);
    let mut add = redis::cmd("XADD");
    add.arg(&dead).arg("*").arg(&["p", "shoe", "rid", "unrecognized", "at", "1"]);
    let _id: String = add.query_async(&mut env.cli().await).await.unwrap();
    let voided = stores.dead_letters.find(bad[1]).await.unwrap().unwrap();
    let mut add = redis::cmd("XADD");
    add.arg(&dead).arg("*");
    for (name, value) in voided.entry.unpacked() {
        add.arg(name).arg(if name == "p" { "not a product" } else { value });
    }
    let _id: String = add.query_async(&mut env.cli().await).await.unwrap();
}

async fn stock(service: &Service, product: &str) -> i64 {
    let request = yoink::grpc::pb::GetProductRequest { product_id: product.to_owned() };
    let found = service.buyers().get_product(request).await.unwrap().into_inner();
    found.product.unwrap().stock.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_changes_nothing_and_reports_what_the_real_run_does() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    of_each_kind(&env, &service).await;
    let shoe = DeadEntryFilter { product_id: "shoe".to_owned(), ..Default::default() };
    let retry = |dry_run| RetryDeadEntriesRequest {
        selector: dead_entries::matching(shoe.clone()),
        dry_run,
        ..Default::default()
    };
    let release = |dry_run| ReleaseDeadEntriesRequest {
        selector: dead_entries::all(),
        dry_run,
        ..Default::default()
    };

    let before = everything(&env).await;
    let predicted = service.admin().release_dead_entries(release(true)).await.unwrap().into_inner();
    assert_eq!((predicted.released, predicted.decided, predicted.unrecognized), (5, 1, 2));
    let reported: Vec<_> = predicted
        .effects
        .iter()
        .map(|e| (e.product_id.as_str(), e.entries, e.stock_now, e.stock_after))
        .collect();
    assert_eq!(reported, [("hat", 1, Some(9), Some(10)), ("shoe", 4, Some(5), Some(9))]);
    let predicted = service.admin().retry_dead_entries(retry(true)).await.unwrap().into_inner();
    assert_eq!(everything(&env).await, before, "a dry run wrote something");

    // The real run does what the dry run reported: first the retry, of one product.
    let done = service.admin().retry_dead_entries(retry(false)).await.unwrap().into_inner();
    let effect = predicted.effects[0].clone();
    assert_eq!((effect.entries, effect.stored, effect.refused, effect.released), (4, 2, 1, 1));
    assert_eq!(done, RetryDeadEntriesResponse { effects: vec![], ..predicted });
    assert_eq!((done.stored, done.refused, done.decided, done.released), (2, 1, 1, 1));
    assert_eq!(done.unrecognized, 1);
    assert_eq!(Some(stock(&service, "shoe").await), effect.stock_after);
    assert_ne!(everything(&env).await, before, "the comparison does not detect a change");

    // Then the release of the rest.
    let predicted = service.admin().release_dead_entries(release(true)).await.unwrap().into_inner();
    let done = service.admin().release_dead_entries(release(false)).await.unwrap().into_inner();
    assert_eq!(done, ReleaseDeadEntriesResponse { effects: vec![], ..predicted.clone() });
    assert_eq!((done.released, done.decided, done.unrecognized), (2, 0, 2));
    for effect in predicted.effects {
        assert_eq!(Some(stock(&service, &effect.product_id).await), effect.stock_after);
    }
    // The unrecognized entries stay, and the audit reports them; without them the audit holds.
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let dead = format!("{}:{{{partition}}}:dead", env.prefix);
    let _: i64 = redis::cmd("DEL").arg(dead).query_async(&mut env.cli().await).await.unwrap();
    let report = env.assert_audit_holds().await;
    let units: Vec<_> = report.products.iter().map(|p| (p.stock, p.confirmed)).collect();
    assert_eq!(units, [(10, 0), (7, 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_beyond_one_page_returns_a_token_and_continues_from_it() {
    const MANY: usize = PAGE + 20;
    const STUCK_AT: usize = PAGE + 10;
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 1000)).await;
    move_to_dead(&env, &service, ("shoe", Some("23514")), users("user", MANY)).await;
    let stores = env.stores().await;
    let all = Selection::All(DeadFilter::default());
    let (mut cursor, mut pages) = (stores.dead_letters.cursor(&all).await.unwrap(), Vec::new());
    let mut read = Vec::new();
    while let Some(page) = cursor.next_page().await.unwrap() {
        pages.push(page.entries.len());
        read.extend(page.entries.into_iter().map(|dead| dead.dead_key().to_owned()));
    }
    assert_eq!(pages, [PAGE, 20]);

    // The ledger cannot void one of the second page.
    let stuck = &read[STUCK_AT];
    let add = format!(
        "ALTER TABLE reservations ADD CONSTRAINT stuck CHECK (reservation_id <> '{stuck}')"
    );
    let sql = env.sql().await;
    sql.batch_execute(&add).await.unwrap();
    let release = ReleaseDeadEntriesRequest {
        selector: dead_entries::all(),
        actor: "ann".to_owned(),
        reason: "sale over".to_owned(),
        ..Default::default()
    };
    let failed = service.admin().release_dead_entries(release.clone()).await.unwrap_err();
    assert_eq!(
        (failed.code(), reason(&failed).as_str()),
        (Code::Unavailable, "LEDGER_UNAVAILABLE")
    );
    let reported = failed.get_details_error_info().unwrap().metadata;
    assert_eq!(reported["released"], STUCK_AT.to_string(), "{reported:?}");
    assert_eq!(reported["applied"], "maybe");
    assert!(failed.message().contains(&format!("{STUCK_AT} released")), "{}", failed.message());
    let left = listed(&service, ListDeadEntriesRequest::default()).await.len();
    assert_eq!(left, MANY - STUCK_AT);
    let by_ann = "SELECT count(DISTINCT reservation_id) FROM dead_actions
                   WHERE actor = 'ann' AND action = 'release' AND reason = 'sale over'";
    assert_eq!(env.count(by_ann).await, i64::try_from(STUCK_AT).unwrap());

    sql.batch_execute("ALTER TABLE reservations DROP CONSTRAINT stuck").await.unwrap();
    let rest = service.admin().release_dead_entries(release).await.unwrap().into_inner();
    assert_eq!(usize::try_from(rest.released).unwrap(), MANY - STUCK_AT);
    let many = i64::try_from(MANY).unwrap();
    assert_eq!(env.count(by_ann).await, many);
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, many, "each once");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (1000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn work_ends_at_its_starting_bound_while_new_entries_arrive() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 2000)).await;
    move_to_dead(&env, &service, ("shoe", None), users("early", PAGE + 1)).await;
    let stores = env.stores().await;
    let all = Selection::All(DeadFilter::default());
    let mut cursor = stores.dead_letters.cursor(&all).await.unwrap();
    assert_eq!(cursor.next_page().await.unwrap().unwrap().entries.len(), PAGE);
    move_to_dead(&env, &service, ("shoe", None), users("late", 3)).await;
    let page = cursor.next_page().await.unwrap().unwrap();
    assert_eq!(page.entries.len(), 1, "entries added meanwhile are not part of this cursor");
    assert!(cursor.next_page().await.unwrap().is_none());
    let all = ReleaseDeadEntriesRequest { selector: dead_entries::all(), ..Default::default() };
    let answer = service.admin().release_dead_entries(all).await.unwrap().into_inner();
    assert_eq!(usize::try_from(answer.released).unwrap(), PAGE + 4);
    eventually("nothing is dead", async || {
        listed(&service, ListDeadEntriesRequest::default()).await.is_empty().then_some(())
    })
    .await;
    env.assert_audit_holds().await;
}
