//! `binary://`: the program that takes a container's output. It reads the
//! container's own pipes (3 and 4) and says on a third (5) that it is ready.
//! Started only after all of them were deposited; who waits for it and ends it
//! is not decided here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vigil_model::{Namespace, TaskId};
use vigil_sys::spawn::{Child, Command};

use super::plan::LoggerPlan;
use crate::{Error, Result};

/// A logger that can be started.
#[derive(Debug)]
pub struct LoggerStart {
    /// What to run.
    pub plan: LoggerPlan,
    /// Becomes its descriptor 5, and nobody else's.
    pub ready: OwnedFd,
}

impl LoggerStart {
    /// Starts it in a session of its own, as it is to outlive a shim and read
    /// what is left in its pipes, with exactly `CONTAINER_ID`
    /// and `CONTAINER_NAMESPACE` as environment. Our copy of its ready end is
    /// closed, so that its death is an end of file there.
    pub fn start(
        self,
        task: &TaskId,
        namespace: &Namespace,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
    ) -> Result<Child> {
        Command::new(&self.plan.program)
            .args(&self.plan.args)
            .env("CONTAINER_ID", task.as_str())
            .env("CONTAINER_NAMESPACE", namespace.as_str())
            .fd(3, stdout)
            .fd(4, stderr)
            .fd(5, self.ready.as_fd())
            .own_session()
            .spawn()
            .map_err(|e| Error::File {
                op: "start logger",
                path: self.plan.program.clone(),
                source: e.into(),
            })
    }
}
