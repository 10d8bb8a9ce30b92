//! Going on without a reaper: what it did for us is done here as far as it can
//! be. Connections are accepted and spoken on by ourselves; ends are learned by
//! the descriptors held of each process since its start; what the runtime makes
//! from now on is our own child. Nobody takes over after us: our own death is
//! then that of both.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::sync::mpsc;
use vigil_host::enact;
use vigil_host::proc::{self, Checked};
use vigil_journal::exits::Death;
use vigil_model::{Because, Exit, Incarnation, Status, Who};
use vigil_relay::places::most;
use vigil_sys::signal::{self, Signals};
use vigil_sys::{Errno, listen, pidfd, process, wait};

use crate::clock;
use crate::ends::Held;
use crate::exits::ExitRecords;
use crate::hands::Hands;
use crate::owner::{Message, Owner};
use crate::serve::Arrival;
use crate::watched::{Watched, watch};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Numbers of connections the reaper never saw: none of its own is as high.
const FIRST_CONN: u32 = 1 << 31;
/// How long the listener rests when there is no room or no descriptor.
const REST: Duration = Duration::from_secs(1);

/// How long a dead process may lie about before nobody is expected to say any
/// more how it died; and between two looks at one.
const UNSAID: Duration = Duration::from_millis(400);
const LOOK: Duration = Duration::from_millis(20);

/// What is known of a process without a reaper.
enum Fate {
    Lives,
    /// The kernel's word, as for wait(2).
    Ended(i32),
    /// It is dead, and who inherited it may have more to say, or not.
    Unsaid {
        last: bool,
    },
}

/// Hands a connection to who serves it, and its own end to the owner.
pub(crate) async fn arrive(
    arrival: Arrival,
    owner: &mpsc::Sender<Message>,
    arrivals: &mpsc::Sender<Arrival>,
) -> bool {
    let own = arrival.own.clone();
    owner.send(Message::Connected(own)).await.is_ok() && arrivals.send(arrival).await.is_ok()
}

/// Accepts in the place of the reaper, for as long as anybody serves.
pub(crate) async fn accept(
    listener: OwnedFd,
    owner: mpsc::Sender<Message>,
    arrivals: mpsc::Sender<Arrival>,
) {
    // Who connects sees from now on who really listens.
    if let Err(errno) = listen::listen(listener.as_fd(), BACKLOG) {
        log::error!("nobody listens any more: {errno}");
        return;
    }
    let listener = watched_at_last(&listener).await;
    // As many as with a reaper; the others wait in the queue.
    let most = most(process::open_files().unwrap_or(0));
    let mut conn = FIRST_CONN;
    let mut there = Vec::new();
    while let Ok(mut ready) = listener.readable().await {
        there.retain(|own| Arc::strong_count(own) > 1);
        if there.len() >= most {
            tokio::time::sleep(REST).await;
            continue;
        }
        let own = match listen::accept(listener.get_ref().as_fd()) {
            Ok(Some(own)) => Arc::new(UnixStream::from(own)),
            Ok(None) => {
                ready.clear_ready();
                continue;
            }
            Err(errno) => {
                log::warn!("a connection is not accepted: {errno}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        there.push(own.clone());
        let pair = None;
        if !arrive(Arrival { conn, pair, own }, &owner, &arrivals).await {
            return;
        }
        conn = conn.wrapping_add(1).max(FIRST_CONN);
    }
}

/// Registers a copy of a descriptor, sooner or later: what is short passes, and without it
/// nobody would be told of anything.
async fn watched_at_last(fd: &impl AsFd) -> Watched {
    loop {
        let copy = fd.as_fd().try_clone_to_owned();
        match copy.and_then(|copy| watch(copy, Interest::READABLE)) {
            Ok(watched) => return watched,
            Err(error) => log::warn!("something is not waited for yet: {error}"),
        }
        tokio::time::sleep(REST).await;
    }
}

/// Records and reaps children that were adopted. Those we started ourselves
/// lead groups in our session, and whoever started them waits for them.
fn bury(exits: &ExitRecords) {
    let us = proc::stat(process::pid()).ok().flatten();
    let Some(session) = us.map(|us| us.session) else {
        return;
    };
    for pid in process::children().unwrap_or_default() {
        let Ok(Some(stat)) = proc::stat(pid) else {
            continue;
        };
        let started = stat.session == session && stat.group == pid;
        if !stat.ended() || started {
            continue;
        }
        // Recorded while it is there; a leader whose threads live on has not ended.
        if let Ok(Some(ended)) = wait::peek(pid) {
            exits.record(Death::seen_now(pid, stat.start_ticks, ended.status));
            let _ = wait::reap(pid);
        }
    }
}

/// Rings whenever a child has ended.
async fn attend_children(exits: ExitRecords, owner: mpsc::Sender<Message>) {
    let signals = loop {
        match Signals::new(&[signal::CHLD]) {
            Ok(signals) => break signals,
            Err(errno) => log::warn!("orphans are not buried yet: {errno}"),
        }
        tokio::time::sleep(REST).await;
    };
    let watched = watched_at_last(&signals).await;
    loop {
        bury(&exits);
        if owner.send(Message::Doorbell).await.is_err() {
            return;
        }
        let Ok(mut ready) = watched.readable().await else {
            return;
        };
        ready.clear_ready();
        while signals.next().is_ok_and(|signal| signal.is_some()) {}
    }
}

impl Owner {
    /// The reaper is dead.
    pub(crate) fn orphaned(&mut self) {
        if self.leaving.is_some() {
            return;
        }
        log::error!(
            "the reaper is dead: this shim goes on alone, and its own death would end the container"
        );
        let exits = self.hands.tools.exits.clone();
        tokio::spawn(attend_children(exits, self.desk.clone()));
        let all: Vec<Who> = self.hands.pins.keys().cloned().collect();
        for who in all {
            self.attend(&who);
        }
        self.look_at_exits();
    }

    /// Ends of which no reaper tells. What the kernel says is recorded, so that
    /// `delete` knows it too; of what it does not say the end is unknown.
    pub(crate) fn ends_alone(&mut self) -> Vec<(Who, Exit)> {
        bury(&self.hands.tools.exits);
        let mut ends = Vec::new();
        let pins: Vec<(Who, usize)> = self.hands.pins.clone().into_iter().collect();
        for (who, pin) in pins {
            let exits = &self.hands.tools.exits;
            if exits.pinned(pin).is_some() {
                continue;
            }
            let Some(process) = self.awaited(&who) else {
                continue;
            };
            let status = match fate(&self.hands, &who, &process) {
                Fate::Lives => continue,
                Fate::Ended(raw) => {
                    exits.record(Death::seen_now(process.pid, process.start_ticks, raw));
                    enact::status_of(raw).unwrap_or(Status::Unknown(Because::NoRecord))
                }
                Fate::Unsaid { last } => {
                    let now = Instant::now();
                    let since = *self.hands.seen_dead.entry(who.clone()).or_insert(now);
                    if !last && now.duration_since(since) < UNSAID {
                        self.look_again();
                        continue;
                    }
                    Status::Unknown(Because::ReaperGone)
                }
            };
            let at = clock::now();
            ends.push((who, Exit { status, at }));
        }
        ends
    }

    fn look_again(&self) {
        let desk = self.desk.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LOOK).await;
            let _ = desk.send(Message::Doorbell).await;
        });
    }
}

fn fate(hands: &Hands, who: &Who, process: &Incarnation) -> Fate {
    let Some(fd) = hands.held(who).map(Held::fd) else {
        // It could not be held; then all there is to see is whether it is there.
        return match proc::open_checked(process) {
            Ok(Checked::Same(fd)) if pidfd::is_dead(&fd) != Ok(true) => Fate::Lives,
            Ok(Checked::Same(_)) | Err(_) => Fate::Unsaid { last: false },
            Ok(Checked::Gone | Checked::Reused(_) | Checked::Elsewhere) => {
                Fate::Unsaid { last: true }
            }
        };
    };
    if pidfd::is_dead(fd) != Ok(true) {
        return Fate::Lives;
    }
    // In this order: reaped between the two, it is asked once more.
    let said = || pidfd::exit_status(fd).ok().flatten();
    let last = pidfd::send_signal(fd, 0) == Err(Errno::ESRCH);
    let raw = said().or_else(|| proc::zombie_status(process).ok().flatten());
    match raw.or_else(said) {
        Some(raw) => Fate::Ended(raw),
        None => Fate::Unsaid { last },
    }
}
