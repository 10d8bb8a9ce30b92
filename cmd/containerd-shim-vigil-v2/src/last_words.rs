//! How a pair ended that `delete` finds gone: the only place where a crash of the shim
//! is ever told, since its log goes with it. Reads what the reaper has recorded; must
//! never guess more than that.

use std::path::Path;

use vigil_journal::pair::Pair;
use vigil_journal::{Owner, exits, lock, names};
use vigil_model::Moment;
use vigil_sys::wait;

/// A sentence, and when, unless the pair lives, or has left in order, or nothing is known of it.
pub fn of(bundle: &Path, owner: &Owner) -> Option<(String, Moment)> {
    if lock::is_held(&bundle.join(names::LOCK)).unwrap_or(false) {
        return None;
    }
    let pair = Pair::read(&bundle.join(names::PAIR), owner).ok()?;
    let shim = pair.shim?;
    let death = exits::read(&bundle.join(names::EXITS), owner)
        .ok()
        .and_then(|snapshot| snapshot.exits().ok()?.find(shim.pid, shim.start_ticks));
    match death {
        Some(death) if wait::exited(death.status) == Some(0) => None,
        Some(death) => {
            let words = format!(
                "the shim, process {}, ended before its task was shut down: {}",
                shim.pid,
                wait::describe(death.status)
            );
            let at = Moment {
                secs: death.at_secs,
                nanos: death.at_nanos,
            };
            Some((words, at))
        }
        None => {
            let words = format!(
                "the reaper, process {}, ended without a word; so did the shim, process {}, if it ended by itself",
                pair.reaper.pid, shim.pid
            );
            Some((words, vigil_supervise::now()))
        }
    }
}
