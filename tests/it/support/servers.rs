//! Real servers: Redis, PostgreSQL and MariaDB, each a process with its own data folder.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::{
        fs::{MetadataExt, chown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{PATIENCE, eventually, free_address};

/// The user of the databases, with all privileges.
pub const USER: &str = "llmproxy";
/// The password, with characters that have a meaning in a URL.
pub const PASSWORD: &str = "p@ss/w:rd";
/// The database, initially empty.
pub const DATABASE: &str = "llmproxy";

/// The limit for the start of a server.
const START: Duration = Duration::from_secs(60);

pub type Redis = Server<kind::Redis>;
pub type Postgres = Server<kind::Postgres>;
pub type MariaDb = Server<kind::MariaDb>;

/// A running server. It is killed when dropped.
pub struct Server<K: Kind> {
    pub address: SocketAddr,
    child: Option<Child>,
    folder: TempDir,
    kind: K,
}

/// The differences between the servers.
pub trait Kind {
    /// The signal that stops it immediately. Committed data must survive a restart.
    const STOP: &str = "KILL";

    /// Prepares the folder of the server.
    fn prepare(&self, folder: &Path);

    fn program(&self, folder: &Path) -> PathBuf;

    /// Adds the program's arguments. It runs in the folder.
    fn configure(&self, server: &mut Command, address: SocketAddr, folder: &Path);

    /// Whether this process answers, and not one of another test that took the port.
    fn answers(server: &Server<Self>) -> bool
    where
        Self: Sized;
}

impl<K: Kind> Server<K> {
    async fn start_as(kind: K) -> Self {
        let folder = tempfile::tempdir().unwrap();
        give_away(folder.path());
        kind.prepare(folder.path());
        let mut server = Self { address: free_address(), child: None, folder, kind };
        for _ in 0..5 {
            if server.comes_up().await {
                return server;
            }
            server.address = free_address();
        }
        panic!("each port was taken by another process:\n{}", server.log());
    }

    /// Stops the server and ends its connections.
    pub fn stop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // A process that has ended by itself takes no signal.
        if child.try_wait().unwrap().is_none() {
            self.resume();
            self.signal(K::STOP);
        }
        self.child.take().unwrap().wait().unwrap();
    }

    /// Starts it again at the same address. The databases keep their data, Redis does not.
    pub async fn restart(&mut self) {
        self.stop();
        // Another process may use this port for an outgoing connection for a while.
        eventually("the server gets its port again", async || self.comes_up().await).await;
    }

    /// Suspends the server. Its connections stay open.
    pub fn pause(&self) {
        self.signal("STOP");
        // PostgreSQL's processes end when they see that the first of them has ended, which they cannot
        // while suspended. If the test is killed now, this shell wakes them.
        let watch = "all=$(pgrep -P $0); (while pgrep -P $0; do sleep 1; done; kill -CONT $all) &";
        Command::new("sh")
            .args(["-c", watch, &self.pid().to_string()])
            // Outside the process group that is killed with the test.
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
    }

    /// Continues it after `pause`.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// The log since the last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server has been stopped").id()
    }

    fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.pid().to_string());
        assert!(Command::new("kill").args([&signal, &pid]).status().unwrap().success());
        if matches!(name, "STOP" | "CONT") {
            // PostgreSQL has a process per connection. The other servers have a single process, for
            // which pkill finds nothing and fails.
            Command::new("pkill").args([&signal, "-P", &pid]).status().unwrap();
        }
    }

    /// Starts the server and waits until it answers. `false` if its port was taken.
    async fn comes_up(&mut self) -> bool {
        self.child = Some(self.spawn());
        let start = Instant::now();
        while !K::answers(self) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            if ended.is_some() && self.log().contains("Address already in use") {
                return false;
            }
            let hope = ended.is_none() && start.elapsed() < START;
            assert!(hope, "the server does not start ({ended:?}):\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    fn spawn(&self) -> Child {
        let folder = self.folder.path();
        let program = self.kind.program(folder);
        // A killed test drops nothing, and MariaDB ignores Ctrl-C. With setpriv the kernel kills the
        // server when the thread that started it ends, which is the test's.
        let mut command = if let Some(setpriv) = find("setpriv") {
            let mut command = command_in(folder, setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        } else {
            command_in(folder, program)
        };
        let log = File::create(folder.join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.kind.configure(&mut command, self.address, folder);
        command.spawn().unwrap()
    }
}

impl<K: Kind> Drop for Server<K> {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- log of the server at {}:\n{}---", self.address, self.log());
        }
    }
}

impl Redis {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts a server that requires a password.
    pub async fn start_with(password: Option<&str>) -> Self {
        Self::start_as(kind::Redis { password: password.map(str::to_owned) }).await
    }

    /// Runs a command. Each element of an array is on its own line; nil is "".
    pub fn command(&self, command: &[&str]) -> String {
        self.ask(command, PATIENCE).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn ask(&self, command: &[&str], patience: Duration) -> io::Result<String> {
        let stream = TcpStream::connect_timeout(&self.address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut stream = BufReader::new(stream);
        if let Some(password) = &self.kind.password {
            exchange(&mut stream, &["AUTH", password])?;
        }
        exchange(&mut stream, command)
    }
}

/// Sends a command to Redis and reads the reply.
fn exchange(stream: &mut BufReader<TcpStream>, command: &[&str]) -> io::Result<String> {
    let mut request = format!("*{}\r\n", command.len());
    for word in command {
        write!(request, "${}\r\n{word}\r\n", word.len()).unwrap();
    }
    stream.get_mut().write_all(request.as_bytes())?;
    answer(stream)
}

fn answer(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
    // A length of -1 means nil.
    let length = || rest.parse::<usize>().unwrap_or(0);
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "$" if rest == "-1" => Ok(String::new()),
        "$" => {
            let mut text = vec![0; length() + 2];
            stream.read_exact(&mut text)?;
            text.truncate(length());
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        "*" => {
            let all: io::Result<Vec<_>> = (0..length()).map(|_| answer(stream)).collect();
            Ok(all?.join("\n"))
        }
        _ => Err(io::Error::other(line)),
    }
}

impl Postgres {
    pub async fn start() -> Self {
        Self::start_as(kind::Postgres).await
    }

    /// The URL of the database, with user and password.
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{}@{}/{DATABASE}", encoded(PASSWORD), self.address)
    }

    /// Runs SQL. The values of a row have tabs between them.
    pub fn run(&self, sql: &str) -> String {
        done(&mut self.client(sql))
    }

    fn client(&self, sql: &str) -> Command {
        let folder = self.folder.path();
        let mut command = command_in(folder, kind::postgres_program("psql"));
        // Through the socket in the folder: another test's server may have the port.
        command.arg("-h").arg(folder).args(["-p", &self.address.port().to_string()]);
        command.args(["-U", USER, "-d", DATABASE, "-X", "-q", "-t", "-A", "-F", "\t", "-c", sql]);
        command.env("PGPASSWORD", PASSWORD);
        command
    }
}

impl MariaDb {
    pub async fn start() -> Self {
        Self::start_as(kind::MariaDb).await
    }

    /// The URL of the database, with user and password.
    pub fn url(&self) -> String {
        format!("mysql://{USER}:{}@{}/{DATABASE}", encoded(PASSWORD), self.address)
    }

    /// Runs SQL. The values of a row have tabs between them.
    pub fn run(&self, sql: &str) -> String {
        done(&mut self.client(sql))
    }

    fn client(&self, sql: &str) -> Command {
        let mut command = command_in(self.folder.path(), program("mariadb"));
        // Through the socket in the folder: another test's server may have the port.
        command.args(["--no-defaults", "--protocol=socket", "--socket=socket", "--user", USER]);
        command.args(["--batch", "--skip-column-names", "--execute", sql, DATABASE]);
        command.env("MYSQL_PWD", PASSWORD);
        command
    }
}

/// How each server is set up and run.
pub mod kind {
    use super::*;

    pub struct Redis {
        pub(super) password: Option<String>,
    }

    impl Kind for Redis {
        fn prepare(&self, folder: &Path) {
            // Debian's redis-tools contains the server as `redis-check-rdb`: one program that acts by the
            // name of its file.
            let server = find("redis-server").unwrap_or_else(|| program("redis-check-rdb"));
            symlink(server, self.program(folder)).unwrap();
        }

        fn program(&self, folder: &Path) -> PathBuf {
            folder.join("redis-server")
        }

        fn configure(&self, server: &mut Command, address: SocketAddr, _: &Path) {
            server.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
            // No persistence.
            server.args(["--save", "", "--appendonly", "no"]);
            if let Some(password) = &self.password {
                server.args(["--requirepass", password]);
            }
        }

        fn answers(server: &Server<Self>) -> bool {
            let me = format!("process_id:{}\r\n", server.pid());
            // Another process on the port may not answer at all.
            let info = server.ask(&["INFO", "server"], Duration::from_secs(1));
            info.is_ok_and(|info| info.contains(&me))
        }
    }

    pub struct Postgres;

    impl Kind for Postgres {
        // After SIGKILL its child processes would remain for a moment and prevent a new start.
        const STOP: &str = "QUIT";

        fn prepare(&self, folder: &Path) {
            fs::write(folder.join("password"), PASSWORD).unwrap();
            let mut initdb = command_in(folder, postgres_program("initdb"));
            initdb.args(["-D", "data", "-U", USER, "--pwfile=password", "--auth=scram-sha-256"]);
            initdb.args(["--encoding=UTF8", "--locale=C", "--no-sync"]);
            done(&mut initdb);
            // Renaming the existing database is faster than creating one.
            let rename = format!("ALTER DATABASE postgres RENAME TO {DATABASE}\n");
            fs::write(folder.join("sql"), rename).unwrap();
            let mut postgres = command_in(folder, self.program(folder));
            postgres.args(["--single", "-D", "data", "template1"]);
            postgres.stdin(File::open(folder.join("sql")).unwrap());
            done(&mut postgres);
        }

        fn program(&self, _: &Path) -> PathBuf {
            postgres_program("postgres")
        }

        fn configure(&self, server: &mut Command, address: SocketAddr, folder: &Path) {
            server.args(["-D", "data", "-h", "127.0.0.1", "-p", &address.port().to_string()]);
            // No fsync (-F): the data need not survive a crash of the machine.
            server.arg("-F").arg("-k").arg(folder);
        }

        fn answers(server: &Server<Self>) -> bool {
            output(&mut server.client("SELECT 1")).is_ok()
        }
    }

    /// A program of PostgreSQL, all of one version: the PATH may have wrappers.
    pub fn postgres_program(name: &str) -> PathBuf {
        fs::canonicalize(program("postgres")).unwrap().with_file_name(name)
    }

    pub struct MariaDb;

    /// The same at setup and start: a log of another size would be created again at the start.
    const INNODB_LOG: &str = "--innodb-log-file-size=4M";

    impl Kind for MariaDb {
        fn prepare(&self, folder: &Path) {
            // No lookup of the machine's name, which fails in some containers.
            let mut install = command_in(folder, program("mariadb-install-db"));
            install.args(["--no-defaults", "--skip-name-resolve", "--skip-test-db", INNODB_LOG]);
            install.arg("--auth-root-authentication-method=normal");
            install.arg(format!("--datadir={}", folder.join("data").display()));
            done(&mut install);
            let sql = format!(
                "CREATE DATABASE IF NOT EXISTS {DATABASE};\n\
                 CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\n\
                 GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n"
            );
            fs::write(folder.join("init.sql"), sql).unwrap();
        }

        fn program(&self, _: &Path) -> PathBuf {
            program("mariadbd")
        }

        fn configure(&self, server: &mut Command, address: SocketAddr, folder: &Path) {
            let file = |option, name| format!("--{option}={}", folder.join(name).display());
            server.args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve"]);
            server.arg(format!("--port={}", address.port()));
            server.arg(file("datadir", "data")).arg(file("socket", "socket"));
            server.arg(file("init-file", "init.sql"));
            server.args([INNODB_LOG, "--innodb-buffer-pool-size=16M"]);
            // A commit reaches the operating system, not the disk.
            server.arg("--innodb-flush-log-at-trx-commit=2");
            // The operating system has too few requests of it for many servers.
            server.arg("--innodb-use-native-aio=OFF");
        }

        fn answers(server: &Server<Self>) -> bool {
            output(&mut server.client("SELECT 1")).is_ok()
        }
    }
}

/// Gives root's folder to an ordinary user, as databases refuse to run as root.
fn give_away(folder: &Path) {
    if fs::metadata(folder).unwrap().uid() == 0 {
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let id = |name: &str| {
            let user = users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            user.and_then(|fields| fields.split(':').nth(1)?.parse().ok())
        };
        let id: Option<u32> = id("postgres").or_else(|| id("nobody"));
        chown(folder, id, None).unwrap();
    }
}

/// A command in the folder, run as the owner of the folder.
fn command_in(folder: &Path, program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command
        .uid(fs::metadata(folder).unwrap().uid())
        .current_dir(folder)
        // `comes_up` reads the message about a taken port.
        .env("LC_ALL", "C")
        .env("TMPDIR", folder)
        .stdin(Stdio::null());
    command
}

/// The output of the command without the last line break, or the error messages if it fails.
fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_owned();
    let output = command.output().map_err(|error| format!("{program:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program:?}: {}\n{complaint}{text}", output.status));
    }
    Ok(text.trim_end().to_owned())
}

fn done(command: &mut Command) -> String {
    output(command).unwrap_or_else(|complaint| panic!("{complaint}"))
}

/// A program, from the PATH or from the folders that packages use outside the PATH.
fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions.map(|entry| entry.path()).collect();
    // Newest first.
    versions.sort_by_key(|path| path.file_name()?.to_str()?.parse::<u32>().ok());
    env::split_paths(&path)
        .chain(versions.into_iter().rev().map(|version| version.join("bin")))
        .chain(["/usr/sbin", "/usr/local/bin", "/usr/local/pgsql/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

fn program(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|| panic!("`{name}` is missing: scripts/setup.sh installs it"))
}

/// Percent-encodes a text for a URL.
fn encoded(text: &str) -> String {
    let mut url = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => url.push(byte.into()),
            _ => write!(url, "%{byte:02X}").unwrap(),
        }
    }
    url
}
