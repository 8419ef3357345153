//! Properties of the traces that callers name, and that entries carry.

use std::collections::HashMap;

use opentelemetry::{propagation::TextMapPropagator as _, trace::TraceContextExt as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use proptest::prelude::*;

use super::traces::{read, trace_id};
use crate::mutated::mutated_text;

const PARENTS: &[&str] = &[
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    "00-00000000000000000000000000000000-0000000000000000-01",
    "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes-later",
    "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
];

proptest! {
    #[test]
    fn traceparent_of_any_text_is_written_as_it_is_read_or_starts_a_new_trace(
        text in mutated_text(PARENTS),
    ) {
        let _shown = trace_id(&text);
        let context = read(&text);
        let found = context.span().span_context().clone();
        if found.is_valid() {
            // The library reads an id that is too short as a number.
            let parts: Vec<&str> = text.trim().split('-').collect();
            let trace = u128::from_str_radix(parts[1], 16).map(u128::to_be_bytes);
            let span = u64::from_str_radix(parts[2], 16).map(u64::to_be_bytes);
            prop_assert_eq!(trace, Ok(found.trace_id().to_bytes()));
            prop_assert_eq!(span, Ok(found.span_id().to_bytes()));
            let mut carrier = HashMap::new();
            TraceContextPropagator::new().inject_context(&context, &mut carrier);
            let again = read(&carrier["traceparent"]);
            let again = again.span().span_context().clone();
            prop_assert_eq!(
                (again.trace_id(), again.span_id(), again.is_sampled()),
                (found.trace_id(), found.span_id(), found.is_sampled())
            );
        }
    }
}
