//! What a living process holds of the machine, so that a fault it has survived can be
//! shown to have cost it nothing: descriptors by kind, inotify watches, memfds, threads,
//! memory of its own.
//!
//! Only looks. Two looks are compared; a single one means nothing.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::poll::{by, until};
use crate::process::Process;

/// Memory a process may have grown by between two looks, in KiB: a page more or less of
/// heap and stack says nothing.
const SLACK_KIB: u64 = 256;

/// What one process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub pid: i32,
    /// Descriptors, counted by what they are: `socket`, `pipe`, `/dev/null`, `memfd`,
    /// `inotify`, `pidfd`, the path of a file …
    pub fds: BTreeMap<String, usize>,
    /// inotify watches.
    pub watches: usize,
    /// Threads.
    pub threads: usize,
    /// Memory it has written to and shares with nobody, in KiB.
    pub private_kib: u64,
}

impl Held {
    /// Looks at a living process.
    pub fn of(pid: i32) -> Result<Self> {
        let mut fds = BTreeMap::new();
        let mut watches = 0;
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            // Closed since it was listed.
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            *fds.entry(kind(&target.to_string_lossy())).or_default() += 1;
            let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().display());
            let info = fs::read_to_string(info).unwrap_or_default();
            watches += info.lines().filter(|l| l.starts_with("inotify ")).count();
        }
        let process = Process::read(pid).context("the process is gone")?;
        let threads = process.field("Threads").and_then(|n| n.parse().ok());
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let dirty = rollup.lines().filter(|l| l.starts_with("Private_Dirty:"));
        let kib = dirty.filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
        Ok(Self {
            pid,
            fds,
            watches,
            threads: threads.context("no thread count")?,
            private_kib: kib.sum(),
        })
    }

    /// What there is more of than `before`.
    #[must_use]
    pub fn grown(&self, before: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (kind, count) in &self.fds {
            let had = before.fds.get(kind).copied().unwrap_or(0);
            if *count > had {
                found.push(format!("process {}: {count} × {kind}, not {had}", self.pid));
            }
        }
        for (what, now, had) in [
            ("inotify watches", self.watches, before.watches),
            ("threads", self.threads, before.threads),
        ] {
            if now > had {
                found.push(format!("process {}: {now} {what}, not {had}", self.pid));
            }
        }
        if self.private_kib > before.private_kib + SLACK_KIB {
            found.push(format!(
                "process {}: {} KiB of its own, not {}",
                self.pid, self.private_kib, before.private_kib
            ));
        }
        found
    }
}

/// Looks at several.
pub fn all(pids: impl IntoIterator<Item = i32>) -> Result<Vec<Held>> {
    pids.into_iter().map(Held::of).collect()
}

/// Waits until these processes hold no more than before; what is given back late is given
/// back.
pub fn expect_back(before: &[Held]) -> Result<()> {
    let mut grown = Vec::new();
    let back = until("", by(5.0), || {
        grown.clear();
        for old in before {
            match Held::of(old.pid) {
                Ok(now) => grown.extend(now.grown(old)),
                Err(error) => grown.push(format!("process {}: {error:#}", old.pid)),
            }
        }
        grown.is_empty().then_some(())
    });
    if back.is_err() {
        bail!("it holds more than before:\n    {}", grown.join("\n    "));
    }
    Ok(())
}

/// A descriptor's kind: numbers of sockets and pipes say nothing, paths do.
fn kind(target: &str) -> String {
    for kind in ["socket", "pipe"] {
        if target.starts_with(&format!("{kind}:[")) {
            return kind.to_owned();
        }
    }
    if target.starts_with("/memfd:") {
        return "memfd".to_owned();
    }
    target.trim_start_matches("anon_inode:").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Another process: threads of this one open and close descriptors as they like.
    fn cat() -> std::process::Child {
        use std::process::{Command, Stdio};
        Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn each_kind_of_growth_is_named() {
        let mut child = cat();
        let pid = i32::try_from(child.id()).unwrap();
        let before = Held::of(pid).unwrap();
        assert_eq!(before.grown(&before), Vec::<String>::new());
        assert!(before.fds.contains_key("pipe"));
        let mut now = before.clone();
        now.fds.insert("memfd".to_owned(), 1);
        now.watches += 1;
        now.threads += 1;
        now.private_kib += SLACK_KIB + 1;
        assert_eq!(now.grown(&before).len(), 4);
        assert_eq!(before.grown(&now), Vec::<String>::new());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(Held::of(pid).is_err());
    }
}
