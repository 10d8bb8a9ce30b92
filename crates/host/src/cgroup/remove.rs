//! Removal of the container's cgroups, depth first, in every hierarchy. Only
//! directories that are ours, and only while the path still leads to the inode
//! that was claimed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Cgroup, tree};
use crate::Result;

/// What a removal left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removal {
    /// Directories removed, nested ones included.
    pub removed: usize,
    /// Top directories that would not go yet.
    pub left: Vec<PathBuf>,
}

impl Cgroup {
    /// One attempt at all that is left. A cgroup whose last process is still
    /// on its way out is busy for a moment: call again.
    pub fn remove_step(&self) -> Result<Removal> {
        let mut removal = Removal::default();
        for group in self.ours() {
            match fs::symlink_metadata(&group.path) {
                Ok(meta) if meta.ino() == group.inode => {}
                // Removed, and perhaps made anew by somebody else.
                Ok(_) => continue,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(tree::failed("look at", &group.path, e)),
            }
            // Deepest first; the directory itself by its own path.
            let nodes = tree::subtree(&group.dir)?;
            let below = nodes.iter().skip(1).rev().map(|node| node.path(""));
            let mut busy = false;
            for path in below.chain([group.path.clone()]) {
                match fs::remove_dir(&path) {
                    Ok(()) => removal.removed += 1,
                    Err(e) if tree::is_absent(&e) => {}
                    // ENOTEMPTY: somebody made a nested one just now.
                    Err(e)
                        if matches!(
                            e.kind(),
                            ErrorKind::ResourceBusy | ErrorKind::DirectoryNotEmpty
                        ) =>
                    {
                        busy = true;
                    }
                    Err(e) => return Err(tree::failed("remove", &path, e)),
                }
            }
            if busy {
                removal.left.push(group.path.clone());
            }
        }
        Ok(removal)
    }

    /// Tries again until nothing is left or the deadline passes; tries at
    /// least once.
    pub fn remove_until(&self, deadline: Instant) -> Result<Removal> {
        let mut pause = Duration::from_micros(500);
        let mut removed = 0;
        loop {
            let mut removal = self.remove_step()?;
            removed += removal.removed;
            removal.removed = removed;
            let left = deadline.saturating_duration_since(Instant::now());
            if removal.left.is_empty() || left.is_zero() {
                return Ok(removal);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}
