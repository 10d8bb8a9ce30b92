//! A start under way whose container's init is over. Init may wait in exit(2) for a child that the
//! call of the runtime alone can reap, and its end is told after the outcome of that call: one
//! that is stopped would keep it from everybody until its own deadline. One that runs is waited
//! for, as Go's shim does.

use std::time::Duration;

use vigil_host::proc::{self, Checked};
use vigil_model::Incarnation;
use vigil_sys::pidfd;

/// Between two looks, while a start is under way. Nearly all are over before the first.
const LOOK: Duration = Duration::from_millis(250);
/// Looks in a row after which one that is stopped is not waited for.
const STOPPED: u32 = 2;

/// Returns when a call, of this pid, is no longer worth waiting for.
pub(crate) async fn unwanted(init: Option<Incarnation>, call: u32) {
    let Some(init) = init else {
        return std::future::pending().await;
    };
    let mut stopped = 0;
    while stopped < STOPPED {
        tokio::time::sleep(LOOK).await;
        let stands = matches!(proc::stat(call), Ok(Some(stat)) if stat.state == 'T');
        stopped = if stands && is_over(&init) {
            stopped + 1
        } else {
            0
        };
    }
    log::warn!("init has ended: a start that stands still is given up");
}

/// Whether it has ended, or has nothing left to do but wait for others of its pid namespace.
fn is_over(init: &Incarnation) -> bool {
    match proc::open_checked(init) {
        Ok(Checked::Same(fd)) => {
            pidfd::is_dead(&fd) == Ok(true) || proc::is_past_exit(init.pid).unwrap_or(false)
        }
        Ok(Checked::Gone | Checked::Reused(_)) => true,
        Ok(Checked::Elsewhere) | Err(_) => false,
    }
}
