//! A cgroup's directory and everything below it, worked on through the
//! directory's descriptor, so that a path that means another cgroup by now is
//! never followed. A workload may nest cgroups as deep as it likes: nothing
//! here recurses, and no path grows beyond what the kernel takes.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use vigil_sys::Errno;

use crate::{Error, Result, proc};

/// Longest path below one descriptor; far from the kernel's 4096.
const HOP: usize = 2048;

/// A directory below an opened one.
#[derive(Debug, Clone)]
pub(super) struct Node {
    base: Rc<File>,
    below: PathBuf,
}

/// The path of an open directory that stays right when it is moved.
fn through(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// Whether an error means that the cgroup is gone or does not have the file.
pub(super) fn is_absent(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

impl Node {
    /// The path of it, or of a file in it.
    pub fn path(&self, file: &str) -> PathBuf {
        let mut path = through(&self.base);
        path.push(&self.below);
        if !file.is_empty() {
            path.push(file);
        }
        path
    }
}

/// What `/proc/self/fd/N/…` means, for a person.
fn shown(path: &Path) -> PathBuf {
    let mut parts = path.components();
    let link: PathBuf = parts.by_ref().take(5).collect();
    fs::read_link(&link).map_or_else(|_| path.to_owned(), |dir| dir.join(parts.as_path()))
}

pub(super) fn failed(op: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File {
        op,
        path: shown(path),
        source,
    }
}

/// The directory and all below it, parents before children. What vanishes
/// meanwhile is left out.
pub(super) fn subtree(dir: &File) -> Result<Vec<Node>> {
    let top = dir
        .try_clone()
        .map_err(|e| failed("duplicate", &through(dir), e))?;
    let mut nodes = vec![Node {
        base: Rc::new(top),
        below: PathBuf::new(),
    }];
    let mut next = 0;
    while let Some(node) = nodes.get(next).cloned() {
        next += 1;
        let node = if node.below.as_os_str().len() > HOP {
            match File::open(node.path("")) {
                Ok(dir) => Node {
                    base: Rc::new(dir),
                    below: PathBuf::new(),
                },
                Err(e) if is_absent(&e) => continue,
                Err(e) => return Err(failed("open", &node.path(""), e)),
            }
        } else {
            node
        };
        let entries = match fs::read_dir(node.path("")) {
            Ok(entries) => entries,
            Err(e) if is_absent(&e) => continue,
            Err(e) => return Err(failed("list", &node.path(""), e)),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) if is_absent(&e) => break,
                Err(e) => return Err(failed("list", &node.path(""), e)),
            };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                nodes.push(Node {
                    base: Rc::clone(&node.base),
                    below: node.below.join(entry.file_name()),
                });
            }
        }
    }
    Ok(nodes)
}

/// A control file's text; `None` if it, or the cgroup, is not there.
pub(super) fn read_at(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(failed("read", path, e)),
    }
}

/// A control file of an open cgroup.
pub(super) fn read(dir: &File, file: &str) -> Result<Option<String>> {
    read_at(&through(dir).join(file))
}

/// Writes a control file, which must exist; `false` if it, or the cgroup, is
/// not there.
pub(super) fn write_at(path: &Path, text: &str) -> Result<bool> {
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Ok(()) => Ok(true),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(failed("write", path, e)),
    }
}

/// Writes a control file of an open cgroup.
pub(super) fn write(dir: &File, file: &str, text: &str) -> Result<bool> {
    write_at(&through(dir).join(file), text)
}

/// Opens a control file of an open cgroup; `None` if it is not there.
pub(super) fn open(dir: &File, file: &str) -> Result<Option<File>> {
    let path = through(dir).join(file);
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(failed("open", &path, e)),
    }
}

/// The path of a file of an open cgroup, for calls that want one.
pub(super) fn path(dir: &File, file: &str) -> PathBuf {
    through(dir).join(file)
}

/// The processes of one directory, without those below. Zeros, which stand
/// for processes of another pid namespace, are kept.
fn procs(node: &Node) -> Result<Vec<u32>> {
    let path = node.path("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(numbers(&text)),
        Err(e) if is_absent(&e) => Ok(Vec::new()),
        // A threaded cgroup lists threads only.
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
            let text = read_at(&node.path("cgroup.threads"))?.unwrap_or_default();
            let mut pids = Vec::new();
            for tid in numbers(&text) {
                pids.extend(proc::process_of_thread(tid)?);
            }
            Ok(pids)
        }
        Err(e) => Err(failed("read", &path, e)),
    }
}

fn numbers(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// All processes in and below, each once, in ascending order. Those of other
/// pid namespaces cannot be named and are left out.
pub(super) fn pids(dir: &File) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for node in subtree(dir)? {
        all.extend(procs(&node)?);
    }
    all.sort_unstable();
    all.dedup();
    all.retain(|&pid| pid != 0);
    Ok(all)
}

/// Whether any process is in or below, of whatever pid namespace. Zombies do
/// not count.
pub(super) fn populated(dir: &File) -> Result<bool> {
    if let Some(events) = read(dir, "cgroup.events")?
        && let Some(populated) = value_of(&events, "populated")
    {
        return Ok(populated != 0);
    }
    for node in subtree(dir)? {
        for file in ["cgroup.procs", "cgroup.threads"] {
            let path = node.path(file);
            let mut byte = [0];
            match File::open(&path).and_then(|mut f| f.read(&mut byte)) {
                Ok(0) => break,
                Ok(_) => return Ok(true),
                Err(e) if is_absent(&e) => break,
                Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
                Err(e) => return Err(failed("read", &path, e)),
            }
        }
    }
    Ok(false)
}

/// The number behind a key in a file of `key number` lines.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(k, _)| *k == key)
        .and_then(|(_, value)| value.trim().parse().ok())
}
