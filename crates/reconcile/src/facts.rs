//! What can be known of a container before anything is decided. Every fact
//! has a value for *could not be seen*; a guess has no place here.

use vigil_model::Phase;

/// Whether the record belongs to the kernel that runs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Boot {
    /// Same boot id, same pid namespace.
    Same,
    /// Another boot, or a pid namespace whose numbers mean other processes.
    Other,
    /// It could not be read.
    Unknown,
}

/// What the journal says, reduced to what a recovery needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Said {
    /// Missing, foreign, or bad in the middle: nothing can be concluded from
    /// what it does not say.
    Unreadable,
    /// No Create was recorded, or one that was undone.
    Nothing,
    /// A Create's intent without its outcome.
    Creating,
    /// A Create or a restore that failed: what it made did not all go, or
    /// nobody saw that it did. Its claims are recorded.
    HalfMade,
    /// Created, running or paused.
    Live,
    /// Init's end is recorded.
    Ended,
    /// Deleted.
    Gone,
}

impl From<&Phase> for Said {
    fn from(phase: &Phase) -> Self {
        match phase {
            Phase::Empty => Said::Nothing,
            Phase::Creating => Said::Creating,
            Phase::Created { .. } | Phase::Running { .. } | Phase::Paused { .. } => Said::Live,
            // A restore that failed: its end is nobody's.
            Phase::Stopped { init: None, .. } => Said::HalfMade,
            Phase::Stopped { init: Some(_), .. } => Said::Ended,
            Phase::Deleted { .. } => Said::Gone,
        }
    }
}

/// What is seen of the container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Init {
    /// Nobody ever wrote down which process it is.
    Unnamed,
    /// It runs: its incarnation was checked.
    Alive,
    /// It does not: its pid is free, a zombie, or another incarnation.
    Dead,
    /// Its incarnation is known but could not be checked.
    Unknown,
}

/// Whether init's end is known, from the journal, the exit records or the
/// kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// Somebody saw it.
    Known,
    /// Nobody did.
    NotKnown,
}

/// What is seen of the container's cgroups, all hierarchies together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// No directory of ours.
    Absent,
    /// Ours, no process in or below.
    Empty,
    /// Ours, with processes.
    Populated,
    /// Directories that are not ours to kill or remove, and none that are.
    Foreign,
    /// It could not be looked at.
    Unknown,
}

/// Whether a thing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Present {
    /// Yes.
    Yes,
    /// No.
    No,
    /// It could not be looked at.
    Unknown,
}

impl Present {
    /// Whether it would be wrong to go on as if it were not there.
    pub fn possible(self) -> bool {
        match self {
            Present::Yes | Present::Unknown => true,
            Present::No => false,
        }
    }
}

/// How far `runc delete`, and with it the poststop hooks, came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuncDelete {
    /// No intent is recorded.
    NotTried,
    /// Intent without outcome: its caller died inside. It runs once more, so
    /// that the hooks run at least once.
    Begun,
    /// It returned. The hooks ran; it is not called again.
    Done,
}

/// Everything a recovery decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Is the record of this boot.
    pub boot: Boot,
    /// What the journal says.
    pub said: Said,
    /// What is seen of init.
    pub init: Init,
    /// Whether its end is known.
    pub exit: Exit,
    /// What is seen of the cgroups.
    pub group: Group,
    /// Processes of it that are known one by one, init aside: recorded execs,
    /// what runc was making, what is below the reaper and not the pair's own.
    pub below: Present,
    /// How far `runc delete` came.
    pub runc_delete: RuncDelete,
    /// runc's state directory.
    pub runc_state: Present,
    /// Mounts at or below the rootfs.
    pub mounts: Present,
    /// The socket's file.
    pub socket: Present,
}

impl Facts {
    /// Whether anything but files in the bundle may be left of the container.
    pub fn residue(&self) -> bool {
        let group = match self.group {
            Group::Empty | Group::Populated | Group::Unknown => true,
            Group::Absent | Group::Foreign => false,
        };
        group
            || self.below == Present::Yes
            || self.runc_state.possible()
            || self.mounts.possible()
            || self.socket.possible()
    }
}
