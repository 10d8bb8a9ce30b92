//! What outlives a container: a tombstone for what would not go, and one line
//! of history. Both are for people and for the sweeper; failing to write them
//! is said and stops nothing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vigil_model::{Claim, Exit, Incarnation};

use crate::{Error, Result};

/// Where tombstones and history lie on a host.
pub const RUN: &str = "/run/vigil";
/// The history's size at which the older half gives way, bytes.
const HISTORY_LEN_MAX: u64 = 1 << 20;

/// What is left of a container, and how to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Its id.
    pub id: String,
    /// Its containerd namespace.
    pub namespace: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// How runc is called.
    pub runtime: PathBuf,
    /// runc's root, the namespace included.
    pub runtime_root: PathBuf,
    /// Its init.
    pub init: Option<Incarnation>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Its cgroups.
    pub claims: Vec<Claim>,
    /// What is left, in words.
    pub left: Vec<String>,
}

/// The line a container leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its id.
    pub id: String,
    /// Its containerd namespace.
    pub namespace: String,
    /// What was found.
    pub found: String,
    /// How it ended.
    pub exit: Option<Exit>,
    /// What was done.
    pub done: Vec<String>,
    /// What is left.
    pub left: Vec<String>,
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { op, path, source }
}

impl Tombstone {
    /// Its file: one for each container, so that a second attempt replaces
    /// the first.
    pub fn path(&self, run: &Path) -> PathBuf {
        run.join("tombstones")
            .join(format!("{}-{}.json", self.namespace, self.id))
    }

    /// Puts it up, whole or not at all.
    pub fn write(&self, run: &Path) -> Result<PathBuf> {
        let path = self.path(run);
        let dir = run.join("tombstones");
        fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
        let side = path.with_extension(format!("{}.new", std::process::id()));
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::Malformed {
            path: path.clone(),
            problem: format!("cannot be written as JSON: {e}"),
        })?;
        let written = fs::write(&side, text)
            .map_err(failed("write", &side))
            .and_then(|()| fs::rename(&side, &path).map_err(failed("rename", &side)));
        if written.is_err() {
            let _ = fs::remove_file(&side);
        }
        written.map(|()| path)
    }

    /// Takes it away: nothing is left any more.
    pub fn remove(&self, run: &Path) -> Result<()> {
        let path = self.path(run);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("remove", &path)(e)),
        }
    }
}

impl Line {
    /// Adds it. One write, so that two writers do not mix; at the bound the
    /// file becomes `history.old`, and the one of that name is forgotten.
    pub fn append(&self, run: &Path) -> Result<()> {
        let path = run.join("history");
        fs::create_dir_all(run).map_err(failed("make", run))?;
        if fs::metadata(&path).is_ok_and(|m| m.len() > HISTORY_LEN_MAX / 2) {
            let old = run.join("history.old");
            fs::rename(&path, &old).map_err(failed("rename", &path))?;
        }
        let mut text = serde_json::to_vec(self).map_err(|e| Error::Malformed {
            path: path.clone(),
            problem: format!("cannot be written as JSON: {e}"),
        })?;
        text.push(b'\n');
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(&text))
            .map_err(failed("write", &path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_history_is_bounded_and_its_lines_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let line = Line {
            id: "x".to_owned(),
            namespace: "n".to_owned(),
            found: "y".repeat(100_000),
            exit: None,
            done: Vec::new(),
            left: Vec::new(),
        };
        for _ in 0..30 {
            line.append(dir.path()).unwrap();
        }
        let mut size = 0;
        for name in ["history", "history.old"] {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            size += text.len() as u64;
            for one in text.lines() {
                assert_eq!(serde_json::from_str::<Line>(one).unwrap(), line);
            }
        }
        assert!(size <= HISTORY_LEN_MAX + 200_000, "{size}");
    }
}
