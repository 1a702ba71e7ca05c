//! Where a name leads, and how long that holds.

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

/// How long an answer may take, all name servers and repetitions together.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long is waited for addresses of IPv6 where there are others.
const FURTHER: Duration = Duration::from_secs(2);

/// What the name servers say of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its addresses; none if they say that there are none.
    pub addresses: Vec<IpAddr>,
    /// Those of IPv6 beside `addresses` of IPv4, if they were asked for.
    pub further: Vec<IpAddr>,
    /// How long they hold.
    pub ttl: Duration,
}

/// Asks for the addresses of a name: those of IPv4, or those of IPv6 if there are no others. A
/// host that has both would otherwise look like two; `both` asks for the others as well, which may be
/// in vain. `servers` are asked in place of those of the
/// system; without any, the system's configuration is read anew each time, so that a change of it
/// needs no restart. `/etc/hosts` goes first in either case.
///
/// # Errors
/// If nobody could say.
pub async fn lookup(host: &str, both: bool, servers: &[SocketAddr]) -> Result<Answer, String> {
    let asked = tokio::time::timeout(PATIENCE, ask(host, both, servers)).await;
    asked.unwrap_or_else(|_| Err("the name servers do not answer".to_owned()))
}

async fn ask(host: &str, both: bool, servers: &[SocketAddr]) -> Result<Answer, String> {
    let resolver = resolver(servers).map_err(|e| e.to_string())?;
    // Relaxed: with underscores, as services of Docker Compose have them.
    let name = Name::from_str_relaxed(host).map_err(|e| e.to_string())?;
    let Some(mut answer) = found(resolver.ipv4_lookup(name.clone()).await)? else {
        return Ok(found(resolver.ipv6_lookup(name).await)?.unwrap_or_default());
    };
    if both {
        let further = tokio::time::timeout(FURTHER, resolver.ipv6_lookup(name)).await;
        if let Ok(Ok(Some(further))) = further.map(found) {
            answer.further = further.addresses;
        }
    }
    Ok(answer)
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let (config, options) = if servers.is_empty() {
        // Without name servers there is still `/etc/hosts`.
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

/// What an answer holds; `None` if it says that there is nothing.
fn found(lookup: Result<Lookup, NetError>) -> Result<Option<Answer>, String> {
    let lookup = match lookup {
        Ok(lookup) => lookup,
        Err(e) if e.is_no_records_found() => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    // An alias on the way to the addresses may end sooner than they do.
    let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
    let addresses: Vec<_> = lookup.answers().iter().filter_map(|r| r.data.ip_addr()).collect();
    let ttl = Duration::from_secs(ttl.into());
    Ok((!addresses.is_empty()).then_some(Answer { addresses, ttl, ..Answer::default() }))
}
