//! A private containerd with the runtime under test, and the words of `ctr` a test needs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result};

use crate::containerd::{Containerd, IMAGE, Version};
use crate::kit::ShimBinary;
use crate::poll::{by, until};
use crate::process::{Process, signal_if};
use crate::shim::Ran;

/// See the module.
#[derive(Debug)]
pub struct Place {
    /// Sockets that Go's `delete` leaves behind.
    sockets: Mutex<BTreeSet<PathBuf>>,
    /// The daemon.
    pub containerd: Containerd,
    /// The runtime's name, for `--runtime`.
    pub runtime: &'static str,
}

impl Drop for Place {
    fn drop(&mut self) {
        let sockets = self.sockets.get_mut();
        for socket in sockets.map(std::mem::take).unwrap_or_default() {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Place {
    /// Starts a containerd of `version` whose runtime is `shim`: ours by its own name, Go's as the daemon finds it.
    pub fn start(version: Version, shim: &ShimBinary) -> Result<Self> {
        Self::start_with(version, shim, &[])
    }

    /// The same with further environment for the daemon, which hands it to shims.
    pub fn start_with(version: Version, shim: &ShimBinary, env: &[(&str, &str)]) -> Result<Self> {
        let ours = shim.name == "vigil";
        Ok(Self {
            sockets: Mutex::default(),
            containerd: Containerd::start_with(version, ours.then_some(shim), env)?,
            runtime: if ours {
                "io.containerd.vigil.v2"
            } else {
                "io.containerd.runc.v2"
            },
        })
    }

    /// Arguments of `ctr run` for container `id`.
    #[must_use]
    pub fn run_args<'a>(
        &self,
        flags: &[&'a str],
        id: &'a str,
        command: &[&'a str],
    ) -> Vec<&'a str> {
        if let Ok(mut sockets) = self.sockets.lock() {
            sockets.insert(self.containerd.shim_socket(id));
        }
        let mut args = vec!["run", "--runtime", self.runtime];
        args.extend(flags);
        args.extend([IMAGE, id]);
        args.extend(command);
        args
    }

    /// `ctr run`, whatever its exit status.
    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Result<Ran> {
        self.containerd.try_ctr(&self.run_args(flags, id, command))
    }

    /// `ctr run -d`.
    pub fn detached(&self, id: &str, command: &[&str]) -> Result<()> {
        self.containerd
            .ctr(&self.run_args(&["-d"], id, command))
            .map(drop)
    }

    /// Waits until containerd says so.
    pub fn expect_status(&self, id: &str, status: &str) -> Result<()> {
        until(&format!("{id} to be {status}"), by(10.0), || {
            self.containerd
                .task_status(id)
                .ok()
                .flatten()
                .filter(|s| s == status)
                .map(drop)
        })
    }

    /// Kills the task, then removes task and container.
    pub fn end(&self, id: &str) -> Result<()> {
        self.containerd
            .ctr(&["tasks", "kill", "-s", "SIGKILL", id])?;
        self.expect_status(id, "STOPPED")?;
        self.remove(id)
    }

    /// Removes a stopped task and its container.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.containerd.ctr(&["tasks", "rm", id])?;
        self.containerd.ctr(&["containers", "rm", id]).map(drop)
    }

    /// The pid of a task's init, as containerd says it.
    pub fn pid(&self, id: &str) -> Result<i32> {
        let table = self.containerd.ctr(&["tasks", "ls"])?;
        let mut lines = table
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|words| words.first() == Some(&id));
        let pid = line.and_then(|words| words.get(1)?.parse().ok());
        pid.with_context(|| format!("no pid of {id} in: {table}"))
    }

    /// The runtime's processes for one container: `start`, reaper, shim, `delete`.
    #[must_use]
    pub fn shims(&self, id: &str) -> Vec<Process> {
        let (namespace, id) = (
            format!("-namespace {} ", self.containerd.namespace()),
            format!("-id {id} "),
        );
        let is = |p: &Process| {
            let line = format!("{} ", p.cmdline);
            line.contains("containerd-shim") && line.contains(&namespace) && line.contains(&id)
        };
        let marked = Process::marked(self.containerd.namespace());
        marked.into_iter().filter(is).collect()
    }

    /// SIGKILLs them; how many there were.
    pub fn kill_shims(&self, id: &str) -> Result<usize> {
        let found = self.shims(id);
        kill_at_once(&found)?;
        Ok(found.len())
    }
}

/// SIGKILLs processes so that none can react to another's death: all stopped first, and
/// children before their parents, since the kernel lets a stopped process run on whose
/// group loses its last tie to the session.
pub fn kill_at_once(found: &[Process]) -> Result<()> {
    let still = |was: &Process| {
        let cmdline = was.cmdline.clone();
        move |now: &Process| now.cmdline == cmdline
    };
    for process in found {
        signal_if(process.pid, 19, still(process));
    }
    let parent = |p: &Process| p.field("PPid").and_then(|pid| pid.parse::<i32>().ok());
    let mut left: Vec<(&Process, Option<i32>)> = found.iter().map(|p| (p, parent(p))).collect();
    while !left.is_empty() {
        let parents: BTreeSet<i32> = left.iter().filter_map(|(_, parent)| *parent).collect();
        let leaf = |(p, _): &(&Process, _)| !parents.contains(&p.pid);
        for (process, _) in left.extract_if(.., |one| leaf(one)) {
            signal_if(process.pid, 9, still(process));
        }
    }
    until("the killed shims to be gone", by(5.0), || {
        found
            .iter()
            .all(|shim| !crate::process::alive(shim.pid))
            .then_some(())
    })
}
