//! The answers a recovery can come to.

use std::fmt;

/// What is true of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Init runs and is the one recorded.
    StillRunning,
    /// Init's end is known and nothing else of it runs; containerd may not
    /// have been told.
    ExitNotTold,
    /// Init's end is known; others of its container run on.
    Stragglers,
    /// Init is gone and nobody saw how.
    DiedUnseen,
    /// Create was begun and never finished; parts of it may be there.
    HalfCreated,
    /// Made but without a process so far: a checkpoint waiting for Start.
    NeverRan,
    /// Nothing runs and nothing is to be told, but something lies about.
    Leftovers,
    /// Nothing at all is left.
    NothingLeft,
    /// Everything recorded belongs to another boot or pid namespace.
    OtherBoot,
    /// Something alive carries this id and is not ours.
    NotOurs,
    /// The host would not be looked at; neither alive nor dead can be said.
    Unclear,
    /// The facts contradict each other: touch nothing, report.
    Impossible,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::StillRunning => "still running",
            Verdict::ExitNotTold => "exit not yet told",
            Verdict::Stragglers => "stragglers",
            Verdict::DiedUnseen => "died unseen",
            Verdict::HalfCreated => "half created",
            Verdict::NeverRan => "never ran",
            Verdict::Leftovers => "leftovers",
            Verdict::NothingLeft => "nothing left",
            Verdict::OtherBoot => "other boot",
            Verdict::NotOurs => "not ours",
            Verdict::Unclear => "unclear",
            Verdict::Impossible => "impossible",
        })
    }
}
