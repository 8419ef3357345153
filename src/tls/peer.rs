//! Who is at the other end of a connection.

use std::{net::SocketAddr, sync::Arc};

use rustls::pki_types::CertificateDer;

/// The client of a connection. Each of its calls has it as an extension of the request; clones are cheap.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// The certificate that it presented and that was verified, in DER.
    pub certificate: Option<Arc<CertificateDer<'static>>>,
}
