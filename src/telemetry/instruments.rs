//! How instruments are made: one line each, with a description and, where it is a time, buckets in seconds.
//!
//! Names have dots, as OpenTelemetry writes them; the Prometheus exporter turns them into underscores and
//! appends the unit and, to counters, `_total`.

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

/// Seconds, from 0.2 ms to 10 s.
pub(super) const SECONDS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

pub(super) fn counter(meter: &Meter, name: &'static str, what: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_description(what).build()
}

pub(super) fn gauge(meter: &Meter, name: &'static str, what: &'static str) -> Gauge<u64> {
    meter.u64_gauge(name).with_description(what).build()
}

pub(super) fn seconds(
    meter: &Meter,
    name: &'static str,
    what: &'static str,
    bounds: &[f64],
) -> Histogram<f64> {
    let histogram = meter.f64_histogram(name).with_description(what).with_unit("s");
    histogram.with_boundaries(bounds.to_vec()).build()
}

pub(super) fn sizes(meter: &Meter, name: &'static str, what: &'static str) -> Histogram<u64> {
    let histogram = meter.u64_histogram(name).with_description(what);
    histogram.with_boundaries(SIZES.to_vec()).build()
}
