//! Client certificates: their names, and the roles that the settings give them.

use std::sync::Arc;

use http::Extensions;

use super::{Principal, Refused};
use crate::domain::{CertificateRole, IdError};

/// The verified client certificate of a connection, in the extensions of each of its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its subject alternative names: DNS names, then URIs.
    pub names: Arc<[String]>,
}

/// The principals of client certificates, by a subject alternative name.
pub(super) struct Certificates(Vec<(String, Arc<Principal>)>);

impl Certificates {
    pub(super) fn new(roles: Vec<CertificateRole>) -> Result<Self, IdError> {
        let principals = roles.into_iter().map(|CertificateRole { name, role }| {
            let principal = Arc::new(Principal { name: name.parse()?, role });
            Ok((name, principal))
        });
        principals.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn are_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The principal of the certificate of a connection: that of its first name that has a role. Without one the
    /// certificate is no credential, because it may only be that of a proxy.
    pub(super) fn check(&self, extensions: &Extensions) -> Result<Arc<Principal>, Refused> {
        let identity = extensions.get::<PeerIdentity>().ok_or(Refused::Missing)?;
        let of_name = |name: &String| self.0.iter().find(|(known, _)| known == name);
        let found = identity.names.iter().find_map(of_name);
        found.map(|(_, principal)| principal.clone()).ok_or(Refused::Missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_has_the_role_of_its_first_listed_name() {
        let roles = ["backend.shop.example=service", "spiffe://shop/ops=operator"];
        let roles = roles.map(|role| role.parse().unwrap()).to_vec();
        let certificates = Certificates::new(roles).unwrap();
        let check = |names: &[&str]| {
            let mut extensions = Extensions::new();
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            extensions.insert(PeerIdentity { names });
            certificates.check(&extensions).map(|principal| principal.role.as_str())
        };
        assert_eq!(check(&["proxy", "spiffe://shop/ops"]), Ok("operator"));
        assert_eq!(check(&["backend.shop.example", "spiffe://shop/ops"]), Ok("service"));
        for none in [&[] as &[&str], &["proxy"], &["shop.example"], &["BACKEND.shop.example"]] {
            assert_eq!(check(none), Err(Refused::Missing), "{none:?}");
        }
        assert_eq!(certificates.check(&Extensions::new()), Err(Refused::Missing), "no TLS");
    }
}
