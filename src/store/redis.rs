//! Redis: a few connections shared by all requests.

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

use super::error::StoreError;
use crate::base::{
    Secret,
    terms::{COUNTED, UsageChange, time_like},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Host name or address.
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// User name; needs Redis 6.
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// The number of the database.
    pub db: i64,
    /// The number of connections; each carries many commands at a time.
    pub connections: usize,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a reply may take.
    pub timeout: Duration,
}

/// A Redis server.
pub struct Redis {
    settings: Settings,
    connections: Vec<OnceCell<ConnectionManager>>,
    next: AtomicUsize,
}

impl Redis {
    /// Connects with the first command.
    pub fn new(settings: Settings) -> Self {
        let connections = (0..settings.connections.max(1)).map(|_| OnceCell::new()).collect();
        Self { settings, connections, next: AtomicUsize::new(0) }
    }

    async fn connection(&self) -> Result<ConnectionManager, StoreError> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let made = self.connections[index].get_or_try_init(async || self.connect()).await;
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
        // A waiting command fails at once; the next one connects again.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(s.connect_timeout))
            .set_response_timeout(Some(s.timeout));
        ConnectionManager::new_lazy_with_config(client, config)
    }

    /// The hash or the string at a key, in one round trip.
    ///
    /// # Errors
    /// If the command fails, or the key has another type.
    pub async fn hash_or_string(&self, key: &str) -> Result<StoredValue, StoreError> {
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
            (Ok(fields), _) if !fields.is_empty() => Ok(StoredValue::Hash(fields)),
            (_, Ok(Some(text))) => Ok(StoredValue::String(text)),
            (Ok(_), Ok(None)) => Ok(StoredValue::Missing),
            (Err(e), Err(_)) if is_wrong_type(&e) => {
                Err(StoreError::new("the key is neither a hash nor a string"))
            }
            (Err(e), _) | (_, Err(e)) => Err(StoreError::new(cause(&e))),
        }
    }
}

impl Redis {
    /// The string at a key; `None`: there is none.
    ///
    /// # Errors
    /// If the command fails, or the key has another type.
    pub async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        let mut connection = self.connection().await?;
        let got = redis::cmd("GET").arg(key).query_async(&mut connection).await;
        got.map_err(|e| StoreError::new(cause(&e)))
    }

    /// Writes a string that ends after this time.
    ///
    /// # Errors
    /// If the command fails.
    pub async fn set(&self, key: &str, text: &str, ttl: Duration) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut set = redis::cmd("SET");
        let set = set.arg(key).arg(text).arg("PX").arg(millis);
        set.exec_async(&mut connection).await.map_err(|e| StoreError::new(cause(&e)))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// If the command fails.
    pub async fn remove(&self, key: &str) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let removed = redis::cmd("DEL").arg(key).exec_async(&mut connection).await;
        removed.map_err(|e| StoreError::new(cause(&e)))
    }
}

/// A Lua script, which the server runs atomically.
pub struct Script {
    text: &'static str,
    /// The SHA1 digest of the script, as returned by SCRIPT LOAD.
    digest: OnceLock<String>,
}

impl Script {
    pub const fn new(text: &'static str) -> Self {
        Self { text, digest: OnceLock::new() }
    }
}

/// Why a script returned no result.
#[derive(Debug)]
pub struct ScriptError {
    pub why: StoreError,
    pub outcome: ScriptOutcome,
}

/// What happened to a script that returned no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptOutcome {
    /// The server is available but rejected the script because of the data at a key. Nothing was changed.
    Refused,
    /// The server accepts no such command at the moment: it is out of memory, loads its data, or is a
    /// replica. Nothing was changed.
    Unable,
    /// The connection broke; another one may work. The script may have run.
    Broken,
    /// The script may still run.
    Unknown,
}

/// Error codes that do not depend on the command. Redis 6 puts the code of an error inside a script into the
/// text.
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
    let mentioned = |word: &&str| detail.contains(*word);
    UNABLE.contains(&code) || (code == "ERR" || code.is_empty()) && UNABLE.iter().any(mentioned)
}

impl From<RedisError> for ScriptError {
    fn from(error: RedisError) -> Self {
        let outcome = match error.kind() {
            _ if is_unable(&error) => ScriptOutcome::Unable,
            ErrorKind::Server(_) | ErrorKind::Extension => ScriptOutcome::Refused,
            _ if error.is_connection_dropped() => ScriptOutcome::Broken,
            _ => ScriptOutcome::Unknown,
        };
        Self { why: StoreError::new(cause(&error)), outcome }
    }
}

impl Redis {
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Runs a script in one round trip, or two if the server does not have it yet.
    ///
    /// # Errors
    /// If the server is unavailable, or the script fails.
    pub async fn script<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        args: &[String],
    ) -> Result<T, ScriptError> {
        let connection = self.connection().await;
        let mut connection =
            connection.map_err(|why| ScriptError { why, outcome: ScriptOutcome::Unknown })?;
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
            // The script was not run. EVAL also stores it.
            Err(e) if e.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                Ok(call("EVAL", script.text).query_async(&mut connection).await?)
            }
            answer => Ok(answer?),
        }
    }
}

/// Changes quota and balance in a hash, if `last_reset_at` is unchanged. It never creates the hash, a quota or
/// a balance. HINCRBYFLOAT accepts neither spaces around a number nor an empty string for 0, so both are
/// cleaned first.
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

/// Replaces a string if it is unchanged, and keeps its TTL.
static REPLACE: Script = Script::new(
    "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
",
);

impl Redis {
    /// Applies a change to the hash at a key, if its `last_reset_at` is the given one. Returns the fields of
    /// [`COUNTED`]; `None` if the hash has changed, so that nothing was done.
    ///
    /// # Errors
    /// If the server is unavailable, or does not allow it.
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
        let fields = self.script::<Option<Vec<Option<String>>>>(&COUNT, &keys, &args);
        let fields = fields.await.map_err(|error| error.why)?;
        fields
            .map(|fields| {
                fields.try_into().map_err(|_| StoreError::new("Redis returned an unexpected reply"))
            })
            .transpose()
    }

    /// Replaces the string `old` at a key by `new`; `false` if the value has changed.
    ///
    /// # Errors
    /// If the server is unavailable, or does not allow it.
    pub async fn replace(&self, key: &str, old: &str, new: &str) -> Result<bool, StoreError> {
        let args = [old.to_owned(), new.to_owned()];
        let done = self.script::<i64>(&REPLACE, &[key.to_owned()], &args).await;
        done.map(|done| done == 1).map_err(|error| error.why)
    }
}

/// Adds to an integer; a new one ends after a time.
static INCREMENT: Script = Script::new(
    "
local sum = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return sum
",
);

/// Single values.
impl Redis {
    /// The string at a key; `None` if it is absent or empty.
    ///
    /// # Errors
    /// If the server is unavailable, or the value is another one or longer than `largest` bytes.
    pub async fn get_value(
        &self,
        key: &str,
        largest: usize,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let command = redis::cmd("GETRANGE").arg(key).arg(0).arg(largest).take();
        let value = command.query_async::<Vec<u8>>(&mut self.connection().await?).await;
        match value.map_err(|e| StoreError::new(cause(&e)))? {
            long if long.len() > largest => {
                Err(StoreError::new(format!("the value is larger than {largest} bytes")))
            }
            value => Ok((!value.is_empty()).then_some(value)),
        }
    }

    /// Sets the string at a key, which ends after `ttl`.
    ///
    /// # Errors
    /// If the server is unavailable, or does not allow it.
    pub async fn set_value(
        &self,
        key: &str,
        value: &[u8],
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg(value).arg("PX").arg(milliseconds(ttl));
        let done = command.query_async::<()>(&mut self.connection().await?).await;
        done.map_err(|e| StoreError::new(cause(&e)))
    }

    /// Adds to the integer at a key; the sum. A new one ends after `ttl`.
    ///
    /// # Errors
    /// If the server is unavailable, or the value is no integer.
    pub async fn increment(&self, key: &str, by: i64, ttl: Duration) -> Result<i64, StoreError> {
        let args = [by.to_string(), milliseconds(ttl).to_string()];
        let sum = self.script::<i64>(&INCREMENT, &[key.to_owned()], &args).await;
        sum.map_err(|error| match error.outcome {
            ScriptOutcome::Refused => StoreError::new("the value is not an integer, or too large"),
            _ => error.why,
        })
    }

    /// Sets when a key ends; whether it is there.
    ///
    /// # Errors
    /// If the server is unavailable, or does not allow it.
    pub async fn expire(&self, key: &str, ttl: Duration) -> Result<bool, StoreError> {
        let command = redis::cmd("PEXPIRE").arg(key).arg(milliseconds(ttl)).take();
        let done = command.query_async::<bool>(&mut self.connection().await?).await;
        done.map_err(|e| StoreError::new(cause(&e)))
    }

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    /// If the server is unavailable, or does not allow it.
    pub async fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let command = redis::cmd("DEL").arg(key).take();
        let done = command.query_async::<bool>(&mut self.connection().await?).await;
        done.map_err(|e| StoreError::new(cause(&e)))
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl Redis {
    /// Adds entries to a stream, all or none. With `max_len`, about that many of the newest entries are kept.
    ///
    /// # Errors
    /// If the server is unavailable or rejects them. If it did not reply, they may have been added.
    pub async fn add<const N: usize>(
        &self,
        stream: &str,
        max_len: Option<u64>,
        entries: &[[(&str, Bytes); N]],
    ) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let mut all = redis::pipe();
        // A transaction: an error in the middle leaves no entries behind that the next attempt would repeat,
        // and the batches of several gateways are not mixed.
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

/// Why a transaction with this key was rejected.
fn refusal(error: RedisError, key: &str) -> String {
    // The errors of the commands say more than EXECABORT.
    let errors = error.clone().into_server_errors();
    match errors.as_deref().and_then(|errors| errors.first()).map(|(_, first)| first.code()) {
        Some("WRONGTYPE") => format!("the key `{key}` is not a stream"),
        Some("OOM") => "Redis is out of memory (OOM)".to_owned(),
        Some(code) => format!("Redis rejected the command: {code}"),
        None => cause(&error),
    }
}

/// The value of a key.
pub enum StoredValue {
    Hash(Vec<(String, String)>),
    String(String),
    /// The key does not exist.
    Missing,
}

fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

/// The error, without what was sent.
fn cause(error: &RedisError) -> String {
    match error.kind() {
        _ if error.code() == Some("OOM") => "Redis is out of memory (OOM)".to_owned(),
        ErrorKind::AuthenticationFailed => "Redis rejected the user name or password".to_owned(),
        ErrorKind::Server(_) | ErrorKind::Extension => {
            format!("Redis rejected the command: {}", error.code().unwrap_or("ERR"))
        }
        _ if error.is_timeout() => "Redis did not answer in time".to_owned(),
        _ if error.is_io_error() || error.is_connection_dropped() => {
            format!("Redis cannot be reached: {error}")
        }
        _ => format!("Redis failed: {}", error.category()),
    }
}
