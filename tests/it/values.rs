//! Prices, times and names: one rule for `yoink import` and for CreateProducts, and rows of earlier versions.

use std::fs;

use tokio::task::block_in_place;
use tonic::Status;
use yoink::{
    app::Role,
    grpc::pb::{
        self, CreateProductsRequest, GetProductRequest, ListProductsRequest, NewProduct,
        ProductStatus, UpdateProductRequest, google::r#type::Money,
    },
};

use crate::harness::{Service, TestEnv, eventually, product, reason, run_yoink, scratch_dir};

const HEADER: &str = "product_id,name,price,currency,units,per_user_limit,opens_at,closes_at\n";

fn import(env: &TestEnv, rows: &str) -> (bool, String) {
    let file = scratch_dir("values").join("catalogue.csv");
    fs::write(&file, format!("{HEADER}{rows}")).unwrap();
    let output = block_in_place(|| run_yoink(env, &["import", file.to_str().unwrap()]));
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
}

async fn create(service: &Service, product: NewProduct) -> Result<(), Status> {
    let request = CreateProductsRequest { products: vec![product] };
    service.admin().create_products(request).await.map(drop)
}

fn new(id: &str, name: &str, (units, nanos, currency): (i64, i32, &str)) -> NewProduct {
    NewProduct {
        product_id: id.to_owned(),
        name: name.to_owned(),
        price: Some(Money { currency_code: currency.to_owned(), units, nanos }),
        units: 1,
        ..Default::default()
    }
}

async fn get(service: &Service, id: &str) -> Option<pb::Product> {
    let request = GetProductRequest { product_id: id.to_owned() };
    let answer = service.buyers().get_product(request).await;
    answer.ok().and_then(|answer| answer.into_inner().product)
}

async fn listed(service: &Service, id: &str) -> pb::Product {
    eventually("the service knows it", async || get(service, id).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn price_keeps_every_digit() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    let largest = || new("clf", "A", (1_234_567_890_123, 456_700_000, "CLF"));
    create(&service, largest()).await.unwrap();
    let rows = "kwd,A,1.234,KWD,1,,,\njpy,A,100.00,JPY,1,,,\neur,A,1.50000,EUR,1,,,\n";
    let (imported, message) = import(&env, rows);
    assert!(imported, "{message}");
    let sql =
        "SELECT string_agg(price::text || ' ' || currency, ',' ORDER BY product_id) FROM products";
    let stored: String = env.sql().await.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(stored, "1234567890123.4567 CLF,1.5000 EUR,100.0000 JPY,1.2340 KWD");
    let price = listed(&service, "clf").await.price.unwrap();
    assert_eq!((price.units, price.nanos), (1_234_567_890_123, 456_700_000));
    create(&service, largest()).await.unwrap();
    assert_eq!(
        env.count("SELECT count(*) FROM products").await,
        4,
        "a repeated import changes nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn import_and_create_refuse_the_same_prices_times_and_names() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    for (at, (amount, money)) in [
        ("1.5,JPY", (1, 500_000_000, "JPY")),
        ("1.001,EUR", (1, 1_000_000, "EUR")),
        ("1.0001,KWD", (1, 100_000, "KWD")),
        ("1.00001,CLF", (1, 10_000, "CLF")),
        ("1,ABC", (1, 0, "ABC")),
        ("1,XXX", (1, 0, "XXX")),
        ("1,eur", (1, 0, "eur")),
    ]
    .into_iter()
    .enumerate()
    {
        let (imported, message) = import(&env, &format!("a,A,{amount},1,,,\n"));
        let column = if at < 4 { "(price)" } else { "(currency)" };
        assert!(
            !imported && message.contains("line 2") && message.contains(column),
            "{at}: {message}"
        );
        create(&service, new("a", "A", money)).await.unwrap_err();
    }
    for (text, seconds, nanos) in [
        ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
        ("1969-12-31T23:59:59.999Z", -1, 999_000_000),
        ("9999-12-31T23:59:59-00:01", 253_402_300_859, 0),
    ] {
        let (imported, message) = import(&env, &format!("a,A,1,EUR,1,,{text},\n"));
        assert!(
            !imported && message.contains("opens_at must be a time from 1970 to 9999"),
            "{message}"
        );
        let opens_at = Some(prost_types::Timestamp { seconds, nanos });
        let asked = NewProduct { opens_at, ..new("a", "A", (1, 0, "EUR")) };
        create(&service, asked).await.unwrap_err();
    }
    for name in [
        "a\u{202a}",
        "a\u{202e}",
        "a\u{2066}",
        "a\u{2069}",
        "a\u{200b}",
        "a\u{feff}b",
        "a\u{2060}",
        "a\u{7f}",
        "a\u{85}",
        "a\u{2028}",
        "a\u{e0041}",
        "\u{1f3f4}\u{e0067}",
        "\u{a0}",
        "\u{3164}",
        "\u{2800}",
        "\u{200d}",
    ] {
        let (imported, message) = import(&env, &format!("a,{name},1,EUR,1,,,\n"));
        assert!(
            !imported && message.contains("line 2") && message.contains("name"),
            "{name:?}: {message}"
        );
        create(&service, new("a", name, (1, 0, "EUR"))).await.unwrap_err();
    }
    assert_eq!(env.count("SELECT count(*) FROM products").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn import_and_create_accept_year_9999_and_names_in_every_script() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    let last = prost_types::Timestamp { seconds: 253_402_300_799, nanos: 0 };
    let names = [
        "\u{6a9}\u{62a}\u{627}\u{628}\u{200c}\u{647}\u{627}",
        "\u{915}\u{94d}\u{200d}\u{937}",
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd}\u{200f} A\u{200e}",
        "\u{627}\u{61c}1",
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
        "\u{1f3f4}\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}",
    ];
    let rows: String = names
        .iter()
        .enumerate()
        .map(|(n, name)| format!("imported-{n},{name},1,EUR,1,,,9999-12-31T23:59:59Z\n"))
        .collect();
    let (imported, message) = import(&env, &rows);
    assert!(imported, "{message}");
    for (n, name) in names.into_iter().enumerate() {
        let asked = NewProduct {
            closes_at: Some(last),
            ..new(&format!("created-{n}"), name, (1, 0, "EUR"))
        };
        create(&service, asked).await.unwrap();
        for id in [format!("imported-{n}"), format!("created-{n}")] {
            let found = listed(&service, &id).await;
            assert_eq!((found.name.as_str(), found.closes_at), (name, Some(last)), "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_earlier_versions_can_be_listed_sold_and_stopped() {
    let env = TestEnv::new().await;
    let stores = env.stores().await;
    let partition = stores.deployment.partitions;
    stores.ledger.create_products(&[product("old", 5)], partition, "test").await.unwrap();
    let earlier = "UPDATE products SET price = 1.0001, currency = 'ABC', name = U&'\\00A0' WHERE product_id = 'old'";
    env.sql().await.batch_execute(earlier).await.unwrap();
    let service = env.serve(Role::All, &[]).await;
    let found = listed(&service, "old").await;
    let price = found.price.unwrap();
    assert_eq!((price.units, price.nanos, price.currency_code.as_str()), (1, 100_000, "ABC"));
    let page = service.buyers().list_products(ListProductsRequest::default()).await.unwrap();
    assert_eq!(page.into_inner().products.len(), 1);
    eventually("it is sold", async || service.buy("old", "ann", "r").await.ok()).await;
    let update = async |change: UpdateProductRequest| {
        let change = UpdateProductRequest { product_id: "old".to_owned(), ..change };
        service.admin().update_product(change).await.map_err(|status| reason(&status))
    };
    let status = ProductStatus::Stopped.into();
    update(UpdateProductRequest { status, ..Default::default() }).await.unwrap();
    assert_eq!(service.refusal("old", "ann", "other").await, "SALE_STOPPED");
    let name = "\u{a0}".to_owned();
    update(UpdateProductRequest { name, ..Default::default() }).await.unwrap_err();
    env.assert_audit_holds().await;
}
