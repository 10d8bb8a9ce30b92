//! What outlives a container: a tombstone for what would not go, and one line
//! of history. Both are for people and for the sweeper; failing to write them
//! is said and stops nothing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vigil_model::{Before, Claim, Exit, Incarnation, Namespace, TaskId};
use vigil_reconcile::{RuncDelete, Said};
use vigil_sys::pidfd;

use crate::observe::{Stone, Subject};
use crate::proc::{self, Checked, read_bounded};
use crate::{Error, Result};

/// Where tombstones and history lie on a host.
pub const RUN: &str = "/run/vigil";
/// The history's size at which the older half gives way, bytes.
const HISTORY_LEN_MAX: u64 = 1 << 20;

/// Largest tombstone read, bytes.
const STONE_LEN_MAX: u64 = 1 << 20;

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
    /// Whether its init had a pid namespace of its own.
    #[serde(default)]
    pub private_pid_ns: Option<bool>,
    /// Inode of runc's state directory, if it is left: another directory of
    /// that name is another container's.
    #[serde(default)]
    pub runc_state: Option<u64>,
    /// The socket's file and its inode, if it is left.
    #[serde(default)]
    pub socket: Option<(PathBuf, u64)>,
    /// How often a sweeper has tried.
    #[serde(default)]
    pub tries: u32,
    /// What is left, in words.
    pub left: Vec<String>,
    /// Workers among it that slept uninterruptibly: the stone stands as long
    /// as one of them does.
    #[serde(default)]
    pub stuck: Vec<Stuck>,
}

/// A worker that did not come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// Which.
    pub worker: Incarnation,
    /// What it was at.
    pub doing: String,
}

impl Stuck {
    /// Whether it is still there.
    pub fn stands(&self) -> bool {
        matches!(proc::open_checked(&self.worker), Ok(Checked::Same(fd)) if pidfd::is_dead(&fd) == Ok(false))
    }
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

/// Of what has this name, itself; `None` if it is not there.
fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { op, path, source }
}

impl Tombstone {
    /// One for a container of which no more is known than its record.
    pub fn of(subject: &Subject, left: Vec<String>) -> Self {
        Self {
            id: subject.id.to_string(),
            namespace: subject.namespace.to_string(),
            bundle: subject.bundle.clone(),
            runtime: PathBuf::from(&subject.runtime.program),
            runtime_root: subject.runtime.root.clone(),
            init: subject.init.clone(),
            exit: subject.exit,
            claims: subject.claims.clone(),
            private_pid_ns: subject.private_pid_ns,
            runc_state: inode(&subject.runc_dir()),
            socket: subject
                .socket
                .as_ref()
                .and_then(|path| Some((path.clone(), inode(path)?))),
            tries: 0,
            left,
            stuck: Vec::new(),
        }
    }

    /// The claims as they are now: with the inodes of what is there, without
    /// what is not.
    pub(super) fn narrow(claims: &[Claim]) -> Vec<Claim> {
        let narrowed = claims.iter().filter_map(|claim| {
            let expected = claim.inode.or(match claim.before {
                Before::Existed { inode, .. } => Some(inode),
                Before::Absent | Before::Unknown => None,
            });
            let now = match fs::symlink_metadata(&claim.path) {
                Ok(meta) => Some(meta.ino()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                // Not to be seen now; later only what is known to be it counts.
                Err(_) => expected,
            };
            let inode = now.filter(|now| expected.is_none_or(|expected| expected == *now))?;
            Some(Claim {
                inode: Some(inode),
                ..claim.clone()
            })
        });
        narrowed.collect()
    }

    /// Its file: one for each container, so that a second attempt replaces
    /// the first.
    pub fn path(&self, run: &Path) -> PathBuf {
        run.join("tombstones")
            .join(format!("{}-{}.json", self.namespace, self.id))
    }

    /// All that stand, in order of their names; one that cannot be read is an
    /// error of its own and hides no other.
    pub fn all(run: &Path) -> Result<Vec<Result<Self>>> {
        let paths = Self::paths(run)?;
        Ok(paths.iter().map(|path| Self::read(path)).collect())
    }

    /// Their files, in order of their names.
    pub fn paths(run: &Path) -> Result<Vec<PathBuf>> {
        let dir = run.join("tombstones");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("list", &dir)(e)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("list", &dir))?.path();
            // A side file is one being written, or a writer's that died.
            if path.extension().is_some_and(|e| e == "json") {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// The one in this file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bounded(path, STONE_LEN_MAX)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Malformed {
            path: path.to_owned(),
            problem: format!("not a tombstone: {e}"),
        })
    }

    /// What it knows, for going on with it: the record of a container whose
    /// bundle is gone.
    pub fn subject(&self) -> Result<Subject> {
        let malformed = |e: vigil_model::IdError| Error::Malformed {
            path: self.path(Path::new("")),
            problem: e.to_string(),
        };
        let id = TaskId::new(self.id.as_str()).map_err(malformed)?;
        let namespace = Namespace::new(self.namespace.as_str()).map_err(malformed)?;
        let mut subject = Subject::unrecorded(id, namespace, self.bundle.clone(), Path::new("/"));
        subject.runtime.program = self.runtime.clone().into();
        subject.runtime.root.clone_from(&self.runtime_root);
        subject.boot = self.init.as_ref().map(|init| init.boot.clone());
        subject.said = match (&self.init, self.exit) {
            (Some(_), Some(_)) => Said::Ended,
            (Some(_), None) => Said::Live,
            // Without a process nothing can be concluded from an exit either.
            (None, _) => Said::Unreadable,
        };
        subject.init.clone_from(&self.init);
        subject.exit = self.init.as_ref().and(self.exit);
        subject.claims.clone_from(&self.claims);
        // Its directory says whether the hooks have run.
        subject.runc_delete = RuncDelete::Begun;
        Ok(subject)
    }

    /// As [`Tombstone::subject`], for a sweeper: the id may have been given to
    /// somebody else since, so only what is named here is looked at.
    pub fn named(&self) -> Result<Subject> {
        let mut subject = self.subject()?;
        subject.private_pid_ns = self.private_pid_ns;
        let socket = self.socket.as_ref();
        subject.socket = socket
            .filter(|(path, then)| inode(path) == Some(*then))
            .map(|(path, _)| path.clone());
        subject.stone = Some(Stone {
            tries: self.tries,
            runc_state: self.runc_state,
        });
        Ok(subject)
    }

    /// Its file, unless another container's stone has that name: `a-b` and `c`
    /// give the same as `a` and `b-c`.
    fn own_path(&self, run: &Path) -> PathBuf {
        let path = self.path(run);
        let others = Self::read(&path)
            .is_ok_and(|other| (&other.namespace, &other.id) != (&self.namespace, &self.id));
        if others {
            path.with_file_name(format!("{}--{}.json", self.namespace, self.id))
        } else {
            path
        }
    }

    /// Puts it up, whole or not at all.
    pub fn write(&self, run: &Path) -> Result<PathBuf> {
        let path = self.own_path(run);
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
        let path = self.own_path(run);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("remove", &path)(e)),
        }
    }
}

impl Line {
    /// All lines there are, oldest first; one that cannot be read, cut by a
    /// crash or a full file system, is an error of its own.
    pub fn all(run: &Path) -> Result<Vec<Result<Self>>> {
        let mut lines = Vec::new();
        for name in ["history.old", "history"] {
            let path = run.join(name);
            let bytes = match read_bounded(&path, HISTORY_LEN_MAX) {
                Ok(bytes) => bytes,
                Err(Error::File { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    continue;
                }
                Err(e) => return Err(e),
            };
            let split = bytes.split(|byte| *byte == b'\n').enumerate();
            for (at, line) in split.filter(|(_, line)| !line.is_empty()) {
                lines.push(serde_json::from_slice(line).map_err(|e| Error::Malformed {
                    path: path.clone(),
                    problem: format!("line {}: {e}", at + 1),
                }));
            }
        }
        Ok(lines)
    }

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
        let all = Line::all(dir.path()).unwrap();
        assert_eq!(all.len() as u64, size / 100_000);
        assert!(all.iter().all(|one| *one.as_ref().unwrap() == line));
    }

    #[test]
    fn a_torn_line_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Line::all(dir.path()).unwrap().is_empty());
        let line = r#"{"id":"x","namespace":"n","found":"f","exit":null,"done":[],"left":[]}"#;
        let text = format!("{line}\n{{\"id\":\n{line}\n");
        fs::write(dir.path().join("history"), text).unwrap();
        let all = Line::all(dir.path()).unwrap();
        assert!(matches!(
            &all[..],
            [Ok(_), Err(Error::Malformed { .. }), Ok(_)]
        ));
    }

    #[test]
    fn a_tombstone_is_a_record_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Tombstone::all(dir.path()).unwrap().is_empty());
        let stone = Tombstone {
            id: "x".to_owned(),
            namespace: "n".to_owned(),
            bundle: PathBuf::from("/b/n/x"),
            runtime: PathBuf::from("/bin/runc"),
            runtime_root: PathBuf::from("/r/n"),
            init: None,
            exit: None,
            claims: Vec::new(),
            private_pid_ns: None,
            runc_state: None,
            socket: None,
            tries: 0,
            left: vec!["socket /s".to_owned()],
            stuck: Vec::new(),
        };
        let path = stone.write(dir.path()).unwrap();
        fs::write(path.with_file_name("n-y.json"), "{").unwrap();
        fs::write(path.with_extension("7.new"), "{").unwrap();
        let all = Tombstone::all(dir.path()).unwrap();
        assert!(matches!(&all[..], [Ok(one), Err(Error::Malformed { .. })] if *one == stone));
        let subject = stone.subject().unwrap();
        assert_eq!(subject.runc_dir(), Path::new("/r/n/x"));
        assert_eq!(subject.said, Said::Unreadable);
        let foreign = Tombstone {
            id: "../x".to_owned(),
            ..stone
        };
        assert!(matches!(foreign.subject(), Err(Error::Malformed { .. })));
    }
}
