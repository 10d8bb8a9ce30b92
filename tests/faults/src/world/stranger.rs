//! A process that has nothing to do with any container, and must live on whatever a
//! shim believes of its number.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use vigil_lab::process::alive;
use vigil_lab::{by, until};

/// A sleeping stranger; killed when dropped, and ends by itself soon after.
#[derive(Debug)]
pub struct Stranger(Child);

impl Stranger {
    /// Some stranger.
    pub fn new() -> Result<Self> {
        let child = Command::new("sleep")
            .arg("120")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn();
        Ok(Self(child.context("a stranger")?))
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Moves it into cgroups.
    pub fn enter<'a>(&self, directories: impl IntoIterator<Item = &'a Path>) -> Result<()> {
        for directory in directories {
            fs::write(directory.join("cgroup.procs"), self.pid().to_string())
                .with_context(|| format!("entering {}", directory.display()))?;
        }
        Ok(())
    }

    /// Fails if somebody has ended or stopped it.
    pub fn unhurt(&mut self) -> Result<()> {
        let ended = self.0.try_wait()?;
        ensure!(ended.is_none(), "a stranger was killed: {ended:?}");
        let process = vigil_lab::process::Process::read(i32::try_from(self.pid())?);
        let state = process.context("a stranger is gone")?.state;
        ensure!(
            state == 'S' || state == 'R',
            "a stranger is in state {state}"
        );
        Ok(())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stranger that has exactly this pid, which must be free: the kernel is told which
/// number it gave last. Others fork too, so it takes some attempts.
pub fn with_pid(pid: u32) -> Result<Stranger> {
    ensure!(!alive(i32::try_from(pid)?), "pid {pid} is not free");
    // Whoever inherits orphans here may take its time with the dead.
    let entry = format!("/proc/{pid}");
    until(&format!("pid {pid} to be reaped"), by(30.0), || {
        (!Path::new(&entry).exists()).then_some(())
    })?;
    for _ in 0..500 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).context("ns_last_pid")?;
        let stranger = Stranger::new()?;
        if stranger.pid() == pid {
            return Ok(stranger);
        }
    }
    anyhow::bail!("nobody got pid {pid} in 500 attempts")
}
