//! The spool that the configuration names.

use std::path::{Path, PathBuf};

use crate::{config::plan::Plan, usage::spool::Archive};

/// # Errors
/// If the spool is switched off.
pub fn folder(plan: &Plan) -> Result<&PathBuf, String> {
    let off = "there is no spool: `usage.spool.enabled` is false, so records wait only in memory";
    plan.fixed.spool.as_ref().ok_or_else(|| off.to_owned())
}

/// # Errors
/// If there is no spool, or it cannot be read.
pub fn archive(plan: &Plan) -> Result<Archive, String> {
    let folder = folder(plan)?;
    if is_missing(folder) {
        return Err(missing(folder));
    }
    Archive::open(folder)
}

pub fn is_missing(folder: &Path) -> bool {
    matches!(folder.try_exists(), Ok(false))
}

pub fn missing(folder: &Path) -> String {
    let shown = folder.display();
    format!("there is no spool in {shown}: no gateway has written usage records there yet")
}
