//! Redis: a few connections that many requests share.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join;
use redis::{
    Client, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, ServerErrorKind,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::StoreError;
use crate::base::{
    Secret,
    terms::{COUNTED, UsageChange, time_like},
};

/// How to reach a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// With TLS.
    pub tls: bool,
    /// User name, since Redis 6.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Number of the database.
    pub db: i64,
    /// Connections; each carries many requests at a time.
    pub connections: usize,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// A server.
pub struct Redis {
    settings: Settings,
    connections: Vec<OnceCell<ConnectionManager>>,
    next: AtomicUsize,
}

impl Redis {
    /// Connects when it is first asked.
    pub fn new(settings: Settings) -> Self {
        let connections = (0..settings.connections.max(1)).map(|_| OnceCell::new()).collect();
        Self { settings, connections, next: AtomicUsize::new(0) }
    }

    async fn connection(&self) -> Result<ConnectionManager, StoreError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let made = self.connections[turn].get_or_try_init(async || self.connect()).await;
        made.cloned().map_err(|e| StoreError::new(cause(&e)))
    }

    fn connect(&self) -> Result<ConnectionManager, RedisError> {
        let s = &self.settings;
        let address = match s.tls {
            false => ConnectionAddr::Tcp(s.host.clone(), s.port),
            true => ConnectionAddr::TcpTls {
                host: s.host.clone(),
                port: s.port,
                insecure: false,
                tls_params: None,
            },
        };
        let mut login = RedisConnectionInfo::default().set_db(s.db);
        if let Some(name) = &s.username {
            login = login.set_username(name);
        }
        if let Some(password) = &s.password {
            login = login.set_password(password.expose());
        }
        let client = Client::open(address.into_connection_info()?.set_redis_settings(login))?;
        // A request that waits is told at once; the next one tries again.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(s.connect_timeout))
            .set_response_timeout(Some(s.timeout));
        ConnectionManager::new_lazy_with_config(client, config)
    }

    /// The hash or the string at a key, in one round trip.
    ///
    /// # Errors
    /// If the server cannot be asked, or something else stands at the key.
    pub async fn hash_or_string(&self, key: &str) -> Result<Found, StoreError> {
        let connection = self.connection().await?;
        let (mut one, mut two) = (connection.clone(), connection);
        let (hash, string) =
            (redis::cmd("HGETALL").arg(key).take(), redis::cmd("GET").arg(key).take());
        let (hash, string) = join(
            hash.query_async::<Vec<(String, String)>>(&mut one),
            string.query_async::<Option<String>>(&mut two),
        )
        .await;
        match (hash, string) {
            (Ok(fields), _) if !fields.is_empty() => Ok(Found::Hash(fields)),
            (_, Ok(Some(text))) => Ok(Found::String(text)),
            (Ok(_), Ok(None)) => Ok(Found::Nothing),
            (Err(e), Err(_)) if is_wrong_type(&e) => {
                Err(StoreError::new("what stands at the key is neither a hash nor a string"))
            }
            (Err(e), _) | (_, Err(e)) => Err(StoreError::new(cause(&e))),
        }
    }
}

/// A script that runs inside of the servers, all of it or nothing.
pub struct Script {
    text: &'static str,
    /// By which the servers that have it know it; the first of them has told it.
    digest: OnceLock<String>,
}

impl Script {
    /// A script with this text.
    pub const fn new(text: &'static str) -> Self {
        Self { text, digest: OnceLock::new() }
    }
}

/// Why a script gave no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// In words.
    pub why: StoreError,
    /// What became of the script.
    pub fate: Fate,
}

/// What became of a script that gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The server refused it, for what stands at a key: it is there, and nothing was done.
    Refused,
    /// The server does nothing of the kind for anyone now: it has no memory left, loads its data, is
    /// a replica. Nothing was done.
    Unable,
    /// The connection broke: another one may work. Nobody knows whether the script ran.
    Broken,
    /// Nobody knows whether it runs, or will.
    Unknown,
}

/// How errors begin that have nothing to do with what was asked for. Redis 6 tells those of a script
/// in its text.
const UNABLE: [&str; 14] = [
    "OOM",
    "LOADING",
    "READONLY",
    "MISCONF",
    "MASTERDOWN",
    "NOREPLICAS",
    "BUSY",
    "NOAUTH",
    "NOPERM",
    "WRONGPASS",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "UNKILLABLE",
    "max number of clients",
];

fn is_unable(error: &RedisError) -> bool {
    let kind = error.kind();
    if !matches!(kind, ErrorKind::Server(_) | ErrorKind::Extension) {
        return false;
    }
    let code = error.code().unwrap_or_default();
    let detail = error.detail().unwrap_or_default();
    let told = |word: &&str| detail.contains(*word);
    UNABLE.contains(&code) || (code == "ERR" || code.is_empty()) && UNABLE.iter().any(told)
}

impl From<RedisError> for Unanswered {
    fn from(error: RedisError) -> Self {
        let fate = match error.kind() {
            _ if is_unable(&error) => Fate::Unable,
            ErrorKind::Server(_) | ErrorKind::Extension => Fate::Refused,
            _ if error.is_connection_dropped() => Fate::Broken,
            _ => Fate::Unknown,
        };
        Self { why: StoreError::new(cause(&error)), fate }
    }
}

impl Redis {
    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Runs a script in one round trip. One more where the server does not have it yet.
    ///
    /// # Errors
    /// If the server cannot be asked, or the script fails.
    pub async fn script<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        args: &[String],
    ) -> Result<T, Unanswered> {
        let connection = self.connection().await;
        let mut connection = connection.map_err(|why| Unanswered { why, fate: Fate::Unknown })?;
        let digest = match script.digest.get() {
            Some(digest) => digest,
            None => {
                let load = redis::cmd("SCRIPT").arg("LOAD").arg(script.text).take();
                let digest = load.query_async::<String>(&mut connection).await?;
                script.digest.get_or_init(|| digest)
            }
        };
        let call = |command: &str, script: &str| {
            redis::cmd(command).arg(script).arg(keys.len()).arg(keys).arg(args).take()
        };
        let answer = call("EVALSHA", digest).query_async(&mut connection).await;
        match answer {
            // Nothing was run. The text, once run, stays.
            Err(e) if e.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                Ok(call("EVAL", script.text).query_async(&mut connection).await?)
            }
            answer => Ok(answer?),
        }
    }
}

/// UsageChanges quota and balance in a hash, if `last_reset_at` is still what it was. Neither the hash
/// nor a quota or balance is made that is not there. Spaces that others have left around a number,
/// or an empty text for 0, are no number for HINCRBYFLOAT.
static COUNT: Script = Script::new(
    "
local key, last, tokens, anew, reset, credit = KEYS[1], unpack(ARGV)
if redis.call('EXISTS', key) == 0 then return false end
if (redis.call('HGET', key, 'last_reset_at') or '') ~= last then return false end
local function add(name, n)
  local text = redis.call('HGET', key, name) or '0'
  local clean = string.match(text, '^%s*(.-)%s*$')
  if clean == '' then clean = '0' end
  if clean ~= text then redis.call('HSET', key, name, clean) end
  redis.call('HINCRBYFLOAT', key, name, n)
end
if tokens ~= '' and redis.call('HEXISTS', key, 'total_quota') == 1 then
  if anew == '1' then redis.call('HSET', key, 'used_quota', '0') end
  add('used_quota', tokens)
  if reset ~= '' then redis.call('HSET', key, 'last_reset_at', reset) end
end
if credit ~= '' and redis.call('HEXISTS', key, 'balance') == 1 then add('balance', credit) end
return redis.call('HMGET', key, 'used_quota', 'balance', 'last_reset_at')
",
);

/// Puts a string in the place of another, if that is still there, for as long as it had to live.
static REPLACE: Script = Script::new(
    "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
",
);

impl Redis {
    /// Makes a change in the hash at a key, where `last_reset_at` was as it is given. Returns the
    /// fields of [`COUNTED`]; `None` if nothing was changed, because the hash is another by now.
    ///
    /// # Errors
    /// If the server cannot be asked, or does not allow it.
    pub async fn count(
        &self,
        key: &str,
        last_reset_at: Option<&str>,
        change: &UsageChange,
    ) -> Result<Option<[Option<String>; COUNTED.len()]>, StoreError> {
        let number = |n: Option<f64>| n.map(|n| n.to_string()).unwrap_or_default();
        let earlier = last_reset_at.map(Value::from);
        let reset = change.reset_at.map(|at| match time_like(earlier.as_ref(), at) {
            Value::String(text) => text,
            other => other.to_string(),
        });
        let args = [
            last_reset_at.unwrap_or_default().to_owned(),
            number(change.tokens),
            if change.reset { "1" } else { "" }.to_owned(),
            reset.unwrap_or_default(),
            number(change.credit.map(|credit| -credit)),
        ];
        let keys = [key.to_owned()];
        let told = self.script::<Option<Vec<Option<String>>>>(&COUNT, &keys, &args);
        let told = told.await.map_err(|unanswered| unanswered.why)?;
        told.map(|told| told.try_into().map_err(|_| StoreError::new("Redis answered oddly")))
            .transpose()
    }

    /// Puts `new` in the place of the string `old` at a key; `false` if that is not there any more.
    ///
    /// # Errors
    /// If the server cannot be asked, or does not allow it.
    pub async fn replace(&self, key: &str, old: &str, new: &str) -> Result<bool, StoreError> {
        let args = [old.to_owned(), new.to_owned()];
        let done = self.script::<i64>(&REPLACE, &[key.to_owned()], &args).await;
        done.map(|done| done == 1).map_err(|unanswered| unanswered.why)
    }
}

impl Redis {
    /// Adds entries to a stream, all or none. With `max_len` about so many of the newest stay.
    ///
    /// # Errors
    /// If the server cannot be asked, or refuses. If it did not answer, they may have been added.
    pub async fn add<const N: usize>(
        &self,
        stream: &str,
        max_len: Option<u64>,
        entries: &[[(&str, Bytes); N]],
    ) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let mut all = redis::pipe();
        // In a transaction: what is refused, or breaks off, in its midst leaves no part behind that
        // would be there twice after the next attempt; and what several gateways add at the same
        // time is not mixed.
        all.atomic();
        for entry in entries {
            all.cmd("XADD").arg(stream);
            if let Some(most) = max_len {
                all.arg("MAXLEN").arg("~").arg(most);
            }
            all.arg("*");
            for (name, value) in entry {
                all.arg(*name).arg(&value[..]);
            }
            all.ignore();
        }
        let added = all.exec_async(&mut connection).await;
        added.map_err(|e| StoreError::new(refusal(e, stream)))
    }
}

/// Why a transaction with this key was refused.
fn refusal(error: RedisError, key: &str) -> String {
    // Those of its commands tell more than that it was not done.
    let told = error.clone().into_server_errors();
    match told.as_deref().and_then(|errors| errors.first()).map(|(_, first)| first.code()) {
        Some("WRONGTYPE") => format!("what stands at the key `{key}` is no stream"),
        Some("OOM") => "Redis has no memory left (OOM)".to_owned(),
        Some(code) => format!("Redis refused the command: {code}"),
        None => cause(&error),
    }
}

/// What stands at a key.
pub enum Found {
    /// A hash.
    Hash(Vec<(String, String)>),
    /// A string.
    String(String),
    /// Nothing.
    Nothing,
}

fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

/// The error without what was sent.
fn cause(error: &RedisError) -> String {
    match error.kind() {
        _ if error.code() == Some("OOM") => "Redis has no memory left (OOM)".to_owned(),
        ErrorKind::AuthenticationFailed => "Redis did not accept user name and password".to_owned(),
        ErrorKind::Server(_) | ErrorKind::Extension => {
            format!("Redis refused the command: {}", error.code().unwrap_or("ERR"))
        }
        _ if error.is_timeout() => "Redis did not answer in time".to_owned(),
        _ if error.is_io_error() || error.is_connection_dropped() => {
            format!("Redis cannot be reached: {error}")
        }
        _ => format!("Redis failed: {}", error.category()),
    }
}
