//! What is measured: a gateway by its configuration, and what its client does.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use super::{
    backend::Backend,
    callgrind::{Counts, Run},
    client,
    language::Language::{self, Chat, Messages, Responses},
};

/// The argument with which the measurement starts itself as bare Pingora.
pub const BARE: &str = "bare";

/// What a number is of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// A request of 1 KB, with a short answer.
    Request,
    /// An event of a stream.
    Event,
}

/// A case.
pub struct Case {
    pub name: &'static str,
    pub unit: Unit,
    /// The configuration beside address and backends; `None`: bare Pingora.
    config: Option<fn(&Path) -> String>,
    backends: usize,
    /// The languages of the client and of the backends.
    languages: (Language, Language),
}

/// What one request or event costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub instructions: f64,
    pub allocations: f64,
    pub system_calls: f64,
}

/// A case with one backend, where all speak Chat.
const fn case(name: &'static str, unit: Unit, config: Option<fn(&Path) -> String>) -> Case {
    Case { name, unit, config, backends: 1, languages: (Chat, Chat) }
}

/// A case with every policy and two backends.
const fn house(name: &'static str, unit: Unit, config: fn(&Path) -> String) -> Case {
    Case { backends: 2, ..case(name, unit, Some(config)) }
}

/// A case without policies, in other languages.
const fn spoken(name: &'static str, unit: Unit, client: Language, backend: Language) -> Case {
    Case { languages: (client, backend), ..case(name, unit, Some(plain)) }
}

/// All cases. The ones of bare Pingora come first.
pub const CASES: &[Case] = &[
    case("bare Pingora, a request", Unit::Request, None),
    case("bare Pingora, an event", Unit::Event, None),
    case("plain, a request", Unit::Request, Some(plain)),
    case("plain, an event", Unit::Event, Some(plain)),
    spoken("plain, Messages, a request", Unit::Request, Messages, Messages),
    spoken("plain, Messages, an event", Unit::Event, Messages, Messages),
    spoken("plain, Responses, a request", Unit::Request, Responses, Responses),
    spoken("plain, Responses, an event", Unit::Event, Responses, Responses),
    spoken("plain, Messages from Chat, a request", Unit::Request, Messages, Chat),
    spoken("plain, Messages from Chat, an event", Unit::Event, Messages, Chat),
    spoken("plain, Responses from Chat, a request", Unit::Request, Responses, Chat),
    spoken("plain, Responses from Chat, an event", Unit::Event, Responses, Chat),
    spoken("plain, Chat from Messages, an event", Unit::Event, Chat, Messages),
    spoken("plain, Chat from Responses, an event", Unit::Event, Chat, Responses),
    case("plain, a script that reads the head, a request", Unit::Request, Some(hook_head)),
    case("plain, a script that edits the body, a request", Unit::Request, Some(hook_body)),
    case("plain, a script that sees events, an event", Unit::Event, Some(hook_event)),
    case("plain, a guard that masks, a request", Unit::Request, Some(masks)),
    house("full house, a request", Unit::Request, full),
    house("full house, an event", Unit::Event, full),
    house("full house with a script that runs, a request", Unit::Request, full_scripted),
];

fn plain(_: &Path) -> String {
    "log: {access: false}\n".to_owned()
}

/// A script that only reads the head.
fn hook_head(folder: &Path) -> String {
    hook(folder, "on_request", "if request.headers['x-internal'] then return {allow = false} end")
}

/// A script that changes a field of the body.
fn hook_body(folder: &Path) -> String {
    hook(folder, "on_request", "local b = request.body b.temperature = 0.5 return {body = b}")
}

/// A script that looks at each event, and changes none.
fn hook_event(folder: &Path) -> String {
    hook(folder, "on_stream_event", "if event.content == 'stop' then return false end")
}

fn hook(folder: &Path, stage: &str, script: &str) -> String {
    // Under valgrind a call takes fifty times as long.
    let patient = match stage {
        "on_stream_event" => "timeout: 10s, stream_timeout: 1h",
        _ => "timeout: 10s",
    };
    format!("{}hooks: {{{stage}: {{script: \"{script}\", {patient}}}}}\n", plain(folder))
}

/// Personal data is looked for in each request.
fn masks(folder: &Path) -> String {
    format!("{}guards: {{redact: [{{kinds: [email, phone, card, secret]}}]}}\n", plain(folder))
}

/// Every policy at once. The script depends on the key's data alone: what it decides is remembered.
fn full(folder: &Path) -> String {
    with_script(folder, "tonumber(data.balance) <= 0")
}

/// The same with a script that has to run for each request.
fn full_scripted(folder: &Path) -> String {
    with_script(folder, "tonumber(data.balance) <= 0 or request.model == nil")
}

fn with_script(folder: &Path, denies: &str) -> String {
    const RULES: &str = "{requests_per_second: 1000000, requests_per_minute: 1000000000, \
                         tokens_per_minute: 100000000000, max_concurrent: 100000}";
    format!(
        "auth:
  pipeline:
    - type: static
      static: {{keys: [{{key: {}, user_id: user_001, balance: 1e12}}]}}
      lua_script: |
        if {denies} then
          return {{allow = false, message = \"used up\"}}
        end
        return {{allow = true, metadata = {{user_id = data.user_id}}}}
rate_limit:
  global: {RULES}
  per_key: {RULES}
usage:
  reporters: [{{type: file, file: {{path: \"{}\"}}}}]
",
        client::KEY,
        folder.join("records.jsonl").display()
    )
}

impl Case {
    /// Whether it is the yardstick.
    pub fn is_bare(&self) -> bool {
        self.config.is_none()
    }

    /// Measures it: two runs of different length, at the same time; the difference is what the
    /// longer one did more.
    pub fn measure(&self, folder: &Path) -> Cost {
        let (short, long) = match self.unit {
            Unit::Request => ((100, 0), (500, 0)),
            Unit::Event => ((10, 20), (10, 120)),
        };
        let more = match self.unit {
            Unit::Request => f64::from(long.0 - short.0),
            Unit::Event => f64::from(long.0 * (long.1 - short.1)),
        };
        let run = |what, (requests, events)| self.run(&self.folder(folder, what), requests, events);
        let (short, long) = std::thread::scope(|scope| {
            let short = scope.spawn(|| run("short", short));
            (run("long", long), short.join().unwrap())
        });
        let (long, short) = (short, long);
        let each = |of: fn(&Counts) -> u64| (of(&long) as f64 - of(&short) as f64) / more;
        Cost {
            instructions: each(|counts| counts.instructions),
            allocations: each(|counts| counts.allocations),
            system_calls: each(|counts| counts.system_calls),
        }
    }

    /// Of one of its two runs.
    fn folder(&self, folder: &Path, what: &str) -> PathBuf {
        let name = self.name.replace([' ', ','], "-");
        folder.join(format!("{name}.{what}"))
    }

    /// The ends of what the programs of the last measurement have written.
    pub fn last_words(&self, folder: &Path) -> String {
        let mut told = String::new();
        for what in ["short", "long"] {
            for file in ["stderr.log", "valgrind.log"] {
                let text = fs::read(self.folder(folder, what).join(file)).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(30)..].join("\n");
                told += &format!("--- {what}, {file}\n{last}\n");
            }
        }
        told
    }

    fn run(&self, folder: &Path, requests: u32, events: u32) -> Counts {
        // A spool of an earlier run would be read again.
        fs::remove_dir_all(folder).ok();
        fs::create_dir_all(folder).unwrap();
        let backend = Backend::start();
        let listen = free();
        let (program, arguments) = match self.config {
            None => {
                let arguments =
                    [BARE, &listen.to_string(), &backend.address.to_string(), "1", "simple"];
                (std::env::current_exe().unwrap(), arguments.map(str::to_owned).to_vec())
            }
            Some(config) => {
                let file = folder.join("gateway.yaml");
                let more = config(folder);
                fs::write(&file, self.file(folder, listen, backend.address, &more)).unwrap();
                let arguments = ["serve", "--config", file.to_str().unwrap()];
                let program = PathBuf::from(env!("CARGO_BIN_EXE_llmproxy"));
                (program, arguments.map(str::to_owned).to_vec())
            }
        };
        let run = Run::start(folder, &program, &arguments);
        client::connect(listen);
        let (client, _) = self.languages;
        for _ in 0..requests {
            match self.unit {
                Unit::Request => client::ask(listen, client),
                Unit::Event => client::stream(listen, client, &backend, events),
            }
        }
        run.end()
    }

    fn file(&self, folder: &Path, listen: SocketAddr, backend: SocketAddr, more: &str) -> String {
        // Chat is what a backend speaks if nothing is said.
        let languages = match self.languages {
            (_, Chat) => String::new(),
            (_, other) => format!(", languages: [{}]", other.name()),
        };
        let one = |n| format!("  - {{name: b{n}, url: \"http://{backend}\"{languages}}}\n");
        let backends: String = (0..self.backends).map(one).collect();
        format!(
            "listen: \"{listen}\"\nserver: {{threads: 1}}\ndata_dir: {}\n\
             health_check: {{interval: 1h}}\nbackends:\n{backends}{more}",
            folder.join("data").display()
        )
    }
}

/// A free port of an address that nothing else here listens on: two runs at the same time must not get
/// the same one.
fn free() -> SocketAddr {
    static LAST: AtomicU8 = AtomicU8::new(1);
    let address = Ipv4Addr::new(127, 0, 0, 1 + LAST.fetch_add(1, Ordering::Relaxed));
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}
