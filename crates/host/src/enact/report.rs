//! What a reconciliation came to: what was found, how init ended and by whose
//! word, what was done, and what would not go.

use std::path::PathBuf;

use vigil_model::Exit;
use vigil_reconcile::{Action, Boot, Facts, Verdict};

use crate::proc::Holdout;
use crate::rootfs::Detached;

/// Where an exit comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The journal or the exit records.
    Record,
    /// The kernel's memory of the process.
    Kernel,
    /// It was alive, checked, when we killed it, and is gone.
    Killed,
    /// Nobody knows.
    Nobody,
}

/// What is left of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// Init, or another process of it, would not die.
    Process {
        /// Which, and what it does.
        holdout: Holdout,
        /// Whether it is init.
        init: bool,
    },
    /// It is in a cgroup that is on record as the container's, and nobody can say whose it is.
    Unproven(Holdout),
    /// A cgroup that stays busy.
    Cgroup(PathBuf),
    /// A cgroup on record as the container's, which holds a process that is not.
    Busy {
        /// Which.
        cgroup: PathBuf,
        /// Who is in it; `None` if that one has gone meanwhile.
        holdout: Option<Holdout>,
    },
    /// A mount that could only be detached: it lives until its users let go.
    Detached(Detached),
    /// Mounts that would not go, or a worker that did not come back.
    Mounts(String),
    /// A worker in uninterruptible sleep.
    Worker {
        /// Its pid.
        pid: u32,
        /// What it was at.
        doing: String,
    },
    /// runc's state directory.
    RuncState(PathBuf),
    /// The socket's file.
    Socket(PathBuf),
    /// An action failed; nothing more is known.
    Action {
        /// Which.
        action: Action,
        /// Why.
        why: String,
    },
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Left::Process {
                holdout,
                init: true,
            } => write!(f, "init: {holdout}"),
            Left::Process { holdout, .. } => write!(f, "{holdout}"),
            Left::Unproven(holdout) => {
                write!(
                    f,
                    "{holdout}: nobody can say whose it is, and it is left alone"
                )
            }
            Left::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Left::Busy { cgroup, holdout } => {
                write!(f, "cgroup {}", cgroup.display())?;
                match holdout {
                    Some(holdout) => write!(
                        f,
                        ": {holdout}, is in it, is none of the container's and is left alone; \
                         the cgroup is removed when it has ended"
                    ),
                    None => Ok(()),
                }
            }
            Left::Detached(mount) => write!(
                f,
                "detached {} from {} at {}{}",
                mount.kind,
                mount.source,
                mount.path.display(),
                match &mount.holder {
                    Some(holder) => format!(", held by {holder}"),
                    None => String::new(),
                }
            ),
            Left::Mounts(why) => write!(f, "mounts: {why}"),
            Left::Worker { pid, doing } => write!(f, "worker {pid}, stuck: {doing}"),
            Left::RuncState(path) => write!(f, "runc's state {}", path.display()),
            Left::Socket(path) => write!(f, "socket {}", path.display()),
            Left::Action { action, why } => write!(f, "{action:?}: {why}"),
        }
    }
}

/// What a reconciliation came to.
#[derive(Debug)]
pub struct Report {
    /// What was true of the container.
    pub verdict: Verdict,
    /// Name of the row that said so.
    pub row: &'static str,
    /// On which facts.
    pub facts: Facts,
    /// How init ended.
    pub exit: Exit,
    /// Who says so.
    pub source: Source,
    /// Init's pid, 0 if none is known.
    pub pid: u32,
    /// Actions that were carried out, in order.
    pub done: Vec<Action>,
    /// What would not go.
    pub left: Vec<Left>,
    /// What was noticed on the way.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether the container may still be alive, so that its bundle must be
    /// kept: `delete` then exits non-zero.
    pub fn may_live(&self) -> bool {
        match self.verdict {
            Verdict::Impossible => true,
            Verdict::Unclear => self.source == Source::Nobody,
            // Somebody else's container of the same name is no reason to keep
            // the bundle; ours, seen from another pid namespace, is.
            Verdict::NotOurs => self.facts.boot != Boot::Same,
            Verdict::StillRunning
            | Verdict::ExitNotTold
            | Verdict::Stragglers
            | Verdict::DiedUnseen
            | Verdict::HalfCreated
            | Verdict::NeverRan
            | Verdict::Leftovers
            | Verdict::NothingLeft
            | Verdict::OtherBoot => self.left.iter().any(|left| match left {
                Left::Process { .. } | Left::Unproven(_) => true,
                Left::Action { action, .. } => {
                    matches!(action, Action::KillInit | Action::KillCgroup)
                }
                Left::Cgroup(_)
                | Left::Busy { .. }
                | Left::Detached(_)
                | Left::Mounts(_)
                | Left::Worker { .. }
                | Left::RuncState(_)
                | Left::Socket(_) => false,
            }),
        }
    }
}
