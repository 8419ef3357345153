//! What happens to an entry whose order cannot be stored (R4).

/// The delivery count to write after an order could not be stored in the attempt that `deliveries` counts (1: the first);
/// `None` if all deliveries are used up, so that the entry is moved to the dead stream.
///
/// ```
/// use yoink::domain::next_delivery;
///
/// assert_eq!(next_delivery(1, 3), Some(2));
/// assert_eq!(next_delivery(3, 3), None);
/// ```
pub fn next_delivery(deliveries: u32, deliveries_max: u32) -> Option<u32> {
    (deliveries < deliveries_max).then(|| deliveries + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_that_always_fails_is_tried_max_deliveries_times() {
        for max in 1..6 {
            let mut deliveries = 1;
            let mut attempts = 1;
            while let Some(next) = next_delivery(deliveries, max) {
                deliveries = next;
                attempts += 1;
            }
            assert_eq!(attempts, max);
        }
    }

    #[test]
    fn count_beyond_the_maximum_moves_to_dead() {
        assert_eq!(next_delivery(u32::MAX, 3), None);
    }
}
