//! What a process may be short of, taken from a living one and given back: descriptors,
//! processes and memory in a cgroup, and system calls that answer as if a limit were reached.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use vigil_lab::kit::repository;

/// Sets the soft limit of open files of a process.
pub fn allow_files(pid: i32, soft: u64) -> Result<()> {
    let limit = format!("--nofile={soft}:");
    let set = Command::new("prlimit")
        .args([format!("--pid={pid}"), limit])
        .status()?;
    ensure!(set.success(), "prlimit of process {pid}");
    Ok(())
}

/// Soft and hard limit of open files.
pub fn open_files(pid: i32) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let mut words = line.context("no such limit")?.split_whitespace().skip(3);
    let mut word = || words.next()?.parse().ok();
    Ok((word().context("soft")?, word().context("hard")?))
}

/// Allows as many open files as a process has, and `more`.
pub fn exhaust_files(pid: i32, more: usize) -> Result<()> {
    let taken = |n: &u64| fs::symlink_metadata(format!("/proc/{pid}/fd/{n}")).is_ok();
    let mut free = (0..100_000).filter(|n| !taken(n));
    allow_files(pid, free.nth(more).context("all are taken")?)
}

/// A cgroup of one controller in which something is scarce, for processes that are put there.
#[derive(Debug)]
pub struct Group {
    dir: PathBuf,
    home: PathBuf,
    /// Whether the hierarchy is a version 2 one.
    unified: bool,
    controller: &'static str,
}

impl Group {
    /// An empty one, named after `mark`. `None`: this host has no such controller to be used.
    pub fn of(controller: &'static str, mark: &str) -> Result<Option<Self>> {
        let root = Path::new("/sys/fs/cgroup");
        let unified = root.join("cgroup.controllers").exists();
        let mount = if unified {
            root.to_path_buf()
        } else {
            root.join(controller)
        };
        if unified {
            let there = fs::read_to_string(root.join("cgroup.subtree_control"))?;
            if !there.split_whitespace().any(|one| one == controller) {
                return Ok(None);
            }
        } else if !mount.join("cgroup.procs").exists() {
            return Ok(None);
        }
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let path = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let names = parts.next()?;
            let ours = if unified {
                names.is_empty()
            } else {
                names.split(',').any(|n| n == controller)
            };
            ours.then(|| parts.next())?
        });
        let home = mount.join(path.context("no cgroup of ours")?.trim_start_matches('/'));
        let dir = mount.join(format!("{mark}-scarce"));
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Some(Self {
            dir,
            home,
            unified,
            controller,
        }))
    }

    /// Moves a process here. What it has stays counted where it was made, what it makes is here.
    pub fn take(&self, pid: i32) -> Result<()> {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("moving process {pid} to {}", self.dir.display()))
    }

    /// A line of shell that moves the shell here.
    #[must_use]
    pub fn join_line(&self) -> String {
        format!("echo $$ >{}", self.dir.join("cgroup.procs").display())
    }

    fn number(&self, name: &str) -> Result<u64> {
        let path = self.dir.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.trim()
            .parse()
            .with_context(|| format!("{}: {text}", path.display()))
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, value).with_context(|| format!("{value} into {}", path.display()))
    }

    /// How much of it is used.
    pub fn used(&self) -> Result<u64> {
        match (self.controller, self.unified) {
            ("pids", _) => self.number("pids.current"),
            (_, true) => self.number("memory.current"),
            (_, false) => self.number("memory.usage_in_bytes"),
        }
    }

    /// Allows what is used, and `more` (processes, or bytes).
    pub fn exhaust(&self, more: u64) -> Result<()> {
        let limit = match (self.controller, self.unified) {
            ("pids", _) => "pids.max",
            (_, true) => "memory.max",
            (_, false) => "memory.limit_in_bytes",
        };
        // The kernel may count in batches, and refuse less than there is.
        let mut last = None;
        for slack in 0..64 {
            let value = self.used()? + more + slack * 4096 * u64::from(limit != "pids.max");
            match self.set(limit, &value.to_string()) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no limit was tried")))
    }

    /// Allows so many processes in all.
    pub fn allow(&self, processes: u64) -> Result<()> {
        self.set("pids.max", &processes.to_string())
    }

    /// Allows as much as there is.
    pub fn relax(&self) -> Result<()> {
        match (self.controller, self.unified) {
            ("pids", _) => self.set("pids.max", "max"),
            (_, true) => self.set("memory.max", "max"),
            (_, false) => self.set("memory.limit_in_bytes", "-1"),
        }
    }

    /// How often the kernel has refused something here, or killed for it.
    pub fn refusals(&self) -> Result<u64> {
        let (file, key) = match (self.controller, self.unified) {
            ("pids", _) => ("pids.events", "max"),
            (_, true) => ("memory.events", "oom_kill"),
            (_, false) => ("memory.oom_control", "oom_kill"),
        };
        let text = fs::read_to_string(self.dir.join(file))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.context("no such count")?
            .trim()
            .parse()
            .context("a count")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.relax();
        for _ in 0..400 {
            let there = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
            for pid in there.lines() {
                let _ = fs::write(self.home.join("cgroup.procs"), pid);
            }
            match fs::remove_dir(&self.dir) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                _ => return,
            }
        }
        eprintln!("{} is busy", self.dir.display());
    }
}

/// A program in `dir` that does `line` of shell, then becomes `program`: for a shim whose
/// `start` or `delete` is to be short of something.
pub fn wrapped(dir: &Path, name: &str, line: &str, program: &Path) -> Result<PathBuf> {
    // The name says what it is to whoever looks for shims by their arguments.
    let path = dir.join(format!("containerd-shim-{name}"));
    let text = format!("#!/bin/sh\n{line}\nexec {} \"$@\"\n", program.display());
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The program that runs another whose system calls fail as at a limit (see its source);
/// built below `dir`.
pub fn without(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("without");
    let built = Command::new("cc")
        .args(["-O1", "-static", "-s", "-o"])
        .arg(&path)
        .arg(repository().join("tests/programs/without.c"))
        .output()
        .context("running cc")?;
    if !built.status.success() {
        bail!("cc: {}", String::from_utf8_lossy(&built.stderr));
    }
    Ok(path)
}
