//! Processes as /proc shows them, signalled through pidfds only.
//!
//! A pid read from /proc may be another process a moment later; every kill here opens a
//! pidfd, looks again that the process still is what was searched for, and signals that.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::poll;

/// One process, as it was when /proc was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Pid in the test's pid namespace.
    pub pid: i32,
    /// Arguments joined by blanks; the bare name while it is in D; empty for zombies.
    pub cmdline: String,
    /// `/proc/PID/cgroup`, whole; empty once the process is a zombie on some kernels.
    pub cgroup: String,
    /// State letter of `/proc/PID/stat`: `R`, `S`, `D`, `Z`, `T` …
    pub state: char,
}

impl Process {
    /// Reads one process; `None` when it is gone.
    #[must_use]
    pub fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(") ")?.1.chars().next()?;
        // Reading the cmdline of a process in D may block the reader, and what the v1 freezer
        // holds is in D; its name alone does not.
        let cmdline = if state == 'D' {
            fs::read(format!("/proc/{pid}/comm"))
        } else {
            fs::read(format!("/proc/{pid}/cmdline"))
        };
        let cmdline =
            String::from_utf8_lossy(&cmdline.unwrap_or_default()).replace(['\0', '\n'], " ");
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Some(Self {
            pid,
            cmdline: cmdline.trim_end().to_owned(),
            cgroup,
            state,
        })
    }

    /// All processes there are, zombies included.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter_map(Self::read)
            .collect()
    }

    /// Living processes, other than this one, whose arguments or cgroup contain `mark`.
    #[must_use]
    pub fn marked(mark: &str) -> Vec<Self> {
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        Self::all()
            .into_iter()
            .filter(|p| {
                p.pid != me
                    && p.state != 'Z'
                    && (p.cmdline.contains(mark) || p.cgroup.contains(mark))
            })
            .collect()
    }

    /// `Name:`-like fields of `/proc/PID/status`, e.g. `field("Threads")`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(str::trim))?;
        Some(line.to_owned())
    }
}

/// Whether `pid` exists and is not a zombie.
#[must_use]
pub fn alive(pid: i32) -> bool {
    Process::read(pid).is_some_and(|p| p.state != 'Z')
}

/// Sends `signal` to `pid` if `still` holds for what is there now.
pub fn signal_if(pid: i32, signal: i32, still: impl Fn(&Process) -> bool) -> bool {
    let Ok(fd) = vigil_sys::pidfd::open(u32::try_from(pid).unwrap_or(0)) else {
        return false;
    };
    Process::read(pid).is_some_and(|p| still(&p))
        && vigil_sys::pidfd::send_signal(&fd, signal).is_ok()
}

/// SIGKILLs everything marked until nothing marked is left.
pub fn kill_marked(mark: &str, deadline: Instant) -> Result<()> {
    loop {
        let found = Process::marked(mark);
        if found.is_empty() {
            return Ok(());
        }
        for process in &found {
            signal_if(process.pid, 9, |p| {
                p.cmdline.contains(mark) || p.cgroup.contains(mark)
            });
        }
        let first = &found[0];
        if poll::until("", poll::sharp(0.2).min(deadline), || {
            Process::marked(mark).is_empty().then_some(())
        })
        .is_err()
            && Instant::now() >= deadline
        {
            bail!(
                "{} processes marked {mark} do not die, the first is {first:?}",
                found.len()
            );
        }
    }
}

/// mkfifo with mode 0700, as containerd makes its log and stdio fifos.
pub fn mkfifo(path: &std::path::Path) -> Result<()> {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)
        .with_context(|| format!("mkfifo {}", path.display()))
}
