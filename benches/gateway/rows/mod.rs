//! The servers that are measured: a name for each, and how it is started.

mod baselines;
mod gateways;
mod peers;

use std::path::PathBuf;

use super::{
    KEY,
    client::Protocol,
    process::{Process, Start},
    target::{Bench, Missing, Role, Target, free},
};

pub use self::gateways::{LANGUAGES, SCRIPT, redis};

/// A server that can be measured.
pub struct Row {
    pub name: &'static str,
    /// Starts it; `None`: the clients use the backend.
    start: fn(&Bench, &Role) -> Result<Option<Process>, Missing>,
    /// Whether it is a gateway of others, which not every section measures.
    pub peer: bool,
    /// Whether it serves this protocol at all.
    serves: fn(&Protocol) -> bool,
}

pub const DIRECT: &str = "backend alone";
pub const BARE: &str = "bare Pingora";
pub const PLAIN: &str = "LLMProxy";
pub const FULL: &str = "LLMProxy, full house";

/// Every row, in the order of tables.
pub fn all() -> impl Iterator<Item = &'static Row> {
    baselines::ROWS.iter().chain(peers::ROWS).chain(gateways::ROWS)
}

/// The rows of a section that compares the gateway with others: baselines, other gateways, the plain
/// gateway and the full house.
pub fn compared() -> impl Iterator<Item = &'static Row> {
    all().filter(|row| !row.name.starts_with("LLMProxy") || [PLAIN, FULL].contains(&row.name))
}

/// The rows of a section about the gateway and Pingora alone.
pub fn own() -> impl Iterator<Item = &'static Row> {
    all().filter(|row| [BARE, PLAIN, FULL].contains(&row.name))
}

impl Row {
    pub fn serves(&self, protocol: &Protocol) -> bool {
        (self.serves)(protocol)
    }

    /// Starts the server and waits until it answers.
    pub async fn start(&self, bench: &Bench, role: Role) -> Result<Target, Missing> {
        let role = Role { listen: free(), ..role };
        let process = (self.start)(bench, &role)?;
        let address = if process.is_some() { role.listen } else { role.backend };
        let mut target = Target { address, process };
        target.ready(&role.protocol).await?;
        Ok(target)
    }

    /// Starts the server without waiting.
    pub fn launch(&self, bench: &Bench, role: &Role) -> Result<Option<Process>, Missing> {
        (self.start)(bench, role)
    }
}

/// Writes a configuration and starts a program with it.
struct Configured<'a> {
    bench: &'a Bench,
    role: &'a Role,
    /// The end of the file's name.
    extension: &'a str,
    text: &'a str,
}

impl Configured<'_> {
    /// Starts a program; `{file}` among the arguments stands for the configuration.
    fn start(
        &self,
        program: &std::path::Path,
        arguments: &[&str],
        errors: bool,
    ) -> Result<Option<Process>, Missing> {
        let port = self.role.listen.port();
        let file = self.bench.folder.join(format!("{port}.{}", self.extension));
        std::fs::write(&file, self.text).map_err(|e| e.to_string())?;
        let file = file.display().to_string();
        let arguments: Vec<&str> =
            arguments.iter().map(|a| if *a == "{file}" { file.as_str() } else { a }).collect();
        let process = Process::start(Start {
            program,
            arguments: &arguments,
            environment: ENVIRONMENT,
            cores: self.bench.cores.measured(self.role.threads),
            errors: errors.then(|| self.bench.folder.join(format!("{port}.log"))),
        })?;
        Ok(Some(process))
    }
}

/// LiteLLM reads its price list from GitHub unless it is told not to.
const ENVIRONMENT: &[(&str, &str)] =
    &[("LITELLM_LOCAL_MODEL_COST_MAP", "True"), ("LITELLM_TELEMETRY", "False")];

/// A program by its name: in `PATH`, or where Debian keeps servers.
fn installed(name: &str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let mut programs = folders.map(|folder| folder.join(name));
    programs.find(|program| program.is_file()).ok_or_else(|| {
        Missing::NotInstalled(format!("not installed; make bench-peers installs {name}"))
    })
}
