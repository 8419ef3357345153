//! Ids joined to the name of a hash's field: `user/product` and `user/product/request`.
//!
//! Ids may hold `/`. So `%` and `/` in a part are written as `%25` and `%2F`, and different ids never give the same
//! field. Scripts that build fields do the same: `field_part` in `lua/fence.lua`.

use std::borrow::Cow;

/// Joins ids.
pub fn join_field(parts: &[&str]) -> String {
    parts.iter().copied().map(escape).collect::<Vec<_>>().join("/")
}

/// The ids that were joined.
pub fn split_field(field: &str) -> Vec<String> {
    // In this order, because `%2F` in an id is written as `%252F`.
    field.split('/').map(|part| part.replace("%2F", "/").replace("%25", "%")).collect()
}

/// Whether an id is written with escapes.
pub(super) fn needs_escape(part: &str) -> bool {
    part.contains(['%', '/'])
}

fn escape(part: &str) -> Cow<'_, str> {
    if needs_escape(part) {
        part.replace('%', "%25").replace('/', "%2F").into()
    } else {
        part.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_without_separators_are_joined_unchanged() {
        assert_eq!(join_field(&["ann", "shoe", "r:1"]), "ann/shoe/r:1");
        assert_eq!(join_field(&["a/b", "c", "100%"]), "a%2Fb/c/100%25");
    }

    proptest! {
        #[test]
        fn different_ids_give_different_fields(
            ids in prop::collection::vec("[a2F5%/]{1,5}", 3),
            others in prop::collection::vec("[a2F5%/]{1,5}", 3),
        ) {
            let join = |ids: &[String]| join_field(&ids.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert_eq!(&split_field(&join(&ids)), &ids);
            prop_assert_eq!(join(&ids) == join(&others), ids == others);
        }
    }
}
