//! The bell for out-of-memory kills. It only wakes the owner, who reads the
//! counter; so a wake-up too many does no harm.

use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::mpsc;
use vigil_host::cgroup::{OomWatch, Wakes};

use crate::owner::Message;
use crate::watched::{Watched, watch};

/// When to look at the counter again after a bell of v1.
const COUNTED_LATE: [Duration; 3] = [
    Duration::from_millis(5),
    Duration::from_millis(50),
    Duration::from_millis(500),
];

/// Wakes the owner as long as both it and the watched file are there.
pub(crate) fn listen(ooms: &OomWatch, owner: mpsc::Sender<Message>) {
    let interest = match ooms.wakes() {
        Wakes::Readable => Interest::READABLE,
        Wakes::Priority => Interest::PRIORITY,
    };
    let watched = ooms
        .fd()
        .try_clone_to_owned()
        .and_then(|copy| watch(copy, interest));
    match watched {
        Ok(watched) => {
            tokio::spawn(wake(watched, interest, owner));
        }
        Err(error) => log::warn!("out-of-memory kills are seen only at the exit: {error}"),
    }
}

async fn wake(watched: Watched, interest: Interest, owner: mpsc::Sender<Message>) {
    loop {
        let Ok(mut ready) = watched.ready(interest).await else {
            return;
        };
        ready.clear_ready();
        // `closed` covers an owner that left; a vanished cgroup wakes once
        // and then, the edge gone, never again.
        if owner.send(Message::OomBell).await.is_err() {
            return;
        }
        if !interest.is_readable() {
            continue;
        }
        // v1 rings when memory runs out, and only then looks for somebody to
        // kill and counts it: the counter may be late, and rings no more.
        for pause in COUNTED_LATE {
            tokio::time::sleep(pause).await;
            if owner.send(Message::OomBell).await.is_err() {
                return;
            }
        }
    }
}
