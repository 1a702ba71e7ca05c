//! A clock that is not set: machines without a battery start in 1970, and a wrong clock may be earlier.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::support::{Gateway, sim};

/// Changes the wall clock, but not the monotonic clock.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { const char *by = getenv("CLOCK_SHIFT"); return by ? atol(by) : 0; }
int clock_gettime(clockid_t id, struct timespec *ts) {
  static int (*next)(clockid_t, struct timespec *);
  if (!next) next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int failed = next(id, ts);
  if (!failed && id == CLOCK_REALTIME) ts->tv_sec += shift();
  return failed;
}
time_t time(time_t *at) {
  struct timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  if (at) *at = ts.tv_sec;
  return ts.tv_sec;
}
int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
  struct timespec ts;
  (void)zone;
  int failed = clock_gettime(CLOCK_REALTIME, &ts);
  tv->tv_sec = ts.tv_sec;
  tv->tv_usec = ts.tv_nsec / 1000;
  return failed;
}
"#;

/// The environment in which the wall clock shows this many seconds since 1970.
struct Clock {
    folder: tempfile::TempDir,
    shift: String,
}

impl Clock {
    fn at(seconds: i64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("shim.c"), folder.path().join("shim.so"));
        fs::write(&source, SHIM).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
        assert!(cc.status().unwrap().success());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Self { folder, shift: (seconds - i64::try_from(now).unwrap()).to_string() }
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("shim.so")
    }

    fn run(&self, args: &[&str], file: &Path) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
        command.args(args).arg("--config").arg(file);
        command.env("LD_PRELOAD", self.library()).env("CLOCK_SHIFT", &self.shift);
        command.output().unwrap()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn before_1970_the_gateway_refuses_to_start() {
    let sim = sim().await;
    for seconds in [-1_000_000_000, -100_000, -100] {
        let clock = Clock::at(seconds);
        let library = clock.library().display().to_string();
        let env = [("LD_PRELOAD", library.as_str()), ("CLOCK_SHIFT", clock.shift.as_str())];
        let configuration = format!("backends: [{{url: \"{}\"}}]\n", sim.url());
        let mut gateway = Gateway::spawn(&configuration, &env);
        assert!(!gateway.ended().await.success(), "{seconds}");
        let log = gateway.log();
        assert!(log.contains("before 1970: set it"), "{seconds}: {log}");
        assert!(!log.contains("panicked"), "{seconds}: {log}");
    }
}

#[tokio::test]
async fn before_1970_no_command_panics() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("llmproxy.yaml");
    fs::write(
        &file,
        "backends: [{url: \"http://127.0.0.1:1\"}]\ndata_dir: data\nusage: {reporters: [{type: file, file: {path: out}}]}\n\
         auth: {enabled: true}\napi_keys: [{key: sk-1-12345678, expires_at: \"2030-01-01\", starts_at: \"1960-01-01\"}]\n",
    )
    .unwrap();
    let clock = Clock::at(-1_000_000_000);
    for args in [&["check"][..], &["usage", "status"], &["usage", "verify"], &["usage", "tail"]] {
        let said = text(&clock.run(args, &file));
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
    let script = folder.path().join("a.lua");
    fs::write(
        &script,
        "return {metadata = {a = now(), b = now_ms(), c = os.date('!%Y'), d = os.time()}}",
    )
    .unwrap();
    let mut lua = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    lua.args(["lua", "test"]).arg(&script).args(["--key", "sk-a"]);
    lua.env("LD_PRELOAD", clock.library()).env("CLOCK_SHIFT", &clock.shift);
    let said = text(&lua.output().unwrap());
    // The shim works: it is not the present year. Before 1970 is 1970.
    assert!(said.contains("\"c\": \"1970\"") && !said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn in_the_first_seconds_of_1970_requests_are_served() {
    let sim = sim().await;
    let clock = Clock::at(5);
    let library = clock.library().display().to_string();
    let shift = format!("CLOCK_SHIFT={}", clock.shift);
    let preload = format!("LD_PRELOAD={library}");
    let configuration = format!(
        "backends: [{{url: \"{}\"}}]\nauth: {{enabled: true}}\n\
         api_keys: [{{key: sk-new-12345678, starts_at: \"2020-01-01\"}}, {{key: sk-old-12345678, total_quota: 1000, quota_reset_period: monthly}}]\n\
         rate_limit: {{per_key: {{requests_per_minute: 100}}}}\n",
        sim.url()
    );
    let gateway = Gateway::wrapped(&configuration, &["env", &preload, &shift]).await;
    let served = gateway.ask_as("sk-old-12345678").await;
    assert_eq!(served.status, 200);
    assert!(served.header("date").unwrap().contains("1970"), "{:?}", served.header("date"));
    assert_eq!(gateway.ask_as("sk-new-12345678").await.status, 403);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
}
