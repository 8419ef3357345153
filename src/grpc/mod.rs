//! The contract of `proto/yoink/v1`: parses requests, asks the rooms below, answers. The only place that
//! knows status codes.
//!
//! Must never: check again what was parsed, decide anything about a unit, or answer with an internal text.

mod admin;
mod convert;
mod deadline;
mod error;
mod inventory;
mod observe;
mod storefront;

use std::sync::Arc;

use tonic::service::Routes;

use self::{admin::Admin, inventory::Inventory, storefront::Storefront};
pub use self::{error::ApiError, observe::Observe};
use crate::{
    audit::Auditor, catalogue::Catalogue, desk::Desk, domain::PartitionCount, ledger::Ledger,
    stock::Stock, stream::Streams,
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

/// The contract as a descriptor set, with its HTTP rules: for reflection and for the sidecar.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/yoink.binpb"));

/// Largest request of a buyer, in bytes; a larger one is OUT_OF_RANGE (tonic's word for it).
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// Largest request of an operator, in bytes: 1,000 products fit.
pub const MAX_ADMIN_REQUEST_BYTES: usize = 1024 * 1024;

/// The services that health answers for, and how the contract names them.
pub const SERVICES: [&str; 3] =
    ["yoink.v1.InventoryService", "yoink.v1.AdminService", "yoink.v1.StorefrontService"];

/// What the handlers work on.
#[derive(Clone)]
pub struct Rooms {
    /// Takes units.
    pub stock: Stock,
    /// Looks reservations up.
    pub streams: Streams,
    /// Looks reservations up.
    pub ledger: Ledger,
    /// Products.
    pub catalogue: Catalogue,
    /// Dead entries.
    pub desk: Desk,
    /// The verdict.
    pub auditor: Auditor,
}

impl Rooms {
    fn partitions(&self) -> PartitionCount {
        self.stock.partitions().count()
    }
}

/// The services of the contract as routes.
pub fn routes(rooms: Rooms) -> Routes {
    use pb::{
        admin_service_server::AdminServiceServer, inventory_service_server::InventoryServiceServer,
        storefront_service_server::StorefrontServiceServer,
    };
    let rooms = Arc::new(rooms);
    let inventory = InventoryServiceServer::new(Inventory::new(rooms.clone()));
    let storefront = StorefrontServiceServer::new(Storefront::new(rooms.clone()));
    let admin = AdminServiceServer::new(Admin::new(rooms));
    Routes::new(inventory.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(storefront.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(admin.max_decoding_message_size(MAX_ADMIN_REQUEST_BYTES))
}
