//! What one gRPC connection may do, in terms of HTTP/2.

use std::time::Duration;

use tonic::transport::Server;

use crate::config::Config;

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// HTTP/2's own limit of streams that were reset before they were accepted.
const PENDING_RESETS_MIN: u32 = 20;
/// A client that provokes more resets is disconnected; without this there is no limit.
const LOCAL_RESETS_MAX: usize = 1024;

/// The gRPC server of these settings.
pub(super) fn server(config: &Config) -> Server {
    let max_streams = config.connection_max_streams;
    // A client may cancel all of its calls at once, and no more.
    let pending_resets = usize::try_from(max_streams.max(PENDING_RESETS_MIN));
    // No `max_connection_age_grace`: with it, tonic 0.14 sends no GOAWAY and cuts the calls under way. Without it the
    // connection ends after its last call; a buyer's call ends at `call_timeout_ms`.
    let server = match config.connection_max_age_ms {
        0 => Server::builder(),
        age => Server::builder().max_connection_age(Duration::from_millis(age)),
    };
    server
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .max_concurrent_streams(max_streams)
        .http2_max_pending_accept_reset_streams(pending_resets.ok())
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .http2_max_header_list_size(config.header_max_bytes)
}
