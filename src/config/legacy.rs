//! Keys of the original project's configuration (up to version 0.5) that are called otherwise now, or
//! have no counterpart.

use super::value::{self, Step};

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// It is called so.
    Moved(&'static str),
    /// It has no counterpart; what to do instead.
    Gone(&'static str),
}

use Now::{Gone, Moved};

const CONNECTIONS: &str = "connections to databases are opened and closed as they are needed";
const SCRIPTS: &str =
    "scripts decide about keys only: `lua_script` of a provider in `auth.pipeline`";

/// The keys, with `[]` for any element of a list. What stands below a key is meant as well.
pub const KEYS: [(&str, Now); 43] = [
    ("server.listen", Moved("listen")),
    ("server.read_timeout", Moved("timeouts.client_read")),
    ("server.idle_timeout", Moved("timeouts.client_idle")),
    ("server.max_header_bytes", Moved("server.max_header_size")),
    (
        "server.write_timeout",
        Gone(
            "it had no effect; `timeouts.client_write` is how long a client may take for what is sent to it",
        ),
    ),
    ("server.cors", Gone("let the proxy in front of the gateway set header fields for browsers")),
    ("server.tls.enabled", Gone("without the section `server.tls` there is no TLS")),
    ("server.tls.client_ca_file", Gone("it had no effect: clients show keys, not certificates")),
    ("server.tls.client_auth", Gone("it had no effect: clients show keys, not certificates")),
    (
        "log.output",
        Gone(
            "the log goes to the standard error output; let the service manager write it to a file",
        ),
    ),
    (
        "log.file",
        Gone(
            "the log goes to the standard error output; let the service manager write it to a file",
        ),
    ),
    ("logging.access.enabled", Moved("log.access")),
    (
        "logging",
        Gone(
            "`log.access` writes a line for each request; for more send usage records to a file or a database: `usage.reporters`",
        ),
    ),
    ("metrics.enabled", Gone("metrics are always there, at `/metrics`")),
    (
        "metrics",
        Gone(
            "metrics are always there, at `/metrics`; `server.metrics_listen` gives them an address of their own",
        ),
    ),
    ("hooks", Gone(SCRIPTS)),
    ("scripts", Gone(SCRIPTS)),
    (
        "routing.timeout",
        Gone("it had no effect; `timeouts.total` limits a whole request, streams included"),
    ),
    ("routing.connect_timeout", Moved("timeouts.connect")),
    (
        "routing.script",
        Gone("it had no effect; `models` and `routing.fallback` say which backend gets a request"),
    ),
    (
        "rate_limit.script",
        Gone("it had no effect; a script in `auth.pipeline` may give a key `limits`"),
    ),
    ("health_check.script", Gone("it had no effect; a probe is told by its `expected_status`")),
    ("backends[].timeout", Gone("it had no effect; `timeouts` hold for all backends")),
    (
        "backends[].connect_timeout",
        Gone("it had no effect; `timeouts.connect` holds for all backends"),
    ),
    (
        "backends[].max_idle_conns",
        Gone("it had no effect; `timeouts.upstream_idle` says how long idle connections are kept"),
    ),
    ("backends[].type", Moved("backends[].engine")),
    ("backends[].priority", Gone("write a rule in `routing.fallback`: `primary` goes first")),
    (
        "discovery.sources[].script",
        Gone("it had no effect; the service that is asked says which backends there are"),
    ),
    ("auth.pipeline[].script", Gone("it had no effect; write `lua_script`")),
    ("auth.defaults.status", Gone("a key without a status is active")),
    ("storage.databases[].max_idle_conns", Gone(CONNECTIONS)),
    ("storage.caches[].min_idle_conns", Gone(CONNECTIONS)),
    (
        "storage.caches[].write_timeout",
        Gone("`read_timeout` is how long an answer may take, sending included"),
    ),
    ("storage.caches[].max_size", Gone("it belonged to the driver `memory`, which was of no use")),
    ("storage.caches[].ttl", Gone("it belonged to the driver `memory`, which was of no use")),
    ("usage.reporters[].webhook.method", Gone("records are sent by POST, as they always were")),
    ("usage.reporters[].script", Gone("it had no effect")),
    ("usage_hook.reporters[].script", Gone("it had no effect")),
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
    ("discovery.sources[].etcd", Gone("use type http, or write a file and use type file")),
    ("discovery.sources[].database", Gone("use type http, or write a file and use type file")),
];

/// What became of the key at a path, or of one that it stands below.
pub fn now(path: &[Step]) -> Option<Now> {
    let found =
        KEYS.iter().find(|(key, _)| is_below(path, &value::parse(&key.replace("[]", "[0]"))));
    found.map(|(_, now)| *now)
}

/// What to write instead of the key at a path.
pub fn hint(path: &[Step]) -> Option<String> {
    Some(match now(path)? {
        Moved(to) => {
            format!("of version 0.5: write `{}`, or run `llmproxy convert`", to.replace("[]", ""))
        }
        Gone(instead) => format!("of version 0.5, without a counterpart: {instead}"),
    })
}

/// Whether a path is `key`, or below it; elements of lists are all alike.
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
        assert!(matches!(now("hooks.on_request.script"), Some(Gone(_))));
        assert!(matches!(now("backends[7].timeout"), Some(Gone(_))));
        assert_eq!(now("backends[7].url"), None);
        assert_eq!(now("logging.access.enabled"), Some(Moved("log.access")));
        assert!(matches!(now("logging.access.format"), Some(Gone(_))));
    }
}
