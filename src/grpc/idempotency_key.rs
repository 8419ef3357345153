//! The header `Idempotency-Key` (gRPC metadata `idempotency-key`): a request id that proxies and HTTP clients can set
//! without changing the message.

use std::borrow::Cow;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use super::{convert, error::ApiError};
use crate::domain::{RequestId, ReserveRequest};

const HEADER: &str = "idempotency-key";

/// A field and what is wrong with it.
pub(super) type Problem = (&'static str, String);

/// The request id of a call: the field, or the header where the field is empty. The header is refused if it is not a request id,
/// or differs from the field or between its values.
pub(super) fn request_id<'a>(
    metadata: &MetadataMap,
    field: &'a str,
) -> Result<Cow<'a, str>, Problem> {
    let mut keys = metadata.get_all(HEADER).iter().map(key);
    let Some(first) = keys.next() else { return Ok(Cow::Borrowed(field)) };
    let first = first?;
    for other in keys {
        if other? != first {
            return Err((HEADER, "was sent more than once, with different values".to_owned()));
        }
    }
    match field {
        "" => Ok(Cow::Owned(first)),
        field if field == first => Ok(Cow::Borrowed(field)),
        _ => Err((
            "request_id",
            "differs from the idempotency-key header: send one of them, or the same in both"
                .to_owned(),
        )),
    }
}

/// Parses the fields of a reservation; the error names every wrong field.
pub(super) fn reserve(
    metadata: &MetadataMap,
    product: &str,
    user: &str,
    field: &str,
) -> Result<ReserveRequest, ApiError> {
    let (name, problem) = match request_id(metadata, field) {
        Ok(id) => return convert::reserve(product, user, &id),
        Err(problem) => problem,
    };
    let mut problems =
        convert::reserve(product, user, "").err().map_or_else(Vec::new, |error| error.fields);
    problems.push((name.to_owned(), problem));
    Err(ApiError::bad_fields(problems))
}

/// The key in one value of the header. The draft of the IETF defines it as a quoted string, and most clients send it without
/// quotation marks: both forms are the same key.
fn key(value: &MetadataValue<Ascii>) -> Result<String, Problem> {
    let refuse = |problem: String| (HEADER, problem);
    let text = value.to_str().map_err(|_| refuse("must be printable ASCII".to_owned()))?;
    let text = text.trim_matches([' ', '\t']);
    let key = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(rest) => unquoted(rest).ok_or_else(|| {
            refuse("begins with a quotation mark but is not a quoted string".into())
        })?,
    };
    match key.parse::<RequestId>() {
        Ok(_) => Ok(key),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// A string of RFC 8941 after its first quotation mark: a backslash escapes `"` and `\` only.
fn unquoted(rest: &str) -> Option<String> {
    let mut key = String::with_capacity(rest.len());
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(key),
            '\\' => key.push(characters.next().filter(|c| ['"', '\\'].contains(c))?),
            other => key.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: &[&[u8]]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for header in headers {
            metadata.append(HEADER, MetadataValue::try_from(*header).unwrap());
        }
        metadata
    }

    #[test]
    fn the_header_is_the_request_id_where_the_field_is_empty() {
        assert_eq!(request_id(&with(&[]), "r").unwrap(), "r");
        assert_eq!(request_id(&with(&[]), "").unwrap(), "");
        for same in ["order-1", "\"order-1\"", " order-1 ", "\t\"order-1\""] {
            assert_eq!(request_id(&with(&[same.as_bytes()]), "").unwrap(), "order-1", "{same}");
            assert_eq!(request_id(&with(&[same.as_bytes()]), "order-1").unwrap(), "order-1");
        }
        assert_eq!(request_id(&with(&[b"a", b"\"a\""]), "").unwrap(), "a", "the same value twice");
    }

    #[test]
    fn a_header_that_is_not_a_request_id_is_refused_by_its_name() {
        let long = "x".repeat(1000);
        let wrong: [&[u8]; 11] = [
            b"",
            b"  ",
            b"\"\"",
            b"\"a",
            b"\"a\"b",
            b"\"a\";p=1",
            b"\"a\\b\"",
            b"a b",
            "schl\u{fc}ssel".as_bytes(),
            &[0xff],
            long.as_bytes(),
        ];
        for wrong in wrong {
            assert_eq!(request_id(&with(&[wrong]), "").unwrap_err().0, HEADER, "{wrong:?}");
        }
        assert_eq!(request_id(&with(&[b"a", b"b"]), "").unwrap_err().0, HEADER);
    }

    #[test]
    fn a_header_and_a_field_that_differ_are_refused_together_with_other_wrong_fields() {
        assert_eq!(request_id(&with(&[b"a"]), "b").unwrap_err().0, "request_id");
        let fields = reserve(&with(&[b"a b"]), "", "ann", "").unwrap_err().fields;
        let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["product_id", HEADER]);
    }

    #[test]
    fn a_backslash_keeps_a_quotation_mark_inside() {
        assert_eq!(unquoted(r#"a\"b\\c""#).unwrap(), r#"a"b\c"#);
        assert_eq!(unquoted(r#"a\"#), None);
    }
}
