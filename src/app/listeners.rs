//! The sockets on which a service listens.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::config::Config;

/// Where a service listens; bound by the caller.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: TcpListener,
    /// `/healthz`, `/readyz` and `/metrics`.
    pub http: TcpListener,
}

impl Listeners {
    /// Binds the addresses of the settings.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let bind = async |name: &str, address: SocketAddr| {
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {name} {address}"))
        };
        let grpc = bind("grpc_listen", config.grpc_listen).await?;
        Ok(Self { grpc, http: bind("http_listen", config.http_listen).await? })
    }
}
