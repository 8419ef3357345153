//! How long request ids are remembered, and in which bucket of time each lies.

/// The widest bucket: 12 hours, which was the default window of earlier versions.
const WIDTH_MAX_MS: i64 = 43_200_000;

/// The time for which a request id is remembered at least. Ids lie in buckets by the time when they were taken: as wide
/// as the window and at most 12 hours, so that a window above that can be changed and finds what is there.
/// `buckets_of` in `lua/fence.lua` does the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdWindow {
    window_ms: i64,
}

impl IdWindow {
    /// A window of so many milliseconds.
    pub fn new(window_ms: u64) -> Self {
        Self { window_ms: i64::try_from(window_ms).unwrap_or(i64::MAX).max(1) }
    }

    /// How wide a bucket is.
    pub fn width_ms(self) -> i64 {
        self.window_ms.min(WIDTH_MAX_MS)
    }

    /// How many buckets before that of now are looked into.
    pub fn earlier_buckets(self) -> i64 {
        let width_ms = self.width_ms();
        self.window_ms / width_ms + i64::from(self.window_ms % width_ms != 0)
    }

    /// The bucket of a time.
    pub fn bucket_of(self, at_ms: i64) -> i64 {
        at_ms.div_euclid(self.width_ms())
    }

    /// When a bucket is no longer looked into.
    pub fn until_ms(self, bucket: i64) -> i64 {
        (bucket + self.earlier_buckets() + 1) * self.width_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn an_id_is_looked_up_for_as_long_as_the_window_says() {
        for window_ms in
            [1_000, HOUR_MS, 12 * HOUR_MS, 12 * HOUR_MS + 1, 72 * HOUR_MS, 100 * HOUR_MS]
        {
            let window = IdWindow::new(u64::try_from(window_ms).unwrap());
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
    fn a_default_of_72_hours_finds_what_the_default_of_12_hours_wrote() {
        let (before, now) = (IdWindow::new(43_200_000), IdWindow::new(259_200_000));
        assert_eq!((before.width_ms(), before.earlier_buckets()), (12 * HOUR_MS, 1));
        assert_eq!((now.width_ms(), now.earlier_buckets()), (12 * HOUR_MS, 6));
        assert_eq!(now.until_ms(10) - 10 * 12 * HOUR_MS, 84 * HOUR_MS);
    }
}
