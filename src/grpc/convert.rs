//! Conversions between the messages of the API and the types of the domain.

use std::str::FromStr;

use prost_types::Timestamp;

use super::{
    error::ApiError,
    pb::{self, google::r#type::Money},
};
use crate::{
    catalogue::ProductWithStock,
    domain::{
        Ack, Lost, NewProduct, OperatorText, Price, ProductStatus, Reservation, ReservationState,
        ReserveRequest, Sale, TimeError, ms_from_unix,
    },
    ledger::SaleChange,
};

/// Collects every bad field of a request.
#[derive(Default)]
pub(super) struct Fields {
    problems: Vec<(String, String)>,
}

impl Fields {
    pub(super) fn parse<T: FromStr>(&mut self, name: &str, text: &str) -> Option<T>
    where
        T::Err: ToString,
    {
        self.keep(name, text.parse::<T>())
    }

    pub(super) fn keep<T, E: ToString>(&mut self, name: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.problems.push((name.to_owned(), error.to_string()))).ok()
    }

    pub(super) fn refuse(&mut self, name: &str, problem: &str) {
        self.problems.push((name.to_owned(), problem.to_owned()));
    }

    /// The value, if no field was refused.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, ApiError> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            Some(_) | None => Err(ApiError::bad_fields(self.problems)),
        }
    }
}

const PAGE_SIZE_DEFAULT: usize = 50;
const PAGE_SIZE_MAX: usize = 500;

/// The size of a page: 0 means the default, and more than the maximum means the maximum.
pub(super) fn page_size(requested: i32) -> Result<usize, ApiError> {
    match usize::try_from(requested) {
        Ok(0) => Ok(PAGE_SIZE_DEFAULT),
        Ok(size) => Ok(size.min(PAGE_SIZE_MAX)),
        Err(_) => Err(ApiError::bad_field("page_size", "must not be negative")),
    }
}

/// Actor and reason, for the record.
pub(super) fn actor_and_reason(
    fields: &mut Fields,
    actor: &str,
    reason: &str,
) -> Option<(String, String)> {
    let actor = fields.parse::<OperatorText>("actor", actor);
    let reason = fields.parse::<OperatorText>("reason", reason);
    Some((actor?.or("operator"), reason?.to_string()))
}

pub(super) fn reserve(
    product: &str,
    user: &str,
    request: &str,
) -> Result<ReserveRequest, ApiError> {
    let mut fields = Fields::default();
    let product = fields.parse("product_id", product);
    let user = fields.parse("user_id", user);
    let request = match request {
        "" => Some(None),
        text => fields.parse("request_id", text).map(Some),
    };
    let whole = product.zip(user).zip(request);
    fields.finish(whole.map(|((product, user), request)| ReserveRequest {
        product,
        user,
        request,
        traceparent: None,
    }))
}

/// The `ack` of a request; `None` if it leaves the choice to the setting.
pub(super) fn ack(value: i32) -> Result<Option<Ack>, ApiError> {
    match pb::Ack::try_from(value) {
        Ok(pb::Ack::Unspecified) => Ok(None),
        Ok(pb::Ack::Memory) => Ok(Some(Ack::Memory)),
        Ok(pb::Ack::Disk) => Ok(Some(Ack::Disk)),
        Ok(pb::Ack::Replica) => Ok(Some(Ack::Replica)),
        Ok(pb::Ack::Ledger) => Ok(Some(Ack::Ledger)),
        Err(_) => Err(ApiError::bad_field("ack", "is not a value of Ack")),
    }
}

fn milliseconds(at: Option<Timestamp>) -> Result<Option<i64>, TimeError> {
    at.map(|at| ms_from_unix(at.seconds, at.nanos)).transpose()
}

pub(super) fn timestamp(ms: i64) -> Timestamp {
    let nanos = i32::try_from(ms.rem_euclid(1000) * 1_000_000).unwrap_or(0);
    Timestamp { seconds: ms.div_euclid(1000), nanos }
}

fn price(money: Option<Money>) -> Result<Price, String> {
    let money = money.ok_or("is missing")?;
    Price::from_money(money.units, money.nanos, &money.currency_code).map_err(|e| e.to_string())
}

fn status(value: i32, unspecified: ProductStatus) -> Result<ProductStatus, &'static str> {
    match pb::ProductStatus::try_from(value) {
        Ok(pb::ProductStatus::Unspecified) => Ok(unspecified),
        Ok(pb::ProductStatus::OnSale) => Ok(ProductStatus::OnSale),
        Ok(pb::ProductStatus::Stopped) => Ok(ProductStatus::Stopped),
        Ok(pb::ProductStatus::Retired) => Ok(ProductStatus::Retired),
        Err(_) => Err("is not a value of ProductStatus"),
    }
}

fn limit(value: i32) -> Result<Option<u32>, &'static str> {
    match u32::try_from(value) {
        Ok(0) => Ok(None),
        Ok(limit) => Ok(Some(limit)),
        Err(_) => Err("must not be negative"),
    }
}

pub(super) fn new_products(messages: Vec<pb::NewProduct>) -> Result<Vec<NewProduct>, ApiError> {
    if messages.is_empty() || messages.len() > 1000 {
        return Err(ApiError::bad_field("products", "must have 1 to 1000 elements"));
    }
    let mut fields = Fields::default();
    let parsed =
        messages.into_iter().enumerate().map(|(at, message)| new_product(&mut fields, at, message));
    let products: Vec<Option<NewProduct>> = parsed.collect();
    let mut ids: Vec<_> = products.iter().flatten().map(|product| &product.id).collect();
    ids.sort();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        fields.refuse("products", "has a product twice");
    }
    fields.finish(products.into_iter().collect())
}

fn new_product(fields: &mut Fields, at: usize, message: pb::NewProduct) -> Option<NewProduct> {
    let name = |field: &str| format!("products[{at}].{field}");
    let id = fields.parse(&name("product_id"), &message.product_id);
    let price = fields.keep(&name("price"), price(message.price));
    let opens = fields.keep(&name("opens_at"), milliseconds(message.opens_at));
    let closes = fields.keep(&name("closes_at"), milliseconds(message.closes_at));
    let limit = fields.keep(&name("per_user_limit"), limit(message.per_user_limit));
    let status = fields.keep(&name("status"), status(message.status, ProductStatus::OnSale));
    let sale = Sale {
        name: message.name,
        price: price?,
        opens_at_ms: opens?,
        closes_at_ms: closes?,
        per_user_limit: limit?,
        status: status?,
    };
    let product = NewProduct { id: id?, sale, units: message.units };
    fields.keep(&format!("products[{at}]"), product.check()).map(|()| product)
}

/// The fields to set: those of the mask, or without a mask every field that has a value.
pub(super) fn sale_change(message: pb::UpdateProductRequest) -> Result<SaleChange, ApiError> {
    let mut fields = Fields::default();
    let paths = match message.update_mask {
        Some(mask) if !mask.paths.is_empty() => mask.paths,
        Some(_) | None => [
            ("name", !message.name.is_empty()),
            ("price", message.price.is_some()),
            ("opens_at", message.opens_at.is_some()),
            ("closes_at", message.closes_at.is_some()),
            ("per_user_limit", message.per_user_limit != 0),
            ("status", message.status != 0),
        ]
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(path, _)| path.to_owned())
        .collect(),
    };
    if paths.is_empty() {
        fields.refuse("update_mask", "names no field to change");
    }
    let mut change = SaleChange::default();
    for path in &paths {
        match path.as_str() {
            "name" => change.name = Some(message.name.clone()),
            "price" => change.price = fields.keep(path, price(message.price.clone())),
            "opens_at" => change.opens_at_ms = fields.keep(path, milliseconds(message.opens_at)),
            "closes_at" => change.closes_at_ms = fields.keep(path, milliseconds(message.closes_at)),
            "per_user_limit" => {
                change.per_user_limit = fields.keep(path, limit(message.per_user_limit));
            }
            "status" if message.status == 0 => fields.refuse(path, "must not be unspecified"),
            "status" => {
                change.status = fields.keep(path, status(message.status, ProductStatus::OnSale));
            }
            _ => fields.refuse("update_mask", "has a field that cannot be changed"),
        }
    }
    fields.finish(Some(change))
}

pub(super) fn product(listed: ProductWithStock) -> pb::Product {
    let sale = &listed.product.sale;
    let status = match sale.status {
        ProductStatus::OnSale => pb::ProductStatus::OnSale,
        ProductStatus::Stopped => pb::ProductStatus::Stopped,
        ProductStatus::Retired => pb::ProductStatus::Retired,
    };
    pb::Product {
        product_id: listed.product.id.to_string(),
        name: sale.name.clone(),
        price: Some(Money {
            currency_code: sale.price.currency().to_owned(),
            units: sale.price.units(),
            nanos: sale.price.nanos(),
        }),
        stock: listed.stock,
        opens_at: sale.opens_at_ms.map(timestamp),
        closes_at: sale.closes_at_ms.map(timestamp),
        per_user_limit: sale.per_user_limit.map_or(0, |limit| {
            debug_assert!(i32::try_from(limit).is_ok(), "the ledger's column is an int4: {limit}");
            i32::try_from(limit).unwrap_or(i32::MAX)
        }),
        status: status.into(),
    }
}

pub(super) fn reservation(reservation: Reservation) -> pb::Reservation {
    let (state, recorded_at_ms, void_reason) = match reservation.state {
        ReservationState::Accepted => (pb::ReservationState::Accepted, None, String::new()),
        ReservationState::Confirmed { recorded_at_ms } => {
            (pb::ReservationState::Confirmed, Some(recorded_at_ms), String::new())
        }
        ReservationState::Voided { recorded_at_ms, reason } => {
            (pb::ReservationState::Voided, Some(recorded_at_ms), reason)
        }
    };
    let (product_id, user_id) = reservation
        .product_and_user
        .map(|(product, user)| (product.to_string(), user.to_string()))
        .unwrap_or_default();
    pb::Reservation {
        reservation_id: reservation.id.to_string(),
        state: state.into(),
        product_id,
        user_id,
        request_id: reservation.request.map(|id| id.to_string()).unwrap_or_default(),
        reserved_at: Some(timestamp(reservation.reserved_at_ms)),
        recorded_at: recorded_at_ms.map(timestamp),
        void_reason,
    }
}

/// What an epoch lost.
pub(super) fn lost(lost: &Lost) -> pb::LostReservations {
    pb::LostReservations {
        partition: lost.partition.number().into(),
        epoch: lost.epoch.0,
        count: i64::try_from(lost.count).unwrap_or(i64::MAX),
        exact: lost.exact,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_every_bad_field() {
        let fields = reserve("", "a b", "x y").unwrap_err().fields;
        let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["product_id", "user_id", "request_id"]);
        assert!(reserve("shoe", "ann", "").unwrap().request.is_none());
    }

    #[test]
    fn times_outside_1970_to_9999_are_refused() {
        for (seconds, nanos) in [(-1, 0), (253_402_300_800, 0), (0, -1), (0, 1_000_000_000)] {
            assert!(milliseconds(Some(Timestamp { seconds, nanos })).is_err());
        }
        let at = Timestamp { seconds: 12, nanos: 345_000_000 };
        assert_eq!(milliseconds(Some(at)).unwrap().map(timestamp), Some(at));
    }

    #[test]
    fn page_size_is_capped_at_500_and_refused_below_zero() {
        assert_eq!(page_size(0).unwrap(), 50);
        assert_eq!(page_size(500).unwrap(), 500);
        assert!(page_size(-1).is_err());
        assert!(page_size(i32::MIN).is_err());
        assert_eq!(page_size(501).unwrap(), 500);
        assert_eq!(page_size(i32::MAX).unwrap(), 500);
    }

    #[test]
    fn update_without_a_mask_sets_the_fields_that_have_values() {
        let status = pb::ProductStatus::Stopped.into();
        let message = pb::UpdateProductRequest { status, ..Default::default() };
        let change = sale_change(message).unwrap();
        assert_eq!(
            change,
            SaleChange { status: Some(ProductStatus::Stopped), ..Default::default() }
        );
        assert!(sale_change(pb::UpdateProductRequest::default()).is_err());
        let mask = Some(prost_types::FieldMask { paths: vec!["closes_at".into()] });
        let message = pb::UpdateProductRequest { update_mask: mask, ..Default::default() };
        assert_eq!(sale_change(message).unwrap().closes_at_ms, Some(None), "cleared");
    }
}
