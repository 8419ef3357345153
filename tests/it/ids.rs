//! Ids of shops and identity providers, also those that hold a character that separates something.

use std::fs;

use tokio::task::block_in_place;
use yoink::{
    app::Role,
    grpc::pb::{ListProductsRequest, ListReservationsRequest, RestockRequest},
};

use crate::harness::{Service, TestEnv, eventually, product, reason, run_yoink};

const USERS: [&str; 8] = [
    "ann@shop.example",
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "gid://shop/Customer/1",
    "eu-west-1:6b2c8f4e-91a0-4b8d-9c57-3d3c0e1f2a4b",
    "+4915112345678",
    "=1+1",
    "100%2F",
    "'quoted'",
];
const PRODUCT: &str = "shoe:red+blue@42";

/// Each user's one reservation, by the same request id.
async fn buy_each(service: &Service, duplicate: bool) -> Vec<String> {
    let mut ids = Vec::new();
    for user in USERS {
        let bought = service.buy(PRODUCT, user, "order/1|%").await.unwrap();
        assert_eq!((bought.duplicate, bought.user_id.as_str()), (duplicate, user));
        ids.push(bought.reservation_id);
    }
    ids
}

fn run(env: &TestEnv, args: &[&str]) -> String {
    let output = block_in_place(|| run_yoink(env, args));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn sells_again(service: &Service, (product, user, request): (&str, &str, &str)) {
    eventually("it sells again", async || service.buy(product, user, request).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_ids_of_identity_providers_are_sold_stored_listed_and_rebuilt() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[("metrics_products", PRODUCT)]).await;
    let mut limited = product(PRODUCT, 100);
    limited.sale.per_user_limit = Some(2);
    service.create(limited).await;
    service.create(product("shoe:red", 5)).await;
    let ids = buy_each(&service, false).await;
    assert_eq!(buy_each(&service, true).await, ids);
    env.assert_audit_holds().await;
    for (user, id) in USERS.into_iter().zip(&ids) {
        let request = ListReservationsRequest { user_id: user.to_owned(), ..Default::default() };
        let listed = service.admin().list_reservations(request).await.unwrap().into_inner();
        assert_eq!(listed.reservations.len(), 1, "{user}");
        assert_eq!(
            (&listed.reservations[0].reservation_id, listed.reservations[0].user_id.as_str()),
            (id, user)
        );
        assert_eq!(service.reservation(id).await.unwrap().product_id, PRODUCT);
    }
    let mut listed = Vec::new();
    let mut page_token = String::new();
    for _ in 0..2 {
        let request = ListProductsRequest { page_size: 1, page_token };
        let page = service.buyers().list_products(request).await.unwrap().into_inner();
        listed.push(page.products[0].product_id.clone());
        page_token = page.next_page_token;
    }
    assert_eq!(
        (listed, page_token.as_str()),
        (vec!["shoe:red".to_owned(), PRODUCT.to_owned()], "")
    );
    eventually("its stock is a metric", async || {
        let metrics = crate::harness::get(service.http, "/metrics").await;
        metrics.contains(&format!("product=\"{PRODUCT}\"")).then_some(())
    })
    .await;

    run(&env, &["rebuild", "--all"]);
    sells_again(&service, (PRODUCT, USERS[0], "order/1|%")).await;
    assert_eq!(buy_each(&service, true).await, ids, "after a rebuild");
    for user in USERS {
        service.buy(PRODUCT, user, "").await.unwrap();
        assert_eq!(service.refusal(PRODUCT, user, "").await, "LIMIT_REACHED", "{user}");
    }
    let report = env.assert_audit_holds().await;
    let sold = report.products.iter().find(|units| units.product.as_str() == PRODUCT).unwrap();
    assert_eq!((sold.confirmed, sold.stock), (16, 84));
}

#[tokio::test(flavor = "multi_thread")]
async fn export_quotes_cells_that_a_spreadsheet_would_evaluate() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product(PRODUCT, 100)).await;
    buy_each(&service, false).await;
    env.assert_audit_holds().await;
    let exported = run(&env, &["export"]);
    let mut users: Vec<String> = Vec::new();
    for row in csv::Reader::from_reader(exported.as_bytes()).records() {
        let row = row.unwrap();
        assert_eq!((&row[2], &row[5]), (PRODUCT, "order/1|%"));
        let is_formula = row[3].starts_with(['=', '+', '-', '@', '\t', '\r']);
        assert!(!is_formula, "{}", &row[3]);
        users.push(row[3].strip_prefix('\'').unwrap_or(&row[3]).to_owned());
    }
    users.sort();
    let mut expected = USERS.map(str::to_owned);
    expected.sort();
    assert_eq!(users, expected, "each can be read back");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_with_equal_concatenation_get_separate_answers_even_after_a_loss() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[("recovery", "manual")]).await;
    service.create(product("shoe", 10)).await;
    service.create(product("hat", 10)).await;
    // Joined by slashes, the first three are one text.
    let asked = [
        ("shoe", "a", "shoe/r"),
        ("shoe", "a/shoe", "r"),
        ("shoe", "a%2Fshoe", "r"),
        ("hat", "a", "shoe/r"),
        ("hat", "a/hat", "shoe/r"),
    ];
    let mut ids = Vec::new();
    for (item, user, request) in asked {
        let bought = service.buy(item, user, request).await.unwrap();
        assert!(!bought.duplicate, "{item} {user} {request}");
        ids.push(bought.reservation_id);
    }
    env.assert_audit_holds().await;
    // The ledger loses the order of the second one.
    let lose = "DELETE FROM reservations WHERE user_id = 'a/shoe';
                UPDATE products SET sold = sold - 1 WHERE product_id = 'shoe'";
    env.sql().await.batch_execute(lose).await.unwrap();
    let printed = run(&env, &["rebuild", "--all"]);
    assert!(printed.contains("of user a/shoe for product shoe was lost"), "{printed}");
    sells_again(&service, ("hat", "bob", "r")).await;
    sells_again(&service, ("shoe", "bob", "r")).await;
    for ((item, user, request), id) in asked.into_iter().zip(&ids) {
        let again = service.buy(item, user, request).await;
        if user == "a/shoe" {
            assert_eq!(reason(&again.unwrap_err()), "LOST_OR_UNKNOWN");
        } else {
            let again = again.unwrap();
            assert_eq!((again.duplicate, &again.reservation_id), (true, id), "{item} {user}");
        }
    }
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restock_is_added_once_for_any_request_id_and_refused_with_other_units() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 5)).await;
    service.create(product("hat", 5)).await;
    let restock = async |item: &str, units, request: &str, note: &str| {
        let request = RestockRequest {
            product_id: item.to_owned(),
            units,
            request_id: request.to_owned(),
            actor: note.to_owned(),
            reason: note.to_owned(),
        };
        let answer = service.admin().restock(request).await.map(tonic::Response::into_inner);
        answer.map(|answer| (answer.supply, answer.duplicate)).map_err(|status| reason(&status))
    };
    // The text under which the first grant of the product is kept, with its own units.
    assert_eq!(restock("shoe", 5, "first/shoe", "a").await, Ok((10, false)));
    assert_eq!(restock("shoe", 5, "first/shoe", "a").await, Ok((10, true)));
    assert_eq!(restock("hat", 2, "more/1|%", "a").await, Ok((7, false)));
    assert_eq!(
        restock("hat", 2, "more/1|%", "another").await,
        Ok((7, true)),
        "a note is no part of it"
    );
    assert_eq!(restock("hat", 3, "more/1|%", "a").await, Err("REQUEST_ID_REUSED".to_owned()));
    assert_eq!(restock("shoe", 2, "more/1|%", "a").await, Err("REQUEST_ID_REUSED".to_owned()));
    assert_eq!(restock("hat", 5, "first/shoe", "a").await, Err("REQUEST_ID_REUSED".to_owned()));
    // What was created is known as before.
    service.create(product("shoe", 5)).await;
    let report = env.assert_audit_holds().await;
    let supply: Vec<i64> = report.products.iter().map(|units| units.supply).collect();
    assert_eq!(supply, [7, 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_plain_and_wider_ids_have_the_newest_format_and_are_stored() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 9)).await;
    service.buy("shoe", "ann", "r:1").await.unwrap();
    service.buy("shoe", "ann@shop.example", "r:1").await.unwrap();
    service.buy("shoe", "ann", "r/1").await.unwrap();
    service.buy("shoe", &"x".repeat(65), "").await.unwrap();
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let mut read = redis::cmd("XRANGE");
    read.arg(format!("{}:{{{partition}}}:orders", env.prefix)).arg("-").arg("+");
    let entries: Vec<(String, Vec<String>)> = read.query_async(&mut env.cli().await).await.unwrap();
    let formats: Vec<&str> = entries.iter().map(|(_, fields)| fields[1].as_str()).collect();
    assert_eq!(formats, ["3"; 4]);
    let worker = env.serve(Role::Worker, &[]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 4);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_accepts_and_refuses_the_same_ids_as_the_service() {
    let env = TestEnv::new().await;
    let file = crate::harness::scratch_dir("ids").join("catalogue.csv");
    let row = |id: &str| format!("{id},Shoe,1,EUR,1\n");
    let header = "product_id,name,price,currency,units\n";
    fs::write(&file, [header, &row(PRODUCT), &row(&"x".repeat(128))].concat()).unwrap();
    run(&env, &["import", file.to_str().unwrap()]);
    fs::write(&file, [header, &row("a/b"), &row("a|b"), &row(&"x".repeat(129))].concat()).unwrap();
    let output = block_in_place(|| run_yoink(&env, &["import", file.to_str().unwrap()]));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    for line in ["line 2", "line 3", "line 4"] {
        assert!(message.contains(line), "{line}: {message}");
    }
    assert_eq!(env.count("SELECT count(*) FROM products").await, 2);
}
