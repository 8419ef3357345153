//! The contract of `proto/yoink/v1`: parses requests, calls the modules below, and builds responses. The only module that
//! knows status codes.
//!
//! Must never: validate again what was parsed, decide anything about a unit, or show an internal text to a client.

mod address_limit;
mod admin;
mod admission;
mod convert;
mod dead;
mod deadline;
mod error;
mod error_from;
mod idempotency_key;
mod inventory;
mod limits;
mod observe;
mod page_token;
mod reason;
mod reset_on_error;
mod status;
mod storefront;

use std::sync::Arc;

use tonic::{
    codec::CompressionEncoding::Gzip,
    service::{LayerExt as _, Routes},
};

use self::{
    address_limit::AddressLimitLayer, admin::Admin, admission::Admission, inventory::Inventory,
    reset_on_error::ResetOnErrorLayer, storefront::Storefront,
};
pub use self::{error::ApiError, limits::Limits, observe::Observe};
use crate::{
    ack::Acks,
    audit::Auditor,
    catalogue::Catalogue,
    dead_letters::DeadLetters,
    domain::PartitionCount,
    ledger::{Ledger, Lookups},
    stock::Stock,
    stream::Streams,
    telemetry::Metrics,
};

/// The generated contract.
#[expect(
    missing_docs,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/pb.rs"));

    pub use yoink::v1::*;
}

/// The contract as a descriptor set, with its HTTP rules: for reflection and for Envoy.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/yoink.binpb"));

/// The largest request of an operator: 1,000 products fit.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The services of the contract, as the health service names them.
pub const SERVICES: [&str; 3] =
    ["yoink.v1.InventoryService", "yoink.v1.AdminService", "yoink.v1.StorefrontService"];

/// What the handlers use.
#[derive(Clone)]
pub struct Services {
    /// Takes units.
    pub stock: Stock,
    /// Delays a response until the reservation is as safe as requested.
    pub acks: Acks,
    /// Looks reservations up.
    pub streams: Streams,
    /// Lists reservations for operators.
    pub ledger: Ledger,
    /// Looks reservations up for buyers.
    pub lookups: Lookups,
    /// Products.
    pub catalogue: Catalogue,
    /// Dead entries.
    pub dead_letters: DeadLetters,
    /// Audits.
    pub auditor: Auditor,
    /// The instruments.
    pub metrics: Metrics,
}

impl Services {
    fn partitions(&self) -> PartitionCount {
        self.stock.partitions().count()
    }
}

/// The services of the contract as routes. Buyers have limits, operators have none. Requests may be compressed with gzip; the
/// limit of a message applies to its decompressed size. Responses are not compressed.
pub fn routes(services: Services, limits: &Limits) -> Routes {
    use pb::{
        admin_service_server::AdminServiceServer, inventory_service_server::InventoryServiceServer,
        storefront_service_server::StorefrontServiceServer,
    };
    let services = Arc::new(services);
    let admission = Arc::new(Admission::new(services.clone(), limits));
    let inventory = InventoryServiceServer::new(Inventory::new(admission.clone()))
        .accept_compressed(Gzip)
        .max_decoding_message_size(limits.request_max_bytes);
    let storefront = StorefrontServiceServer::new(Storefront::new(admission))
        .accept_compressed(Gzip)
        .max_decoding_message_size(limits.request_max_bytes);
    let address_limit = AddressLimitLayer::new(limits, services.metrics.clone());
    let admin = AdminServiceServer::new(Admin::new(services))
        .accept_compressed(Gzip)
        .max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
    Routes::new(address_limit.named_layer(inventory))
        .add_service(address_limit.named_layer(ResetOnErrorLayer.named_layer(storefront)))
        .add_service(admin)
}

/// Adds reflection in both of its versions, through which clients read the contract.
///
/// # Errors
///
/// When the contract's descriptor cannot be read.
pub fn reflect(routes: Routes) -> Result<Routes, tonic_reflection::server::Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (builder().build_v1()?, builder().build_v1alpha()?);
    Ok(routes.add_service(v1.accept_compressed(Gzip)).add_service(v1alpha.accept_compressed(Gzip)))
}
