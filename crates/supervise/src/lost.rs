//! A shim that takes over where there is no bundle any more: whoever lived to see it go is dead.
//! Nobody will ask for the container, and what is known of it is what the reaper's memory holds:
//! the journal's second copy, the exit records, the slots. So it is ended and removed by what was
//! recorded of it, as by a shim that sees its bundle go.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use vigil_journal::{Mirror, Owner as Whose, names};

use crate::Error;
use crate::control::Control;
use crate::exits::{ExitRecords, exit_of};
use crate::jobs::gone::{self, End};
use crate::jobs::{HostCgroups, Tools};
use crate::ledger::replay;
use crate::loggers::Loggers;
use crate::owner::Place;
use crate::serve::{Inherited, remove_socket};
use crate::takeover::deposited;

/// For what is in the container's pipes still to reach who reads it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Ends the container and removes all of it, and tells the reaper that this was the end. `false`:
/// the reaper has no record of what there was, and nothing was done.
pub async fn end_lost(place: Place, inherited: Inherited) -> Result<bool, Error> {
    let whose = Whose::of(place.namespace.as_str(), place.id.as_str());
    let exits = ExitRecords::open(&place.bundle.join(names::EXITS), inherited.exits, &whose)?;
    let whose = exits.owner().unwrap_or(whose);
    let kept = inherited.memory.map(File::from);
    let kept = kept.map(|memory| Mirror::read(&memory, &whose));
    let kept = kept
        .transpose()
        .map_err(|source| Error::Journal { source })?;
    let Some(kept) = kept.flatten() else {
        return Ok(false);
    };
    let task = replay(&kept)?;
    // What it sends unasked is for who serves.
    let (unasked, _from_reaper) = mpsc::unbounded_channel();
    let control = Control::open(inherited.control, place.reaper, inherited.conns, unasked).await?;
    control.greeted().await?;
    let tools = Tools {
        deadlines: place.limits.runc,
        place: Arc::new(place),
        control: control.clone(),
        loggers: Loggers::default(),
        exits,
        hierarchies: HostCgroups::default(),
    };
    let mut all = Vec::new();
    for (number, held) in deposited(&control).await? {
        let mut streams = tools.held_streams(number, held);
        if let Err(error) = streams.started().await {
            log::error!("streams stay still: {}", vigil_host::chain(&error));
        }
        all.push(streams);
    }
    if let Some(plan) = gone::owed(&task) {
        let mut end = End::of(&task.standing);
        let seen = end.init.as_ref();
        let seen = seen.and_then(|init| tools.exits.find(init.pid, init.start_ticks));
        end.exit = end.exit.or(seen.as_ref().map(exit_of));
        gone::end_all(&tools, plan, end).await;
    }
    let closed = async {
        for streams in all {
            streams.close_all(LAST_WORDS).await;
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, closed).await;
    remove_socket(&tools.place.socket);
    control.end().await?;
    Ok(true)
}
