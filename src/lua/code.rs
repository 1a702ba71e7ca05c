//! Compiling scripts.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{
    library::Library,
    reads::{Reads, bytecode},
};
use crate::base::without_mark;

/// A compiled script.
pub struct Code {
    /// Unique in the process.
    pub id: u64,
    pub name: String,
    /// Bytecode of a function that returns the script as a function of its globals.
    pub bytecode: Vec<u8>,
    pub reads: Reads,
    /// Whether its answer for the same data is always the same.
    pub depends_on_data_alone: bool,
    /// The library, if the text may use it.
    pub library: Option<Arc<Library>>,
    /// Whether the text may use `http`, and may do so.
    pub http: bool,
    /// Whether a call can reach the table of its globals, or has set one: then every call gets a new
    /// table.
    own_globals: AtomicBool,
}

impl Code {
    /// Compiles a text. `name` is used in messages; `http`: whether the word is there.
    ///
    /// # Errors
    /// The compiler's message, with the line.
    pub fn compile(
        name: &str,
        text: &str,
        library: &Arc<Library>,
        http: bool,
    ) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let text = without_mark(text);
        let bytecode = bytecode(name, text)?;
        let reads = Reads::of(text);
        let requires = reads.requires();
        let modules_too =
            !requires || library.modules().all().all(|module| module.reads.only_data());
        // A module may use the word, too.
        let http = http && (requires || reads.mentions("http"));
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            bytecode,
            depends_on_data_alone: reads.only_data() && modules_too,
            library: reads.uses_library().then(|| Arc::clone(library)),
            http,
            own_globals: AtomicBool::new(reads.dynamic),
            reads,
        })
    }

    pub fn has_own_globals(&self) -> bool {
        self.own_globals.load(Ordering::Relaxed)
    }

    /// A call has set a global: others will too.
    pub fn sets_globals(&self) {
        self.own_globals.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_from_data_alone_are_known() {
        let library = Arc::default();
        let alone = |text| Code::compile("t", text, &library, true).unwrap().depends_on_data_alone;
        for text in [
            "return {allow = tonumber(data.balance) > 0, metadata = {user_id = key.user_id}}",
            "return data.request == data.now",
            "return true",
        ] {
            assert!(alone(text), "{text}");
        }
        for text in [
            "return request.model == data.model",
            "return now() < data.expires_at",
            "return now_ms() < 1",
            "return data.t < os.time()",
            "local m = math return m['ran' .. 'dom']() < 0.5",
            "log('x') return true",
            "return metadata.x",
            "return api_key == data.x",
            "return _ENV['now']() < 1",
            "return store.get('x')",
            "return http.get('http://a.example').status == 200",
            "return time.now() > 1",
            "return uuid() == data.x",
        ] {
            assert!(!alone(text), "{text}");
        }
    }
}
