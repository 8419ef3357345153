//! What to do when an order itself cannot be stored (R4).

/// What to do with an entry after its own failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// Set the delivery count to this and try again later.
    Retry {
        /// The new delivery count.
        deliveries: u32,
    },
    /// It has had `max_deliveries` attempts.
    MoveToDead,
}

/// Decides from the delivery count that the failed attempt had (1 on the first).
pub fn after_failure(deliveries: u32, max_deliveries: u32) -> AfterFailure {
    if deliveries >= max_deliveries {
        AfterFailure::MoveToDead
    } else {
        AfterFailure::Retry { deliveries: deliveries + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_attempted_exactly_max_deliveries_times() {
        for max in 1..6 {
            let mut deliveries = 1;
            let mut attempts = 1;
            while let AfterFailure::Retry { deliveries: next } = after_failure(deliveries, max) {
                deliveries = next;
                attempts += 1;
            }
            assert_eq!(attempts, max);
        }
    }

    #[test]
    fn count_beyond_the_maximum_moves_to_dead() {
        assert_eq!(after_failure(u32::MAX, 3), AfterFailure::MoveToDead);
    }
}
