//! One reservation is one trace, from its call to its commit, as a collector sees it. The collector gets metrics, too.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::ResourceMetrics,
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};
use yoink::{
    app::Role,
    grpc::pb::{
        GetReservationRequest, ReserveUnitRequest, inventory_service_client::InventoryServiceClient,
    },
};

use crate::{
    harness::{Authority, Binary, TestEnv, eventually, product, reason},
    tls::certificates,
};

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    /// The token that every export must carry.
    token: Option<&'static str>,
    refused: Arc<AtomicUsize>,
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<Vec<ResourceMetrics>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.check(&request)?;
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans);
        self.spans.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.check(&request)?;
        self.metrics.lock().unwrap().extend(request.into_inner().resource_metrics);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    /// Listens; returns its address, too.
    async fn start() -> (Self, String) {
        let (collector, address) = Self::default().serve(Server::builder()).await;
        (collector, format!("http://{address}"))
    }

    /// Listens with TLS and refuses exports without this token.
    async fn start_with_tls(certificates: &Path, token: &'static str) -> (Self, String) {
        let read = |file| fs::read(certificates.join(file)).unwrap();
        let identity = Identity::from_pem(read("server.pem"), read("server.key"));
        let tls = ServerTlsConfig::new().identity(identity);
        let collector = Self { token: Some(token), ..Self::default() };
        let server = Server::builder().tls_config(tls).unwrap();
        let (collector, address) = collector.serve(server).await;
        (collector, format!("https://{address}"))
    }

    async fn serve(self, mut server: Server) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = server
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()));
        // It ends with the test.
        TaskTracker::new().spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (self, address)
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let sent = request.metadata().get("x-token").map(|token| token.to_str().unwrap());
        if self.token.is_some_and(|token| sent != Some(token)) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Status::unauthenticated("no token"));
        }
        Ok(())
    }

    /// The names of the metrics received.
    fn metric_names(&self) -> Vec<String> {
        let metrics = self.metrics.lock().unwrap();
        let scopes = metrics.iter().flat_map(|received| &received.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()).collect()
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

fn attribute<'a>(span: &'a Span, key: &str) -> &'a str {
    text_of(&span.attributes, key)
}

fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|KeyValue { value, .. }| value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        _ => panic!("no text {key} in {attributes:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn order(user: &str, traceparent: Option<&str>) -> Request<ReserveUnitRequest> {
    let mut request = Request::new(ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: user.to_owned(),
        request_id: "secret-request".to_owned(),
        ..Default::default()
    });
    if let Some(traceparent) = traceparent {
        request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    }
    request
}

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread")]
async fn reservation_is_one_trace_from_the_call_to_the_commit() {
    let env = TestEnv::new().await;
    let (collector, endpoint) = Collector::start().await;
    let settings = [("otlp_endpoint", endpoint.as_str()), ("log_format", "json")];
    let mut api = Binary::serve_as("api", &env, &settings, None);
    let mut worker = Binary::serve_as("worker", &env, &settings, None);
    let beside = env.serve(Role::Api, &[]).await;
    beside.create(product("shoe", 10)).await;
    let mut buyers = InventoryServiceClient::new(api.channel().await);
    worker.channel().await;
    let bought = eventually("the product is known", async || {
        buyers.reserve_unit(order("secret-user", Some(CALLER))).await.ok()
    })
    .await
    .into_inner();
    env.assert_audit_holds().await;
    // Both send what they have when they are ended.
    for process in [&mut api, &mut worker] {
        process.signal(Signal::SIGTERM);
        process.ended().await;
    }
    let spans = collector.spans();
    let named = |name: &str| {
        let found: Vec<&Span> = spans
            .iter()
            .filter(|span| span.name == name)
            .filter(|span| {
                name != "yoink.v1.InventoryService/ReserveUnit" || {
                    attribute(span, "rpc.response.status_code") == "OK"
                }
            })
            .collect();
        assert_eq!(
            found.len(),
            1,
            "{name} of {:?}",
            spans.iter().map(|s| &s.name).collect::<Vec<_>>()
        );
        found[0]
    };
    let call = named("yoink.v1.InventoryService/ReserveUnit");
    let store = named("store");
    let parent_of = |span: &Span| {
        spans.iter().find(|parent| parent.span_id == span.parent_span_id).unwrap().clone()
    };
    let reserve = parent_of(store);
    assert_eq!(reserve.name, "reserve");
    assert_eq!(parent_of(&reserve).span_id, call.span_id);
    assert_eq!(hex(&call.parent_span_id), "b7ad6b7169203331", "the caller's span");
    for span in [call, &reserve, store] {
        assert_eq!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c", "{}", span.name);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    for span in [call, store] {
        assert_eq!(
            attribute(span, "reservation.id"),
            bought.reservation.as_ref().unwrap().reservation_id
        );
    }
    for (span, key, value) in [
        (call, "rpc.system.name", "grpc"),
        (call, "rpc.method", "yoink.v1.InventoryService/ReserveUnit"),
        (&reserve, "db.system.name", "redis"),
        (&reserve, "db.stored_procedure.name", "reserve"),
        (store, "db.system.name", "postgresql"),
        (store, "db.operation.name", "store_orders"),
    ] {
        assert_eq!(attribute(span, key), value, "{}", span.name);
    }
    assert!(!format!("{spans:?}").contains("secret"), "no personal data");
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_sampling_traces_nothing_and_keeps_the_callers_decision() {
    let env = TestEnv::new().await;
    let (collector, endpoint) = Collector::start().await;
    let settings = [("otlp_endpoint", endpoint.as_str()), ("trace_sample_ratio", "0")];
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let mut api = Binary::serve_as("api", &env, &settings, None);
    let mut buyers = InventoryServiceClient::new(api.channel().await);
    let unsampled = CALLER.replace("-01", "-00");
    for trace in [None, Some(unsampled.as_str()), Some("nonsense"), Some(CALLER)] {
        eventually("the product is known", async || {
            buyers.reserve_unit(order("ann", trace)).await.ok()
        })
        .await;
    }
    // The first took a unit, the others are its duplicates: nothing of it is traced.
    api.signal(Signal::SIGTERM);
    api.ended().await;
    let spans = collector.spans();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == CALLER[3..35]), "{spans:?}");
    assert!(spans.iter().any(|span| span.name == "reserve"), "{spans:?}");
    let (mut cli, mut entries) = (env.cli().await, Vec::new());
    for partition in 0..2 {
        let key = format!("{}:{{{partition}}}:orders", env.prefix);
        let mut range = redis::cmd("XRANGE");
        let found: Vec<(String, Vec<String>)> =
            range.arg(key).arg("-").arg("+").query_async(&mut cli).await.unwrap();
        entries.extend(found);
    }
    assert_eq!(entries.len(), 1, "no worker stores it");
    assert!(!entries[0].1.contains(&"c".to_owned()), "{entries:?}");
    let worker = env.serve(Role::Worker, &[]).await;
    env.assert_audit_holds().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_collector_does_not_stop_sales_and_logs_contain_the_trace_id() {
    let env = TestEnv::new().await;
    let settings = [
        ("otlp_endpoint", "http://127.0.0.1:9"),
        ("log_format", "json"),
        ("log_filter", "debug"),
        ("deliveries_max", "1"),
    ];
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'secret-user')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let mut all = Binary::serve(&env, &settings, None);
    let mut buyers = InventoryServiceClient::new(all.channel().await);
    let bought = eventually("the product is known", async || {
        buyers.reserve_unit(order("secret-user", Some(CALLER))).await.ok()
    })
    .await
    .into_inner();
    let stored = buyers.reserve_unit(order("ann", None)).await.unwrap().into_inner();
    env.assert_audit_holds().await;
    eventually("the log reports that spans are not sent", async || {
        all.log().contains("spans cannot be sent to otlp_endpoint").then_some(())
    })
    .await;
    let [bought, stored] =
        [bought, stored].map(|answer| answer.reservation.unwrap().reservation_id);
    // A call that fails below: the ledger cannot be read.
    let hidden = "ALTER TABLE reservations RENAME TO hidden";
    env.sql().await.batch_execute(hidden).await.unwrap();
    let mut look_up = Request::new(GetReservationRequest { reservation_id: stored.clone() });
    look_up.metadata_mut().insert("traceparent", CALLER.parse().unwrap());
    let failed = buyers.get_reservation(look_up).await.unwrap_err();
    assert_eq!(reason(&failed), "LEDGER_UNAVAILABLE");
    all.signal(Signal::SIGTERM);
    let status = all.ended().await;
    assert!(status.success(), "{}", all.log());
    let log = all.log();
    let failed = log.lines().find(|line| line.contains("a call failed")).unwrap();
    assert!(failed.contains("GetReservation") && failed.contains(&CALLER[3..35]), "{failed}");
    let moved = log.lines().find(|line| line.contains("moved to the dead stream")).unwrap();
    assert!(moved.contains(&bought) && moved.contains(&CALLER[3..35]), "{moved}");
    // The name of the task that logged it; `name` is the name of a span.
    assert!(moved.contains("\"task\":\"consumer\""), "{moved}");
    assert!(!log.contains("secret"), "{log}");
    // At debug, each step of one reservation has a line with its id.
    for (id, step) in [
        (&bought, "order accepted"),
        (&bought, "voided and its unit given back"),
        (&stored, "order accepted"),
        (&stored, "order stored"),
    ] {
        let has_step = |line: &str| line.contains(id.as_str()) && line.contains(step);
        assert!(log.lines().any(has_step), "{step}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_collector_receives_spans_and_metrics_only_with_its_header() {
    let env = TestEnv::new().await;
    let certificates = certificates();
    let (collector, endpoint) = Collector::start_with_tls(&certificates, "secret-token").await;
    let authority = certificates.join("ca.pem");
    let environment = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    let without_header =
        [("otlp_endpoint", endpoint.as_str()), ("otlp_metrics_interval_ms", "1000")];
    let mut refused = Binary::serve_with("api", &env, &without_header, &environment);
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    eventually("metrics are refused several times", async || {
        (collector.refused.load(Ordering::Relaxed) >= 3).then_some(())
    })
    .await;
    refused.signal(Signal::SIGTERM);
    assert!(refused.ended().await.success(), "{}", refused.log());
    assert_eq!(refused.log().matches("metrics cannot be sent").count(), 1, "{}", refused.log());
    assert!(collector.metric_names().is_empty() && collector.spans().is_empty());

    let header = ("otlp_headers", "x-token=secret-token");
    let with_header = [without_header[0], without_header[1], header];
    // It sends nothing, and no token, to a collector whose certificate another authority has signed.
    let (other, asked) = (Authority::new().file(), collector.refused.load(Ordering::Relaxed));
    let unknown = Binary::serve_with("api", &env, &with_header, &[("SSL_CERT_FILE", &other)]);
    eventually("the certificate is refused", async || {
        unknown.log().contains("metrics cannot be sent").then_some(())
    })
    .await;
    drop(unknown);
    assert_eq!(collector.refused.load(Ordering::Relaxed), asked);
    assert!(collector.metric_names().is_empty() && collector.spans().is_empty());
    let mut api = Binary::serve_with("api", &env, &with_header, &environment);
    let mut buyers = InventoryServiceClient::new(api.channel().await);
    eventually("the product is known", async || {
        buyers.reserve_unit(order("ann", Some(CALLER))).await.ok()
    })
    .await;
    eventually("metrics are received", async || {
        let names = collector.metric_names();
        let expected =
            ["rpc.server.call.duration", "db.client.operation.duration", "yoink.orders.depth"];
        expected.iter().all(|name| names.iter().any(|n| n == name)).then_some(())
    })
    .await;
    api.signal(Signal::SIGTERM);
    assert!(api.ended().await.success(), "{}", api.log());
    assert!(!api.log().contains("secret") && !api.log().contains("cannot be sent"));
    assert!(collector.spans().iter().any(|span| span.name == "reserve"));
    let resource = collector.metrics.lock().unwrap()[0].resource.clone().unwrap().attributes;
    assert_eq!(text_of(&resource, "service.name"), "yoink");
    assert!(!text_of(&resource, "service.instance.id").is_empty());
    let worker = env.serve(Role::Worker, &[]).await;
    env.assert_audit_holds().await;
    worker.stop().await;
}
