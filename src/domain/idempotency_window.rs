//! How long request ids are kept, and in which time bucket each is.

/// The widest bucket: 12 hours, which was the default of `idempotency_window_ms` in earlier versions.
const WIDTH_MAX_MS: i64 = 43_200_000;

/// The idempotency window: how long a request id is remembered at least. Ids are in buckets by the time of their first
/// use. A bucket is as wide as the window, and at most 12 hours wide. So the setting can be changed between values of 12
/// hours or more, and request ids that were remembered under the old value are still found. `buckets_of` in
/// `lua/fence.lua` computes the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyWindow {
    pub(crate) window_ms: i64,
}

impl IdempotencyWindow {
    /// A window of this many milliseconds.
    pub fn new(window_ms: u64) -> Self {
        Self { window_ms: i64::try_from(window_ms).unwrap_or(i64::MAX).max(1) }
    }

    /// How wide a bucket is.
    pub fn width_ms(self) -> i64 {
        self.window_ms.min(WIDTH_MAX_MS)
    }

    /// How many buckets before the current one are searched.
    pub fn earlier_buckets(self) -> i64 {
        let width_ms = self.width_ms();
        self.window_ms / width_ms + i64::from(self.window_ms % width_ms != 0)
    }

    /// The bucket of a time.
    pub fn bucket_of(self, at_ms: i64) -> i64 {
        at_ms.div_euclid(self.width_ms())
    }

    /// When a bucket is no longer searched.
    pub fn until_ms(self, bucket: i64) -> i64 {
        (bucket + self.earlier_buckets() + 1) * self.width_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn id_is_found_for_the_whole_window() {
        for window_ms in
            [1_000, HOUR_MS, 12 * HOUR_MS, 12 * HOUR_MS + 1, 72 * HOUR_MS, 100 * HOUR_MS]
        {
            let window = IdempotencyWindow::new(u64::try_from(window_ms).unwrap());
            let width_ms = window.width_ms();
            for taken_ms in [1_700_000_000_000, 39_500 * width_ms, 39_500 * width_ms - 1] {
                let bucket = window.bucket_of(taken_ms);
                let later = window.bucket_of(taken_ms + window_ms);
                assert!(later - window.earlier_buckets() <= bucket, "{window_ms}");
                assert!(window.until_ms(bucket) > taken_ms + window_ms, "{window_ms}");
                assert!(
                    window.until_ms(bucket) <= taken_ms + window_ms + 2 * width_ms,
                    "{window_ms}"
                );
            }
        }
    }

    #[test]
    fn window_of_72_hours_finds_ids_written_with_12_hours() {
        let (before, now) =
            (IdempotencyWindow::new(43_200_000), IdempotencyWindow::new(259_200_000));
        assert_eq!((before.width_ms(), before.earlier_buckets()), (12 * HOUR_MS, 1));
        assert_eq!((now.width_ms(), now.earlier_buckets()), (12 * HOUR_MS, 6));
        assert_eq!(now.until_ms(10) - 10 * 12 * HOUR_MS, 84 * HOUR_MS);
    }
}
