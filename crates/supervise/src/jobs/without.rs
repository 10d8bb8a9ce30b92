//! A start under way whose container's init is over. Init may wait in exit(2) for a child that the
//! call of the runtime alone can reap, and its end is told after the outcome of that call: a call
//! that stands still, or hangs, would keep it from everybody until its own deadline.

use std::time::Duration;

use vigil_host::proc::{self, Checked};
use vigil_model::Incarnation;
use vigil_sys::pidfd;

/// Between two looks, while a start is under way. Nearly all are over before the first.
const LOOK: Duration = Duration::from_millis(250);
/// Looks after which an exec is not waited for, once init is over: nothing it starts could live.
const PATIENCE: u32 = 8;
/// Looks after which one that is stopped is not.
const STOPPED: u32 = 2;

/// Which call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Of an exec.
    Exec,
    /// Of init: it may be at its hooks, which outlive a short init.
    Start,
}

/// Returns when a call (its pid, if it is known) is no longer worth waiting for.
pub(crate) async fn unwanted(init: Option<Incarnation>, call: Call, pid: Option<u32>) {
    let Some(init) = init else {
        return std::future::pending().await;
    };
    let (mut over, mut stopped) = (0, 0);
    loop {
        tokio::time::sleep(LOOK).await;
        if !is_over(&init) {
            (over, stopped) = (0, 0);
            continue;
        }
        over += 1;
        let stands =
            pid.is_some_and(|pid| matches!(proc::stat(pid), Ok(Some(stat)) if stat.state == 'T'));
        stopped = if stands { stopped + 1 } else { 0 };
        if stopped >= STOPPED || call == Call::Exec && over >= PATIENCE {
            log::warn!("init has ended: a start under way is given up");
            return;
        }
    }
}

/// Whether it has ended, or has nothing left to do but wait for others of its pid namespace.
fn is_over(init: &Incarnation) -> bool {
    match proc::open_checked(init) {
        Ok(Checked::Same(fd)) => {
            pidfd::is_dead(&fd) == Ok(true) || proc::is_exiting(init.pid).unwrap_or(false)
        }
        Ok(Checked::Gone | Checked::Reused(_)) => true,
        Ok(Checked::Elsewhere) | Err(_) => false,
    }
}
