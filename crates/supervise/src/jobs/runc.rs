//! Waiting for runc without blocking: its deadline, then SIGTERM to its
//! group, then SIGKILL, and always an outcome.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use tokio::io::Interest;
use vigil_host::runc::{Class, Deadlines, Ended, Failure, Running};
use vigil_model::{Kind, Refusal};

use crate::kept::Kept;
use crate::stdio::{self, Streams};
use vigil_sys::pidfd;

use crate::watched::{Watched, watch};

/// How long a killed runc is waited for; one in D state is left behind.
const DYING: Duration = Duration::from_millis(500);
/// Between two looks at a call nobody tells us the end of.
const LOOK: Duration = Duration::from_millis(20);

/// Waits for a call to end; gives back how it went and the call, for what it
/// printed.
pub(crate) async fn finish(
    running: Running,
    deadlines: &Deadlines,
) -> (Result<(), Failure>, Running) {
    finish_unless(running, deadlines, std::future::pending()).await
}

/// The same; killed at once when `unwanted` comes first.
pub(crate) async fn finish_unless(
    running: Running,
    deadlines: &Deadlines,
    unwanted: impl Future<Output = ()>,
) -> (Result<(), Failure>, Running) {
    let deadline = deadlines.of(running.verb());
    let pidfd = pidfd_of(&running);
    let mut stuck = String::new();
    let ended = tokio::select! {
        ended = ended_within(running.pidfd(), pidfd.as_ref(), deadline) => Some(ended),
        () = unwanted => None,
    };
    if ended.is_none() {
        let _ = running.kill_group();
        ended_within(running.pidfd(), pidfd.as_ref(), DYING).await;
    }
    if ended == Some(false) {
        stuck = running.stuck_in();
        let _ = running.ask_group_to_end();
        if !ended_within(running.pidfd(), pidfd.as_ref(), deadlines.grace).await {
            let _ = running.kill_group();
            ended_within(running.pidfd(), pidfd.as_ref(), DYING).await;
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

/// The same for a call whose streams become the container's, which are copied
/// once it has ended well: what is in the pipes of a call that failed are runc's
/// own words, which its log has too, and nobody is shown them as the container's.
/// Unless a pipe fills up before: the call would wait for ever for room in it. Killed at once
/// when `unwanted` comes first.
pub(crate) async fn finish_copying(
    running: Running,
    deadlines: &Deadlines,
    streams: &mut Streams<Kept>,
    unwanted: impl Future<Output = ()>,
) -> (Result<(), Failure>, Result<(), stdio::Error>) {
    let mut call = std::pin::pin!(finish_unless(running, deadlines, unwanted));
    let ended = tokio::select! {
        biased;
        ended = &mut call => Some(ended),
        () = streams.filling() => None,
    };
    let Some((outcome, _)) = ended else {
        let ((outcome, _), copying) = tokio::join!(call, streams.started());
        return (outcome, copying);
    };
    let copying = match &outcome {
        Ok(()) => streams.started().await,
        Err(_) => Ok(()),
    };
    (outcome, copying)
}

/// Whether it ends in that time. Without a descriptor to be woken by (there are
/// none left) it is looked at now and then: the shim has others to answer.
async fn ended_within(call: BorrowedFd<'_>, pidfd: Option<&Watched>, wait: Duration) -> bool {
    let ended = async {
        match pidfd {
            Some(pidfd) => drop(pidfd.readable().await),
            None => {
                while pidfd::is_dead(call) == Ok(false) {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    };
    // The last look is at the kernel: the reactor may be behind.
    tokio::time::timeout(wait, ended).await.is_ok() || pidfd::is_dead(call) == Ok(true)
}

/// Whether a call ends in that time.
pub(crate) fn ends_within(
    running: &Running,
    wait: Duration,
) -> impl Future<Output = bool> + Send + use<> {
    let watched = pidfd_of(running);
    let own = running.pidfd().try_clone_to_owned();
    async move {
        if let Ok(own) = own {
            ended_within(own.as_fd(), watched.as_ref(), wait).await
        } else {
            // Out of descriptors: its time is all there is.
            tokio::time::sleep(wait).await;
            false
        }
    }
}

fn pidfd_of(running: &Running) -> Option<Watched> {
    let copy = running.pidfd().try_clone_to_owned();
    copy.and_then(|copy| watch(copy, Interest::READABLE)).ok()
}

/// A failed call, for a client. The class decides the code; the text is for
/// people.
pub(crate) fn refusal(failure: &Failure) -> Refusal {
    if let Ended::NotStarted(Some(errno)) = failure.exit
        && let Some(limit) = vigil_host::limit(errno)
    {
        return Refusal::new(Kind::ResourceExhausted, format!("{failure}: {limit}"));
    }
    let kind = match failure.class {
        Class::Overdue => Kind::DeadlineExceeded,
        _ => Kind::Unknown,
    };
    Refusal::new(kind, failure.to_string())
}
