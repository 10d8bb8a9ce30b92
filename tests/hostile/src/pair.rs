//! The two processes behind one container: which is which, and what they hold.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vigil_lab::process::{Process, alive, signal_if};
use vigil_lab::{Shim, by, poll::sharp, until};

/// Reaper and shim of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The parent of everything.
    pub reaper: i32,
    /// Its child, which serves.
    pub shim: i32,
    /// In the arguments of both, and of nobody else's.
    pub mark: String,
}

impl Pair {
    /// Finds out by Connect, which names the reaper. A process shows its arguments neither in
    /// the middle of its exec nor while it sleeps uninterruptibly, as a shim that copies a
    /// terminal does for moments: it is looked for again.
    pub fn of(shim: &Shim) -> Result<Self> {
        let end = sharp(2.0);
        loop {
            let seen = Self::seen(shim);
            if seen.is_ok() || Instant::now() >= end {
                return seen;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn seen(shim: &Shim) -> Result<Self> {
        let reaper = shim.task.connect_task(&shim.id)?.shim_pid;
        let reaper = i32::try_from(reaper).context("a pid")?;
        let mut others = shim.processes();
        // What the shim has just forked has its arguments, and another parent.
        others.retain(|p| p.pid != reaper && parent(p.pid) == Some(reaper));
        ensure!(others.len() == 1, "beside reaper {reaper}: {others:?}");
        Ok(Self {
            reaper,
            shim: others[0].pid,
            mark: shim.caller.namespace.clone(),
        })
    }

    /// Sends a signal to one of the two, and to nobody who has its pid after it.
    pub fn signal(&self, pid: i32, number: i32) -> Result<()> {
        ensure!(
            pid == self.reaper || pid == self.shim,
            "not one of the pair"
        );
        let is_it =
            |p: &Process| p.cmdline.contains("containerd-shim") && p.cmdline.contains(&self.mark);
        // In the middle of its exec a process has no arguments.
        let sent = until("it to have its arguments", by(1.0), || {
            if signal_if(pid, number, is_it) {
                Some(true)
            } else {
                (!alive(pid)).then_some(false)
            }
        })?;
        ensure!(sent, "no process {pid} to send signal {number} to");
        Ok(())
    }

    /// Waits until both are gone.
    pub fn gone(&self, seconds: f64) -> Result<()> {
        until(&format!("{self:?} to leave"), by(seconds), || {
            (!alive(self.reaper) && !alive(self.shim)).then_some(())
        })
    }

    /// Whether both live and take signals.
    #[must_use]
    pub fn lives(&self) -> bool {
        alive(self.reaper) && alive(self.shim)
    }
}

/// Who would wait for this process (proc(5), `stat`).
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// Open descriptors of a process.
pub fn fds(pid: i32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Memory it has written to and shares with nobody, in KiB. Pages of its program do not
/// count: whether those are shared depends on who else runs.
pub fn private_kib(pid: i32) -> Result<u64> {
    let process = Process::read(pid).context("gone")?;
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
    let lines = text.lines().filter(|l| l.starts_with("Private_Dirty:"));
    let kib = lines.filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kib.sum())
}
