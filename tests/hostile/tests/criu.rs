//! What CRIU leaves in its work directory is another program's: whatever it is, the shim goes
//! on serving.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use anyhow::ensure;
use vigil_hostile::{FaultyRunc, Pair, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::process::{alive, mkfifo};
use vigil_lab::{CallError, Spec};

/// Its log was copied, and the directory removed, on the shim's only thread: a log that
/// nobody writes stopped the shim until its reaper replaced it.
#[test]
fn a_log_that_cannot_be_read_does_not_stop_the_shim() {
    trial(60, |kit| {
        let runc = FaultyRunc::new(kit.scratch.dir(), "checkpoint", "exit-1")?;
        let mut container = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        container.pid = container.task().create(&request)?.pid;
        container.start()?;
        let pair = Pair::of(&container.shim)?;
        let work = container.bundle.dir.join("work/criu-work");
        fs::create_dir_all(&work)?;
        mkfifo(&work.join("dump.log"))?;
        let image = kit.scratch.path("image").to_string_lossy().into_owned();
        let answer = container.task().checkpoint(&container.id, &image);
        ensure!(
            matches!(answer, Err(CallError::Status { .. })),
            "{answer:?}"
        );
        ensure!(alive(pair.shim), "the shim was replaced");
        let state = container.task().state(&container.id, "")?;
        ensure!(state.status.value() == 2, "not RUNNING: {state:?}");
        Ok(())
    });
}
