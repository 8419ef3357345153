//! A price: exact to four decimals, never a float.

use std::fmt;

const SCALE: i64 = 10_000;

/// What one unit costs, exact to four decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    ten_thousandths: i64,
    currency: [u8; 3],
}

/// Why something is no price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// Not digits with at most four decimals.
    #[error("is not an amount with at most four decimals")]
    NotAnAmount,
    /// Below zero.
    #[error("is below zero")]
    Negative,
    /// Above 922,337,203,685,477.
    #[error("is too large")]
    TooLarge,
    /// Not three capital letters.
    #[error("has no ISO 4217 currency code (three capital letters)")]
    BadCurrency,
}

impl Price {
    /// From a decimal amount such as `199.99` and a currency code.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with either.
    pub fn parse(amount: &str, currency: &str) -> Result<Self, PriceError> {
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, "0"));
        if whole.starts_with('-') {
            return Err(PriceError::Negative);
        }
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let decimals = fraction.trim_end_matches('0');
        if !digits(whole) || !digits(fraction) || decimals.len() > 4 {
            return Err(PriceError::NotAnAmount);
        }
        let whole: i64 = whole.parse().map_err(|_| PriceError::TooLarge)?;
        let fraction: i64 =
            format!("{decimals:0<4}").parse().map_err(|_| PriceError::NotAnAmount)?;
        let ten_thousandths = whole.checked_mul(SCALE).and_then(|n| n.checked_add(fraction));
        Self::new(ten_thousandths.ok_or(PriceError::TooLarge)?, currency)
    }

    /// From units and billionths of a unit, as `google.type.Money` has them.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with them, also more than four decimals.
    pub fn from_money(units: i64, nanos: i32, currency: &str) -> Result<Self, PriceError> {
        if units < 0 || nanos < 0 {
            return Err(PriceError::Negative);
        }
        if nanos % 100_000 != 0 || nanos > 999_900_000 {
            return Err(PriceError::NotAnAmount);
        }
        let fraction = i64::from(nanos / 100_000);
        let ten_thousandths = units.checked_mul(SCALE).and_then(|n| n.checked_add(fraction));
        Self::new(ten_thousandths.ok_or(PriceError::TooLarge)?, currency)
    }

    fn new(ten_thousandths: i64, currency: &str) -> Result<Self, PriceError> {
        match currency.as_bytes() {
            &[a, b, c] if [a, b, c].iter().all(u8::is_ascii_uppercase) => {
                Ok(Self { ten_thousandths, currency: [a, b, c] })
            }
            _ => Err(PriceError::BadCurrency),
        }
    }

    /// Whole units of the currency.
    pub fn units(&self) -> i64 {
        self.ten_thousandths / SCALE
    }

    /// What is beyond whole units, in billionths of a unit.
    pub fn nanos(&self) -> i32 {
        i32::try_from(self.ten_thousandths % SCALE * 100_000).unwrap_or(0)
    }

    /// The ISO 4217 code.
    pub fn currency(&self) -> &str {
        std::str::from_utf8(&self.currency).unwrap_or("XXX")
    }

    /// As a float, for clients of the original only.
    #[expect(clippy::cast_precision_loss, reason = "the original's contract is a JSON number")]
    pub fn as_f64(&self) -> f64 {
        self.ten_thousandths as f64 / 10_000.0
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.ten_thousandths / SCALE, self.ten_thousandths % SCALE);
        write!(f, "{whole}.{fraction:04}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_exact() {
        for (amount, shown) in
            [("199.99", "199.9900"), ("0", "0.0000"), ("1.0001", "1.0001"), ("2.50000", "2.5000")]
        {
            assert_eq!(Price::parse(amount, "EUR").unwrap().to_string(), shown);
        }
        let price = Price::parse("199.99", "EUR").unwrap();
        assert_eq!((price.units(), price.nanos()), (199, 990_000_000));
        assert_eq!(Price::from_money(199, 990_000_000, "EUR").unwrap(), price);
    }

    #[test]
    fn what_is_no_price_is_refused() {
        for bad in ["", ".", "1.", "x", "1.00001", "1,5", "1e3", "+1", " 1", "1.2.3"] {
            assert!(Price::parse(bad, "EUR").is_err(), "{bad}");
        }
        assert_eq!(Price::parse("-1", "EUR"), Err(PriceError::Negative));
        assert_eq!(Price::parse("99999999999999999", "EUR"), Err(PriceError::TooLarge));
        for bad in ["", "eur", "EURO", "E1R"] {
            assert_eq!(Price::parse("1", bad), Err(PriceError::BadCurrency));
        }
        assert!(Price::from_money(1, 1, "EUR").is_err());
        assert!(Price::from_money(-1, 0, "EUR").is_err());
        assert!(Price::from_money(i64::MAX, 0, "EUR").is_err());
    }
}
