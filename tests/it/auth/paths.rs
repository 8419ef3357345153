//! No path reaches a handler without credentials: calls of `InventoryService` pass through no router.

use tonic::{Code, Request, client::Grpc};
use tonic_prost::ProstCodec;
use yoink::{
    app::Role,
    grpc::pb::{ReserveUnitRequest, ReserveUnitResponse},
};

use super::REQUIRED;
use crate::harness::{Service, TestEnv, product};

/// Paths of services that need credentials.
const GUARDED: [&str; 11] = [
    "/yoink.v1.InventoryService/ReserveUnit",
    "/yoink.v1.InventoryService/ReserveUnit?x=1",
    "/yoink.v1.InventoryService/ReserveUnit/",
    "/yoink.v1.InventoryService//ReserveUnit",
    "/yoink.v1.InventoryService/%52eserveUnit",
    "/yoink.v1.InventoryService/NoSuchMethod",
    "/yoink.v1.StorefrontService/PlaceOrder",
    "/yoink.v1.StorefrontService/NoSuchMethod",
    "/yoink.v1.AdminService/NoSuchMethod",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Paths that resemble one of them, and are not one.
const OTHERS: [&str; 5] = [
    "/yoink.v1.InventoryService",
    "/yoink.v1.InventoryService%2FReserveUnit",
    "//yoink.v1.InventoryService/ReserveUnit",
    "/yoink.v1.inventoryservice/ReserveUnit",
    "/grpc.health.v1.Health/../yoink.v1.InventoryService/ReserveUnit",
];

async fn reserve_by(service: &Service, path: &str) -> Code {
    let request = ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        ..Default::default()
    };
    let mut client = Grpc::new(service.channel());
    client.ready().await.unwrap();
    let codec = ProstCodec::<ReserveUnitRequest, ReserveUnitResponse>::default();
    let called = client.unary(Request::new(request), path.parse().unwrap(), codec).await;
    called.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_path_reaches_a_handler_without_credentials() {
    let env = TestEnv::new().await;
    let plain = env.serve(Role::Api, &[]).await;
    plain.create(product("shoe", 10)).await;
    plain.stop().await;
    let service = env.serve(Role::All, &[REQUIRED, ("reflection", "on")]).await;
    for path in GUARDED {
        assert_eq!(reserve_by(&service, path).await, Code::Unauthenticated, "{path}");
    }
    for path in OTHERS {
        assert_eq!(reserve_by(&service, path).await, Code::Unimplemented, "{path}");
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (0, 10));
}
