//! The OpenTelemetry collector that `otlp_endpoint` names: where spans and metrics are sent.
//!
//! Must never: slow a call down, or log every attempt that fails.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig,
    tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{
        InstrumentKind, ManualReader, Pipeline, Temporality, data::ResourceMetrics,
        exporter::PushMetricExporter as _, reader::MetricReader,
    },
    trace::SpanData,
};
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::config::Config;

/// The attributes of this process, sent with every span and metric.
pub(super) fn resource() -> Resource {
    static INSTANCE: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| Uuid::new_v4().to_string());
    let attributes = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", INSTANCE.as_str()),
    ];
    Resource::builder().with_service_name("yoink").with_attributes(attributes).build()
}

/// Where a collector is, and the metadata of each export.
pub(super) struct Collector {
    endpoint: String,
    headers: MetadataMap,
}

impl Collector {
    /// The collector of the settings, if they name one.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let endpoint = config.otlp_endpoint.clone()?;
        Some(Self { endpoint, headers: config.otlp_headers.clone() })
    }

    pub(super) fn spans(&self) -> anyhow::Result<LoggingSpanExporter> {
        let exporter = self.reached(SpanExporter::builder().with_tonic()).build();
        let inner = exporter.context("otlp_endpoint cannot be used")?;
        Ok(LoggingSpanExporter { inner, log: ExportLog::new("spans") })
    }

    pub(super) fn metrics(&self) -> anyhow::Result<MetricSender> {
        let exporter = self.reached(MetricExporter::builder().with_tonic()).build();
        let exporter = exporter.context("otlp_endpoint cannot be used")?;
        Ok(MetricSender { reader: Reader::default(), exporter, log: ExportLog::new("metrics") })
    }

    fn reached<B: WithExportConfig + WithTonicConfig>(&self, builder: B) -> B {
        let builder = builder.with_endpoint(&self.endpoint).with_metadata(self.headers.clone());
        if self.endpoint.starts_with("https://") {
            builder.with_tls_config(ClientTlsConfig::new().with_native_roots())
        } else {
            builder
        }
    }
}

/// Logs the first of several exports that fail, and the first that succeeds after them.
#[derive(Debug)]
struct ExportLog {
    what: &'static str,
    failing: AtomicBool,
}

impl ExportLog {
    fn new(what: &'static str) -> Self {
        Self { what, failing: AtomicBool::new(false) }
    }

    fn log_change(&self, result: &OTelSdkResult) {
        let (what, failed) = (self.what, result.is_err());
        let changed = self.failing.swap(failed, Ordering::Relaxed) != failed;
        match result {
            Ok(()) if changed => tracing::info!("{what} are sent to otlp_endpoint again"),
            Err(error) if changed => tracing::warn!(
                %error,
                "{what} cannot be sent to otlp_endpoint; they are dropped until it accepts them"
            ),
            Ok(()) | Err(_) => {}
        }
    }
}

/// Sends spans. The batch processor would log each failure: it is not given any.
#[derive(Debug)]
pub(super) struct LoggingSpanExporter {
    inner: SpanExporter,
    log: ExportLog,
}

impl opentelemetry_sdk::trace::SpanExporter for LoggingSpanExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.inner.export(batch).await;
        self.log.log_change(&result);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Sends the metrics each time it is called.
pub(super) struct MetricSender {
    reader: Reader,
    exporter: MetricExporter,
    log: ExportLog,
}

impl MetricSender {
    /// What collects the metrics to be sent.
    pub(super) fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Sends every metric as it is now.
    pub(super) async fn send(&self) {
        let mut metrics = ResourceMetrics::default();
        let result = match self.reader.collect(&mut metrics) {
            Ok(()) => self.exporter.export(&metrics).await,
            Err(error) => Err(error),
        };
        self.log.log_change(&result);
    }
}

/// A reader that the meter provider and the sender share.
#[derive(Debug, Clone, Default)]
pub(super) struct Reader(Arc<ManualReader>);

impl MetricReader for Reader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}
