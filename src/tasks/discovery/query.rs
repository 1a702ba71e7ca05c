//! One query to a name server or a discovery source, and how its answer is applied.

use std::{path::Path, time::Duration};

use crate::{
    config::{
        Plan,
        choices::Addresses,
        plan::{BackendPlan, SourceLocation, SourcePlan, read_list},
    },
    runtime::{Carry, ListUpdate},
    store::{dns, http},
};

/// The shortest and the longest time between two look-ups of a name.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Time until the next query after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The largest list of a source, in bytes.
const MAX_BYTES: usize = 16 << 20;

/// How long a file must stay unchanged to count as completely written.
const SETTLED: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// The addresses of a name.
    Name(String),
    /// The backends of a source.
    Source(SourcePlan),
}

/// The result of a query.
pub struct QueryOutcome {
    /// Time until the next query.
    pub next_after: Duration,
    /// Whether anything has changed.
    pub changed: bool,
    pub answered: bool,
}

/// Runs a query and applies its answer.
pub async fn run(query: &Query, plan: &Plan, carry: &Carry) -> QueryOutcome {
    match query {
        Query::Name(host) => name(host, plan, carry).await,
        Query::Source(source) => {
            let result = self::source(source, carry).await;
            let subject = format!("discovery source {}", source.name);
            log_problem(carry, &subject, result.as_ref().err(), "lists its backends again");
            let retry = source.interval.min(RETRY);
            match result {
                Ok(ListUpdate::Unconfirmed) => {
                    QueryOutcome { next_after: retry, changed: false, answered: true }
                }
                Ok(update) => {
                    let changed = update == ListUpdate::Changed;
                    QueryOutcome { next_after: source.interval, changed, answered: true }
                }
                Err(_) => QueryOutcome { next_after: retry, changed: false, answered: false },
            }
        }
    }
}

async fn name(host: &str, plan: &Plan, carry: &Carry) -> QueryOutcome {
    let subject = format!("name {host}");
    // A single server may be reached over both address families; with `addresses: each` every address is
    // a server, so only one family is used.
    let one = |b: &BackendPlan| b.addresses == Addresses::One && b.dialled().0 == host;
    let both = carry.discovered.backends(plan).iter().any(one);
    match dns::lookup(host, both, &plan.discovery.dns_servers).await {
        Ok(answer) if answer.addresses.is_empty() => {
            let why = "has no address".to_owned();
            log_problem(carry, &subject, Some(&why), "");
            QueryOutcome {
                next_after: RETRY,
                changed: carry.discovered.update_name(host, &answer),
                answered: true,
            }
        }
        Ok(answer) => {
            log_problem(carry, &subject, None, "has addresses again");
            let next_after = answer.ttl.clamp(TTL.0, TTL.1);
            let changed = carry.discovered.update_name(host, &answer);
            QueryOutcome { next_after, changed, answered: true }
        }
        Err(why) => {
            let why = format!("cannot be resolved: {why}");
            log_problem(carry, &subject, Some(&why), "");
            QueryOutcome { next_after: RETRY, changed: false, answered: false }
        }
    }
}

/// Logs names that several backends have: only the first backend of a name is used.
pub fn log_duplicates(plan: &Plan, carry: &Carry) {
    let names = carry.discovered.duplicates(plan).join(", ");
    let why =
        (!names.is_empty()).then(|| format!("are not unique, the first of each is used: {names}"));
    log_problem(carry, "names of backends", why.as_ref(), "are unique again");
}

/// Logs a problem once, and its end.
fn log_problem(carry: &Carry, subject: &str, problem: Option<&String>, solved: &str) {
    if !carry.discovered.problem_changed(subject, problem.map(String::as_str)) {
        return;
    }
    match problem {
        Some(problem) => log::warn!("{subject} {problem}"),
        None => log::info!("{subject} {solved}"),
    }
}

/// Queries a source and applies its list.
async fn source(source: &SourcePlan, carry: &Carry) -> Result<ListUpdate, String> {
    let before = carry.discovered.last_text(source);
    let text = match &source.location {
        SourceLocation::File(path) => match read(path, before.as_deref()).await? {
            Some(text) => text,
            None => return Ok(ListUpdate::Unchanged),
        },
        SourceLocation::Http { .. } => fetch(source, carry).await?,
    };
    if before.as_deref() == Some(&*text) {
        carry.discovered.confirm_list(source);
        return Ok(ListUpdate::Unchanged);
    }
    let listed = read_list(&text, source)
        .map_err(|why| format!("returned a list that cannot be used: {why}"))?;
    let subject = format!("discovery source {}: entries", source.name);
    let skipped = listed.invalid_entries();
    let bad = (!skipped.is_empty()).then(|| format!("that cannot be used are skipped: {skipped}"));
    log_problem(carry, &subject, bad.as_ref(), "can all be used again");
    let emptied = listed.backends.is_empty() && carry.discovered.listed_count(source) > 0;
    let update = carry.discovered.update_list(source, &text, listed.backends);
    if emptied {
        let name = &source.name;
        match update {
            ListUpdate::Unconfirmed => {
                log::warn!("discovery source {name} returned an empty list once");
            }
            _ => log::warn!("discovery source {name} lists no backends any more"),
        }
    }
    Ok(update)
}

async fn fetch(source: &SourcePlan, carry: &Carry) -> Result<String, String> {
    let SourceLocation::Http { url, timeout, headers } = &source.location else {
        return Err("is not an HTTP source".to_owned());
    };
    let mut request = carry.outside.get(url).timeout(*timeout);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let failed = |e| format!("cannot be queried: {}", http::cause(e));
    let mut response = request.send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(format!("answered {}", response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BYTES {
            return Err("answered with more than 16 MiB".to_owned());
        }
    }
    String::from_utf8(body).map_err(|_| "answered with invalid UTF-8".to_owned())
}

/// The text of a file; `None` while it is being written.
async fn read(path: &Path, before: Option<&str>) -> Result<Option<String>, String> {
    let read = || {
        std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
    };
    let text = read()?;
    if before.is_some_and(|before| before != text) {
        tokio::time::sleep(SETTLED).await;
        return Ok(Some(text).filter(|text| read().is_ok_and(|now| now == *text)));
    }
    Ok(Some(text))
}
