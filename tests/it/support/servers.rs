//! Real servers: Redis, PostgreSQL and MariaDB, each a process with data of its own.

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

/// The user of the databases, who may do everything.
pub const USER: &str = "llmproxy";
/// Their password, with what has a meaning in a URL.
pub const PASSWORD: &str = "p@ss/w:rd";
/// The database, which is empty.
pub const DATABASE: &str = "llmproxy";

/// How long a server may take to start.
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

/// What the servers differ in.
pub trait Kind {
    /// The signal that takes it down at once. What was committed must be there after a restart.
    const STOP: &str = "KILL";

    /// Makes what the server needs in its folder.
    fn prepare(&self, folder: &Path);

    /// The server's program.
    fn program(&self, folder: &Path) -> PathBuf;

    /// Adds the program's arguments. It runs in the folder.
    fn configure(&self, server: &mut Command, address: SocketAddr, folder: &Path);

    /// Whether it is this process that answers, and not another test's which got its port.
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

    /// Takes it down; its connections end.
    pub fn stop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // One that has ended by itself has nobody to hear a signal.
        if child.try_wait().unwrap().is_none() {
            self.resume();
            self.signal(K::STOP);
        }
        self.child.take().unwrap().wait().unwrap();
    }

    /// Starts it again, at the same address. The databases have kept their data, Redis has not.
    pub async fn restart(&mut self) {
        self.stop();
        // A connection that someone has made meanwhile may come from this port, for a while.
        eventually("the server gets its port again", async || self.comes_up().await).await;
    }

    /// Makes it say nothing more, with its connections open.
    pub fn pause(&self) {
        self.signal("STOP");
        // PostgreSQL's processes end when they see that the first of them has, and paused they see
        // nothing: if the test is killed now, someone else has to wake them.
        let watch = "all=$(pgrep -P $0); (while pgrep -P $0; do sleep 1; done; kill -CONT $all) &";
        Command::new("sh")
            .args(["-c", watch, &self.pid().to_string()])
            // Outside of the group of processes that is killed with the test.
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
    }

    /// Lets it go on after `pause`.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// What it has logged since it was last started.
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
            // PostgreSQL answers from a process per connection. The other servers have one in all,
            // and pkill's status says that there is nothing to signal.
            Command::new("pkill").args([&signal, "-P", &pid]).status().unwrap();
        }
    }

    /// Runs the server until it answers. False if its port was not free after all.
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
        // A test that is killed drops nothing, and MariaDB ignores Ctrl-C. So the kernel, where it
        // can be asked to, kills the server when the thread ends that started it: the test's.
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

    /// Starts one that asks for a password.
    pub async fn start_with(password: Option<&str>) -> Self {
        Self::start_as(kind::Redis { password: password.map(str::to_owned) }).await
    }

    /// Runs a command. The elements of an answer are on lines of their own; nothing is "".
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

/// Sends a command to a Redis and reads the answer.
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
    // A length of -1 stands for nothing.
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

    /// Where the database is, with user and password.
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
        // By the socket in the folder: behind the port may be another test's server.
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

    /// Where the database is, with user and password.
    pub fn url(&self) -> String {
        format!("mysql://{USER}:{}@{}/{DATABASE}", encoded(PASSWORD), self.address)
    }

    /// Runs SQL. The values of a row have tabs between them.
    pub fn run(&self, sql: &str) -> String {
        done(&mut self.client(sql))
    }

    fn client(&self, sql: &str) -> Command {
        let mut command = command_in(self.folder.path(), program("mariadb"));
        // By the socket in the folder: behind the port may be another test's server.
        command.args(["--no-defaults", "--protocol=socket", "--socket=socket", "--user", USER]);
        command.args(["--batch", "--skip-column-names", "--execute", sql, DATABASE]);
        command.env("MYSQL_PWD", PASSWORD);
        command
    }
}

/// How each of them is set up and run.
pub mod kind {
    use super::*;

    pub struct Redis {
        pub(super) password: Option<String>,
    }

    impl Kind for Redis {
        fn prepare(&self, folder: &Path) {
            // Debian's redis-tools has the server too, as a checker of files. It is one program,
            // which goes by the name that it is called by.
            let server = find("redis-server").unwrap_or_else(|| program("redis-check-rdb"));
            symlink(server, self.program(folder)).unwrap();
        }

        fn program(&self, folder: &Path) -> PathBuf {
            folder.join("redis-server")
        }

        fn configure(&self, server: &mut Command, address: SocketAddr, _: &Path) {
            server.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
            // Nothing is saved, in neither way.
            server.args(["--save", "", "--appendonly", "no"]);
            if let Some(password) = &self.password {
                server.args(["--requirepass", password]);
            }
        }

        fn answers(server: &Server<Self>) -> bool {
            let me = format!("process_id:{}\r\n", server.pid());
            // What has its port instead may well say nothing.
            let info = server.ask(&["INFO", "server"], Duration::from_secs(1));
            info.is_ok_and(|info| info.contains(&me))
        }
    }

    pub struct Postgres;

    impl Kind for Postgres {
        // Killed, it would leave processes behind for a moment, which hinder a new server.
        const STOP: &str = "QUIT";

        fn prepare(&self, folder: &Path) {
            fs::write(folder.join("password"), PASSWORD).unwrap();
            let mut initdb = command_in(folder, postgres_program("initdb"));
            initdb.args(["-D", "data", "-U", USER, "--pwfile=password", "--auth=scram-sha-256"]);
            initdb.args(["--encoding=UTF8", "--locale=C", "--no-sync"]);
            done(&mut initdb);
            // Renaming the database that is there is faster than making one.
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
            // No fsync (-F): the data need not survive the machine.
            server.arg("-F").arg("-k").arg(folder);
        }

        fn answers(server: &Server<Self>) -> bool {
            output(&mut server.client("SELECT 1")).is_ok()
        }
    }

    /// PostgreSQL's own programs, of one version: on the PATH there may be wrappers.
    pub fn postgres_program(name: &str) -> PathBuf {
        fs::canonicalize(program("postgres")).unwrap().with_file_name(name)
    }

    pub struct MariaDb;

    /// Must be the same when the data is made: a log of another size is made anew at the start.
    const INNODB_LOG: &str = "--innodb-log-file-size=4M";

    impl Kind for MariaDb {
        fn prepare(&self, folder: &Path) {
            // Without looking up the machine's name, which not every container can.
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
            // A commit reaches the system, not the disk: the data need not survive the machine.
            server.arg("--innodb-flush-log-at-trx-commit=2");
            // The system has not enough of it for many such servers.
            server.arg("--innodb-use-native-aio=OFF");
        }

        fn answers(server: &Server<Self>) -> bool {
            output(&mut server.client("SELECT 1")).is_ok()
        }
    }
}

/// Gives the folder to an ordinary user if it is root's: databases refuse to run as root.
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

/// A command in the folder, as the user that the folder belongs to.
fn command_in(folder: &Path, program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command
        .uid(fs::metadata(folder).unwrap().uid())
        .current_dir(folder)
        // What is said about a port that is taken must be understood.
        .env("LC_ALL", "C")
        .env("TMPDIR", folder)
        .stdin(Stdio::null());
    command
}

/// What the command writes, without the last line's end; and if it fails, what it complains of.
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

/// A program, on the PATH or where packages put it that keep it off the PATH.
fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions.map(|entry| entry.path()).collect();
    // The newest first.
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

/// A text as it stands in a URL.
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
