//! Resolving host names: addresses and their TTL.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::Name,
    system_conf::read_system_conf,
};

/// How long a lookup may take, all name servers and retries included.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for IPv6 addresses if there are IPv4 addresses.
const IPV6_TIMEOUT: Duration = Duration::from_secs(2);

/// The result of a lookup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Empty if the name has none.
    pub addresses: Vec<IpAddr>,
    /// IPv6 addresses, if `addresses` are IPv4 and both were requested.
    pub extra_ipv6: Vec<IpAddr>,
    pub ttl: Duration,
}

/// Resolves a name to its IPv4 addresses, or to IPv6 addresses if it has no others: a host with both would
/// otherwise look like two. `both` also requests IPv6 addresses beside IPv4. `servers` replace the name
/// servers of the system; if empty, the configuration of the system is read for each lookup, so that it can
/// change without a restart. `/etc/hosts` takes precedence in either case.
///
/// # Errors
/// If no name server gives a valid answer.
pub async fn lookup(host: &str, both: bool, servers: &[SocketAddr]) -> Result<Resolution, String> {
    let result = tokio::time::timeout(PATIENCE, resolve(host, both, servers)).await;
    result.unwrap_or_else(|_| Err("the name servers do not answer".to_owned()))
}

async fn resolve(host: &str, both: bool, servers: &[SocketAddr]) -> Result<Resolution, String> {
    let resolver = resolver(servers).map_err(|e| e.to_string())?;
    // Relaxed: allows underscores, as in service names of Docker Compose.
    let name = Name::from_str_relaxed(host).map_err(|e| e.to_string())?;
    let Some(mut answer) = found(resolver.ipv4_lookup(name.clone()).await)? else {
        return Ok(found(resolver.ipv6_lookup(name).await)?.unwrap_or_default());
    };
    if both {
        let extra_ipv6 = tokio::time::timeout(IPV6_TIMEOUT, resolver.ipv6_lookup(name)).await;
        if let Ok(Ok(Some(extra_ipv6))) = extra_ipv6.map(found) {
            answer.extra_ipv6 = extra_ipv6.addresses;
        }
    }
    Ok(answer)
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let (config, options) = if servers.is_empty() {
        // `/etc/hosts` works without name servers.
        read_system_conf().unwrap_or_else(|_| (config(Vec::new()), ResolverOpts::default()))
    } else {
        (config(servers.iter().map(server).collect()), ResolverOpts::default())
    };
    let provider = TokioRuntimeProvider::default();
    TokioResolver::builder_with_config(config, provider).with_options(options).build()
}

fn config(servers: Vec<NameServerConfig>) -> ResolverConfig {
    ResolverConfig::from_parts(None, Vec::new(), servers)
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// The addresses of a response; `None` if the name has none.
fn found(lookup: Result<Lookup, NetError>) -> Result<Option<Resolution>, String> {
    let lookup = match lookup {
        Ok(lookup) => lookup,
        Err(e) if e.is_no_records_found() => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    // A CNAME may have a shorter TTL than the addresses.
    let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
    let addresses: Vec<_> = lookup.answers().iter().filter_map(|r| r.data.ip_addr()).collect();
    let ttl = Duration::from_secs(ttl.into());
    Ok((!addresses.is_empty()).then_some(Resolution { addresses, ttl, ..Resolution::default() }))
}
