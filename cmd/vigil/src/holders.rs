//! Who has the lock of a bundle whose pair is dead: a `delete`, a waiter, a repair. Found by the
//! descriptors there are and what the kernel says of each, so nobody has to have said it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vigil_host::proc;

/// A process that has the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: u32,
    /// What was called, for people.
    pub call: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.call)
    }
}

/// Those who have this lock; what cannot be seen is left out.
pub fn of(lock: &Path) -> Vec<Holder> {
    let Ok(lock) = fs::metadata(lock) else {
        return Vec::new();
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holders = pids.filter(|pid| has(*pid, &lock));
    let mut holders: Vec<Holder> = holders
        .map(|pid| Holder {
            pid,
            call: call(pid),
        })
        .collect();
    holders.sort_by_key(|holder| holder.pid);
    holders
}

/// Whether a process has the file open, and with it the lock.
fn has(pid: u32, lock: &Metadata) -> bool {
    let all = fs::read_dir(format!("/proc/{pid}/fd"));
    all.into_iter().flatten().flatten().any(|fd| {
        let same = |file: Metadata| (file.dev(), file.ino()) == (lock.dev(), lock.ino());
        let is_file = fs::metadata(fd.path()).is_ok_and(same);
        let is_lock = |line: &str| line.split_once(':').is_some_and(|(key, _)| key == "lock");
        let info = || {
            let number = fd.file_name();
            let path = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
            fs::read_to_string(path).unwrap_or_default()
        };
        is_file && info().lines().any(is_lock)
    })
}

/// The program and its verb: the last of a shim's arguments, the first of another's.
fn call(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
    let program = words.first().and_then(|path| path.rsplit('/').next());
    let verb = if words.contains(&"-namespace") {
        words.last()
    } else {
        words.get(1)
    };
    match (program, verb) {
        (Some("") | None, _) => proc::stat(pid)
            .ok()
            .flatten()
            .map_or_else(|| "?".to_owned(), |stat| stat.comm),
        (Some(program), Some(verb)) => format!("`{program} {verb}`"),
        (Some(program), None) => format!("`{program}`"),
    }
}
