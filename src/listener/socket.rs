//! Sockets to listen on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use socket2::{Domain, Socket, TcpKeepalive, Type};

/// Connections that the system completes before they are accepted; it bounds the number itself
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 65535;

/// After how long without a byte the system asks whether the other side is still there, and how
/// long it waits for an answer before it asks again. A client that vanished without a word, with
/// its machine or the way to it, is noticed by this.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));

/// An address that is taken, but not listened on yet.
pub struct Bound(Socket);

impl Bound {
    /// Listens. Connections inherit the options of the socket.
    ///
    /// # Errors
    /// If the system does not allow it.
    pub fn listen(self) -> io::Result<TcpListener> {
        self.0.listen(BACKLOG)?;
        Ok(self.0.into())
    }
}

/// Takes an address. Nobody can connect yet. `[::]` stands for all addresses of both families, or
/// for those of IPv4 on a machine without IPv6.
///
/// # Errors
/// If that cannot be; the text names the address.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let bound = match attempt(address) {
        Err(e) if address.ip() == Ipv6Addr::UNSPECIFIED && !is_about_the_port(&e) => {
            attempt((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    };
    bound
        .map(Bound)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
}

/// Listens on an address, as [`bind`] takes it.
///
/// # Errors
/// If that cannot be; the text names the address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address)?.listen()
}

fn is_about_the_port(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

fn attempt(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.set_tcp_nodelay(true)?;
    let (idle, interval) = KEEP_ALIVE;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn any_address_means_both_families() {
        let listener = listen((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        // On a machine without IPv6 the listener is one of IPv4.
        let both = listener.local_addr().unwrap().is_ipv6();
        assert_eq!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok(), both);
        let connection = Socket::from(listener.accept().unwrap().0);
        assert!(connection.keepalive().unwrap() && connection.tcp_nodelay().unwrap());
    }

    #[test]
    fn one_address_is_one_address() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_err());
        let taken = listen((Ipv6Addr::UNSPECIFIED, port).into()).unwrap_err();
        assert!(taken.to_string().contains(&format!("[::]:{port}")), "{taken}");
    }

    #[test]
    fn what_is_bound_is_not_listened_on() {
        let bound = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = bound.0.local_addr().unwrap().as_socket().unwrap();
        assert!(TcpStream::connect(address).is_err());
        let _listener = bound.listen().unwrap();
        assert!(TcpStream::connect(address).is_ok());
    }
}
