//! The stop-watch: one child process, from just before it is spawned until its output has
//! ended and it is reaped, which is what containerd waits for. `std` spawns by vfork, so
//! the size of this process is not part of the figure.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// One run.
#[derive(Debug)]
pub struct Ran {
    /// Just before it was spawned.
    pub began: Instant,
    /// Until its output was at the end and it had exited.
    pub took: Duration,
    /// How it exited.
    pub status: ExitStatus,
    /// stdout and, if merged, stderr.
    pub out: Vec<u8>,
}

/// Runs with stdin empty and stdout, with stderr if `merged`, read to the end.
pub fn run(command: &mut Command, merged: bool) -> Result<Ran> {
    let what = format!("{command:?}");
    let (mut reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null());
    if merged {
        command.stderr(writer.try_clone()?);
    } else {
        command.stderr(Stdio::null());
    }
    command.stdout(writer);
    let mut out = Vec::with_capacity(4096);
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("running {what}"))?;
    // The command keeps the writing ends until it is told otherwise.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    reader.read_to_end(&mut out)?;
    let status = child.wait()?;
    Ok(Ran {
        began,
        took: began.elapsed(),
        status,
        out,
    })
}

/// Durations of one kind.
#[derive(Debug, Default, Clone)]
pub struct Series(Vec<Duration>);

impl Series {
    /// One more.
    pub fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// The value below which `percent` of them lie, in milliseconds; `None` without any.
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort();
        let last = sorted.len().checked_sub(1)?;
        // Nearest rank, rounded up: a p99 of few is their largest.
        let at = (last * percent).div_ceil(100);
        Some(sorted[at].as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut series = Series::default();
        assert_eq!(series.percentile(50), None);
        for ms in [5, 1, 4, 2, 3] {
            series.push(Duration::from_millis(ms));
        }
        assert_eq!(series.percentile(0), Some(1.0));
        assert_eq!(series.percentile(50), Some(3.0));
        assert_eq!(series.percentile(99), Some(5.0));
    }
}
