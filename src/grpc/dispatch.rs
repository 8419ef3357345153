//! Which service answers a call. The calls of `InventoryService` do not pass through tonic's router: it would copy the
//! parameters of its route into each request, and allocate a future and a body for each call.
//!
//! Must never: pass a call to a service that is not behind authentication, but for health checks.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::future::Either;
use tonic::{
    body::Body,
    codegen::http::{Request, Response},
    server::NamedService as _,
    service::Routes,
};
use tower::Service;

use super::{
    address_limit::AddressLimited, authenticate::Authenticated, inventory::Inventory,
    pb::inventory_service_server::InventoryServiceServer,
};

/// The type ensures that every call passes the limit of its address and authentication before it reaches the handlers.
type Server = AddressLimited<Authenticated<InventoryServiceServer<Inventory>>>;

/// `InventoryService` with its limits; absent in a process that does not answer calls.
#[derive(Clone)]
pub struct InventoryRoute(Server);

impl InventoryRoute {
    pub(super) fn new(server: Server) -> Self {
        Self(server)
    }
}

/// Every service.
#[derive(Clone)]
pub(super) struct Dispatch {
    pub(super) inventory: Option<InventoryRoute>,
    pub(super) others: Routes,
}

/// Whether this is the path of a call of `InventoryService`.
fn is_inventory(path: &str) -> bool {
    let method = path
        .strip_prefix('/')
        .and_then(|path| path.strip_prefix(InventoryServiceServer::<Inventory>::NAME));
    method.is_some_and(|method| method.starts_with('/'))
}

impl Service<Request<Body>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        <Server as Service<Request<Body>>>::Future,
        <Routes as Service<Request<Body>>>::Future,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The server of `InventoryService` is always ready.
        Service::<Request<Body>>::poll_ready(&mut self.others, context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match &mut self.inventory {
            Some(InventoryRoute(server)) if is_inventory(request.uri().path()) => {
                Either::Left(server.call(request))
            }
            Some(_) | None => Either::Right(self.others.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_service_itself_are_its_own() {
        assert!(is_inventory("/yoink.v1.InventoryService/ReserveUnit"));
        assert!(is_inventory("/yoink.v1.InventoryService/NoSuchMethod"));
        for other in ["", "/", "/yoink.v1.InventoryService", "/yoink.v1.InventoryServices/Get"] {
            assert!(!is_inventory(other), "{other}");
        }
    }
}
