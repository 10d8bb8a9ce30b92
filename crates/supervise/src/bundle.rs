//! The bundle under our feet: whether somebody has removed it. containerd does so after Delete
//! and Shutdown; if it does while a container is there, nobody will ever ask for that container
//! again, and nobody else knows that it runs.
//!
//! One that was moved away whole counts as removed: a containerd that comes back does not find
//! it. The kernel does not tell of that without an inotify instance, so it is looked for after
//! whatever else was done; and whoever moved it has a while to bring it back.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::sync::{Notify, mpsc};
use vigil_journal::names;
use vigil_sys::inotify::Removals;

use crate::jobs::gone;
use crate::owner::{Ending, Message, Owner};
use crate::watched::watch;

/// Between two looks before it counts as gone, and after a removal in it that may be the
/// beginning of its own.
const AGAIN: Duration = Duration::from_millis(250);

/// How long one may be away that is whole.
const AWAY: Duration = Duration::from_secs(5);

/// The same before a shim that takes over serves, which its reaper waits for.
const AWAY_AT_START: Duration = Duration::from_secs(1);

/// Between two looks at what is under way in a removed bundle, and how many there are.
const BUNDLE_LOOK: Duration = Duration::from_millis(500);
pub(crate) const BUNDLE_LOOKS: u32 = 60;

/// Between two looks where the kernel tells of nothing: it has no dnotify, or there is no
/// descriptor or memory for it. The longest, too, while something of the bundle is gone and it
/// is not: whoever empties it may take their time, and its own end is not told of in it.
const BLIND_LOOK: Duration = Duration::from_secs(10);

/// Tells the owner once when the bundle is gone. Wakes up for removals in it and when it is asked
/// to, and for nothing else, as long as the kernel tells of them.
pub(crate) async fn observe(bundle: PathBuf, asked: Arc<Notify>, owner: mpsc::Sender<Message>) {
    let own = std::fs::metadata(&bundle).map(|meta| (meta.dev(), meta.ino()));
    let own = own.ok();
    let removals = match Removals::of(&bundle) {
        Ok(removals) => removals,
        Err(error) => return look(&bundle, own, &owner, &error.into()).await,
    };
    let told = removals.descriptor().map_err(std::io::Error::from);
    let told = match told.and_then(|told| watch(told, Interest::READABLE)) {
        Ok(told) => told,
        Err(error) => return look(&bundle, own, &owner, &error).await,
    };
    let mut pause = AGAIN;
    loop {
        if is_gone(&bundle, own) {
            if tell(&bundle, own, &owner).await {
                return;
            }
            continue;
        }
        let removal = if bundle.join(names::LOCK).exists() {
            tokio::select! {
                removal = told.readable() => removal,
                () = asked.notified() => continue,
            }
        } else {
            // The rest of it may be about to go, at once or in a while.
            let Ok(removal) = tokio::time::timeout(pause, told.readable()).await else {
                pause = (pause * 2).min(BLIND_LOOK);
                continue;
            };
            removal
        };
        let mut ready = match removal {
            Ok(ready) => ready,
            Err(error) => return look(&bundle, own, &owner, &error).await,
        };
        ready.clear_ready();
        let _ = removals.take();
        pause = AGAIN;
    }
}

/// Without being told: looks from time to time.
async fn look(
    bundle: &Path,
    own: Option<(u64, u64)>,
    owner: &mpsc::Sender<Message>,
    why: &std::io::Error,
) {
    let path = bundle.display();
    log::warn!("the kernel does not tell of its removal, it is looked for: {path}: {why}");
    while !is_gone(bundle, own) || !tell(bundle, own, owner).await {
        tokio::time::sleep(BLIND_LOOK).await;
    }
}

/// Looks once more, or for longer at one that was moved, and tells. `false`: it is there again.
async fn tell(bundle: &Path, own: Option<(u64, u64)>, owner: &mpsc::Sender<Message>) -> bool {
    tokio::time::sleep(AGAIN).await;
    let until = Instant::now() + AWAY;
    while is_gone(bundle, own) && moved_to(bundle).is_some() && Instant::now() < until {
        tokio::time::sleep(AGAIN).await;
    }
    let gone = is_gone(bundle, own);
    if gone {
        let _ = owner.send(Message::BundleGone).await;
    }
    gone
}

/// Whether a shim that takes over finds the bundle in its place, which it works in wherever that
/// is by now. It is waited for a little.
#[must_use]
pub fn is_in_its_place(bundle: &Path) -> bool {
    let until = Instant::now() + AWAY_AT_START;
    let own = std::fs::metadata(".").map(|meta| (meta.dev(), meta.ino()));
    let own = own.ok();
    while is_gone(bundle, own) {
        if moved_to(bundle).is_none() || Instant::now() >= until {
            return false;
        }
        std::thread::sleep(AGAIN);
    }
    true
}

/// Where the bundle of this name is by now, if it was moved away and is whole: its shim works in
/// it.
pub(crate) fn moved_to(bundle: &Path) -> Option<PathBuf> {
    let now = std::env::current_dir().ok()?;
    (now != bundle && now.join(names::LOCK).exists()).then_some(now)
}

/// Whether its place is empty, or another's. What cannot be seen is not gone.
fn is_gone(bundle: &Path, own: Option<(u64, u64)>) -> bool {
    let elsewhere = match std::fs::metadata(bundle) {
        Ok(now) => own.is_some_and(|own| own != (now.dev(), now.ino())),
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    elsewhere && !is_hidden(bundle, own)
}

/// Whether something is mounted over it, or above it: this process works in it by that very name.
fn is_hidden(bundle: &Path, own: Option<(u64, u64)>) -> bool {
    let here = std::fs::metadata(".").ok().filter(|meta| meta.nlink() > 0);
    let here = here.map(|meta| (meta.dev(), meta.ino()));
    here.is_some() && here == own && std::env::current_dir().is_ok_and(|now| now == bundle)
}

impl Owner {
    /// Nobody will ask for this container again: it ends, and so do we.
    pub(crate) fn bundle_gone(&mut self) {
        if self.leaving.is_some() {
            return;
        }
        // What is under way has a deadline, and may be the Delete after which it was removed.
        let standing = &self.task.standing;
        let under_way = standing.midway() && (!standing.remains || self.undoing);
        if under_way && self.bundle_waits > 0 {
            self.bundle_waits -= 1;
            return self.job(async {
                tokio::time::sleep(BUNDLE_LOOK).await;
                Message::BundleGone
            });
        }
        let plan = gone::owed(&self.task).cloned();
        let bundle = self.place.bundle.display();
        let Some(plan) = plan else {
            log::info!("{bundle} was removed or moved: leaving");
            return self.leave(Ending::Shutdown);
        };
        log::error!("{bundle} was removed or moved: the container is ended, and its shim leaves");
        self.hands.spend();
        let (tools, end) = (self.hands.tools.clone(), self.end());
        self.job(async move {
            gone::end_all(&tools, &plan, end).await;
            Message::BundleCleared
        });
    }
}
