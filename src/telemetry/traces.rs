//! Spans for an OpenTelemetry collector. A call, its decision in Redis, and the commit of its order, which another
//! process may make, are one trace.
//!
//! Must never: carry the id of a buyer; cost a measurable time while no collector is set.

use std::{collections::HashMap, time::Duration};

use opentelemetry::{
    Context,
    propagation::TextMapPropagator as _,
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{
    collector::{Collector, resource},
    metrics::is_server_error,
};
use crate::config::Config;

/// The target of every span that is exported.
pub(super) const TARGET: &str = "yoink_trace";
/// How long sending the last spans may take when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1500);
/// A method that the API does not have: a label must not grow with the names that clients invent.
pub const OTHER_METHOD: &str = "_OTHER";
/// The header of a call that carries its caller's trace.
const TRACEPARENT: &str = "traceparent";

/// Sends spans until it is finished.
#[derive(Debug)]
pub struct Traces {
    provider: Option<SdkTracerProvider>,
}

impl Traces {
    /// Sends spans to `otlp_endpoint`, if there is one.
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let Some(collector) = Collector::of(config) else { return Ok(Self { provider: None }) };
        // `Sampling` decides: a span is made only for a call that is sampled.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource())
            .with_batch_exporter(collector.spans()?);
        Ok(Self { provider: Some(provider.build()) })
    }

    pub(super) fn tracer(&self) -> Option<SdkTracer> {
        self.provider.as_ref().map(|provider| provider.tracer("yoink"))
    }

    /// Sends the spans that are left, within a limit.
    pub async fn finish(self) {
        let Some(provider) = self.provider else { return };
        let sent = move || provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(sent).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "some spans were not sent to otlp_endpoint before the process ended"
            );
        }
    }
}

pub(super) fn read(traceparent: &str) -> Context {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

fn continue_trace(span: &Span, caller: Context) {
    // It cannot fail: the span was made just now, by a process that has a collector.
    drop(span.set_parent(caller));
}

/// Which calls are traced. Decided before a span is made, because a span costs more than a random number.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// `None` without a collector.
    ratio: Option<f64>,
}

impl Sampling {
    /// The sampling that the settings define.
    pub fn new(config: &Config) -> Self {
        Self { ratio: config.otlp_endpoint.as_ref().map(|_| config.trace_sample_ratio) }
    }

    /// The span of a call: in its caller's trace, if the caller records it; in a new trace, if the caller has none
    /// and the call is sampled; otherwise a disabled span.
    pub fn call_span(&self, method: &'static str, traceparent: Option<&str>) -> Span {
        let Some(ratio) = self.ratio else { return Span::none() };
        let caller = traceparent.map(read).unwrap_or_default();
        let context = caller.span().span_context().clone();
        let sampled =
            if context.is_valid() { context.is_sampled() } else { rand::random::<f64>() < ratio };
        if sampled { call_span(method, caller) } else { Span::none() }
    }
}

fn call_span(method: &'static str, caller: Context) -> Span {
    let name = if method == OTHER_METHOD { "grpc" } else { method };
    let span = tracing::info_span!(
        target: TARGET, parent: None, "call",
        otel.name = name, otel.kind = "server", otel.status_code = field::Empty,
        rpc.system.name = "grpc", rpc.method = method, rpc.response.status_code = field::Empty,
        error.type = field::Empty,
        reservation.id = field::Empty, trace_id = field::Empty,
    );
    continue_trace(&span, caller);
    let context = span.context();
    span.record("trace_id", field::display(context.span().span_context().trace_id()));
    span
}

/// A call ended with this status.
pub fn record_status(span: &Span, code: &'static str) {
    span.record("rpc.response.status_code", code);
    if is_server_error(code) {
        record_failure(std::slice::from_ref(span), code);
    }
}

/// The current call is about this reservation.
pub fn record_reservation(id: impl std::fmt::Display) {
    Span::current().record("reservation.id", field::display(id));
}

/// The span of a request from the batcher to Redis's decision; disabled if its call has none.
pub fn reserve_span(partition: u16) -> Span {
    if Span::current().is_disabled() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET, "reserve", otel.kind = "client", db.system.name = "redis",
        db.operation.name = "EVALSHA", db.stored_procedure.name = "reserve", partition,
    )
}

/// The traceparent that an entry carries, so that its commit joins this span's trace; `None` if the span is disabled.
pub fn traceparent(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// The span of an order's commit, in the trace of the call that made it.
pub fn store_span(traceparent: &str, reservation_id: impl std::fmt::Display, batch: usize) -> Span {
    let span = tracing::info_span!(
        target: TARGET, parent: None, "store",
        otel.kind = "consumer", otel.status_code = field::Empty, error.type = field::Empty,
        db.system.name = "postgresql", db.operation.name = "store_orders",
        db.operation.batch.size = (batch > 1).then_some(batch),
        reservation.id = field::display(reservation_id),
    );
    continue_trace(&span, read(traceparent));
    span
}

/// The work of these spans failed.
pub fn record_failure(spans: &[Span], error: &'static str) {
    for span in spans {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", error);
    }
}

/// The trace id of a traceparent, for a log line.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1)
}
