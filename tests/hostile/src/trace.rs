//! What of a container is on the host at one moment, to hold a failed request to its
//! duty: afterwards it must be as it was before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use vigil_lab::process::Process;
use vigil_lab::{Residue, by, until};

/// See the module.
#[derive(Debug)]
pub struct Trace {
    mark: String,
    bundle: PathBuf,
    lines: BTreeSet<String>,
}

impl Trace {
    /// What bears `mark` now, and the bundle's files. A process that sleeps uninterruptibly for a
    /// moment shows no mark: it is looked until three looks in a row see the same.
    #[must_use]
    pub fn of(mark: &str, bundle: &Path) -> Self {
        let mut lines = Self::look(mark, bundle);
        let mut same = 0;
        let _ = until("", by(5.0), || {
            std::thread::sleep(Duration::from_millis(10));
            let now = Self::look(mark, bundle);
            same = if now == lines { same + 1 } else { 0 };
            lines = now;
            (same >= 2).then_some(())
        });
        Self {
            mark: mark.to_owned(),
            bundle: bundle.to_owned(),
            lines,
        }
    }

    fn look(mark: &str, bundle: &Path) -> BTreeSet<String> {
        let mut lines: BTreeSet<String> = Residue::marked(mark)
            .lines()
            // Made once for a namespace, by runc, and kept.
            .filter(|line| !line.ends_with(mark))
            .map(str::to_owned)
            .collect();
        let processes = Process::marked(mark).into_iter();
        lines.extend(processes.map(|p| format!("process {} [{}]", p.pid, p.cmdline)));
        for entry in fs::read_dir(bundle).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // What an exec was asked to be stays until it is deleted; see `specs`.
            if Path::new(&name)
                .extension()
                .is_none_or(|end| end != "asked")
            {
                lines.insert(format!("in the bundle: {}", name.display()));
            }
        }
        lines
    }

    /// Waits until nothing is there that was not; fails with what is.
    pub fn expect_back(&self) -> Result<()> {
        self.expect_back_but(|_| false)
    }

    /// The same, apart from what `allowed` holds for.
    pub fn expect_back_but(&self, allowed: impl Fn(&str) -> bool) -> Result<()> {
        let mut left = Vec::new();
        let clean = until("", by(5.0), || {
            left = Self::look(&self.mark, &self.bundle)
                .difference(&self.lines)
                .filter(|line| !allowed(line))
                .cloned()
                .collect();
            left.is_empty().then_some(())
        });
        if clean.is_err() {
            bail!("left behind:\n    {}", left.join("\n    "));
        }
        Ok(())
    }
}
