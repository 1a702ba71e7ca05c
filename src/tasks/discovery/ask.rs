//! One question, to a name server or a source, and what becomes of the answer.

use std::{path::Path, time::Duration};

use crate::{
    config::{
        Plan,
        choices::Addresses,
        plan::{BackendPlan, SourceLocation, SourcePlan, read_list},
    },
    runtime::{Carry, Taken},
    store::{dns, http},
};

/// The shortest and the longest time from one look at a name to the next.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// After a failure it is asked again so soon.
const AGAIN: Duration = Duration::from_secs(5);

/// The longest list that a source may tell, in bytes.
const LONGEST: usize = 16 << 20;

/// How long a file must stay as it is until it counts as written.
const SETTLED: Duration = Duration::from_millis(50);

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// Where a name leads.
    Name(String),
    /// What a source tells.
    Source(SourcePlan),
}

/// What came of a question.
pub struct Outcome {
    /// When to ask again.
    pub again: Duration,
    /// Whether anything has changed.
    pub news: bool,
    /// Whether there was an answer.
    pub answered: bool,
}

/// Asks, and takes the answer in.
pub async fn ask(item: &Item, plan: &Plan, carry: &Carry) -> Outcome {
    match item {
        Item::Name(host) => name(host, plan, carry).await,
        Item::Source(source) => {
            let result = self::source(source, carry).await;
            let about = format!("discovery source {}", source.name);
            complain(carry, &about, result.as_ref().err(), "tells its backends again");
            let soon = source.interval.min(AGAIN);
            match result {
                Ok(Taken::Doubted) => Outcome { again: soon, news: false, answered: true },
                Ok(taken) => {
                    let news = taken == Taken::News;
                    Outcome { again: source.interval, news, answered: true }
                }
                Err(_) => Outcome { again: soon, news: false, answered: false },
            }
        }
    }
}

async fn name(host: &str, plan: &Plan, carry: &Carry) -> Outcome {
    let about = format!("name {host}");
    // One server may be reached by both families; each address as a server of its own is of one.
    let one = |b: &BackendPlan| b.addresses == Addresses::One && b.dialled().0 == host;
    let both = carry.found.backends(plan).iter().any(one);
    match dns::lookup(host, both, &plan.discovery.dns_servers).await {
        Ok(answer) if answer.addresses.is_empty() => {
            let why = "has no address".to_owned();
            complain(carry, &about, Some(&why), "");
            Outcome { again: AGAIN, news: carry.found.name(host, &answer), answered: true }
        }
        Ok(answer) => {
            complain(carry, &about, None, "has addresses again");
            let again = answer.ttl.clamp(TTL.0, TTL.1);
            Outcome { again, news: carry.found.name(host, &answer), answered: true }
        }
        Err(why) => {
            let why = format!("cannot be resolved: {why}");
            complain(carry, &about, Some(&why), "");
            Outcome { again: AGAIN, news: false, answered: false }
        }
    }
}

/// Tells of backends that are left out because an earlier one has their name.
pub fn doubles(plan: &Plan, carry: &Carry) {
    let doubles = carry.found.doubles(plan).join(", ");
    let why =
        (!doubles.is_empty()).then(|| format!("stand more than once, the first counts: {doubles}"));
    complain(carry, "names of backends", why.as_ref(), "all stand once again");
}

/// Tells of a failure once, and of its end.
fn complain(carry: &Carry, about: &str, why: Option<&String>, again: &str) {
    if !carry.found.complaint(about, why.map(String::as_str)) {
        return;
    }
    match why {
        Some(why) => log::warn!("{about} {why}"),
        None => log::info!("{about} {again}"),
    }
}

/// Asks a source, and takes in what it tells.
async fn source(source: &SourcePlan, carry: &Carry) -> Result<Taken, String> {
    let before = carry.found.text(source);
    let text = match &source.location {
        SourceLocation::File(path) => match read(path, before.as_deref()).await? {
            Some(text) => text,
            None => return Ok(Taken::Same),
        },
        SourceLocation::Http { .. } => fetch(source, carry).await?,
    };
    if before.as_deref() == Some(&*text) {
        carry.found.same(source);
        return Ok(Taken::Same);
    }
    let listed =
        read_list(&text, source).map_err(|why| format!("told what cannot be taken: {why}"))?;
    let about = format!("discovery source {}: entries", source.name);
    let skipped = listed.invalid_entries();
    let bad = (!skipped.is_empty()).then(|| format!("that are no use are skipped: {skipped}"));
    complain(carry, &about, bad.as_ref(), "are all of use again");
    let none = listed.backends.is_empty() && carry.found.told(source) > 0;
    let taken = carry.found.list(source, &text, listed.backends);
    if none {
        let name = &source.name;
        match taken {
            Taken::Doubted => log::warn!("discovery source {name} tells an empty list once"),
            _ => log::warn!("discovery source {name} tells of no backend any more"),
        }
    }
    Ok(taken)
}

async fn fetch(source: &SourcePlan, carry: &Carry) -> Result<String, String> {
    let SourceLocation::Http { url, timeout, headers } = &source.location else {
        return Err("cannot be asked".to_owned());
    };
    let mut request = carry.outside.get(url).timeout(*timeout);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let failed = |e| format!("cannot be asked: {}", http::cause(e));
    let mut answer = request.send().await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(format!("answered {}", answer.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST {
            return Err("answered with more than 16 MiB".to_owned());
        }
    }
    String::from_utf8(body).map_err(|_| "answered with bytes that are no text".to_owned())
}

/// The text of a file; `None` while it is being written.
async fn read(path: &Path, before: Option<&str>) -> Result<Option<String>, String> {
    let look = || {
        std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
    };
    let text = look()?;
    if before.is_some_and(|before| before != text) {
        tokio::time::sleep(SETTLED).await;
        return Ok(Some(text).filter(|text| look().is_ok_and(|now| now == *text)));
    }
    Ok(Some(text))
}
