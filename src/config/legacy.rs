//! Keys of the original project's configuration (up to version 0.5) that are renamed, or have no
//! counterpart.

use super::value::{self, Step};

/// The replacement of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// Its new path.
    Moved(&'static str),
    /// It has no counterpart; what to do instead.
    Gone(&'static str),
}

use Now::{Gone, Moved};

const CONNECTIONS: &str = "connections to databases are opened and closed on demand";
/// The keys, with `[]` for any element of a list. An entry also covers the keys below it.
pub const KEYS: [(&str, Now); 46] = [
    ("server.listen", Moved("listen")),
    ("server.read_timeout", Moved("timeouts.client_read")),
    ("server.idle_timeout", Moved("timeouts.client_idle")),
    ("server.max_header_bytes", Moved("server.max_header_size")),
    (
        "server.write_timeout",
        Gone(
            "it had no effect; `timeouts.client_write` is how long a client may take to accept the next bytes of a response",
        ),
    ),
    ("server.tls.enabled", Gone("without the section `server.tls` there is no TLS")),
    ("server.tls.client_ca_file", Gone("it had no effect: clients use keys, not certificates")),
    ("server.tls.client_auth", Gone("it had no effect: clients use keys, not certificates")),
    (
        "log.output",
        Gone(
            "the log is written to standard error (stderr); let the service manager write it to a file",
        ),
    ),
    (
        "log.file",
        Gone(
            "the log is written to standard error (stderr); let the service manager write it to a file",
        ),
    ),
    ("logging.access.enabled", Moved("log.access")),
    (
        "logging",
        Gone(
            "`log.access` writes a line for each request; for more details send usage records to a file or a database with `usage.reporters`",
        ),
    ),
    ("metrics.enabled", Gone("metrics are always served, at `/metrics`")),
    (
        "metrics",
        Gone(
            "metrics are always served, at `/metrics`; `server.metrics_listen` gives them a separate address",
        ),
    ),
    (
        "routing.timeout",
        Gone("it had no effect; `timeouts.total` limits a whole request, streams included"),
    ),
    ("routing.connect_timeout", Moved("timeouts.connect")),
    ("routing.script", Moved("scripts.routing")),
    ("routing.script_file", Moved("scripts.routing.script_file")),
    ("routing.request_transform", Moved("scripts.request_transform")),
    ("routing.response_transform", Moved("scripts.response_transform")),
    ("auth.script", Moved("scripts.auth")),
    ("rate_limit.script", Moved("scripts.rate_limit")),
    ("error_handler", Moved("scripts.error_handler")),
    ("health_check.script", Gone("it had no effect; a probe succeeds with the `expected_status`")),
    ("backends[].timeout", Gone("it had no effect; `timeouts` apply to all backends")),
    (
        "backends[].connect_timeout",
        Gone("it had no effect; `timeouts.connect` applies to all backends"),
    ),
    (
        "backends[].max_idle_conns",
        Gone("it had no effect; `timeouts.upstream_idle` is how long idle connections are kept"),
    ),
    ("backends[].type", Moved("backends[].engine")),
    (
        "backends[].priority",
        Gone("write a rule in `routing.fallback`: its `primary` is tried first"),
    ),
    (
        "discovery.sources[].script",
        Gone("it had no effect; the source itself returns the list of backends"),
    ),
    ("auth.pipeline[].script", Gone("it had no effect; write `lua_script`")),
    ("auth.defaults.status", Gone("a key without a status is active")),
    ("storage.databases[].max_idle_conns", Gone(CONNECTIONS)),
    ("storage.caches[].min_idle_conns", Gone(CONNECTIONS)),
    (
        "storage.caches[].write_timeout",
        Gone("`read_timeout` is how long a response may take, including sending the request"),
    ),
    ("storage.caches[].max_size", Gone("it belonged to the driver `memory`, which had no effect")),
    ("storage.caches[].ttl", Gone("it belonged to the driver `memory`, which had no effect")),
    ("usage.reporters[].webhook.method", Gone("records are always sent with POST")),
    ("usage.reporters[].script", Gone("it had no effect; write `hooks.on_usage`")),
    ("usage_hook.reporters[].script", Gone("it had no effect; write `hooks.on_usage`")),
    ("usage_hook.script", Moved("scripts.usage.script")),
    ("usage.storage", Gone("name the storage in a reporter: `usage.reporters[].database.storage`")),
    (
        "discovery.sources[].kubernetes",
        Gone("name a headless service in `backends`: each of its addresses becomes a backend"),
    ),
    (
        "discovery.sources[].consul",
        Gone(
            "write `http://SERVICE.service.consul:PORT` in `backends` and Consul's address in `discovery.dns_servers`",
        ),
    ),
    ("discovery.sources[].etcd", Gone("use `type: http`, or write a file and use `type: file`")),
    (
        "discovery.sources[].database",
        Gone("use `type: http`, or write a file and use `type: file`"),
    ),
];

/// The replacement of the key at a path, or of one above it.
pub fn now(path: &[Step]) -> Option<Now> {
    let found =
        KEYS.iter().find(|(key, _)| is_below(path, &value::parse(&key.replace("[]", "[0]"))));
    found.map(|(_, now)| *now)
}

/// What to write instead of the key at a path.
pub fn hint(path: &[Step]) -> Option<String> {
    Some(match now(path)? {
        Moved(to) => {
            format!(
                "a key of version 0.5: write `{}`, or run `llmproxy convert`",
                to.replace("[]", "")
            )
        }
        Gone(instead) => format!("a key of version 0.5 without a counterpart: {instead}"),
    })
}

/// Whether a path is `key`, or below it; any index of a list matches.
fn is_below(path: &[Step], key: &[Step]) -> bool {
    path.len() >= key.len()
        && path.iter().zip(key).all(|pair| match pair {
            (Step::Key(one), Step::Key(other)) => one == other,
            (Step::Index(_), Step::Index(_)) => true,
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_with_what_stands_below_them() {
        let now = |path: &str| now(&value::parse(path));
        assert_eq!(now("server.listen"), Some(Moved("listen")));
        assert_eq!(now("listen"), None);
        assert_eq!(now("hooks.on_request.script"), None);
        assert_eq!(now("rate_limit.script"), Some(Moved("scripts.rate_limit")));
        assert!(matches!(now("backends[7].timeout"), Some(Gone(_))));
        assert_eq!(now("backends[7].url"), None);
        assert_eq!(now("logging.access.enabled"), Some(Moved("log.access")));
        assert!(matches!(now("logging.access.format"), Some(Gone(_))));
    }
}
