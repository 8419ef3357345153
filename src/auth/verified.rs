//! JWTs whose signature was verified, by their hash: checking a signature costs more than the rest of a call.
//!
//! Must never: return a principal after its JWT has expired, or grow without a limit.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::Principal;

/// The most JWTs of a generation.
const GENERATION_MAX: usize = 10_000;

type Hash = [u8; 32];

/// A verified JWT.
#[derive(Clone)]
pub(super) struct Verified {
    pub(super) principal: Arc<Principal>,
    /// It is refused from this time on, in milliseconds since 1970.
    pub(super) until_ms: i64,
}

/// The JWTs of two generations. When the newer one is full, the older one is dropped: a JWT that was used since then is
/// in the newer one again.
#[derive(Default)]
pub(super) struct VerifiedJwts {
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    newer: HashMap<Hash, Verified>,
    older: HashMap<Hash, Verified>,
}

impl VerifiedJwts {
    /// The principal of a JWT, if it was verified and has not expired.
    pub(super) fn get(&self, hash: &Hash, now_ms: i64) -> Option<Arc<Principal>> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match generations.newer.get(hash) {
            Some(found) => found.clone(),
            None => {
                let found = generations.older.remove(hash)?;
                generations.insert(*hash, found.clone());
                found
            }
        };
        (now_ms < found.until_ms).then_some(found.principal)
    }

    pub(super) fn insert(&self, hash: Hash, verified: Verified) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.insert(hash, verified);
    }
}

impl Generations {
    fn insert(&mut self, hash: Hash, verified: Verified) {
        if self.newer.len() >= GENERATION_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(hash, verified);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::CallerRole;

    fn hash(number: usize) -> Hash {
        super::super::api_key::sha256(&number.to_be_bytes())
    }

    fn verified(until_ms: i64) -> Verified {
        let name = "ann".parse().unwrap();
        let principal = Arc::new(Principal { name, role: CallerRole::Customer });
        Verified { principal, until_ms }
    }

    #[test]
    fn jwt_is_found_until_it_expires() {
        let jwts = VerifiedJwts::default();
        jwts.insert(hash(1), verified(100));
        assert!(jwts.get(&hash(1), 99).is_some());
        assert!(jwts.get(&hash(1), 100).is_none());
        assert!(jwts.get(&hash(2), 0).is_none());
    }

    #[test]
    fn number_of_jwts_is_limited_and_those_in_use_stay() {
        let jwts = VerifiedJwts::default();
        for number in 0..5 * GENERATION_MAX {
            jwts.insert(hash(number), verified(100));
            assert!(jwts.get(&hash(0), 0).is_some(), "{number}");
        }
        let generations = jwts.generations.lock().unwrap();
        assert!(generations.newer.len() + generations.older.len() <= 2 * GENERATION_MAX);
    }
}
