//! Times every call, by method and status.

use std::{collections::HashMap, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use prost::Message as _;
use tonic::{Status, service::Routes};

use super::{DESCRIPTOR_SET, deadline};
use crate::telemetry::Metrics;

/// Calls that are none of the contract's, together: a label must not grow with what clients make up.
const OTHER: &str = "other";

#[derive(Clone)]
struct Observer {
    metrics: Metrics,
    /// By path.
    methods: Arc<HashMap<String, &'static str>>,
}

/// Puts the observer around routes, and the callers' deadlines within it.
pub fn observe(routes: Routes, metrics: Metrics) -> Routes {
    let observer = Observer { metrics, methods: Arc::new(methods()) };
    let layer = axum::middleware::from_fn_with_state(observer, time);
    let deadlines = axum::middleware::from_fn(deadline::keep);
    routes.into_axum_router().layer(deadlines).layer(layer).into()
}

/// Every method of the contract as a path, and as its label; leaked once a process.
fn methods() -> HashMap<String, &'static str> {
    static METHODS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    let names = METHODS.get_or_init(|| {
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap_or_default();
        let mut names = vec!["grpc.health.v1.Health/Check".to_owned()];
        for file in &set.file {
            for service in &file.service {
                let full = format!("{}.{}", file.package(), service.name());
                names.extend(service.method.iter().map(|m| format!("{full}/{}", m.name())));
            }
        }
        names
    });
    names.iter().map(|name| (format!("/{name}"), name.as_str())).collect()
}

async fn time(State(observer): State<Observer>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = observer.methods.get(request.uri().path()).copied().unwrap_or(OTHER);
    let response = next.run(request).await;
    // An error is told in the head; what has no status there goes well, or has begun to.
    let code = Status::from_header_map(response.headers()).map_or("OK", |status| name(&status));
    observer.metrics.call(method, code, started.elapsed());
    response
}

fn name(status: &Status) -> &'static str {
    super::error::code_name(status.code())
}
