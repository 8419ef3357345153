//! The roles of callers. A role decides which calls its principal may make; `src/grpc/access.rs` has the table.

use std::{fmt, str::FromStr};

/// What a caller is to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallerRole {
    /// A user who buys for itself.
    Customer,
    /// A program that buys for any user, such as the backend of a shop.
    Service,
    /// Changes products and dead entries.
    Operator,
    /// Reads everything and changes nothing.
    Auditor,
}

/// A text is not a role of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be customer, service, operator or auditor")]
pub struct CallerRoleError;

impl CallerRole {
    /// Every role, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Customer, Self::Service, Self::Operator, Self::Auditor];

    /// As it is written in settings, tokens and the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Service => "service",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
        }
    }
}

impl fmt::Display for CallerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CallerRole {
    type Err = CallerRoleError;

    fn from_str(text: &str) -> Result<Self, CallerRoleError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(CallerRoleError)
    }
}

/// The role of callers whose client certificate has this name: `name=role` in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRole {
    /// A subject alternative name, such as `spiffe://shop/backend` or `backend.shop.example`.
    pub name: String,
    /// The role.
    pub role: CallerRole,
}

impl fmt::Display for CertificateRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.role)
    }
}

impl FromStr for CertificateRole {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (name, role) = text.rsplit_once('=').ok_or("is not name=role")?;
        let (name, role) = (name.trim(), role.trim());
        // The name becomes that of the principal.
        name.parse::<super::UserId>().map_err(|_| "has a name that is not a valid user id")?;
        let role = role.parse();
        let role =
            role.map_err(|_| "has a role other than customer, service, operator, auditor")?;
        Ok(Self { name: name.to_owned(), role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_written_as_they_are_read() {
        for role in CallerRole::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert_eq!("Operator".parse::<CallerRole>(), Err(CallerRoleError));
        assert_eq!("".parse::<CallerRole>(), Err(CallerRoleError));
    }

    #[test]
    fn name_of_a_certificate_may_contain_an_equals_sign() {
        let text = "spiffe://shop/a=b=auditor";
        let parsed: CertificateRole = text.parse().unwrap();
        assert_eq!((parsed.name.as_str(), parsed.role), ("spiffe://shop/a=b", CallerRole::Auditor));
        assert_eq!(parsed.to_string(), text);
        for wrong in ["a", "a=root", "=operator", "a b=operator"] {
            assert!(wrong.parse::<CertificateRole>().is_err(), "{wrong}");
        }
    }
}
