//! Bad input gets a clear error, takes no unit and does not affect other callers.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::{
        CreateProductsRequest, DeadEntryFilter, DeadEntrySelector, GetProductRequest,
        GetReservationRequest, ListDeadEntriesRequest, ListProductsRequest,
        ListReservationsRequest, NewProduct, ReleaseDeadEntriesRequest, RestockRequest,
        RetryDeadEntriesRequest, UpdateProductRequest, google::r#type::Money,
    },
};

use crate::harness::{TestEnv, dead_entries, product, reason, run_yoink};

/// Texts that are no id of any kind.
const BAD_IDS: [&str; 12] = [
    "",
    "a b",
    "a\0",
    "a\r",
    "a\nb",
    "a\tb",
    "\u{202e}a",
    "a\u{200b}",
    " a",
    "a ",
    "\u{7f}",
    "\u{e9}",
];

/// Texts that are valid as user and request ids, and not as product ids.
const BAD_PRODUCT_IDS: [&str; 9] = ["{0}", "*", "?", "[", "a:b/c", "a|b", "a%2Fb", "a,b", "'a"];

/// The fields that a status names.
pub fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    violations.into_iter().map(|violation| violation.field).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_field_is_named_and_no_unit_is_taken() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let long = "x".repeat(129);
    for bad in BAD_PRODUCT_IDS {
        let status = service.buy(bad, "ann", "").await.unwrap_err();
        assert_eq!(fields(&status), ["product_id"], "{bad:?}");
    }
    for bad in BAD_IDS.into_iter().chain([long.as_str()]) {
        assert_eq!(
            fields(&service.buy(bad, "ann", "").await.unwrap_err()),
            ["product_id"],
            "{bad:?}"
        );
        assert_eq!(
            fields(&service.buy("shoe", bad, "").await.unwrap_err()),
            ["user_id"],
            "{bad:?}"
        );
        if !bad.is_empty() {
            let status = service.buy("shoe", "ann", bad).await.unwrap_err();
            assert_eq!(fields(&status), ["request_id"], "{bad:?}");
        }
        let request = GetProductRequest { product_id: bad.to_owned() };
        let status = service.buyers().get_product(request).await.unwrap_err();
        assert_eq!(fields(&status), ["product_id"]);
    }
    let all = service.buy("", " ", "\0").await.unwrap_err();
    assert_eq!(fields(&all), ["product_id", "user_id", "request_id"], "all at once");
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].stock, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_reservations_requires_exactly_one_of_product_and_user() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let status = service.admin().list_reservations(ListReservationsRequest::default()).await;
    assert_eq!(fields(&status.unwrap_err()), ["product_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_are_answered_not_found() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let status = service.buy("ghost", "ann", "").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "PRODUCT_NOT_FOUND"));
    let request = GetProductRequest { product_id: "ghost".to_owned() };
    let status = service.buyers().get_product(request).await.unwrap_err();
    assert_eq!(reason(&status), "PRODUCT_NOT_FOUND");

    let look_up = async |id: &str| {
        let request = GetReservationRequest { reservation_id: id.to_owned() };
        service.buyers().get_reservation(request).await.unwrap_err()
    };
    for bad in ["", "x", "7c9e6679-7425-40de-944b-e07fc1f90ae7", "{}", "1-1"] {
        assert_eq!(fields(&look_up(bad).await), ["reservation_id"], "{bad}");
    }
    // Well formed, of this epoch, and never issued; also if only the random part is wrong.
    service.create(product("shoe", 10)).await;
    let bought = service.buy("shoe", "ann", "").await.unwrap();
    let mut guess = bought.reservation_id.clone();
    let last = if guess.ends_with('0') { "1" } else { "0" };
    guess.replace_range(guess.len() - 1.., last);
    assert_eq!(reason(&look_up(&guess).await), "RESERVATION_NOT_FOUND");
    // Of a partition that does not exist, and of another epoch.
    let id = |partition, epoch| {
        let epoch = yoink::domain::Epoch(epoch);
        yoink::domain::ReservationId::new(partition, epoch, 1, 1).unwrap().to_string()
    };
    assert_eq!(reason(&look_up(&id(4000, 1)).await), "RESERVATION_NOT_FOUND");
    assert_eq!(reason(&look_up(&id(0, 77)).await), "LOST_OR_UNKNOWN");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogue_with_an_invalid_product_is_refused_as_a_whole() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let good = NewProduct {
        product_id: "good".to_owned(),
        name: "Good".to_owned(),
        price: Some(Money { currency_code: "EUR".to_owned(), units: 1, nanos: 0 }),
        units: 1,
        ..Default::default()
    };
    let price =
        |units, nanos, code: &str| Some(Money { currency_code: code.to_owned(), units, nanos });
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let bad = [
        (NewProduct { product_id: "{".to_owned(), ..good.clone() }, "products[1].product_id"),
        (NewProduct { price: None, ..good.clone() }, "products[1].price"),
        (NewProduct { price: price(-1, 0, "EUR"), ..good.clone() }, "products[1].price"),
        (NewProduct { price: price(1, 1, "EUR"), ..good.clone() }, "products[1].price"),
        (NewProduct { price: price(1, 0, "euro"), ..good.clone() }, "products[1].price"),
        (NewProduct { price: price(1, 0, "ABC"), ..good.clone() }, "products[1].price"),
        (NewProduct { price: price(1, 500_000_000, "JPY"), ..good.clone() }, "products[1].price"),
        (NewProduct { price: price(1, 1_000_000, "EUR"), ..good.clone() }, "products[1].price"),
        (NewProduct { price: price(1, 100_000, "KWD"), ..good.clone() }, "products[1].price"),
        (NewProduct { opens_at: at(-1), ..good.clone() }, "products[1].opens_at"),
        // 0001-01-01T00:00:00Z, and the first second of the year 10000.
        (NewProduct { opens_at: at(-62_135_596_800), ..good.clone() }, "products[1].opens_at"),
        (NewProduct { closes_at: at(253_402_300_800), ..good.clone() }, "products[1].closes_at"),
        (NewProduct { per_user_limit: -1, ..good.clone() }, "products[1].per_user_limit"),
        (NewProduct { status: 99, ..good.clone() }, "products[1].status"),
        (NewProduct { units: 0, product_id: "x".to_owned(), ..good.clone() }, "products[1]"),
        (NewProduct { units: -5, product_id: "x".to_owned(), ..good.clone() }, "products[1]"),
        (
            NewProduct { units: (1 << 53) + 1, product_id: "x".to_owned(), ..good.clone() },
            "products[1]",
        ),
        (
            NewProduct { name: "a\0".to_owned(), product_id: "x".to_owned(), ..good.clone() },
            "products[1]",
        ),
        (
            NewProduct {
                opens_at: at(9),
                closes_at: at(9),
                product_id: "x".to_owned(),
                ..good.clone()
            },
            "products[1]",
        ),
        (good.clone(), "products"),
    ];
    for (bad, field) in bad {
        let request = CreateProductsRequest { products: vec![good.clone(), bad] };
        let status = service.admin().create_products(request).await.unwrap_err();
        assert_eq!(fields(&status), [field]);
    }
    let status = service.admin().create_products(CreateProductsRequest::default()).await;
    assert_eq!(fields(&status.unwrap_err()), ["products"]);
    assert_eq!(env.count("SELECT count(*) FROM products").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_calls_with_invalid_fields_are_refused() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let restock = |units, request: &str| RestockRequest {
        product_id: "shoe".to_owned(),
        units,
        request_id: request.to_owned(),
        ..Default::default()
    };
    for units in [0, -1, (1 << 53) + 1] {
        let status = service.admin().restock(restock(units, "r")).await.unwrap_err();
        assert_eq!(fields(&status), ["units"]);
    }
    let status = service.admin().restock(restock(1, "")).await.unwrap_err();
    assert_eq!(fields(&status), ["request_id"], "it must be given");
    let status = service.admin().restock(restock(1 << 53, "r")).await.unwrap_err();
    assert_eq!(reason(&status), "TOO_MANY_UNITS");
    let hidden = "\u{202e}a";
    let notes = [("actor", hidden, ""), ("reason", "", hidden), ("reason", "", "a\nb")];
    for (field, actor, why) in notes {
        let (actor, why) = (actor.to_owned(), why.to_owned());
        let noted = RestockRequest { actor, reason: why, ..restock(1, "r") };
        assert_eq!(fields(&service.admin().restock(noted).await.unwrap_err()), [field]);
    }
    for why in [hidden, "a\nb", &"x".repeat(201)] {
        let args = ["restock", "shoe", "1", "--reason", why];
        let refused = tokio::task::block_in_place(|| run_yoink(&env, &args));
        let printed = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{printed}");
        assert!(
            printed.contains("must have at most 200 characters, and none that is"),
            "{printed}"
        );
    }
    assert_eq!(env.count("SELECT count(*) FROM supply_changes").await, 1, "the first grant");
    let ghost = RestockRequest { product_id: "ghost".to_owned(), ..restock(1, "r") };
    assert_eq!(reason(&service.admin().restock(ghost).await.unwrap_err()), "PRODUCT_NOT_FOUND");

    let update = |request| async { service.admin().update_product(request).await.unwrap_err() };
    let shoe = UpdateProductRequest { product_id: "shoe".to_owned(), ..Default::default() };
    assert_eq!(fields(&update(shoe.clone()).await), ["update_mask"], "nothing to change");
    let mask = |path: &str| Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
    let supply = UpdateProductRequest { update_mask: mask("supply"), ..shoe.clone() };
    assert_eq!(fields(&update(supply).await), ["update_mask"]);
    let name = UpdateProductRequest { update_mask: mask("name"), ..shoe.clone() };
    assert_eq!(fields(&update(name).await), ["product"], "a name cannot be cleared");
    let status = UpdateProductRequest { status: 99, ..shoe };
    assert_eq!(fields(&update(status).await), ["status"]);

    for (ids, all) in [(vec![], false), (vec!["x".to_owned()], true)] {
        let selector = Some(DeadEntrySelector { reservation_ids: ids, all, ..Default::default() });
        let request = ReleaseDeadEntriesRequest { selector, ..Default::default() };
        let status = service.admin().release_dead_entries(request).await.unwrap_err();
        assert!(fields(&status).iter().any(|field| field.starts_with("selector.reservation_ids")));
    }
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_filters_and_notes_are_validated() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let id = yoink::domain::ReservationId::new(0, yoink::domain::Epoch(1), 1, 1).unwrap();
    let product = |id: &str| DeadEntryFilter { product_id: id.to_owned(), ..Default::default() };
    let state = |state: &str| DeadEntryFilter { sqlstate: state.to_owned(), ..Default::default() };
    let age = |age| DeadEntryFilter { older_than: seconds(age), ..Default::default() };
    let these = |filter| {
        let selector = dead_entries::of([id]).unwrap();
        Some(DeadEntrySelector { filter: Some(filter), ..selector })
    };
    let all = dead_entries::matching;
    let bad = [
        (all(product("a b")), "", "", "selector.filter.product_id"),
        (all(state("2351")), "", "", "selector.filter.sqlstate"),
        (all(state("2351a")), "", "", "selector.filter.sqlstate"),
        (all(age(-1)), "", "", "selector.filter.older_than"),
        (dead_entries::all(), &"x".repeat(201), "", "actor"),
        (dead_entries::all(), "", "a\nb", "reason"),
        (these(product("a")), "", "", "selector.filter"),
        (these(state("23514")), "", "", "selector.filter"),
        (these(age(1)), "", "", "selector.filter"),
        (None, "", "", "selector.reservation_ids"),
    ];
    for (selector, actor, why, field) in bad {
        let release = ReleaseDeadEntriesRequest {
            selector: selector.clone(),
            actor: actor.to_owned(),
            reason: why.to_owned(),
            dry_run: selector.is_none(),
        };
        let retry = RetryDeadEntriesRequest {
            selector,
            actor: release.actor.clone(),
            reason: release.reason.clone(),
            dry_run: release.dry_run,
        };
        let status = service.admin().release_dead_entries(release).await.unwrap_err();
        assert_eq!(fields(&status), [field]);
        let status = service.admin().retry_dead_entries(retry).await.unwrap_err();
        assert_eq!(fields(&status), [field]);
    }
    // A filter selects nothing by itself; and every bad field is reported at once.
    let filter = Some(product("shoe"));
    let selector = Some(DeadEntrySelector { filter, ..Default::default() });
    let alone = ReleaseDeadEntriesRequest { selector, ..Default::default() };
    let status = service.admin().release_dead_entries(alone).await.unwrap_err();
    assert_eq!(fields(&status), ["selector.reservation_ids", "selector.filter"]);
    let list = ListDeadEntriesRequest { filter: Some(state("x")), ..Default::default() };
    let status = service.admin().list_dead_entries(list.clone()).await.unwrap_err();
    assert_eq!(fields(&status), ["filter.sqlstate"]);
    let both = ListDeadEntriesRequest { reservation_id: id.to_string(), ..list };
    let status = service.admin().list_dead_entries(both).await.unwrap_err();
    assert_eq!(fields(&status), ["filter"]);
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_unknown_and_badly_compressed_calls_get_their_status() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let status = service.buy("shoe", &"x".repeat(20_000), "").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::OutOfRange, "MESSAGE_TOO_LARGE"),
        "tonic's word for a message over the limit"
    );

    let mut request = tonic::Request::new(ListProductsRequest::default());
    request.metadata_mut().insert("grpc-encoding", "deflate".parse().unwrap());
    let status = service.buyers().list_products(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);

    let channel = tonic::transport::Channel::from_shared(format!("http://{}", service.grpc));
    let mut raw = tonic::client::Grpc::new(channel.unwrap().connect().await.unwrap());
    raw.ready().await.unwrap();
    let path = "/yoink.v1.InventoryService/Steal".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<ListProductsRequest, ListProductsRequest>::default();
    let status = raw.unary(tonic::Request::new(ListProductsRequest::default()), path, codec).await;
    assert_eq!(status.unwrap_err().code(), Code::Unimplemented);

    service.buy("shoe", "ann", "").await.unwrap();
    env.assert_audit_holds().await;
}
