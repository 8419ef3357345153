//! A price: decimal text in, exact to four decimals, never a float on the way.

use std::fmt;

use iso_currency::Currency;

const SCALE: i64 = 10_000;

/// What one unit costs, exact to four decimals.
///
/// An amount is 0 to 922,337,203,685,477 of a currency of ISO 4217, with as many decimals as the currency has. It is
/// kept as a whole number of ten-thousandths, so it is never rounded.
///
/// ```
/// use yoink::domain::{Price, PriceError};
///
/// let price = Price::parse("199.99", "EUR")?;
/// assert_eq!((price.units(), price.nanos(), price.currency()), (199, 990_000_000, "EUR"));
/// assert_eq!(Price::from_money(199, 990_000_000, "EUR")?, price);
/// assert_eq!(price.to_string(), "199.9900");
///
/// let error = PriceError::TooManyDecimals { currency: "JPY", decimals: 0 };
/// assert_eq!(Price::parse("0.5", "JPY"), Err(error));
/// # Ok::<(), PriceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    ten_thousandths: i64,
    currency: [u8; 3],
}

/// Why a value is not a valid price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe them")]
pub enum PriceError {
    #[error(
        "is not an amount: write digits, and decimals after a point, such as 19.99 (no sign, no exponent)"
    )]
    NotAnAmount,
    #[error("has a minus sign: an amount is 0 or more")]
    Negative,
    #[error("is too large: the largest amount is 922337203685477")]
    TooLarge,
    /// Not in ISO 4217, or no currency to pay with, such as gold.
    #[error("has an unknown currency: write an ISO 4217 code in capital letters, such as EUR")]
    UnknownCurrency,
    #[error("has more decimals than {currency} has ({decimals})")]
    TooManyDecimals { currency: &'static str, decimals: u16 },
}

impl Price {
    /// From a decimal amount such as `199.99` and a currency code. Zeros at the end of the decimals do not count:
    /// `1.50000 EUR` is 1.50.
    pub fn parse(amount: &str, currency: &str) -> Result<Self, PriceError> {
        let amount = ten_thousandths(amount)?;
        let currency = code(currency)?;
        let ten_thousandths = amount.ok_or(known(currency).map(too_many_decimals)?)?;
        Self { ten_thousandths, currency }.checked()
    }

    /// From units and billionths of a unit, as `google.type.Money` has them.
    pub fn from_money(units: i64, nanos: i32, currency: &str) -> Result<Self, PriceError> {
        if units < 0 || nanos < 0 {
            return Err(PriceError::Negative);
        }
        if nanos > 999_999_999 {
            return Err(PriceError::NotAnAmount);
        }
        let currency = code(currency)?;
        if nanos % 100_000 != 0 {
            return Err(too_many_decimals(known(currency)?));
        }
        let fraction = i64::from(nanos / 100_000);
        let ten_thousandths = units.checked_mul(SCALE).and_then(|n| n.checked_add(fraction));
        Self { ten_thousandths: ten_thousandths.ok_or(PriceError::TooLarge)?, currency }.checked()
    }

    /// From a row of the ledger. What an earlier version accepted is read as it is: a currency that has been replaced
    /// since, or more decimals than it has.
    pub fn stored(amount: &str, currency: &str) -> Result<Self, PriceError> {
        let ten_thousandths = ten_thousandths(amount)?.ok_or(PriceError::NotAnAmount)?;
        Ok(Self { ten_thousandths, currency: code(currency)? })
    }

    fn checked(self) -> Result<Self, PriceError> {
        let (currency, decimals) = known(self.currency)?;
        let smallest = 10_i64.pow(4_u32.saturating_sub(u32::from(decimals)));
        if self.ten_thousandths % smallest == 0 {
            Ok(self)
        } else {
            Err(too_many_decimals((currency, decimals)))
        }
    }

    /// Whole units of the currency.
    pub fn units(&self) -> i64 {
        self.ten_thousandths / SCALE
    }

    /// The fraction of a unit, in billionths of a unit.
    pub fn nanos(&self) -> i32 {
        i32::try_from(self.ten_thousandths % SCALE * 100_000).unwrap_or(0)
    }

    /// The ISO 4217 code.
    pub fn currency(&self) -> &str {
        debug_assert!(self.currency.is_ascii());
        std::str::from_utf8(&self.currency).unwrap_or("XXX")
    }

    /// As a float, for the storefront API only.
    #[expect(clippy::cast_precision_loss, reason = "the storefront API has a JSON number")]
    pub fn as_f64(&self) -> f64 {
        self.ten_thousandths as f64 / 10_000.0
    }
}

/// The amount; `None` where more than four decimals count.
fn ten_thousandths(amount: &str) -> Result<Option<i64>, PriceError> {
    if amount.starts_with('-') {
        return Err(PriceError::Negative);
    }
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let decimals = fraction.trim_end_matches('0');
    if !digits(whole) || !digits(fraction) {
        return Err(PriceError::NotAnAmount);
    }
    if decimals.len() > 4 {
        return Ok(None);
    }
    let whole: i64 = whole.parse().map_err(|_| PriceError::TooLarge)?;
    let fraction: i64 = format!("{decimals:0<4}").parse().map_err(|_| PriceError::NotAnAmount)?;
    let sum = whole.checked_mul(SCALE).and_then(|n| n.checked_add(fraction));
    sum.map(Some).ok_or(PriceError::TooLarge)
}

fn code(currency: &str) -> Result<[u8; 3], PriceError> {
    match currency.as_bytes() {
        &[a, b, c] if [a, b, c].iter().all(u8::is_ascii_uppercase) => Ok([a, b, c]),
        _ => Err(PriceError::UnknownCurrency),
    }
}

/// A currency, and its decimals. Gold, "no currency" and the like have none.
fn known(code: [u8; 3]) -> Result<(&'static str, u16), PriceError> {
    let currency = std::str::from_utf8(&code).ok().and_then(Currency::from_code);
    currency
        .and_then(|currency| Some((currency.code(), currency.exponent()?)))
        .ok_or(PriceError::UnknownCurrency)
}

fn too_many_decimals((currency, decimals): (&'static str, u16)) -> PriceError {
    PriceError::TooManyDecimals { currency, decimals }
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
        for (amount, currency, shown) in [
            ("199.99", "EUR", "199.9900"),
            ("0", "EUR", "0.0000"),
            ("1.0001", "CLF", "1.0001"),
            ("2.50000", "EUR", "2.5000"),
            ("1.50000", "EUR", "1.5000"),
            ("1234567890123.4567", "UYW", "1234567890123.4567"),
            ("1234567890123.4567", "CLF", "1234567890123.4567"),
            ("1.234", "KWD", "1.2340"),
            ("100.00", "JPY", "100.0000"),
            ("007", "JPY", "7.0000"),
        ] {
            assert_eq!(Price::parse(amount, currency).unwrap().to_string(), shown);
        }
        let price = Price::parse("199.99", "EUR").unwrap();
        assert_eq!((price.units(), price.nanos()), (199, 990_000_000));
        assert_eq!(Price::from_money(199, 990_000_000, "EUR").unwrap(), price);
        let large = Price::from_money(1_234_567_890_123, 456_700_000, "CLF").unwrap();
        assert_eq!(large, Price::parse("1234567890123.4567", "CLF").unwrap());
    }

    #[test]
    fn text_that_is_not_a_price_is_refused() {
        for bad in [
            "", ".", ".5", "5.", "x", "1,5", "1e3", "+5", "+1", " 1", "1 ", "1.2.3", "1_0",
            "\u{661}",
        ] {
            assert_eq!(Price::parse(bad, "EUR"), Err(PriceError::NotAnAmount), "{bad}");
        }
        for bad in ["-0", "-1", "-0.00"] {
            assert_eq!(Price::parse(bad, "EUR"), Err(PriceError::Negative), "{bad}");
        }
        assert_eq!(Price::parse("99999999999999999", "EUR"), Err(PriceError::TooLarge));
        assert!(Price::from_money(-1, 0, "EUR").is_err());
        assert!(Price::from_money(1, -1, "EUR").is_err());
        assert!(Price::from_money(1, 1_000_000_000, "EUR").is_err());
        assert!(Price::from_money(i64::MAX, 0, "EUR").is_err());
    }

    #[test]
    fn a_currency_that_does_not_exist_is_refused() {
        for bad in ["", "eur", "EURO", "E1R", "ABC", "DEM", "XXX", "XTS", "XAU", "EU "] {
            assert_eq!(Price::parse("1", bad), Err(PriceError::UnknownCurrency), "{bad}");
            assert_eq!(Price::from_money(1, 0, bad), Err(PriceError::UnknownCurrency), "{bad}");
        }
        let error = Price::parse("1", "XAU").unwrap_err();
        assert_eq!(
            format!("price {error}"),
            "price has an unknown currency: write an ISO 4217 code in capital letters, such as EUR"
        );
    }

    #[test]
    fn more_decimals_than_the_currency_has_are_refused() {
        for (amount, nanos, currency, decimals) in [
            ("1.5", 500_000_000, "JPY", 0),
            ("1.001", 1_000_000, "EUR", 2),
            ("1.0001", 100_000, "KWD", 3),
            ("1.00001", 10_000, "CLF", 4),
            ("1.000000001", 1, "EUR", 2),
        ] {
            let error = Err(PriceError::TooManyDecimals { currency, decimals });
            assert_eq!(Price::parse(amount, currency), error, "{amount}");
            assert_eq!(Price::from_money(1, nanos, currency), error, "{amount}");
        }
        let error = Price::parse("1.5", "JPY").unwrap_err();
        assert_eq!(error.to_string(), "has more decimals than JPY has (0)");
    }

    #[test]
    fn what_an_earlier_version_stored_is_read() {
        for (amount, currency) in [("1.0001", "EUR"), ("1.5000", "JPY"), ("2.0000", "ABC")] {
            let price = Price::stored(amount, currency).unwrap();
            assert_eq!((price.to_string().as_str(), price.currency()), (amount, currency));
        }
        assert!(Price::stored("NaN", "EUR").is_err());
    }
}
