//! Which role may make which call: the one table of it, and what handlers ask about their caller.
//!
//! A call without a row is answered UNIMPLEMENTED, whatever the role, and reaches no handler; a test compares the rows with
//! the API.

use std::{collections::HashMap, sync::Arc, sync::LazyLock};

use http::Extensions;
use tonic::Status;

use super::{error::ApiError, reason::Reason};
use crate::{
    auth::Principal,
    domain::{CallerRole, Reservation},
    redis::Applied,
};

/// Whether a role may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    /// It may not.
    No,
    /// Only for the user that the principal is.
    Own,
    /// For every user.
    All,
}

/// Each call, and the rights of customer, service, operator and auditor. Health checks are open to everyone and have no
/// row.
#[rustfmt::skip]
const TABLE: [(&str, [Right; 4]); 16] = {
    use Right::{All, No, Own};
    [
        //                                                    customer service operator auditor
        ("/yoink.v1.InventoryService/ReserveUnit",            [Own,    All,    No,      No]),
        ("/yoink.v1.InventoryService/ListProducts",           [All,    All,    All,     All]),
        ("/yoink.v1.InventoryService/GetProduct",             [All,    All,    All,     All]),
        ("/yoink.v1.InventoryService/GetReservation",         [Own,    All,    All,     All]),
        ("/yoink.v1.StorefrontService/PlaceOrder",            [Own,    All,    No,      No]),
        ("/yoink.v1.StorefrontService/ListStorefront",        [All,    All,    All,     All]),
        ("/yoink.v1.AdminService/CreateProducts",             [No,     No,     All,     No]),
        ("/yoink.v1.AdminService/UpdateProduct",              [No,     No,     All,     No]),
        ("/yoink.v1.AdminService/Restock",                    [No,     No,     All,     No]),
        ("/yoink.v1.AdminService/ListReservations",           [No,     No,     All,     All]),
        ("/yoink.v1.AdminService/ListDeadEntries",            [No,     No,     All,     All]),
        ("/yoink.v1.AdminService/ReleaseDeadEntries",         [No,     No,     All,     No]),
        ("/yoink.v1.AdminService/RetryDeadEntries",           [No,     No,     All,     No]),
        ("/yoink.v1.AdminService/Audit",                      [No,     No,     All,     All]),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                                                              [All,    All,    All,     All]),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                                              [All,    All,    All,     All]),
    ]
};

static RIGHTS: LazyLock<HashMap<&str, [Right; 4]>> = LazyLock::new(|| TABLE.into());

/// The right of a role, if there is such a call.
fn right(path: &str, role: CallerRole) -> Option<Right> {
    let [customer, service, operator, auditor] = RIGHTS.get(path).copied()?;
    Some(match role {
        CallerRole::Customer => customer,
        CallerRole::Service => service,
        CallerRole::Operator => operator,
        CallerRole::Auditor => auditor,
    })
}

/// The caller of an authorized call: in the extensions of its request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// `None`: authentication is off.
    principal: Option<Arc<Principal>>,
    /// It may act only for the user that it is.
    own_only: bool,
}

impl Caller {
    /// The caller while authentication is off.
    const UNKNOWN: Self = Self { principal: None, own_only: false };

    /// The caller of a call by this path, if its role may make it.
    pub(super) fn authorize(path: &str, principal: Arc<Principal>) -> Result<Self, Status> {
        let own_only = match right(path, principal.role) {
            // As the server answers it without authentication.
            None => return Err(Status::unimplemented("")),
            Some(Right::No) => return Err(role_not_allowed(&principal).into()),
            Some(Right::Own) => true,
            Some(Right::All) => false,
        };
        Ok(Self { principal: Some(principal), own_only })
    }

    /// The caller of a request. Without one the call was not authorized: with authentication this is a bug, and the call is
    /// refused.
    pub(super) fn of(
        extensions: &Extensions,
        authentication_is_on: bool,
    ) -> Result<Self, ApiError> {
        match extensions.get::<Self>() {
            Some(caller) => Ok(caller.clone()),
            None if authentication_is_on => {
                Err(ApiError::with_applied(Reason::Internal, Applied::No))
            }
            None => Ok(Self::UNKNOWN),
        }
    }

    /// Sets the user that a call is for: the caller itself, if it may act only for itself. Refuses another user.
    pub(super) fn set_user(&self, field: &mut String) -> Result<(), ApiError> {
        let Some(principal) = self.principal.as_ref().filter(|_| self.own_only) else {
            return Ok(());
        };
        if field.is_empty() {
            field.push_str(principal.name.as_str());
        }
        if field == principal.name.as_str() {
            return Ok(());
        }
        let text = "the role {role} may act only for its own user: leave user_id empty";
        Err(ApiError { text: text.into(), ..role_not_allowed(principal) })
    }

    /// Whether the caller may see a reservation. One whose user is not known has no data of a user.
    pub(super) fn may_see(&self, reservation: &Reservation) -> bool {
        let Some(principal) = self.principal.as_ref().filter(|_| self.own_only) else {
            return true;
        };
        let user = reservation.product_and_user.as_ref().map(|(_, user)| user);
        user.is_none_or(|user| *user == principal.name)
    }

    /// Sets who is recorded for a change: the caller. What a client sends is used only while authentication is off.
    pub(super) fn set_actor(&self, field: &mut String) {
        if let Some(principal) = &self.principal {
            principal.name.as_str().clone_into(field);
        }
    }
}

fn role_not_allowed(principal: &Principal) -> ApiError {
    ApiError::with(Reason::RoleNotAllowed, [("role", principal.role.to_string())])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;
    use crate::grpc::code_name;

    #[test]
    fn every_call_of_the_api_has_a_row_and_every_row_a_call() {
        let mut calls = BTreeSet::new();
        for bytes in [
            crate::grpc::DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            let set = prost_types::FileDescriptorSet::decode(bytes).unwrap();
            for file in &set.file {
                for service in &file.service {
                    for method in &service.method {
                        let service = format!("{}.{}", file.package(), service.name());
                        calls.insert(format!("/{service}/{}", method.name()));
                    }
                }
            }
        }
        let rows: BTreeSet<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(rows, calls);
        assert_eq!(rows.len(), TABLE.len(), "a call has two rows");
    }

    fn user(caller: &Caller, field: &str) -> Result<String, ApiError> {
        let mut field = field.to_owned();
        caller.set_user(&mut field).map(|()| field)
    }

    fn principal(role: CallerRole) -> Arc<Principal> {
        Arc::new(Principal { name: "ann".parse().unwrap(), role })
    }

    /// The caller of a request that was not authorized.
    fn unknown() -> Caller {
        Caller::of(&Extensions::new(), false).unwrap()
    }

    #[test]
    fn customer_acts_only_for_itself_and_a_service_for_every_user() {
        let path = "/yoink.v1.InventoryService/ReserveUnit";
        let customer = Caller::authorize(path, principal(CallerRole::Customer)).unwrap();
        assert_eq!(user(&customer, "").unwrap(), "ann");
        assert_eq!(user(&customer, "ann").unwrap(), "ann");
        assert_eq!(user(&customer, "bob").unwrap_err().reason, Reason::RoleNotAllowed);
        let service = Caller::authorize(path, principal(CallerRole::Service)).unwrap();
        assert_eq!(user(&service, "bob").unwrap(), "bob");
        assert_eq!(user(&service, "").unwrap(), "", "refused later as a wrong field");
        assert_eq!(user(&unknown(), "bob").unwrap(), "bob", "authentication is off");
    }

    #[test]
    fn actor_of_a_client_is_replaced_by_the_principal() {
        let path = "/yoink.v1.AdminService/Restock";
        let actor = |caller: Caller| {
            let mut field = "bob".to_owned();
            caller.set_actor(&mut field);
            field
        };
        let operator = Caller::authorize(path, principal(CallerRole::Operator)).unwrap();
        assert_eq!(actor(operator), "ann");
        assert_eq!(actor(unknown()), "bob", "authentication is off");
    }

    #[test]
    fn call_without_a_row_or_without_a_caller_is_refused() {
        for role in CallerRole::ALL {
            let refused = Caller::authorize("/yoink.v1.InventoryService/Other", principal(role));
            assert_eq!(code_name(refused.unwrap_err().code()), "UNIMPLEMENTED");
        }
        let refused = Caller::of(&Extensions::new(), true);
        assert_eq!(refused.unwrap_err().reason, Reason::Internal);
    }
}
