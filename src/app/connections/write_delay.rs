//! When a connection writes its answers.
//!
//! Must never: delay a write twice in a row.

use std::task::{Context, Poll};

/// Delays a write until the tasks that are ready have run. Each answer wakes its connection at once, which would write it
/// alone; after the delay the other answers of the same batch are there, and one write sends them all.
#[derive(Default)]
pub(super) struct WriteDelay {
    /// The bytes that were to be written when the wait began.
    bytes_before: Option<usize>,
    /// How many waits in a row brought no further bytes.
    without_gain: u8,
    /// How many more writes do not wait, after too many waits that brought no bytes: this client makes
    /// one call at a time.
    immediate_writes: u8,
}

const WAITS_WITHOUT_GAIN_MAX: u8 = 4;
const IMMEDIATE_WRITES: u8 = 16;

impl WriteDelay {
    /// Whether a write of this many bytes may be made now; otherwise the task is woken again.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<()> {
        match self.bytes_before.take() {
            Some(before) if bytes == before && self.without_gain + 1 >= WAITS_WITHOUT_GAIN_MAX => {
                self.immediate_writes = IMMEDIATE_WRITES;
            }
            Some(before) if bytes == before => self.without_gain += 1,
            Some(_) => self.without_gain = 0,
            None if self.immediate_writes > 0 => self.immediate_writes -= 1,
            None => {
                self.bytes_before = Some(bytes);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Whether each of these writes, by its bytes, may be made.
    fn writes(bytes: &[usize]) -> Vec<bool> {
        let (mut delay, mut context) = (WriteDelay::default(), Context::from_waker(Waker::noop()));
        bytes.iter().map(|bytes| delay.poll(&mut context, *bytes).is_ready()).collect()
    }

    #[test]
    fn write_waits_for_one_turn_while_that_brings_more_answers() {
        assert_eq!(writes(&[10, 30, 20, 25]), [false, true, false, true]);
    }

    #[test]
    fn writes_do_not_wait_for_some_time_after_waits_without_gain() {
        let (waits, free) = (usize::from(WAITS_WITHOUT_GAIN_MAX), usize::from(IMMEDIATE_WRITES));
        let mut expected = [false, true].repeat(waits);
        expected.extend(vec![true; free]);
        // Then one wait decides.
        expected.extend([false, true, true]);
        assert_eq!(writes(&vec![10; expected.len()]), expected);
    }
}
