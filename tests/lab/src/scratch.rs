//! One test's private place: a short directory below /tmp, a namespace name nobody else
//! uses, and the duty to leave nothing, also when the test fails.
//!
//! The namespace doubles as the *mark*: it occurs in every path, argument and cgroup of
//! the test's containers, so that whatever is left can be found and is surely ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::{poll, process, residue};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory, a mark, and the clean-up of both.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    mark: String,
    /// Set to look at the remains of a failed test by hand.
    keep: bool,
}

impl Scratch {
    /// Makes a new one. The mark is unique on this machine: pid, a counter, and the clock.
    pub fn new() -> Result<Self> {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .subsec_nanos();
        let mark = format!(
            "vl{}x{}x{:04x}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed),
            nanos & 0xffff
        );
        let dir = std::env::temp_dir().join(&mark);
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self {
            dir,
            mark,
            keep: std::env::var_os("VIGIL_KEEP").is_some(),
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The mark; also the containerd namespace of the test's containers.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// A path below the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Cleans up after test processes that were killed before they could: scratches whose
/// maker is gone. Run at the start of a suite, so that an interrupted run is not for ever.
pub fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let Some(mark) = name.to_str() else { continue };
        let parts: Vec<&str> = mark
            .strip_prefix("vl")
            .unwrap_or_default()
            .split('x')
            .collect();
        let [pid, number, nanos] = parts[..] else {
            continue;
        };
        let ours = number.parse::<u32>().is_ok() && nanos.len() == 4;
        if let (true, Ok(pid)) = (ours, pid.parse::<i32>())
            && !process::alive(pid)
        {
            // Its drop is the clean-up.
            drop(Scratch {
                dir: entry.path(),
                mark: mark.to_owned(),
                keep: false,
            });
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        residue::thaw_marked(&self.mark);
        residue::remove_sockets(&self.mark);
        // Order matters: processes hold mounts and cgroups, mounts hold the directory.
        if let Err(error) = process::kill_marked(&self.mark, poll::by(10.0)) {
            eprintln!("lab: {error:#}");
        }
        if let Err(error) = residue::unmount_marked(&self.mark, poll::by(5.0)) {
            eprintln!("lab: {error:#}");
        }
        residue::remove_cgroups(&self.mark, poll::by(5.0));
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(&self.mark));
        residue::remove_vigil_traces(&self.mark);
        if self.keep {
            eprintln!("lab: kept {}", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("lab: removing {}: {error}", self.dir.display());
        }
    }
}
