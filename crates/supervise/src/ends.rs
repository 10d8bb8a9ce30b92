//! Ends the reaper does not see. Whoever traces a process and does not wait for it keeps its
//! end from its parent for as long as it likes; its descriptor tells it all the same. So each
//! process is watched by the one that is held of it anyway. The reaper's record counts, and
//! stands there nearly always before anybody has looked: it is given a moment, and only then
//! what `/proc` says of the dead is recorded in its place. What the reaper says later of the
//! same process is no news any more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use vigil_host::{enact, proc};
use vigil_model::{Because, Exit, Incarnation, Status, Who};
use vigil_sys::pidfd;

use crate::clock;
use crate::owner::{Message, Owner};
use crate::watched::{SharedFd, shared, watch_shared};

/// How long the reaper has to record an end before it is looked for elsewhere.
const GRACE: Duration = Duration::from_millis(250);
/// Between two tries of what there was no room, or no descriptor, for.
const AGAIN: Duration = Duration::from_secs(1);

/// A process that is told of, held so that its death shows even if nobody records it.
#[derive(Debug)]
pub(crate) struct Held {
    process: Incarnation,
    fd: SharedFd,
    watch: Option<AbortHandle>,
    /// It is dead, and the reaper has had its time.
    unheard: bool,
}

impl Held {
    pub(crate) fn new(process: Incarnation, fd: OwnedFd) -> Self {
        Self {
            process,
            fd: shared(fd),
            watch: None,
            unheard: false,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn shared(&self) -> SharedFd {
        self.fd.clone()
    }

    pub(crate) fn process(&self) -> &Incarnation {
        &self.process
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

/// Tells the owner of the end of a process, some time after it.
async fn watch(fd: SharedFd, who: Who, owner: mpsc::Sender<Message>) {
    let mut told = false;
    let watched = loop {
        match watch_shared(&fd, Interest::READABLE) {
            Ok(watched) => break watched,
            Err(error) if !told => {
                told = true;
                log::warn!("the end of {who} is not waited for yet: {error}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    // It fails when the runtime ends, and nobody is told of anything then.
    drop(watched.readable().await);
    drop(watched);
    let mut pause = GRACE;
    loop {
        tokio::time::sleep(pause).await;
        // Over when that is on record: then this is aborted.
        if owner.send(Message::Unheard(who.clone())).await.is_err() {
            return;
        }
        pause = AGAIN;
    }
}

impl Owner {
    /// Holds a process whose end is to be told.
    pub(crate) fn know(&mut self, who: &Who, process: &Incarnation) {
        self.hands.know(who, process);
        self.attend(who);
    }

    /// Looks when it has ended.
    fn attend(&mut self, who: &Who) {
        let desk = self.desk.clone();
        let Some(held) = self.hands.held_mut(who) else {
            return;
        };
        let watch = tokio::spawn(watch(held.fd.clone(), who.clone(), desk));
        if let Some(before) = held.watch.replace(watch.abort_handle()) {
            before.abort();
        }
    }

    pub(crate) fn unheard(&mut self, who: &Who) {
        if let Some(held) = self.hands.held_mut(who) {
            held.unheard = true;
        }
        self.look_at_exits();
    }

    /// The end of one that is dead and whose death is not recorded: the reaper is behind, or
    /// does not see it. `None` while it lives, or while the reaper is about to say. Of init,
    /// which everybody asks for, before the reaper had its time.
    pub(crate) fn unrecorded_end(&mut self, who: &Who) -> Option<Exit> {
        let held = self.hands.held(who)?;
        let unheard = held.unheard;
        if !unheard && *who != Who::Init || pidfd::is_dead(held.fd()) != Ok(true) {
            return None;
        }
        let process = held.process.clone();
        let status = match self.hands.without_spares(|| proc::zombie_status(&process)) {
            Ok(Some(raw)) => enact::status_of(raw)?,
            // It was reaped: by our reaper, which has recorded it before, or by who inherited it from
            // one that has died.
            Ok(None) if pidfd::send_signal(self.hands.held(who)?.fd(), 0).is_err() => {
                return match pidfd::exit_status(self.hands.held(who)?.fd()) {
                    Ok(Some(raw)) => Some(Exit {
                        status: enact::status_of(raw)?,
                        at: clock::now(),
                    }),
                    Ok(None) | Err(_) if unheard => Some(Exit {
                        status: Status::Unknown(Because::NoRecord),
                        at: clock::now(),
                    }),
                    Ok(None) | Err(_) => None,
                };
            }
            Ok(None) if unheard => Status::Unknown(Because::NoRecord),
            Ok(None) => return None,
            Err(error) => {
                log::warn!("no end of {who}: {}", vigil_host::chain(&error));
                return None;
            }
        };
        if unheard {
            log::warn!(
                "{who} is dead and its parent has not said so: that is stopped, or a tracer keeps the end from it"
            );
        }
        let at = clock::now();
        Some(Exit { status, at })
    }
}
