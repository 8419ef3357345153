//! The commands, by the real program.

use std::{fs, process::Output};

use yoink::app::Role;

use crate::harness::{TestEnv, eventually, move_to_dead, product, run_yoink, scratch_dir};

async fn yoink(env: &TestEnv, args: &[&str]) -> Output {
    tokio::task::block_in_place(|| run_yoink(env, args))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogue_is_imported_once_and_sold() {
    let env = TestEnv::new().await;
    let file = scratch_dir("import").join("catalogue.csv");
    fs::write(
        &file,
        "product_id,name,price,currency,units\nshoe,Shoe,199.99,EUR,5\nhat,Hat,5,EUR,7\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let first = yoink(&env, &["import", path]).await;
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(text(&first.stdout).contains("2 products created"));
    let second = yoink(&env, &["import", path]).await;
    assert!(text(&second.stdout).contains("0 products created, 2 existed already"));

    fs::write(
        &file,
        "product_id,name,price,currency,units\nhat,Hat,5,EUR,7\nshoe,Shoe,199.99,EUR,6\n",
    )
    .unwrap();
    let other = yoink(&env, &["import", path]).await;
    assert_eq!(other.status.code(), Some(2));
    let message = text(&other.stderr);
    assert!(message.contains("line 3") && message.contains("yoink restock"), "{message}");

    fs::write(&file, "product_id,name,price,currency,units\nnew,New,5,EUR,7\na b,Bad,1,EUR,0\n")
        .unwrap();
    let wrong = yoink(&env, &["import", path]).await;
    assert!(text(&wrong.stderr).contains("line 3"), "{}", text(&wrong.stderr));
    assert_eq!(env.count("SELECT count(*) FROM products").await, 2, "whole or not at all");

    let service = env.serve(Role::All, &[]).await;
    service.buy("shoe", "ann", "").await.unwrap();
    let restocked = yoink(&env, &["restock", "shoe", "10", "--request-id", "d1"]).await;
    assert!(
        text(&restocked.stdout).contains("10 units added (request id d1); the supply is 15 units")
    );
    let again = yoink(&env, &["restock", "shoe", "10", "--request-id", "d1"]).await;
    assert!(text(&again.stdout).contains("the supply is 15 units"));
    eventually("the service sells them", async || {
        let bought = service.buy("shoe", "bob", "").await.ok()?;
        (bought.remaining >= 9).then_some(())
    })
    .await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn export_contains_every_reservation() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 5)).await;
    let bought = service.buy("shoe", "ann", "r:1").await.unwrap();
    env.assert_audit_holds().await;
    let exported = text(&yoink(&env, &["export"]).await.stdout);
    let mut lines = exported.lines();
    let header = "reservation_id,state,product_id,user_id,units,request_id,reserved_at,recorded_at,void_reason";
    assert_eq!(lines.next(), Some(header));
    let row = lines.next().unwrap();
    assert!(
        row.starts_with(&format!("{},confirmed,shoe,ann,1,r:1,", bought.reservation_id)),
        "{row}"
    );
    assert_eq!(lines.next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_reports_the_fault_and_exits_with_its_code() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 5)).await;
    service.buy("shoe", "ann", "").await.unwrap();
    let holds = yoink(&env, &["audit"]).await;
    assert_eq!(holds.status.code(), Some(0), "{}", text(&holds.stderr));

    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let key = |name: &str| format!("{}:{{{partition}}}:{name}", env.prefix);
    let mut cli = env.cli().await;
    // One unit more than there is.
    let _: i64 = redis::cmd("HINCRBY")
        .arg(key("stock"))
        .arg("shoe")
        .arg(1)
        .query_async(&mut cli)
        .await
        .unwrap();
    let violated = yoink(&env, &["audit", "--json"]).await;
    assert_eq!(violated.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&violated.stdout).unwrap();
    assert_eq!(report["verdict"], "violated");
    let message = report["violations"][0].as_str().unwrap();
    assert!(message.contains("product shoe") && message.contains("difference -1"), "{message}");
    let _: i64 = redis::cmd("HINCRBY")
        .arg(key("stock"))
        .arg("shoe")
        .arg(-1)
        .query_async(&mut cli)
        .await
        .unwrap();

    // An accepted order is lost, and its unit with it.
    let _: i64 =
        redis::cmd("XDEL").arg(key("orders")).arg("1-1").query_async(&mut cli).await.unwrap();
    let lost = yoink(&env, &["audit"]).await;
    assert_eq!(lost.status.code(), Some(1));
    assert!(
        text(&lost.stdout).contains("1-1 was accepted and is in neither store"),
        "{}",
        text(&lost.stdout)
    );

    // Without the meta it cannot be audited.
    let _: i64 = redis::cmd("DEL").arg(key("meta")).query_async(&mut cli).await.unwrap();
    let unknown = yoink(&env, &["audit"]).await;
    assert_eq!(unknown.status.code(), Some(3), "{}", text(&unknown.stdout));
    assert!(text(&unknown.stdout).contains("fenced"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_invalid_settings_are_reported_at_once_without_secrets() {
    let env = TestEnv::new().await;
    let shown = yoink(&env, &["config", "check"]).await;
    assert!(shown.status.success());
    assert!(text(&shown.stdout).contains(&format!("key_prefix = \"{}\"", env.prefix)));
    let bad = ["--set", "partitions=0", "--set", "deliveries_max=0", "config", "check"];
    let wrong = yoink(&env, &bad).await;
    assert_eq!(wrong.status.code(), Some(2));
    let message = text(&wrong.stderr);
    assert!(message.contains("partitions") && message.contains("deliveries_max"), "{message}");
    let secret = ["--set", "redis_url=redis://:hunter2@127.0.0.1:1", "config", "check"];
    let shown = yoink(&env, &secret).await;
    assert!(!text(&shown.stdout).contains("hunter2"));
    let version = yoink(&env, &["--version"]).await;
    assert!(text(&version.stdout).starts_with(&format!("yoink {}", env!("CARGO_PKG_VERSION"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_can_be_listed_shown_and_released() {
    let env = TestEnv::new().await;
    let service =
        env.serve(Role::All, &[("deliveries_max", "1"), ("dead_letter_release", "manual")]).await;
    service.create(product("shoe", 5)).await;
    let add = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'ann')";
    env.sql().await.batch_execute(add).await.unwrap();
    let bought = service.buy("shoe", "ann", "").await.unwrap();
    eventually("it is dead", async || {
        let listed = text(&yoink(&env, &["dead", "list"]).await.stdout);
        listed.contains(&bought.reservation_id).then_some(())
    })
    .await;
    let shown = text(&yoink(&env, &["dead", "show", &bought.reservation_id]).await.stdout);
    assert!(shown.contains("user = \"ann\"") && shown.contains("SQLSTATE = \"23514\""), "{shown}");
    let refused = yoink(&env, &["dead", "retry", &bought.reservation_id]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    let released = yoink(&env, &["dead", "release", "--all"]).await;
    assert!(text(&released.stdout).contains("unit given back"));
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].stock, 5);
}

/// The cells of a printed table, row by row, without its header.
fn rows(printed: &str) -> Vec<Vec<String>> {
    let rows = printed.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// `yoink dead …`: exit code, output, errors.
async fn dead(env: &TestEnv, args: &[&str]) -> (i32, String, String) {
    let done = yoink(env, &[&["dead"], args].concat()).await;
    (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_selected_by_filters_and_a_dry_run_changes_nothing() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    for id in ["shoe", "hat"] {
        service.create(product(id, 9)).await;
    }
    let shoes = ["ann", "bob"].map(str::to_owned);
    let ids = move_to_dead(&env, &service, ("shoe", Some("23514")), shoes).await;
    move_to_dead(&env, &service, ("hat", Some("22001")), ["eve".to_owned()]).await;
    let dead = async |args: &[&str]| dead(&env, args).await;

    let (code, all, _) = dead(&["list"]).await;
    assert_eq!((code, rows(&all).len()), (0, 3), "{all}");
    let (_, hats, _) = dead(&["list", "--product", "hat", "--sqlstate", "22001"]).await;
    assert_eq!((rows(&hats).len(), rows(&hats)[0][1].as_str()), (1, "hat"), "{hats}");
    for none in [["--older-than", "1d"], ["--sqlstate", "none"], ["--product", "ghost"]] {
        let (code, found, _) = dead(&["list", none[0], none[1]]).await;
        assert_eq!((code, rows(&found).len()), (0, 0), "{found}");
    }

    let (code, reported, _) = dead(&["release", "--all", "--older-than", "0s", "--dry-run"]).await;
    assert_eq!(code, 0);
    assert_eq!(rows(&reported), [["hat", "1", "8", "9"], ["shoe", "2", "7", "9"]], "{reported}");
    assert!(
        reported.contains("nothing was done") && reported.contains("3 units given back"),
        "{reported}"
    );
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'bob')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let retry = ["retry", "--all", "--product", "shoe", "--actor", "ann", "--reason", "repaired"];
    let (code, reported, _) = dead(&[&retry[..], &["--dry-run"]].concat()).await;
    assert_eq!(code, 1, "one would be refused");
    assert_eq!(rows(&reported), [["shoe", "2", "7", "7"]], "{reported}");
    assert!(reported.contains("1 orders stored, 1 refused again"), "{reported}");
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 0);
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);

    let (code, reported, _) = dead(&retry).await;
    assert_eq!(code, 1);
    assert!(reported.contains(&format!("{} refused again, the entry stays", ids[1])), "{reported}");
    assert!(
        reported.contains("Done: 0 units given back, 1 orders stored, 1 refused"),
        "{reported}"
    );
    let (code, _, message) = dead(&["release", &ids[0].to_string(), &ids[1].to_string()]).await;
    assert_eq!(code, 2);
    assert!(message.contains("nothing was done"), "{message}");
    let (code, reported, _) = dead(&["release", "--all", "--reason", "over"]).await;
    assert_eq!(code, 0);
    assert!(reported.contains("2 units given back"), "{reported}");

    // The actions on former dead entries can still be shown.
    let (_, shown, _) = dead(&["show", &ids[0].to_string()]).await;
    assert!(shown.starts_with("state = confirmed"), "{shown}");
    assert_eq!(rows(&shown)[0][1..], ["retry", "ann", "repaired"], "{shown}");
    let (_, shown, _) = dead(&["show", &ids[1].to_string()]).await;
    assert!(shown.starts_with("state = voided"), "{shown}");
    let actions: Vec<_> = rows(&shown).into_iter().map(|row| row[1].clone()).collect();
    assert_eq!(actions, ["refused", "release"], "{shown}");
    let by_login = "SELECT count(*) FROM dead_actions
                     WHERE action = 'release' AND actor <> '' AND reason = 'over'";
    assert_eq!(env.count(by_login).await, 2);

    let report = env.assert_audit_holds().await;
    let units: Vec<_> = report.products.iter().map(|p| (p.stock, p.confirmed)).collect();
    assert_eq!(units, [(9, 0), (8, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_list_shows_entries_read_before_a_fenced_partition() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    let partitions = env.stores().await.deployment.partitions;
    let ids: Vec<String> = (0..50).map(|n| format!("p-{n}")).collect();
    let partition = |id: &String| partitions.of(&id.parse().unwrap()).index();
    let first = ids.iter().min_by_key(|id| partition(id)).unwrap();
    let last = ids.iter().max_by_key(|id| partition(id)).unwrap();
    for id in [first, last] {
        service.create(product(id, 9)).await;
        move_to_dead(&env, &service, (id, Some("23514")), ["ann".to_owned()]).await;
    }
    // No process rebuilds the partition meanwhile.
    service.stop().await;
    let meta = format!("{}:{{{}}}:meta", env.prefix, partition(last));
    let away = format!("{meta}-away");
    let rename = async |from: &str, to: &str| {
        let mut cli = env.cli().await;
        let () = redis::cmd("RENAME").arg(from).arg(to).query_async(&mut cli).await.unwrap();
    };
    rename(&meta, &away).await;
    let (code, shown, message) = dead(&env, &["list"]).await;
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("run `yoink rebuild`"), "{message}");
    let products: Vec<_> = rows(&shown).into_iter().map(|row| row[1].clone()).collect();
    assert_eq!(products, [first.as_str()], "{shown}");

    rename(&away, &meta).await;
    let (code, shown, message) = dead(&env, &["list"]).await;
    assert_eq!((code, rows(&shown).len()), (0, 2), "{shown}{message}");
    assert_eq!(dead(&env, &["release", "--all"]).await.0, 0);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_dead_letter_commands_are_refused_before_any_change() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 9)).await;
    let ids = move_to_dead(&env, &service, ("shoe", Some("23514")), ["ann".to_owned()]).await;
    let id = ids[0].to_string();
    let long = "x".repeat(201);
    for wrong in [
        &["release", "--product", "shoe"][..],
        &["release", "--product", "shoe", &id],
        &["release", "--all", &id],
        &["release", "--all", "--actor", "a\u{1b}[31m"],
        &["release", "--all", "--reason", &long],
        &["list", "--older-than", "soon"],
        &["list", "--older-than=-10m"],
        &["list", "--sqlstate", ""],
        &["list", "--product", "a b"],
        &["show", "00200001-0000-8000-807e-14e19590ce5a"],
    ] {
        let (code, _, message) = dead(&env, wrong).await;
        assert_eq!(code, 2, "{wrong:?}: {message}");
    }
    assert_eq!(env.audit().await.products[0].in_dead, 1);
    assert_eq!(dead(&env, &["retry", &id]).await.0, 0);
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 1);
}
