//! The house rules as programs: what may use what, how long a file may be, which words
//! name nothing. They look at the tree and at cargo's own graph, never at intentions,
//! and each of them is shown to fail on a sample that breaks it.

pub mod edges;
pub mod text;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The root of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Files git knows or would take, relative to the root, with their text; binary ones are skipped.
pub fn tree() -> Result<Vec<(String, String)>> {
    let mut git = Command::new("git");
    git.args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let listed = git.current_dir(root()).output().context("git ls-files")?;
    ensure!(
        listed.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let names = String::from_utf8(listed.stdout).context("a file name that is not UTF-8")?;
    let mut files: Vec<(String, String)> = names
        .lines()
        .filter_map(|name| {
            Some((
                name.to_owned(),
                std::fs::read_to_string(root().join(name)).ok()?,
            ))
        })
        .collect();
    files.sort();
    files.dedup();
    ensure!(
        files.len() > 50,
        "only {} files: is this the checkout?",
        files.len()
    );
    Ok(files)
}

/// Whether `path` is Rust source.
#[must_use]
pub fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|e| e == "rs")
}
