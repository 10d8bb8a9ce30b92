//! What is on record of a container: the journal, the exit records, `pair`
//! and the address. Any of them may be missing, torn or foreign; what is there
//! is used, and what is not is said. Never writes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use vigil_host::enact::status_of;
use vigil_host::observe::{Subject, planned_for};
use vigil_host::{chain, proc};
use vigil_journal::exits::Death;
use vigil_journal::pair::Pair;
use vigil_journal::takeovers::Takeovers;
use vigil_journal::{Owner, Replayed, Tail, exits, names, replay};
use vigil_model::{Because, BootId, Exit, Incarnation, Moment, Phase, Status, Task};

/// What could be read.
#[derive(Debug)]
pub struct Recorded {
    /// The journal, as far as it is good.
    pub replayed: Option<Replayed>,
    /// What it says, if all of it can be believed.
    pub task: Option<Task>,
    /// The two processes.
    pub pair: Option<Pair>,
    /// How often one shim took over from another; `None`: it cannot be read.
    pub takeovers: Option<Takeovers>,
    /// Init, if only `init.pid` and the exit records name it.
    pub named: Option<Incarnation>,
    /// The reaper's record of init's end.
    pub seen_end: Option<Exit>,
    /// What may be init where nothing names it: the exit records still wait for its end.
    pub awaited: Option<u32>,
    /// Where the pair listens.
    pub socket: Option<PathBuf>,
    /// Which life of its id this container is; `None`: its files do not say.
    pub salt: Option<u64>,
    /// What could not be read, and why.
    pub notes: Vec<String>,
}

impl Recorded {
    /// Reads everything.
    pub fn read(bundle: &Path, owner: &Owner) -> Self {
        let mut notes = Vec::new();
        let replayed = keep(replay(&bundle.join(names::JOURNAL), owner), &mut notes);
        let task = replayed
            .as_ref()
            .and_then(|replayed| believe(bundle, replayed, &mut notes));
        let pair = keep(Pair::read(&bundle.join(names::PAIR), owner), &mut notes);
        let takeovers = keep(
            Takeovers::read(&bundle.join(names::TAKEOVERS), owner),
            &mut notes,
        );
        let (named, seen_end) = match &task {
            Some(task) => match (task.standing.phase.init(), &task.standing.phase) {
                (Some(init), _) => (None, seen_end(bundle, owner, init, &mut notes)),
                // Recording may have failed before init could be named.
                (None, Phase::Creating | Phase::Created { .. }) => {
                    ended_init(bundle, owner).unzip()
                }
                (None, _) => (None, None),
            },
            None => ended_init(bundle, owner).unzip(),
        };
        let awaited = match (&task, &named) {
            (None, None) => awaited_init(bundle, owner),
            (Some(_), _) | (None, Some(_)) => None,
        };
        // Pair and exit records say it if they agree; the journal says it alone.
        let header = replayed.as_ref().map(|replayed| &replayed.header);
        let known = header.and_then(|header| header.owner.as_ref());
        let salts = [owner.salt, known.map_or(0, |known| known.salt)];
        let salt = salts.into_iter().find(|salt| *salt != 0);
        let socket = address(bundle);
        if socket.is_none() {
            notes.push("no address is on record, so its socket is not looked at".to_owned());
        }
        Self {
            replayed,
            task,
            pair,
            takeovers,
            named,
            seen_end,
            awaited,
            socket,
            salt,
            notes,
        }
    }

    /// The boot in the journal's header.
    pub fn boot(&self) -> Option<BootId> {
        let header = &self.replayed.as_ref()?.header;
        Some(BootId(header.boot.to_string()))
    }

    /// Hands over what a reconciliation needs of it.
    pub fn fill(&self, subject: &mut Subject) {
        if let (Some(task), Some(boot)) = (&self.task, self.boot()) {
            let replayed = self.replayed.as_ref();
            let whole = replayed.is_none_or(|replayed| replayed.tail == Tail::Clean);
            subject.recall(task, boot, whole);
        }
        if subject.init.is_none() {
            subject.init.clone_from(&self.named);
        }
        subject.awaited = self.awaited;
        subject.exit = subject.exit.or(self.seen_end);
        subject.socket.clone_from(&self.socket);
        subject.takeovers = self.takeovers.as_ref().map_or(0, |told| told.count);
    }
}

/// The task, unless something acknowledged may be missing from the journal.
fn believe(bundle: &Path, replayed: &Replayed, notes: &mut Vec<String>) -> Option<Task> {
    if let Tail::Corrupt { at, damage, .. } = &replayed.tail {
        notes.push(format!("the journal is corrupt at byte {at}: {damage:?}"));
        return None;
    }
    let frames = replayed.records.iter();
    let frames = frames.map(|record| (record.kind, &record.payload[..]));
    let task = keep(Task::replay(frames), notes)?;
    if replayed.header.owner.is_none() {
        keep(planned_for(&task, bundle), notes)?;
    }
    Some(task)
}

fn seen_end(
    bundle: &Path,
    owner: &Owner,
    init: &Incarnation,
    notes: &mut Vec<String>,
) -> Option<Exit> {
    let snapshot = keep(exits::read(&bundle.join(names::EXITS), owner), notes)?;
    let death = keep(snapshot.exits(), notes)?.find(init.pid, init.start_ticks)?;
    Some(exit_of(&death))
}

/// Init and its end where the journal does not name it. Nobody is signalled by it: it is
/// dead.
fn ended_init(bundle: &Path, owner: &Owner) -> Option<(Incarnation, Exit)> {
    let snapshot = exits::read(&bundle.join(names::EXITS), owner).ok()?;
    let exits = snapshot.exits().ok()?;
    let death = match proc::read_line(&bundle.join("init.pid")) {
        // The number runc wrote down, if a registered process of that number has died.
        Ok(pid) => exits.registered(pid.trim().parse().ok()?)?,
        // A Delete has taken it away. Init is the first to be registered, and its slot is
        // its own for as long as the pair lives.
        Err(vigil_host::Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
            exits.pinned(0)?
        }
        Err(_) => return None,
    };
    if death.start_ticks == 0 {
        return None;
    }
    let init = Incarnation {
        pid: death.pid,
        start_ticks: death.start_ticks,
        pid_ns: proc::pid_namespace().ok()?,
        boot: BootId(exits.boot_id()?.to_string()),
        pidfd_inode: None,
    };
    Some((init, exit_of(&death)))
}

/// Init, maybe, where the reaper saw no end of it.
fn awaited_init(bundle: &Path, owner: &Owner) -> Option<u32> {
    let snapshot = exits::read(&bundle.join(names::EXITS), owner).ok()?;
    snapshot.exits().ok()?.awaited(0)
}

fn exit_of(death: &Death) -> Exit {
    Exit {
        status: status_of(death.status).unwrap_or(Status::Unknown(Because::NoRecord)),
        at: Moment {
            secs: death.at_secs,
            nanos: death.at_nanos,
        },
    }
}

fn address(bundle: &Path) -> Option<PathBuf> {
    let text = proc::read_line(&bundle.join(names::ADDRESS)).ok()?;
    let path = text.trim().strip_prefix("unix://")?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The value, or `None` and a note.
fn keep<T, E: std::error::Error + 'static>(
    result: Result<T, E>,
    notes: &mut Vec<String>,
) -> Option<T> {
    result.map_err(|e| notes.push(chain(&e))).ok()
}
