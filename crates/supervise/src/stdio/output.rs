//! One output of a process, from its pipe or terminal to its client, and the
//! rule by which its ends are closed: when nobody can write any more and the
//! client has read everything, not when somebody asks. Never stops reading
//! because a client does not read well, never holds up the news of an exit for
//! longer than [`Patience`] says.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::Instant;
use vigil_sys::points::{self, Point};
use vigil_sys::{fd, inotify};

use super::copy::{Attempt, Mover};
use super::keeper::{Keeper, SlotId, Slots};
use super::ready::{First, Watched, first, until, watch};

/// How long is waited for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a client to read what was written before the exit, once all of it
    /// is in its fifo.
    pub read: Duration,
    /// For a client that does not make room in its fifo.
    pub stalled: Duration,
    /// For the news of an exit, whatever the client does.
    pub told: Duration,
    /// Silence after which a process left behind loses the terminal it inherited.
    /// A pipe it keeps until it ends, or until Delete.
    pub silence: Duration,
    /// Time after which it loses it although it is not silent; and how long
    /// Delete waits for who still holds a pipe.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            read: Duration::from_millis(100),
            stalled: Duration::from_millis(100),
            told: Duration::from_secs(2),
            silence: Duration::from_secs(1),
            drain: Duration::from_secs(10),
        }
    }
}

/// What has become of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    Running,
    Gone,
    /// Deleted: close everything now.
    Closing,
}

/// How far an output has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stage {
    /// All that was written before the exit is with the client's kernel side.
    pub(super) dry: bool,
    /// The exit may be told as far as this output is concerned.
    pub(super) told: bool,
    /// Nobody can write to it any more, or nobody is written to: Delete need not
    /// wait for it.
    pub(super) over: bool,
}

impl Stage {
    /// Nothing is copied there (any more).
    pub(super) const DONE: Stage = Stage {
        dry: true,
        told: true,
        over: true,
    };
}

/// Waits until the process has come to `least`; returns at once if it has.
pub(super) async fn reached(life: &mut watch::Receiver<Life>, least: Life) {
    // The sender is gone only when everything is being dropped.
    if life.wait_for(|now| *now >= least).await.is_err() {
        std::future::pending::<()>().await;
    }
}

const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(8);
const BLIND_LOOK: Duration = Duration::from_secs(1);

pub(super) struct Copy<K> {
    /// Until its end, or until it is cut.
    pub(super) mover: Option<Mover>,
    pub(super) source_slot: Option<SlotId>,
    /// To ask how much is unread; `None` if nobody reads it from there.
    pub(super) unread_in: Option<Arc<Watched>>,
    /// Whether bytes unread keep the ends open: not where the reader's end is
    /// open anyway (a logger's pipe).
    pub(super) held_until_read: bool,
    pub(super) sink_slot: Option<SlotId>,
    pub(super) slots: Arc<Slots<K>>,
    pub(super) life: watch::Receiver<Life>,
    pub(super) stage: watch::Sender<Stage>,
    pub(super) patience: Patience,
    pub(super) name: &'static str,
}

/// What is known since the process is gone.
struct Leaving {
    at: Instant,
    /// Of the mover's count: all that had been written by then.
    enough: u64,
    dry_at: Option<Instant>,
    progress: Instant,
    look: Duration,
}

impl<K: Keeper> Copy<K> {
    /// Runs until the ends are closed.
    pub(super) async fn run(mut self) {
        let mut leaving: Option<Leaving> = None;
        let mut watcher: Option<Watched> = None;
        let mut blind = LONGEST_LOOK;
        if self.mover.is_none() {
            self.over();
        }
        loop {
            let life = *self.life.borrow_and_update();
            if life == Life::Closing {
                break;
            }
            if life == Life::Gone && leaving.is_none() {
                leaving = Some(self.leave());
            }
            let now = Instant::now();
            let unread = self.unread();
            if let Some(leaving) = &mut leaving {
                self.tell(leaving, now, unread);
                if self.cut(leaving, now) {
                    log::info!("stdio: {} taken from processes left behind", self.name);
                    self.end_source().await;
                    continue;
                }
            }
            if self.mover.is_none() && (unread == 0 || !self.held_until_read) && self.told() {
                break;
            }

            let look_at = leaving
                .as_mut()
                .and_then(|leaving| self.look_again(leaving, now));
            let changed = self.life.clone();
            let event = if let Some(mover) = &mut self.mover {
                let over = leaving.is_some();
                first(next(changed, life), first(mover.step(over), until(look_at))).await
            } else if look_at.is_some() || unread == 0 {
                first(
                    next(changed, life),
                    first(std::future::pending(), until(look_at)),
                )
                .await
            } else {
                // Until the client reads: for as long as it takes.
                let sink = self.unread_in.as_ref();
                let seen = client_reads(sink, &mut watcher, &mut blind);
                let nothing = first(std::future::pending(), seen);
                first(next(changed, life), nothing).await
            };
            match event {
                First::One(()) | First::Other(First::Other(())) => {}
                First::Other(First::One(attempt)) => {
                    if let Some(leaving) = &mut leaving {
                        leaving.progress = Instant::now();
                        leaving.look = FIRST_LOOK;
                    }
                    self.after(attempt);
                }
            }
        }
        drop(watcher);
        self.close().await;
    }

    fn after(&mut self, attempt: Attempt) {
        match attempt {
            Attempt::Broken(error) => {
                log::warn!(
                    "stdio: {} cannot be written, is dropped from now on: {error}",
                    self.name
                );
                if let Some(mover) = &mut self.mover {
                    mover.discard();
                }
                self.over();
            }
            // Nobody can write any more. The end stays open until the fifo is
            // read too, so that the keeper is asked once, not twice.
            Attempt::Ended => self.drop_source(),
            Attempt::Bytes(_) | Attempt::SourceEmpty | Attempt::SinkFull | Attempt::HungUp => {}
        }
    }

    /// The process is gone: what is in its pipe now is all it wrote.
    fn leave(&mut self) -> Leaving {
        let now = Instant::now();
        let mut enough = 0;
        if let Some(mover) = &mut self.mover {
            mover.was_empty = false;
            // A terminal does not say how much; only being empty tells.
            enough = if mover.terminal {
                u64::MAX
            } else {
                mover.moved + mover.waiting()
            };
        }
        Leaving {
            at: now,
            enough,
            dry_at: None,
            progress: now,
            look: FIRST_LOOK,
        }
    }

    /// Sees whether the exit may be told now.
    fn tell(&mut self, leaving: &mut Leaving, now: Instant, unread: usize) {
        if leaving.dry_at.is_none() {
            let mut ended = false;
            if let Some(mover) = &mut self.mover
                && mover.moved < leaving.enough
                && !mover.was_empty
            {
                // The runtime may not have seen yet what is there.
                match mover.attempt() {
                    Attempt::Bytes(_) => leaving.progress = now,
                    Attempt::Ended | Attempt::HungUp => ended = true,
                    Attempt::Broken(_) | Attempt::SourceEmpty | Attempt::SinkFull => {}
                }
            }
            if ended {
                self.drop_source();
            }
            let dry = self
                .mover
                .as_ref()
                .is_none_or(|mover| mover.was_empty || mover.moved >= leaving.enough);
            if dry {
                leaving.dry_at = Some(now);
                leaving.look = FIRST_LOOK;
                self.stage.send_modify(|stage| stage.dry = true);
            }
        }
        if self.stage.borrow().told {
            return;
        }
        let unread = if leaving.dry_at == Some(now) {
            self.unread()
        } else {
            unread
        };
        let told = match leaving.dry_at {
            Some(dry_at) => unread == 0 || now >= dry_at + self.patience.read,
            None => now >= leaving.progress + self.patience.stalled,
        };
        if told || now >= leaving.at + self.patience.told {
            self.stage.send_modify(|stage| stage.told = true);
            if self.mover.as_ref().is_some_and(|mover| mover.terminal) {
                self.over();
            }
        }
    }

    fn over(&self) {
        self.stage.send_modify(|stage| stage.over = true);
    }

    /// Before the exit there is nothing to tell, and nothing to wait for.
    fn told(&self) -> bool {
        self.stage.borrow().told || *self.life.borrow() == Life::Running
    }

    /// Whether those who still hold the terminal have had their time. Not while
    /// it is the client who does not read: what is unread must not be lost.
    /// Those who hold a pipe go on writing: only Delete takes it from them.
    fn cut(&self, leaving: &Leaving, now: Instant) -> bool {
        let Some(mover) = self.mover.as_ref().filter(|mover| mover.terminal) else {
            return false;
        };
        if leaving.dry_at.is_none() || !self.stage.borrow().told {
            return false;
        }
        let quiet = now >= leaving.progress + self.patience.silence;
        let late = now >= leaving.at + self.patience.drain;
        if mover.blocked {
            // Late and talking, and the client reads, if slowly.
            late && !quiet
        } else {
            late || quiet
        }
    }

    /// When to look without having been woken.
    fn look_again(&self, leaving: &mut Leaving, now: Instant) -> Option<Instant> {
        if !self.stage.borrow().told {
            let look = leaving.look;
            leaving.look = LONGEST_LOOK.min(look * 2);
            return Some(now + look);
        }
        let mover = self.mover.as_ref().filter(|mover| mover.terminal)?;
        if mover.blocked && now >= leaving.progress + self.patience.silence {
            // The client makes room or does not; its reading wakes us.
            return None;
        }
        let quiet = leaving.progress + self.patience.silence;
        let last = leaving.at + self.patience.drain;
        Some(if last > now { quiet.min(last) } else { quiet })
    }

    fn unread(&self) -> usize {
        self.unread_in
            .as_ref()
            .map_or(0, |sink| fd::readable_bytes(&**sink).unwrap_or(0))
    }

    fn drop_source(&mut self) {
        self.over();
        if let Some(mover) = self.mover.take()
            && mover.dropped > 0
        {
            log::warn!("stdio: {} bytes of {} dropped", mover.dropped, self.name);
        }
    }

    /// Takes the terminal away from whoever still holds its other end.
    async fn end_source(&mut self) {
        let slot = self.source_slot.take();
        self.slots.ended(slot.as_slice()).await;
        self.drop_source();
    }

    async fn close(mut self) {
        // Before the keeper is asked: it may take its time, the news may not.
        self.stage.send_replace(Stage::DONE);
        let slots: Vec<SlotId> = self
            .source_slot
            .take()
            .into_iter()
            .chain(self.sink_slot.take())
            .collect();
        points::reach(Point::EndedNotReleased);
        self.slots.ended(&slots).await;
        self.drop_source();
        self.unread_in = None;
    }
}

/// Waits until the process has come further than `than`.
async fn next(mut life: watch::Receiver<Life>, than: Life) {
    if life.wait_for(|now| *now > than).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until the client may have read something. Being reader and writer at
/// once we get no edge when the fifo is emptied, so its inode is watched;
/// where that is not to be had, looks from time to time.
async fn client_reads(
    sink: Option<&Arc<Watched>>,
    watcher: &mut Option<Watched>,
    blind: &mut Duration,
) {
    let Some(sink) = sink else {
        return std::future::pending().await;
    };
    if watcher.is_none() {
        *watcher = inotify::watch_readers(&**sink)
            .ok()
            .and_then(|events: OwnedFd| watch(events, Interest::READABLE).ok());
        if watcher.is_some() {
            // What was read before the watch was not reported: look again.
            return;
        }
    }
    if let Some(events) = watcher
        && let Ok(mut readable) = events.readable().await
    {
        readable.clear_ready();
        if inotify::drain(events.get_ref()).is_ok() {
            return;
        }
    }
    let pause = *blind;
    *blind = BLIND_LOOK.min(pause * 2);
    tokio::time::sleep(pause).await;
}
