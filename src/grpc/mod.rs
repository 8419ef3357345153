//! The API of `proto/yoink/v1`: parses requests, calls the modules below, and builds responses. The only module that
//! knows status codes.
//!
//! Must never: validate again what was parsed, decide anything about a unit, or show an internal text to a client.

mod access;
mod address_limit;
mod admin;
mod admission;
mod authenticate;
mod convert;
mod dead;
mod dispatch;
mod error;
mod error_from;
mod failure_limit;
#[cfg(test)]
mod fuzz;
mod idempotency_key;
mod inventory;
mod limits;
mod observe;
mod page_token;
mod reason;
mod reset_on_error;
mod status;
mod storefront;
mod unread;
mod unread_list;

use std::sync::Arc;

use tonic::{
    codec::CompressionEncoding::Gzip,
    service::{LayerExt as _, Routes},
};
use tower::layer::layer_fn;

pub(crate) use self::status::code_name;
use self::{
    address_limit::AddressLimit, admin::Admin, admission::Admission, authenticate::CallerCheck,
    inventory::Inventory, limits::RateLimit, reset_on_error::ResetOnError, storefront::Storefront,
};
pub use self::{
    dispatch::InventoryRoute,
    limits::Limits,
    observe::{Observed, observe},
};
use crate::{
    ack::Acks,
    audit::Auditor,
    auth::Authenticator,
    catalogue::Catalogue,
    dead_letters::DeadLetters,
    ledger::{Ledger, Lookups},
    stock::Stock,
    stream::Streams,
    telemetry::Metrics,
};

/// The generated types and services of the API.
#[expect(
    missing_docs,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/pb.rs"));

    pub use self::yoink::v1::*;
}

/// The API as a descriptor set, with its HTTP rules: for reflection and for Envoy.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/yoink.binpb"));

/// The largest request of an operator: 1,000 products fit.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The services of the API, as the health service names them.
pub const SERVICES: [&str; 3] =
    ["yoink.v1.InventoryService", "yoink.v1.AdminService", "yoink.v1.StorefrontService"];

/// What the handlers use. `ledger` is for operators' calls, `lookups` for those of buyers.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is described by its module")]
pub struct Services {
    pub stock: Stock,
    pub acks: Acks,
    pub streams: Streams,
    pub ledger: Ledger,
    pub lookups: Lookups,
    pub catalogue: Catalogue,
    pub dead_letters: DeadLetters,
    pub auditor: Auditor,
    pub authenticator: Authenticator,
    pub metrics: Metrics,
}

/// The services of the API: `InventoryService` apart, the others as routes, with reflection if the settings ask for it.
/// `limits` apply to buyers; operators have only `ADMIN_REQUEST_BYTES_MAX`. Requests may be compressed with gzip; the limit
/// of a message applies to its decompressed size. Responses are not compressed. Callers are authenticated after the limit
/// of their address, because verifying a signature costs more than refusing a call. `AdminService` is not behind that
/// limit; there, as on every service, an address that has sent too many wrong credentials has no signature verified. Fails
/// if the descriptor of the API cannot be read.
pub fn routes(
    services: Services,
    limits: &Limits,
    reflection: bool,
) -> Result<(InventoryRoute, Routes), tonic_reflection::server::Error> {
    use pb::{
        admin_service_server::AdminServiceServer, inventory_service_server::InventoryServiceServer,
        storefront_service_server::StorefrontServiceServer,
    };
    let services = Arc::new(services);
    let admission = Arc::new(Admission::new(services.clone(), limits));
    let inventory = InventoryServiceServer::new(Inventory { admission: admission.clone() })
        .accept_compressed(Gzip)
        .max_decoding_message_size(limits.request_max_bytes);
    let storefront = StorefrontServiceServer::new(Storefront { admission })
        .accept_compressed(Gzip)
        .max_decoding_message_size(limits.request_max_bytes);
    let reset_on_error = layer_fn(|inner| ResetOnError { inner });
    let limit = AddressLimit::new(limits, services.metrics.clone());
    let caller_check = CallerCheck {
        authenticator: services.authenticator.clone(),
        metrics: services.metrics.clone(),
        addresses: limit.clone(),
        principals: RateLimit::per_second(limits.principal_calls_per_second),
    };
    let unlimited = CallerCheck { principals: RateLimit::per_second(0), ..caller_check.clone() };
    let inventory = limit.around(caller_check.around(inventory));
    let admin = AdminServiceServer::new(Admin { services })
        .accept_compressed(Gzip)
        .max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
    let storefront = caller_check.around(reset_on_error.named_layer(storefront));
    let mut routes = Routes::new(limit.around(storefront)).add_service(unlimited.around(admin));
    if reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        // Both of its versions: clients use one or the other.
        let (v1, v1alpha) = (builder().build_v1()?, builder().build_v1alpha()?);
        routes = routes
            .add_service(limit.around(unlimited.around(v1.accept_compressed(Gzip))))
            .add_service(limit.around(unlimited.around(v1alpha.accept_compressed(Gzip))));
    }
    Ok((InventoryRoute::new(inventory), routes))
}
