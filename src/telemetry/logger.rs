//! The log: `env_logger` with a writer thread, so that no request waits for a terminal or a disk. `RUST_LOG`
//! overrides the configured level.

use std::{
    cell::RefCell,
    io::{self, Write},
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use env_logger::{Builder, Logger, Target};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::base::lock;

/// The `target` of access lines, whose message is a complete line.
pub const ACCESS: &str = "access";

/// Lines that may wait for the writer; more lines are dropped and counted.
const BACKLOG: usize = 8192;

/// Starts the log of the process. Later calls only change the level.
pub fn start(level: LevelFilter, json: bool) {
    static STARTED: OnceLock<()> = OnceLock::new();
    let mut first = false;
    STARTED.get_or_init(|| first = true);
    if !first {
        // RUST_LOG may set a higher level for single modules, which the global maximum would cut off.
        if std::env::var_os("RUST_LOG").is_none() {
            log::set_max_level(level);
        }
        return;
    }
    let mut builder = Builder::new();
    // The logger accepts every level: `max_level` decides, and a reload can set it.
    builder.filter_level(LevelFilter::Trace);
    for noisy in ["h2", "hyper", "hyper_util", "reqwest", "rustls", "mio", "tracing"] {
        builder.filter_module(noisy, LevelFilter::Info);
    }
    // Pingora logs its internals at info.
    for chatty in ["pingora_core", "pingora_proxy", "pingora_load_balancing", "pingora_pool"] {
        builder.filter_module(chatty, LevelFilter::Warn);
    }
    builder.parse_default_env();
    builder.target(Target::Pipe(Box::new(Lines::start())));
    builder.format(move |out, record| match json {
        _ if is_noise(record) => Ok(()),
        true => write_json(out, record),
        false => write_text(out, record),
    });
    let logger = builder.build();
    let filters = std::env::var("RUST_LOG").unwrap_or_default();
    ACCESS_PATH.set(AccessPath::of(&logger, &filters)).ok();
    let most = logger.filter();
    log::set_boxed_logger(Box::new(logger)).expect("it is the only logger of the process");
    log::set_max_level(most);
    if std::env::var_os("RUST_LOG").is_none() {
        log::set_max_level(level);
    }
}

/// The module that writes access lines. Filters for it apply to them as those for [`ACCESS`] do.
const ACCESS_MODULE: &str = "llmproxy::gateway::logging";

/// How access lines get to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AccessPath {
    /// They are filtered out.
    Off,
    /// Past the logger, which would format each again.
    Direct,
    /// Through the logger, which filters them by their text, or there is none.
    Logger,
}

static ACCESS_PATH: OnceLock<AccessPath> = OnceLock::new();

impl AccessPath {
    /// By `RUST_LOG`, which does not change.
    fn of(logger: &Logger, filters: &str) -> Self {
        let enabled = |target: &str| {
            logger.enabled(&Metadata::builder().level(Level::Info).target(target).build())
        };
        match enabled(ACCESS) && enabled(ACCESS_MODULE) {
            false => Self::Off,
            // A text to search for follows a slash.
            true if filters.contains('/') => Self::Logger,
            true => Self::Direct,
        }
    }

    fn now() -> Self {
        match log::max_level() >= Level::Info {
            true => ACCESS_PATH.get().copied().unwrap_or(Self::Logger),
            false => Self::Off,
        }
    }
}

/// Whether access lines are written at present.
pub fn writes_access() -> bool {
    AccessPath::now() != AccessPath::Off
}

/// Writes an access line. `render` adds the line without its end to a buffer; `stamp` what stands
/// before it, unless the logger does that.
pub fn access(stamp: impl FnOnce(&mut Vec<u8>), render: impl FnOnce(&mut Vec<u8>)) {
    thread_local! {
        static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    match AccessPath::now() {
        AccessPath::Off => {}
        AccessPath::Direct => LINE.with_borrow_mut(|line| {
            line.clear();
            line.shrink_to(KEPT);
            stamp(line);
            render(line);
            line.push(b'\n');
            put(line);
        }),
        AccessPath::Logger => {
            let mut line = Vec::new();
            render(&mut line);
            log::info!(target: ACCESS, "{}", String::from_utf8_lossy(&line));
        }
    }
}

/// Errors and warnings of Pingora that are none: clients that disconnect during a header or a handshake,
/// health changes that the health task logs itself, and the response head of a stream that was already
/// opened while its request waited.
fn is_noise(record: &Record<'_>) -> bool {
    let says = |start: &str| record.args().to_string().starts_with(start);
    log::max_level() < LevelFilter::Debug
        && match record.target() {
            "pingora_proxy" => says("Fail to proxy"),
            "pingora_load_balancing" => says("backend "),
            "pingora_core::services::listening" => says("Downstream handshake"),
            "pingora_core::protocols::http::v1::server" => says("Respond header is already sent"),
            "pingora_core::protocols::http::v2::server" => says("Response header is already sent"),
            _ => false,
        }
}

fn write_text(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    let now = timestamp();
    if record.target() == ACCESS {
        return writeln!(out, "{now} ACCESS {}", record.args());
    }
    writeln!(out, "{now} {:5} {}: {}", record.level(), record.target(), record.args())
}

fn write_json(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    if record.target() == ACCESS {
        return writeln!(out, "{}", record.args());
    }
    let line = serde_json::json!({
        "ts": timestamp(),
        "level": record.level().as_str().to_ascii_lowercase(),
        "target": record.target(),
        "message": record.args().to_string(),
    });
    writeln!(out, "{line}")
}

/// Now, in RFC 3339 with milliseconds, UTC.
pub fn timestamp() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// Lines for the writer thread.
struct Queue {
    text: Vec<u8>,
    lines: usize,
    /// Lines dropped since the last write.
    lost: u64,
    /// Told when everything before is written.
    flushes: Vec<SyncSender<()>>,
    /// The writer waits to be woken.
    idle: bool,
    started: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.lines == 0 && self.lost == 0 && self.flushes.is_empty()
    }
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    text: Vec::new(),
    lines: 0,
    lost: 0,
    flushes: Vec::new(),
    idle: false,
    started: false,
});

static WAKE: Condvar = Condvar::new();

/// Waits until all lines are written, for at most a second. Called at the end of the process.
pub fn flush() {
    let (done, wait) = sync_channel(1);
    let mut queue = lock(&QUEUE);
    if !queue.started {
        return;
    }
    queue.flushes.push(done);
    wake(queue);
    wait.recv_timeout(Duration::from_secs(1)).ok();
}

/// Queues a complete line. A blocked terminal or pipe must not stop the traffic: when too many lines
/// wait, it is dropped.
fn put(line: &[u8]) {
    let mut queue = lock(&QUEUE);
    if queue.lines >= BACKLOG {
        queue.lost += 1;
        return;
    }
    queue.lines += 1;
    queue.text.extend_from_slice(line);
    wake(queue);
}

/// Wakes the writer if it waits to be woken; while lines come it looks for them by itself.
fn wake(mut queue: MutexGuard<'_, Queue>) {
    let idle = std::mem::take(&mut queue.idle);
    drop(queue);
    if idle {
        WAKE.notify_one();
    }
}

/// Hands complete lines to the writer thread.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
}

impl Lines {
    fn start() -> Self {
        lock(&QUEUE).started = true;
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(write_lines)
            .expect("the system can start a thread");
        Self::default()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            put(&self.line);
            self.line.clear();
            self.line.shrink_to(KEPT);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long lines are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(5);

/// The most bytes that a buffer keeps allocated when it is not in use.
const KEPT: usize = 64 * 1024;

/// Writes lines to standard error, all that are queued at once.
fn write_lines() {
    let mut out = io::stderr();
    let mut batch = Vec::new();
    loop {
        let mut queue = lock(&QUEUE);
        if queue.is_empty() {
            queue.idle = true;
            let woken = WAKE.wait_while(queue, |queue| queue.is_empty());
            drop(woken);
        } else {
            std::mem::swap(&mut batch, &mut queue.text);
            let lost = std::mem::take(&mut queue.lost);
            let flushes = std::mem::take(&mut queue.flushes);
            queue.lines = 0;
            drop(queue);
            if lost > 0 {
                batch.extend_from_slice(
                    format!("{lost} log lines dropped: the output was too slow\n").as_bytes(),
                );
            }
            // A log error must not stop the traffic.
            out.write_all(&batch).ok();
            batch.clear();
            batch.shrink_to(KEPT);
            for done in flushes {
                done.send(()).ok();
            }
        }
        std::thread::sleep(GATHER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lines_follow_the_filters() {
        let accepted = |filters: &str| {
            let logger =
                Builder::new().filter_level(LevelFilter::Trace).parse_filters(filters).build();
            AccessPath::of(&logger, filters)
        };
        for filters in ["", "info", "warn,access=info,llmproxy=info", "llmproxy=debug"] {
            assert_eq!(accepted(filters), AccessPath::Direct, "{filters}");
        }
        for filters in ["warn", "access=off", "access=warn", "llmproxy::gateway=warn"] {
            assert_eq!(accepted(filters), AccessPath::Off, "{filters}");
        }
        // What is in the lines decides.
        assert_eq!(accepted("info/status"), AccessPath::Logger);
    }
}
