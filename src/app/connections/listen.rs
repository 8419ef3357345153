//! Opens a listener with room for many clients that connect at the same moment.
//!
//! Must never: decide which connections are accepted.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted; Linux allows at most `net.core.somaxconn` (4096 by default). With the 128 of
/// the standard library, clients that connect at the same moment at the start of a sale wait a second or more for the
/// next attempt of TCP, or their connection is reset.
const BACKLOG: u32 = 4096;

/// Listens on an address. Fails if the system refuses it, as when another process listens there.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As the standard library does: a new process may listen while connections of the old one end.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::*;

    #[tokio::test]
    async fn hundreds_of_clients_may_wait_to_be_accepted() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let clients = allowed.trim().parse::<u32>().unwrap().min(500);
        // Nothing accepts: only as many clients are connected as may wait.
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(30)).unwrap();
        let waiting: Vec<_> = (0..clients).map(connect).collect();
        assert_eq!(waiting.len(), clients as usize);
    }
}
