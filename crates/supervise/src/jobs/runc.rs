//! Waiting for runc without blocking: its deadline, then SIGTERM to its
//! group, then SIGKILL, and always an outcome.

use std::time::Duration;

use tokio::io::Interest;
use vigil_host::runc::{Class, Deadlines, Failure, Running};
use vigil_model::{Kind, Refusal};

use crate::kept::Kept;
use crate::stdio::{self, Streams};
use crate::watched::watch;

/// How long a killed runc is waited for; one in D state is left behind.
const DYING: Duration = Duration::from_millis(500);

/// Waits for a call to end; gives back how it went and the call, for what it
/// printed.
pub(crate) async fn finish(
    running: Running,
    deadlines: &Deadlines,
) -> (Result<(), Failure>, Running) {
    let deadline = deadlines.of(running.verb());
    let Ok(copy) = running.pidfd().try_clone_to_owned() else {
        // Out of descriptors: wait the way a blocking caller does.
        let outcome = running.wait(deadline, deadlines.grace);
        return (outcome, running);
    };
    let Ok(pidfd) = watch(copy, Interest::READABLE) else {
        let outcome = running.wait(deadline, deadlines.grace);
        return (outcome, running);
    };
    let mut stuck = String::new();
    if tokio::time::timeout(deadline, pidfd.readable())
        .await
        .is_err()
    {
        stuck = running.stuck_in();
        let _ = running.ask_group_to_end();
        if tokio::time::timeout(deadlines.grace, pidfd.readable())
            .await
            .is_err()
        {
            let _ = running.kill_group();
            let _ = tokio::time::timeout(DYING, pidfd.readable()).await;
        }
    }
    // Still running means that it cannot die; the reaper gets it in the end.
    let outcome = running.ended().unwrap_or_else(|| running.finish(9));
    let outcome = outcome.map_err(|mut failure| {
        if failure.class == Class::Overdue && !stuck.is_empty() {
            failure.message = format!("{}; it was in {stuck}", failure.message);
        }
        failure
    });
    (outcome, running)
}

/// The same for a call whose streams become the container's. They are copied
/// from the start: runc writes into them too, and would wait for ever for room
/// in a pipe nobody empties. A terminal is there only when runc has ended well.
pub(crate) async fn finish_copying(
    running: Running,
    deadlines: &Deadlines,
    streams: &mut Streams<Kept>,
) -> (Result<(), Failure>, Result<(), stdio::Error>) {
    if streams.console_socket().is_none() {
        let ((outcome, _), copying) = tokio::join!(finish(running, deadlines), streams.started());
        return (outcome, copying);
    }
    let outcome = finish(running, deadlines).await.0;
    let copying = match &outcome {
        Ok(()) => streams.started().await,
        Err(_) => Ok(()),
    };
    (outcome, copying)
}

/// A failed call, for a client. The class decides the code; the text is for
/// people.
pub(crate) fn refusal(failure: &Failure) -> Refusal {
    let kind = match failure.class {
        Class::Overdue => Kind::DeadlineExceeded,
        _ => Kind::Unknown,
    };
    Refusal::new(kind, failure.to_string())
}
