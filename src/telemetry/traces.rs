//! Spans for an OpenTelemetry collector: a call, its decision in Redis, and the commit of its order, which
//! may come from another process, are one trace.
//!
//! Must never: carry who buys; cost anything worth naming while no collector is set.

use std::{collections::HashMap, time::Duration};

use anyhow::Context as _;
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::config::Config;

/// What our spans are filtered by.
pub(super) const TARGET: &str = "yoink_trace";
/// How long spans may take to be sent at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1500);
/// The header, and what an entry carries.
const TRACEPARENT: &str = "traceparent";

/// Sends spans until it is finished.
#[derive(Debug)]
pub struct Traces {
    provider: Option<SdkTracerProvider>,
}

impl Traces {
    /// Sends spans to `otlp_endpoint`, if there is one.
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(Self { provider: None }) };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name("yoink").with_attribute(version);
        // Spans are made only for calls that were drawn.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource.build())
            .with_batch_exporter(exporter.context("otlp_endpoint cannot be used")?);
        Ok(Self { provider: Some(provider.build()) })
    }

    pub(super) fn tracer(&self) -> Option<SdkTracer> {
        self.provider.as_ref().map(|provider| provider.tracer("yoink"))
    }

    /// Sends what is left, or gives up after a while.
    pub async fn finish(self) {
        let Some(provider) = self.provider else { return };
        let sent = move || provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(sent).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "some spans were not sent");
        }
    }
}

fn read(traceparent: &str) -> Context {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

fn continue_trace(span: &Span, caller: Context) {
    // It cannot fail: the span was made just now, and whoever has no collector makes none.
    drop(span.set_parent(caller));
}

/// Which calls are traced: decided first, because a span costs more than a draw.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// None: there is no collector.
    ratio: Option<f64>,
}

impl Sampling {
    /// As the settings say.
    pub fn new(config: &Config) -> Self {
        Self { ratio: config.otlp_endpoint.as_ref().map(|_| config.trace_sample_ratio) }
    }

    /// The span of a call of the contract: in its caller's trace, if that is recorded; a new one, if the
    /// caller has none and the draw says so; else none.
    pub fn call_span(&self, method: &'static str, traceparent: Option<&str>) -> Span {
        let Some(ratio) = self.ratio else { return Span::none() };
        let caller = traceparent.map(read).unwrap_or_default();
        let context = caller.span().span_context().clone();
        let drawn =
            if context.is_valid() { context.is_sampled() } else { rand::random::<f64>() < ratio };
        if drawn { call_span(method, caller) } else { Span::none() }
    }
}

fn call_span(method: &'static str, caller: Context) -> Span {
    let span = tracing::info_span!(
        target: TARGET, parent: None, "call",
        otel.name = method, otel.kind = "server", otel.status_code = field::Empty,
        rpc.system.name = "grpc", rpc.method = method, rpc.response.status_code = field::Empty,
        reservation.id = field::Empty, trace_id = field::Empty,
    );
    continue_trace(&span, caller);
    let context = span.context();
    span.record("trace_id", field::display(context.span().span_context().trace_id()));
    span
}

/// A call was answered.
pub fn record_status(span: &Span, code: &'static str, failed: bool) {
    span.record("rpc.response.status_code", code);
    if failed {
        span.record("otel.status_code", "ERROR");
    }
}

/// The call that is under way concerns this reservation.
pub fn record_reservation(id: impl std::fmt::Display) {
    Span::current().record("reservation.id", field::display(id));
}

/// The span of a request's way through the batcher and Redis, if its call has one.
pub fn reserve_span(partition: u16) -> Span {
    if Span::current().is_disabled() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET, "reserve", otel.kind = "client", db.system.name = "redis", partition,
    )
}

/// What an entry carries, so that its commit belongs to this span's trace; none if that is not recorded.
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
        otel.kind = "consumer", otel.status_code = field::Empty, db.system.name = "postgresql",
        reservation.id = field::display(reservation_id), batch,
    );
    continue_trace(&span, read(traceparent));
    span
}

/// The commit of these spans' orders failed.
pub fn record_failure(spans: &[Span]) {
    for span in spans {
        span.record("otel.status_code", "ERROR");
    }
}

/// The trace in what an entry carries, for a log line.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1)
}
