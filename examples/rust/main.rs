//! Buys one unit: `cargo run --example buy -- http://127.0.0.1:50051 sneaker-42 ann order-1`
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::{env, error::Error, time::Duration};

use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use yoink::grpc::pb::{
    GetReservationRequest, ReserveUnitRequest,
    inventory_service_client::InventoryServiceClient as Client,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [address, product_id, user_id, request_id] = args.as_slice() else {
        return Err("usage: buy <address> <product id> <user id> <request id>".into());
    };
    let mut client = Client::connect(address.clone()).await?;
    let wanted = ReserveUnitRequest {
        product_id: product_id.clone(),
        user_id: user_id.clone(),
        request_id: request_id.clone(),
        ..ReserveUnitRequest::default()
    };
    for _ in 0..20 {
        let mut request = Request::new(wanted.clone());
        request.set_timeout(Duration::from_secs(2));
        match client.reserve_unit(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let reservation_id = answer.reservation.unwrap_or_default().reservation_id;
                println!("bought: {reservation_id} duplicate={}", answer.duplicate);
                let reservation = client.get_reservation(GetReservationRequest { reservation_id });
                let found = reservation.await?.into_inner().reservation.unwrap_or_default();
                println!("state: {}", found.state().as_str_name());
                return Ok(());
            }
            // The unit may have been taken. The same request id never takes a second one, so the call can be repeated.
            Err(status) if is_unclear(&status) => println!("unclear: {}", status.message()),
            Err(status) => {
                let reason = status.get_details_error_info().map(|info| info.reason);
                return Err(format!("refused: {}", reason.unwrap_or_default()).into());
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err("no answer: ask again later with the same request id".into())
}

/// Whether the unit may have been taken. An error without a reason does not come from the service.
fn is_unclear(status: &Status) -> bool {
    let Some(info) = status.get_details_error_info() else { return true };
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
        || info.metadata.get("applied").is_some_and(|applied| applied == "maybe")
}
