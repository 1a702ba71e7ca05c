//! Listening sockets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::AsRawFd,
    time::Duration,
};

use socket2::{Domain, Socket, TcpKeepalive, Type};

/// Connections that the system completes before they are accepted; the system caps it
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 65535;

/// TCP keep-alive: the idle time before the first probe, and the time between probes. It detects clients
/// that vanish without closing their connection.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));

/// Bytes of an answer that the system may hold unsent, in addition to what is under way. More only takes
/// memory, and hides for how long a client has not read.
#[cfg(target_os = "linux")]
static UNSENT: libc::c_int = 128 * 1024;

/// A socket that is bound, but does not listen yet.
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

/// Binds an address without listening on it. `[::]` stands for all addresses of both families, or for
/// those of IPv4 on a machine without IPv6.
///
/// # Errors
/// If that fails; the text names the address.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let bound = match attempt(address) {
        Err(e) if address.ip() == Ipv6Addr::UNSPECIFIED && !is_about_port(&e) => {
            attempt((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    };
    bound
        .map(Bound)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
}

/// Binds an address, as [`bind`] does, and listens on it.
///
/// # Errors
/// If that fails; the text names the address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address)?.listen()
}

fn is_about_port(error: &io::Error) -> bool {
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
    // Some systems that stand for Linux do not know the option.
    #[cfg(target_os = "linux")]
    if let Err(e) = limit_unsent(&socket) {
        log::debug!("the system holds as much of an answer as it likes: {e}");
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn limit_unsent(socket: &Socket) -> io::Result<()> {
    let size = size_of_val(&UNSENT) as libc::socklen_t;
    let value = (&raw const UNSENT).cast();
    let option = libc::TCP_NOTSENT_LOWAT;
    // SAFETY: the value is a constant of that size, which is only read.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, value, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
