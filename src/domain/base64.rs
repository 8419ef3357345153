//! Whole numbers in few characters: to base 64, with the ASCII characters from `0` (48) to `o` (111) as digits. None of
//! them is a space or a control character. `base64` in `lua/fence.lua` writes the same. (It is not the base64 of RFC
//! 4648, which encodes bytes.)

/// The digits of the most that [`from_base64`] reads: 60 bits.
const DIGITS_MAX: usize = 10;
const BITS: u32 = 6;
const ZERO: u8 = b'0';

/// The last `width` digits of a number, at most ten.
pub(super) fn to_base64(number: u64, width: u32) -> String {
    let digit = |at: u32| ZERO + ((number >> (at * BITS)).to_le_bytes()[0] & 63);
    (0..width).rev().map(|at| char::from(digit(at))).collect()
}

/// The number of a text of digits.
pub(super) fn from_base64(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > DIGITS_MAX {
        return None;
    }
    text.bytes().try_fold(0, |number, byte| {
        let digit = byte.checked_sub(ZERO).filter(|digit| *digit < 64)?;
        Some(number << BITS | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_read_from_its_own_text() {
        for number in [0, 1, 63, 64, 1_700_000_000_000, (1 << 54) - 1, (1 << 60) - 1] {
            assert_eq!(from_base64(&to_base64(number, 10)), Some(number));
        }
        assert_eq!(to_base64(1_700_000_000_000, 7), "H_?iFP0");
    }

    #[test]
    fn other_text_is_refused() {
        for bad in ["", "/", "p", "é", " 1", "00000000000"] {
            assert_eq!(from_base64(bad), None, "{bad}");
        }
    }
}
