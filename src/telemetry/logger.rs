//! The log: `env_logger` with a writer thread, so that no request waits for a terminal or a disk. `RUST_LOG`
//! overrides the configured level.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use env_logger::{Builder, Target};
use log::{LevelFilter, Record};

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
    builder.init();
    if std::env::var_os("RUST_LOG").is_none() {
        log::set_max_level(level);
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

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Lines dropped since the last write.
static LOST: AtomicU64 = AtomicU64::new(0);

static WRITER: OnceLock<SyncSender<Message>> = OnceLock::new();

/// Waits until all lines are written, for at most a second. Called at the end of the process.
pub fn flush() {
    let Some(writer) = WRITER.get() else { return };
    let (done, wait) = sync_channel(1);
    if writer.try_send(Message::Flush(done)).is_ok() {
        wait.recv_timeout(Duration::from_secs(1)).ok();
    }
}

/// Hands complete lines to the writer thread.
struct Lines {
    writer: SyncSender<Message>,
    line: Vec<u8>,
}

impl Lines {
    fn start() -> Self {
        let (writer, lines) = sync_channel(BACKLOG);
        WRITER.set(writer.clone()).ok();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&lines))
            .expect("the system can start a thread");
        Self { writer, line: Vec::new() }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            let line = std::mem::take(&mut self.line);
            // A blocked terminal or pipe must not stop the traffic.
            if let Err(TrySendError::Full(_)) = self.writer.try_send(Message::Line(line)) {
                LOST.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long lines are gathered before they are written together. While the writer sleeps, a request need not
/// wake it.
const GATHER: Duration = Duration::from_millis(5);

/// Writes lines to standard error, all that are queued at once.
fn write_lines(lines: &Receiver<Message>) {
    let mut out = io::stderr();
    let mut batch = Vec::new();
    while let Ok(first) = lines.recv() {
        let mut flushed = Vec::new();
        if matches!(first, Message::Line(_)) {
            std::thread::sleep(GATHER);
        }
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => batch.extend_from_slice(&line),
                Message::Flush(done) => flushed.push(done),
            }
            next = if batch.len() < 64 * 1024 { lines.try_recv().ok() } else { None };
        }
        match LOST.swap(0, Ordering::Relaxed) {
            0 => {}
            n => batch.extend_from_slice(
                format!("{n} log lines dropped: the output was too slow\n").as_bytes(),
            ),
        }
        // A log error must not stop the traffic.
        out.write_all(&batch).ok();
        batch.clear();
        for done in flushed {
            done.send(()).ok();
        }
    }
}
