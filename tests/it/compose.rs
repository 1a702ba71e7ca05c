//! The example of Docker Compose.

use std::process::Command;

use crate::support::promtool::promtool;

#[test]
fn prometheus_is_configured() {
    assert!(Command::new(promtool()).arg("--version").status().unwrap().success());
}
