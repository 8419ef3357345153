//! One reservation is one trace, from its call to its commit, as a collector sees it.

use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use yoink::{
    app::Role,
    grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient},
};

use crate::harness::{Binary, TestEnv, eventually, product};

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans);
        self.spans.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens; returns its address, too.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(collector.clone());
        let serve = Server::builder().add_service(service);
        // It ends with the test.
        TaskTracker::new().spawn(serve.serve_with_incoming(TcpIncoming::from(listener)));
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

fn attribute<'a>(span: &'a Span, key: &str) -> &'a str {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|KeyValue { value, .. }| value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        _ => panic!("{} has no text {key}: {:?}", span.name, span.attributes),
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
    // Told to end, both send what they have.
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
        assert_eq!(attribute(span, "reservation.id"), bought.reservation_id);
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
    assert_eq!(entries.len(), 1, "nobody stores it");
    assert!(!entries[0].1.contains(&"c".to_owned()), "{entries:?}");
    let worker = env.serve(Role::Worker, &[]).await;
    env.assert_audit_holds().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_collector_does_not_stop_sales_and_logs_contain_the_trace_id() {
    let env = TestEnv::new().await;
    let settings =
        [("otlp_endpoint", "http://127.0.0.1:9"), ("log_format", "json"), ("max_deliveries", "1")];
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
    env.assert_audit_holds().await;
    eventually("it says that spans are not sent", async || {
        all.log().contains("ExportError").then_some(())
    })
    .await;
    all.signal(Signal::SIGTERM);
    let status = all.ended().await;
    assert!(status.success(), "{}", all.log());
    let message = all.log();
    let buried = message.lines().find(|line| line.contains("was buried")).unwrap();
    assert!(buried.contains(&bought.reservation_id) && buried.contains(&CALLER[3..35]), "{buried}");
    assert!(!message.contains("secret"), "{message}");
}
