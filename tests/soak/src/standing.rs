//! What a process holds at one moment: descriptors and memory, as the kernel counts them.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// Open descriptors.
    pub fds: u64,
    /// Memory it has written to and shares with nobody, KiB.
    pub private: u64,
    /// Its share of all memory it maps, KiB.
    pub pss: u64,
}

impl Standing {
    /// Of a process that lives.
    pub fn of(pid: i32) -> Result<Self> {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).context("its descriptors")?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let sum = |name: &str| -> u64 {
            let lines = rollup.lines().filter(|line| line.starts_with(name));
            let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            kib.sum()
        };
        Ok(Self {
            fds: fds.count() as u64,
            private: sum("Private_Dirty:"),
            pss: sum("Pss:"),
        })
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} fds, {} KiB private, {} KiB PSS",
            self.fds, self.private, self.pss
        )
    }
}
