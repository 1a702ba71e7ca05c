//! IP addresses and networks, and rules about them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Reads `10.0.0.0/8` or a single address.
pub fn parse(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    // `::ffff:10.0.0.0/104` is an IPv4 network; callers' addresses are canonical here.
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => IpNet::new(v4.into(), v6.prefix_len() - 96).ok(),
            None => Some(net),
        },
        net => Some(net),
    }
}

/// Whether one of the networks contains the address.
pub fn within(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// What identifies a caller by its address: the IPv4 address or the IPv6 /64 network, because one
/// IPv6 customer has at least a /64 and may use any address in it.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
    }
}

/// Allowed and denied addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpRules {
    /// If not empty, only these.
    pub allowed: Vec<IpNet>,
    /// Takes precedence over `allowed`.
    pub denied: Vec<IpNet>,
}

impl IpRules {
    /// Whether a caller with this address is allowed. A caller whose address is unknown is allowed
    /// only if every address is.
    pub fn allow(&self, address: Option<IpAddr>) -> bool {
        match address {
            Some(address) => {
                !within(&self.denied, address)
                    && (self.allowed.is_empty() || within(&self.allowed, address))
            }
            None => self.denied.is_empty() && self.allowed.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allowed: &[&str], denied: &[&str]) -> IpRules {
        let nets = |list: &[&str]| list.iter().map(|t| parse(t).unwrap()).collect();
        IpRules { allowed: nets(allowed), denied: nets(denied) }
    }

    #[test]
    fn a_denial_beats_an_allowance() {
        let rules = rules(&["10.0.0.0/8", "2001:db8::/32"], &["10.9.0.0/16", "10.1.2.3"]);
        for (address, let_in) in [
            ("10.0.0.1", true),
            ("10.9.0.1", false),
            ("10.1.2.3", false),
            ("10.1.2.4", true),
            ("11.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(rules.allow(address.parse().ok()), let_in, "{address}");
        }
        assert!(!rules.allow(None));
        assert!(IpRules::default().allow(None));
    }

    #[test]
    fn mapped_networks_are_ipv4() {
        assert!(rules(&["::ffff:10.0.0.0/104"], &[]).allow("10.1.1.1".parse().ok()));
        assert!(parse("10.0.0.0/33").is_none() && parse("host").is_none());
    }
}
