//! Sockets to listen on.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use rustix::net::sockopt::set_ipv6_v6only;
use tokio::{
    net::{TcpListener, TcpSocket},
    time,
};
use tracing::{debug, error};

/// How soon an address that could not be listened on is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// How many connections may wait to be accepted; the kernel's own limit is `net.core.somaxconn`.
const BACKLOG: u32 = 1024;

/// Listens on an address, of which an unspecified one stands for all of both families, and tries again until it
/// can. The log says once what is in the way.
pub(crate) async fn listen(purpose: &str, address: SocketAddr) -> TcpListener {
    let mut trouble = String::new();
    loop {
        match bind(address) {
            Ok(listener) => {
                debug!("{purpose}: listening on {address}");
                return listener;
            }
            Err(reason) if reason.to_string() == trouble => {}
            Err(reason) => {
                error!("{purpose}: cannot listen on {address}: {reason}; trying again");
                trouble = reason.to_string();
            }
        }
        time::sleep(RETRY).await;
    }
}

/// Listens on an address, of which an unspecified one stands for all of both families.
///
/// # Errors
///
/// Fails if the kernel does not let us.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return bind_one_family(address);
    }
    // A kernel without IPv6 has IPv4 at least.
    bind_v6((Ipv6Addr::UNSPECIFIED, address.port()).into(), false)
        .or_else(|_| bind_one_family((Ipv4Addr::UNSPECIFIED, address.port()).into()))
}

/// Listens on an address, of which an unspecified one stands for all of its own family.
///
/// # Errors
///
/// Fails if the kernel does not let us.
pub(crate) fn bind_one_family(address: SocketAddr) -> io::Result<TcpListener> {
    if address.is_ipv6() {
        return bind_v6(address, true);
    }
    start(TcpSocket::new_v4()?, address)
}

fn bind_v6(address: SocketAddr, only: bool) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    set_ipv6_v6only(&socket, only)?;
    start(socket, address)
}

fn start(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    // A restart finds connections of the last run in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn an_unspecified_address_listens_on_both_families() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let listener = bind(address.parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            for host in ["127.0.0.1", "::1"] {
                TcpStream::connect((host, port)).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn one_family_leaves_the_port_of_the_other_free() {
        let v6 = bind_one_family("[::]:0".parse().unwrap()).unwrap();
        let port = v6.local_addr().unwrap().port();
        let _v4 = bind_one_family((Ipv4Addr::UNSPECIFIED, port).into()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_in_use_is_tried_until_it_is_free() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let mut second = Box::pin(listen("test", address));
        time::timeout(3 * RETRY, &mut second).await.unwrap_err();
        drop(first);
        time::timeout(RETRY, second).await.unwrap();
    }
}
