//! Clients that give their calls no window, so that the answers wait in the service: their memory is bounded. Each test prints
//! what the attack cost.

use prost::Message as _;
use tonic::{Code, Request};
use yoink::grpc::pb::{
    CreateProductsRequest, GetProductRequest, ListProductsRequest, NewProduct,
    google::r#type::Money, inventory_service_client::InventoryServiceClient,
};

use super::abuse::{
    ATTACKERS, DATA, END_HEADERS, END_STREAM, HEADERS, MEMORY_MAX_KIB, SETTINGS, Seen, Target,
    call_of, count, odd,
};
use crate::{
    harness::{eventually, reason},
    overload::frame,
};

/// Calls of each attacker. A connection may have 1,000 in progress.
const CALLS: u32 = 1_000;
const LISTS: u32 = 200;
/// The products of a page, whose names are as long as they may be.
const PAGE: i32 = 500;
/// 128 MiB of lists, and what the calls need beside them. Without the limit these lists are 350 MiB or more.
const LISTS_MEMORY_MAX_KIB: u64 = 224 * 1024;

/// A complete call on a stream without a window.
fn unread_call(n: u32, method: &str, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let message = [&[0], length.as_slice(), message].concat();
    let head = frame(HEADERS, END_HEADERS, odd(n), &call_of(method));
    [head, frame(DATA, END_STREAM, odd(n), &message)].concat()
}

/// INITIAL_WINDOW_SIZE 0.
fn no_windows() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])
}

fn page() -> ListProductsRequest {
    ListProductsRequest { page_size: PAGE, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_use_bounded_memory() {
    let ask = |n: u32| {
        let shoe = GetProductRequest { product_id: "shoe".to_owned() }.encode_to_vec();
        match n {
            0 => Some(no_windows()),
            _ => (n <= CALLS).then(|| unread_call(n, "GetProduct", &shoe)),
        }
    };
    let calls = u64::from(CALLS) * u64::try_from(ATTACKERS).unwrap();
    let felt = async |seen: &Seen| {
        eventually("every answer has begun", async || (count(&seen.begun) == calls).then_some(()))
            .await;
    };
    let seen = Target::start().await.attacked(ask, MEMORY_MAX_KIB, felt).await;
    assert_eq!((count(&seen.answered), count(&seen.closed)), (0, 0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_are_not_read_use_bounded_memory_and_are_dropped_for_a_client_that_reads() {
    let mut target = Target::start().await;
    let name = "\u{1f45f}".repeat(200);
    let price = Some(Money { currency_code: "EUR".to_owned(), units: 1, nanos: 0 });
    let new = |n| NewProduct {
        product_id: format!("shoe-{n}"),
        name: name.clone(),
        price: price.clone(),
        units: 1,
        ..Default::default()
    };
    let products = (0..PAGE).map(new).collect();
    target.keeper.admin().create_products(CreateProductsRequest { products }).await.unwrap();
    let mut reader = InventoryServiceClient::new(target.api.channel().await);
    let reader = &mut reader;
    eventually("the other process has read the products", async || {
        let page = reader.list_products(page()).await.unwrap().into_inner();
        (page.products.len() == usize::try_from(PAGE).unwrap()).then_some(())
    })
    .await;
    let ask = |n: u32| match n {
        0 => Some(no_windows()),
        _ => (n <= LISTS).then(|| unread_call(n, "ListProducts", &page().encode_to_vec())),
    };
    let lists = u64::from(LISTS) * u64::try_from(ATTACKERS).unwrap();
    let felt = async |seen: &Seen| {
        eventually("every list has begun or is refused", async || {
            (count(&seen.begun) + count(&seen.answered) == lists).then_some(())
        })
        .await;
        eventually("a client that reads gets its list", async || {
            match reader.list_products(Request::new(page())).await {
                Ok(_) => Some(()),
                Err(refused) => {
                    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
                    assert_eq!(reason(&refused), "OVERLOADED");
                    None
                }
            }
        })
        .await;
    };
    let seen = target.attacked(ask, LISTS_MEMORY_MAX_KIB, felt).await;
    assert_eq!(count(&seen.closed), 0, "{seen:?}");
}
