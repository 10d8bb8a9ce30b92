//! What outlives a container: a tombstone for what would not go, and one line
//! of history. Both are for people and for the sweeper; failing to write them
//! is said and stops nothing.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vigil_model::{Before, Claim, Exit, Incarnation, Moment, Namespace, TaskId};
use vigil_reconcile::{RuncDelete, Said};
use vigil_sys::{fd, pidfd};

use crate::observe::{Stone, Subject};
use crate::proc::{self, Checked, read_own};
use crate::{Error, Result};

/// Where tombstones and history lie on a host.
pub const RUN: &str = "/run/vigil";
/// The history's size at which the older half gives way, bytes.
const HISTORY_LEN_MAX: u64 = 1 << 20;
/// The same of the notes of crashes: some sixty of a page at most.
const CRASHES_LEN_MAX: u64 = 256 << 10;
/// Bytes of a note: together a page.
const HOW_LEN_MAX: usize = 300;
const WORDS_LEN_MAX: usize = 1024;
const RECORD_LEN_MAX: usize = 150;
const RECORDS_MAX: usize = 12;

/// Largest tombstone read, bytes.
const STONE_LEN_MAX: u64 = 1 << 20;
/// For a `delete` to do its work, before a sweeper looks whether it lives.
const AT_WORK: Duration = Duration::from_secs(5);
/// Longest wait for a turn at the lines of all containers; one takes well under a millisecond.
const TURN: Duration = Duration::from_millis(500);
/// Between two looks whether it has come.
const TURN_LOOK: Duration = Duration::from_millis(1);

/// What is left of a container, and how to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// See [`FORMAT`].
    #[serde(default = "first")]
    pub format: u16,
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
    /// Which life of its id it was, by its pair: its bundle may be there still, and name no init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<Life>,
    /// Inode of the pid namespace that it lived in, if that was not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_ns: Option<u64>,
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
    /// Processes of the container among it that would not die.
    #[serde(default)]
    pub holdouts: Vec<Incarnation>,
    /// Who put it up before doing anything, so that its own death leaves nothing to nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_work: Option<AtWork>,
}

/// A `delete` that is at it, or died at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtWork {
    /// Which process.
    pub worker: Incarnation,
    /// Whether nothing was left before it: then the stone goes with its work.
    pub first: bool,
    /// The session of the dead pair, in which a call of the runtime may be at work still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u32>,
}

/// One of the lives of an id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Its reaper, the last there was.
    pub reaper: Incarnation,
    /// What its files have in common; 16 hexadecimal digits, if they say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
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
        living(&self.worker).is_some()
    }
}

impl AtWork {
    /// Itself, if it lives.
    pub fn living(&self) -> Option<OwnedFd> {
        living(&self.worker)
    }
}

fn living(process: &Incarnation) -> Option<OwnedFd> {
    match proc::open_checked(process) {
        Ok(Checked::Same(fd)) if pidfd::is_dead(&fd) == Ok(false) => Some(fd),
        _ => None,
    }
}

/// The line a container leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// See [`FORMAT`].
    #[serde(default = "first")]
    pub format: u16,
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
    /// How often one shim took over from another.
    #[serde(default)]
    pub takeovers: u64,
}

/// Version of what is kept here; one of a later version is refused by name. What has none is
/// of the first.
pub const FORMAT: u16 = 2;

fn first() -> u16 {
    1
}

/// What the crash of a shim leaves: a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashNote {
    /// See [`FORMAT`].
    #[serde(default = "first")]
    pub format: u16,
    /// Its container's id.
    pub id: String,
    /// Its containerd namespace.
    pub namespace: String,
    /// Which life of that container it is about, as in the files of its bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// When it was seen to be dead.
    pub at: Moment,
    /// The version of whoever wrote this, which came after it.
    pub version: String,
    /// How it ended: a signal, an exit code, or what was wrong with it.
    pub how: String,
    /// What it said when it panicked.
    pub words: Option<String>,
    /// The last records of its journal, each a line without what it holds.
    pub records: Vec<String>,
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
            format: FORMAT,
            id: subject.id.to_string(),
            namespace: subject.namespace.to_string(),
            bundle: subject.bundle.clone(),
            runtime: PathBuf::from(&subject.runtime.program),
            runtime_root: subject.runtime.root.clone(),
            init: subject.init.clone(),
            exit: subject.exit,
            claims: subject.claims.clone(),
            private_pid_ns: subject.private_pid_ns,
            life: subject.life.clone(),
            pid_ns: subject.pid_ns,
            runc_state: inode(&subject.runc_dir()),
            socket: subject
                .socket
                .as_ref()
                .and_then(|path| Some((path.clone(), inode(path)?))),
            tries: 0,
            left,
            stuck: Vec::new(),
            holdouts: Vec::new(),
            at_work: None,
        }
    }

    /// Puts it up in the name of this process, which is about to do something about all that is
    /// named; not where nothing is, nor where another `delete` is at it, which is waited for
    /// next. What an earlier attempt of the same life could not finish stays said.
    /// `calls` is the session of its pair.
    pub fn announce(mut self, run: &Path, mut calls: Option<u32>) -> Result<()> {
        let path = self.path(run);
        let before = Self::read(&path).ok();
        let nothing = self.init.is_none() && self.claims.is_empty() && self.runc_state.is_none();
        if nothing && before.is_none() {
            return Ok(());
        }
        let own = |at_work: &AtWork| at_work.worker.pid == std::process::id();
        let mut first = before.is_none();
        if let Some(before) = before.clone() {
            let at_work = before.at_work;
            let alive = at_work.as_ref().and_then(AtWork::living).is_some();
            if alive && !at_work.as_ref().is_some_and(own) {
                return Ok(());
            }
            first = false;
            if let Some(at_work) = at_work {
                first = at_work.first;
                calls = calls.or(at_work.calls);
            }
            self.stuck = before.stuck;
            self.life = self.life.or(before.life);
            if self.init.is_none() || before.init == self.init {
                self.init = before.init;
                self.exit = self.exit.or(before.exit);
                self.tries = before.tries;
                self.left = before.left;
                self.holdouts = before.holdouts;
            }
        }
        if self.left.is_empty() {
            let all = "all there was when the `delete` that was at it died";
            self.left.push(all.to_owned());
        }
        let worker = proc::incarnation(std::process::id())?;
        self.at_work = worker.map(|worker| AtWork {
            worker,
            first,
            calls,
        });
        if before.as_ref() == Some(&self) {
            return Ok(());
        }
        let path = self.write(run)?;
        // No sweeper need look at it while it is likely to be done with.
        put_off(&path, AT_WORK).map_err(failed("date", &path))
    }

    /// Ends what [`Tombstone::announce`] began and no other stone has replaced since: all that
    /// is left now was left before.
    pub fn lift(&self, run: &Path) -> Result<()> {
        let Ok(mut there) = Self::read(&self.path(run)) else {
            return Ok(());
        };
        let Some(at_work) = there.at_work.take() else {
            return Ok(());
        };
        if at_work.worker.pid != std::process::id() || at_work.living().is_none() {
            return Ok(());
        }
        if at_work.first {
            there.remove(run)
        } else {
            there.write(run).map(drop)
        }
    }

    /// Whoever is at work on it, if it lives.
    pub fn worked_on(&self) -> Option<OwnedFd> {
        self.at_work.as_ref().and_then(AtWork::living)
    }

    /// Whether who is at work on it has had the time that a `delete` takes, and lives: it is held
    /// up.
    pub fn is_overdue(&self, run: &Path) -> bool {
        let until = fs::symlink_metadata(self.path(run)).and_then(|meta| meta.modified());
        until.is_ok_and(|until| until < SystemTime::now()) && self.worked_on().is_some()
    }

    /// The claims as they are now: with the inodes of what is there, without
    /// what is not.
    pub fn narrow(claims: &[Claim]) -> Vec<Claim> {
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
        run.join("tombstones").join(self.name())
    }

    /// Neither name can have a `+` in it, so `a-b` and `c` are not `a` and `b-c`.
    fn name(&self) -> String {
        Self::name_of(&self.namespace, &self.id)
    }

    /// The name of a container's stone.
    pub fn name_of(namespace: &str, id: &str) -> String {
        format!("{namespace}+{id}.json")
    }

    /// Where an earlier version may have put it up; there `a-b` and `c` gave the same.
    fn old_paths(&self, run: &Path) -> Vec<PathBuf> {
        let names = ["-", "--"].map(|between| {
            let name = format!("{}{between}{}.json", self.namespace, self.id);
            run.join("tombstones").join(name)
        });
        let own = |path: &PathBuf| {
            Self::read(path)
                .is_ok_and(|there| (&there.namespace, &there.id) == (&self.namespace, &self.id))
        };
        names.into_iter().filter(own).collect()
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
        let bytes = read_own(path, STONE_LEN_MAX)?;
        decode(&bytes).map_err(|problem| Error::Malformed {
            path: path.to_owned(),
            problem: format!("not a tombstone: {problem}"),
        })
    }

    /// That of a container.
    pub fn of_id(namespace: &str, id: &str, run: &Path) -> Result<Self> {
        Self::read(&run.join("tombstones").join(Self::name_of(namespace, id)))
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
        subject.pid_ns = self.pid_ns;
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

    /// Puts it up, whole or not at all.
    pub fn write(&self, run: &Path) -> Result<PathBuf> {
        let path = self.path(run);
        let dir = run.join("tombstones");
        fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
        make_way(&path)?;
        let side = path.with_extension(format!("{}.new", std::process::id()));
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::Malformed {
            path: path.clone(),
            problem: format!("cannot be written as JSON: {e}"),
        })?;
        let written = fd::create_private(&side)
            .and_then(|mut file| file.write_all(&text))
            .map_err(failed("write", &side))
            .and_then(|()| fs::rename(&side, &path).map_err(failed("rename", &side)));
        if written.is_err() {
            let _ = fs::remove_file(&side);
        } else {
            // Now that the same stands under the new name.
            for old in self.old_paths(run) {
                let _ = fs::remove_file(old);
            }
        }
        written.map(|()| path)
    }

    /// Takes it away: nothing is left any more.
    pub fn remove(&self, run: &Path) -> Result<()> {
        for old in self.old_paths(run) {
            fs::remove_file(&old).map_err(failed("remove", &old))?;
        }
        let path = self.path(run);
        make_way(&path)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("remove", &path)(e)),
        }
    }
}

/// Has a stone be taken up so much later.
pub(crate) fn put_off(path: &Path, pause: Duration) -> std::io::Result<()> {
    File::options()
        .write(true)
        .custom_flags(fd::NO_LINK_NO_WAIT)
        .open(path)?
        .set_modified(SystemTime::now() + pause)
}

/// A value of a version known here, or what is wrong with it.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(default = "first")]
        format: u16,
    }
    // The version first: nobody knows what else a later one says.
    let Versioned { format } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if format > FORMAT {
        return Err(format!(
            "format {format}, formats up to {FORMAT} are known here"
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// A file of lines, one JSON each, and how long it may be, in bytes.
#[derive(Debug, Clone, Copy)]
struct Lines(&'static str, u64);

const HISTORY: Lines = Lines("history", HISTORY_LEN_MAX);
const CRASHES: Lines = Lines("crashes", CRASHES_LEN_MAX);

impl Lines {
    /// All there are, oldest first; one that cannot be read, cut by a crash or
    /// a full file system, is an error of its own, and so is a file.
    fn all<T: DeserializeOwned>(self, run: &Path) -> Vec<Result<T>> {
        let mut lines = Vec::new();
        // Not while a writer changes the names: its lines would be seen twice, or not at all.
        let turn = File::open(run);
        if let Ok(turn) = &turn {
            take_turn(|| turn.try_lock_shared());
        }
        for name in [&format!("{}.old", self.0), self.0] {
            let path = run.join(name);
            let bytes = match read_own(&path, self.1) {
                Ok(bytes) => bytes,
                Err(Error::File { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    continue;
                }
                // It hides nothing of the other.
                Err(e) => {
                    lines.push(Err(e));
                    continue;
                }
            };
            let split = bytes.split(|byte| *byte == b'\n').enumerate();
            for (at, line) in split.filter(|(_, line)| !line.is_empty()) {
                lines.push(decode(line).map_err(|problem| Error::Malformed {
                    path: path.clone(),
                    problem: format!("line {}: {problem}", at + 1),
                }));
            }
        }
        lines
    }

    /// Adds one. Writers take turns: the lock is on the directory, since the file changes its
    /// name. At half the bound the file becomes the old one, and the one of that name is
    /// forgotten; without the lock two writers would both do that, and the newest half be lost.
    fn append(self, run: &Path, line: &impl Serialize) -> Result<()> {
        let path = run.join(self.0);
        fs::create_dir_all(run).map_err(failed("make", run))?;
        let turn = File::open(run).map_err(failed("open", run))?;
        take_turn(|| turn.try_lock());
        let mut text = serde_json::to_vec(line).map_err(|e| Error::Malformed {
            path: path.clone(),
            problem: format!("cannot be written as JSON: {e}"),
        })?;
        text.push(b'\n');
        let mut file = open_lines(&path)?;
        let length = file.metadata().map_err(failed("look at", &path))?.len();
        if length > self.1 / 2 {
            let old = run.join(format!("{}.old", self.0));
            make_way(&old)?;
            fs::rename(&path, &old).map_err(failed("rename", &path))?;
            file = open_lines(&path)?;
        } else if length > 0 && !ends_a_line(&file, length) {
            // A writer before died in the middle of its line.
            text.insert(0, b'\n');
        }
        file.write_all(&text).map_err(failed("write", &path))
    }
}

/// Waits for a turn at the lines, and goes on without one in the end: whoever has it may be
/// stopped, or there are no locks here, and a `delete` that tells how a container ended is
/// worth more than the order of two lines.
fn take_turn(mut take: impl FnMut() -> std::result::Result<(), TryLockError>) {
    let until = Instant::now() + TURN;
    while matches!(take(), Err(TryLockError::WouldBlock)) && Instant::now() < until {
        std::thread::sleep(TURN_LOOK);
    }
}

/// Opens one of them for appending, made if it is not there.
fn open_lines(path: &Path) -> Result<File> {
    make_way(path)?;
    let opened = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .custom_flags(fd::NO_LINK_NO_WAIT)
        .open(path)
        .map_err(failed("open", path))?;
    if opened.metadata().is_ok_and(|meta| meta.is_file()) {
        Ok(opened)
    } else {
        Err(Error::Malformed {
            path: path.to_owned(),
            problem: "not a regular file".to_owned(),
        })
    }
}

/// Whether the last byte of a file of this length is a newline's.
fn ends_a_line(file: &File, length: u64) -> bool {
    let mut last = [0];
    let read = file.read_exact_at(&mut last, length - 1);
    read.is_ok_and(|()| last == [b'\n'])
}

/// What is no file, and has the name of one of ours, is in the way of it for ever: a directory
/// is moved aside, the rest removed.
fn make_way(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".bad");
            fs::rename(path, PathBuf::from(aside)).map_err(failed("set aside", path))
        }
        Ok(there) if !there.is_file() => fs::remove_file(path).map_err(failed("remove", path)),
        Ok(_) | Err(_) => Ok(()),
    }
}

impl Line {
    /// All lines there are, oldest first; one that cannot be read is an error
    /// of its own.
    pub fn all(run: &Path) -> Vec<Result<Self>> {
        HISTORY.all(run)
    }

    /// Adds it.
    pub fn append(&self, run: &Path) -> Result<()> {
        HISTORY.append(run, self)
    }
}

impl CrashNote {
    /// All notes there are, oldest first; one that cannot be read is an error
    /// of its own.
    pub fn all(run: &Path) -> Vec<Result<Self>> {
        CRASHES.all(run)
    }

    /// Adds it, cut to a page.
    pub fn append(&self, run: &Path) -> Result<()> {
        let mut note = self.clone();
        cut(&mut note.how, HOW_LEN_MAX);
        note.words
            .iter_mut()
            .for_each(|words| cut(words, WORDS_LEN_MAX));
        note.records
            .iter_mut()
            .for_each(|record| cut(record, RECORD_LEN_MAX));
        let first = note.records.len().saturating_sub(RECORDS_MAX);
        note.records.drain(..first);
        CRASHES.append(run, &note)
    }
}

/// The first so many bytes, at a whole character.
fn cut(text: &mut String, len: usize) {
    text.truncate(text.floor_char_boundary(len));
}

#[cfg(test)]
mod tests;
