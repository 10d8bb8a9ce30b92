//! The oracle: what of a container is still on the host.
//!
//! It only looks, at the kernel and the file system, never at what a runtime claims: the
//! promise under test is that nothing outlives a container, so the judge must not ask
//! the accused. Removal below is for the tests' own clean-up, and touches marked things
//! only.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::poll;
use crate::process::Process;

/// Everything found, as readable lines; compared as a set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Residue(BTreeSet<String>);

impl Residue {
    /// What carries `mark` in its name: processes, cgroups, mounts, runc state, bundles,
    /// sockets (listening, by address), loop devices, and the runtime's own leavings.
    #[must_use]
    pub fn marked(mark: &str) -> Self {
        let mut found = Self::everything();
        found.0.retain(|line| line.contains(mark));
        found
    }

    /// Everything of the kinds above on the whole machine, to be compared with a later
    /// look. Processes are limited to shims, runtimes and members of container cgroups.
    #[must_use]
    pub fn everything() -> Self {
        let mut found = BTreeSet::new();
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        // What shares the tests' own cgroup is the machine's business, not a container's.
        let home = Process::read(me).map(|p| p.cgroup).unwrap_or_default();
        for process in Process::all() {
            if process.pid == me || process.state == 'Z' {
                continue;
            }
            let group = foreign_group(&process.cgroup, &home);
            let runtime = ["containerd-shim", "runc ", "containerd ", "ctr "]
                .iter()
                .any(|n| process.cmdline.contains(n));
            if runtime || group.is_some() {
                found.insert(format!(
                    "process {} [{}] in {}",
                    process.pid,
                    process.cmdline,
                    group.unwrap_or("our own cgroup")
                ));
            }
        }
        for directory in cgroups() {
            found.insert(format!("cgroup {}", directory.display()));
        }
        for point in mount_points() {
            found.insert(format!("mount {point}"));
        }
        // `/run/vigil/history` and `crashes` are meant to outlive their containers; each is a file
        // that may be there before, and its older half.
        for directory in [
            "/run/containerd/runc",
            "/run/containerd/s",
            "/run/vigil",
            "/run/vigil/tombstones",
        ] {
            for path in two_levels(Path::new(directory)) {
                found.insert(format!("file {}", path.display()));
            }
        }
        for path in temporary() {
            found.insert(format!("temporary {}", path.display()));
        }
        for line in fs::read_to_string("/proc/net/unix")
            .unwrap_or_default()
            .lines()
        {
            // Num RefCount Protocol Flags Type St Inode Path; flag 00010000 = listening.
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(3) == Some(&"00010000") && fields.len() == 8 {
                found.insert(format!("listening socket {}", fields[7]));
            }
        }
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            if let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) {
                found.insert(format!(
                    "loop device {} on {}",
                    entry.file_name().display(),
                    file.trim()
                ));
            }
        }
        Self(found)
    }

    /// What is here and was not in `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// The lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Waits until nothing carries `mark` except lines for which `allowed` holds; then
    /// fails with what is left.
    pub fn expect_none(
        mark: &str,
        deadline: Instant,
        allowed: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let mut left = Vec::new();
        let clean = poll::until("", deadline, || {
            left = Self::marked(mark)
                .lines()
                .filter(|l| !allowed(l))
                .map(str::to_owned)
                .collect();
            left.is_empty().then_some(())
        });
        if clean.is_err() {
            bail!("left behind:\n    {}", left.join("\n    "));
        }
        Ok(())
    }
}

/// The first cgroup a process is in and `home` is not, by the lines of `/proc/PID/cgroup`.
fn foreign_group<'a>(lines: &'a str, home: &str) -> Option<&'a str> {
    let foreign = lines
        .lines()
        .filter(|line| home.lines().all(|ours| ours != *line));
    foreign
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find(|path| *path != "/")
}

/// All cgroup directories below the roots of all hierarchies.
fn cgroups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = if Path::new("/sys/fs/cgroup/cgroup.procs").exists() {
        vec!["/sys/fs/cgroup".into()]
    } else {
        directories(Path::new("/sys/fs/cgroup"))
    };
    while let Some(directory) = todo.pop() {
        for child in directories(&directory) {
            found.push(child.clone());
            todo.push(child);
        }
    }
    found
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    // Symbolic links (cpu,cpuacct → cpu) are not directories to `file_type`.
    entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

fn two_levels(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect();
    for directory in directories(path) {
        found.extend(
            fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path()),
        );
    }
    found
}

/// What runtimes and containerd make in the temporary directory and forget there: process
/// documents, pid files, mount points. Told apart by their names alone, so only a
/// comparison of two looks says whose they are.
fn temporary() -> Vec<PathBuf> {
    let names = [
        "runc-",
        "runc.",
        "containerd-",
        "ctd-",
        "vigil-",
        ".vigil",
        "crun",
    ];
    let of = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    let places = [std::env::temp_dir(), "/dev/shm".into(), "/var/tmp".into()];
    let entries = places.into_iter().flat_map(of);
    entries
        .filter(|entry| {
            let name = entry.file_name();
            names.iter().any(|n| name.to_string_lossy().starts_with(n))
        })
        .map(|entry| entry.path())
        .collect()
}

/// Mount points of this mount namespace, in the order of mountinfo.
#[must_use]
pub fn mount_points() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(str::to_owned)
        .collect()
}

/// Unlinks the sockets below containerd's socket directory on which marked processes listen.
pub fn remove_sockets(mark: &str) {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for process in Process::marked(mark) {
        for fd in fs::read_dir(format!("/proc/{}/fd", process.pid))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Ok(target) = fs::read_link(fd.path()) else {
                continue;
            };
            let Some(inode) = target
                .to_str()
                .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']'))
            else {
                continue;
            };
            // The inode is the seventh field, the path the eighth.
            let mut lines = table
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>());
            let path = lines.find(|f| f.len() == 8 && f[6] == inode).map(|f| f[7]);
            if let Some(path) = path.filter(|p| p.starts_with("/run/containerd/s/")) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Detaches every mount whose point carries `mark`, deepest first.
pub fn unmount_marked(mark: &str, deadline: Instant) -> Result<()> {
    poll::until(&format!("mounts marked {mark} to go"), deadline, || {
        let mut points: Vec<String> = mount_points()
            .into_iter()
            .filter(|p| p.contains(mark))
            .collect();
        points.sort_by_key(|p| std::cmp::Reverse(p.len()));
        for point in &points {
            let _ = nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
        mount_points()
            .iter()
            .all(|p| !p.contains(mark))
            .then_some(())
    })
}

/// Thaws every cgroup (v1 freezer, v2) that carries `mark`: what is frozen cannot die.
pub fn thaw_marked(mark: &str) {
    for directory in cgroups()
        .into_iter()
        .filter(|p| p.to_string_lossy().contains(mark))
    {
        for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            // Opened, not created: a hierarchy without freezer has no such file.
            if let Ok(mut file) = fs::OpenOptions::new()
                .write(true)
                .open(directory.join(file))
            {
                let _ = file.write_all(thawed.as_bytes());
            }
        }
    }
}

/// Removes every cgroup directory that carries `mark`, deepest first.
pub fn remove_cgroups(mark: &str, deadline: Instant) {
    let _ = poll::until("", deadline, || {
        let mut ours: Vec<PathBuf> = cgroups()
            .into_iter()
            .filter(|p| p.to_string_lossy().contains(mark))
            .collect();
        ours.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
        for directory in &ours {
            let _ = fs::remove_dir(directory);
        }
        ours.iter().all(|p| !p.exists()).then_some(())
    });
}

/// Removes marked tombstones of the runtime under test (a failed test may leave some).
pub fn remove_vigil_traces(mark: &str) {
    for path in two_levels(Path::new("/run/vigil")) {
        if path.to_string_lossy().contains(mark) {
            let _ = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
        }
    }
}
