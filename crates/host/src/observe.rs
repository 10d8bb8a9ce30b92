//! The eyes: what is on the host of one container, as facts. Read-only, and
//! never an error: what cannot be seen is a fact of its own. What our record
//! does not say is looked up in the order of trust: runc's state, the spec,
//! the names containerd uses by convention.

mod members;
mod others;
mod runc_state;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vigil_model::{
    Before, BootId, Claim, Driver, ExecPhase, Exit, Incarnation, Namespace, Phase, Task, TaskId,
    Verb,
};
use vigil_reconcile as judge;
use vigil_reconcile::{Boot, Claimed, Facts, Group, Init, Present, RuncDelete, Said};
use vigil_sys::pidfd;

pub use runc_state::{Found, RuncState};

use crate::bundle::Spec;
use crate::cgroup::{self, Cgroup, Hierarchies};
use crate::enact::{Left, Life};
use crate::kin::{self, Family};
use crate::proc::{self, Checked};
use crate::rootfs::mountinfo;
use crate::runc::Runtime;

/// A reaper, for killing by descent; absent when it is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// The reaper.
    pub reaper: Incarnation,
    /// What descends from it and is no part of the container: the shim and
    /// its workers.
    pub spare: Vec<u32>,
    /// Loggers, with whatever they start.
    pub loggers: Vec<Incarnation>,
}

/// What a tombstone adds to the record: only what it names is looked at, since
/// the id, and with it every path, may be somebody else's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stone {
    /// How often a sweeper has tried.
    pub tries: u32,
    /// Inode of runc's state directory, if it was left.
    pub runc_state: Option<u64>,
}

/// What is on record of a container. Everything that the journal or the exit
/// records did not say is `None` or empty, and looked for elsewhere.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its id.
    pub id: TaskId,
    /// Its containerd namespace.
    pub namespace: Namespace,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Where that is by now, if somebody has moved it away with all that is mounted in it.
    pub moved: Option<PathBuf>,
    /// How runc is called; `root` includes the namespace.
    pub runtime: Runtime,
    /// The option `SystemdCgroup`, `None` if nothing said so.
    pub systemd_cgroup: Option<bool>,
    /// What the journal says.
    pub said: Said,
    /// The boot in the journal's header.
    pub boot: Option<BootId>,
    /// Init.
    pub init: Option<Incarnation>,
    /// Which life of its id it is, by its pair, for a tombstone.
    pub life: Option<Life>,
    /// Init's pid where no more of it is on record: it was deleted.
    pub pid: Option<u32>,
    /// A process that the exit records still wait for where nothing names init: it may be that.
    /// A number alone, so nobody is signalled by it.
    pub awaited: Option<u32>,
    /// Its end.
    pub exit: Option<Exit>,
    /// Its execs that were last seen running.
    pub execs: Vec<Incarnation>,
    /// Its cgroups.
    pub claims: Vec<Claim>,
    /// By what they are known.
    pub claimed: Claimed,
    /// Whether init has a pid namespace of its own.
    pub private_pid_ns: Option<bool>,
    /// Inode of the pid namespace that it lives in, if that is not its own.
    pub pid_ns: Option<u64>,
    /// How far `runc delete` came.
    pub runc_delete: RuncDelete,
    /// The socket's file.
    pub socket: Option<PathBuf>,
    /// The reaper, if it lives.
    pub below: Option<Below>,
    /// What an attempt before this one could not finish, for the tombstone.
    pub left: Vec<Left>,
    /// What its tombstone says, for a sweeper.
    pub stone: Option<Stone>,
    /// Whether this is another try: one that gets no further leaves no line of history.
    pub again: bool,
    /// Whether a tombstone names all of it before anything is done.
    pub announces: bool,
    /// How often one of its shims took over from another, for the history.
    pub takeovers: u64,
}

impl Subject {
    /// One of which nothing is on record: runc by its name, its state below
    /// `runc_root` and the namespace.
    pub fn unrecorded(id: TaskId, namespace: Namespace, bundle: PathBuf, runc_root: &Path) -> Self {
        Self {
            runtime: Runtime {
                program: "runc".into(),
                root: runc_root.join(namespace.as_str()),
                systemd_cgroup: false,
            },
            id,
            namespace,
            bundle,
            moved: None,
            systemd_cgroup: None,
            said: Said::Unreadable,
            boot: None,
            init: None,
            life: None,
            pid: None,
            awaited: None,
            exit: None,
            execs: Vec::new(),
            claims: Vec::new(),
            claimed: Claimed::Recorded,
            private_pid_ns: None,
            pid_ns: None,
            runc_delete: RuncDelete::NotTried,
            socket: None,
            below: None,
            left: Vec::new(),
            stone: None,
            again: false,
            announces: false,
            takeovers: 0,
        }
    }

    /// Takes over what the journal says; `boot` is from its header. What is torn, not `whole`, may
    /// be the record of all there is.
    pub fn recall(&mut self, task: &Task, boot: BootId, whole: bool) {
        let phase = &task.standing.phase;
        // Deleted since, it remains no more.
        self.said = if task.standing.remains && *phase == Phase::Empty {
            Said::HalfMade
        } else {
            Said::from(phase)
        };
        if !whole && self.said == Said::Nothing {
            self.said = Said::Unreadable;
        }
        if let Phase::Deleted { pid, .. } = phase {
            self.pid = Some(*pid).filter(|pid| *pid != 0);
        }
        self.boot = Some(boot);
        self.init = phase.init().cloned();
        self.exit = phase.exit();
        let execs = task.standing.execs.values();
        let running = execs.filter_map(|exec| match &exec.phase {
            ExecPhase::Running { process } => Some(process.clone()),
            ExecPhase::Added
            | ExecPhase::Starting
            | ExecPhase::Failed
            | ExecPhase::Stopped { .. } => None,
        });
        self.execs = running.collect();
        self.runc_delete = match (phase, task.standing.busy) {
            // A Delete is answered in time, also when runc's state is left to
            // whoever comes next: the directory says whether the hooks ran.
            (Phase::Deleted { .. }, _) | (_, Some(Verb::Delete)) => RuncDelete::Begun,
            (_, _) => RuncDelete::NotTried,
        };
        if let Some(plan) = &task.plan {
            self.claims.clone_from(&plan.claims);
            self.private_pid_ns = Some(plan.private_pid_ns);
            self.systemd_cgroup = Some(plan.driver == Driver::Systemd);
            self.runtime = Runtime {
                program: plan.runtime.clone().into(),
                root: PathBuf::from(&plan.runtime_root),
                systemd_cgroup: plan.driver == Driver::Systemd,
            };
        }
    }

    /// Where the files of its bundle are.
    pub fn files(&self) -> &Path {
        self.moved.as_deref().unwrap_or(&self.bundle)
    }

    /// Where containerd has the root file system mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.files().join("rootfs")
    }

    /// Whether what lies at [`Subject::runc_dir`] may be the container's.
    pub(crate) fn owns_runc_dir(&self) -> bool {
        self.stone.is_none_or(|stone| {
            fs::symlink_metadata(self.runc_dir())
                .is_ok_and(|meta| Some(meta.ino()) == stone.runc_state)
        })
    }

    /// runc's state directory of the container.
    pub fn runc_dir(&self) -> PathBuf {
        self.runtime.root.join(self.id.as_str())
    }
}

/// What was seen, with the handles the hands will need.
#[derive(Debug)]
pub struct Observed {
    /// The facts.
    pub facts: Facts,
    /// Which process init is or was, from the record or from runc's state.
    pub init: Option<Incarnation>,
    /// It, while it lives; opened and checked.
    pub init_fd: Option<OwnedFd>,
    /// Others of it that are known one by one and may live: recorded execs,
    /// and what the runtime was making.
    pub others: Vec<Incarnation>,
    /// Those in a cgroup that is on record as its own of whom nobody can say whose they are.
    pub unproven: Vec<Incarnation>,
    /// Directories on record as its own that are left alone as long as somebody is in them who is
    /// none of its processes by where he lives; one such process each.
    pub busy: Vec<(PathBuf, u32)>,
    /// What runc has written down of it.
    pub runc: Found,
    /// Its end, from the record or from the kernel's memory.
    pub exit: Option<Exit>,
    /// The pid in the bundle's `init.pid`: to be shown, never to be signalled.
    pub pid_file: Option<u32>,
    /// Whether init has a pid namespace of its own, as far as record or spec
    /// say so.
    pub private_pid_ns: bool,
    /// Inode of the pid namespace that it lives in, if that is not its own.
    pub pid_ns: Option<u64>,
    /// The cgroups that are there.
    pub cgroup: Option<Cgroup>,
    /// The claims they were opened by.
    pub claims: Vec<Claim>,
    /// By what those are known.
    pub claimed: Claimed,
    /// What had to be looked for elsewhere, and what could not be looked at.
    pub notes: Vec<String>,
}

/// Looks at the host.
pub fn observe(subject: &Subject) -> Observed {
    match Hierarchies::read() {
        Ok(hierarchies) => observe_with(subject, Some(&hierarchies)),
        Err(e) => {
            let mut seen = observe_with(subject, None);
            seen.notes.push(said(&e));
            seen
        }
    }
}

/// Looks at the host with these hierarchies; `None`: they could not be read.
pub fn observe_with(subject: &Subject, hierarchies: Option<&Hierarchies>) -> Observed {
    let mut notes = Vec::new();
    let runc_dir = subject.runc_dir();
    let mut runc_present = present(&runc_dir, &mut notes);
    let mut runc = Found::from(RuncState::load(&runc_dir));
    match &runc {
        _ if runc_present == Present::Yes && !subject.owns_runc_dir() => {
            runc = Found::Nothing;
            runc_present = Present::No;
        }
        Found::State(state) if !state.may_be_of(&subject.bundle) => {
            notes.push(format!(
                "{} belongs to another bundle and is left alone",
                runc_dir.display()
            ));
            runc = Found::Nothing;
            runc_present = Present::No;
        }
        Found::State(_) | Found::Nothing => {}
        Found::Torn(error) | Found::Unread(error) => notes.push(said(error)),
    }
    let state = match &runc {
        Found::State(state) => Some(state),
        Found::Nothing | Found::Torn(_) | Found::Unread(_) => None,
    };

    let heard = heard(subject, &runc);
    let (claims, claimed, sure) = claims(subject, heard, state, hierarchies, &mut notes);
    let mut cgroup = hierarchies.and_then(|h| note(Cgroup::open(h, &claims), &mut notes));
    let mut init = subject.init.clone().or_else(|| {
        let init = state.and_then(|state| state.init.clone());
        if init.is_some() {
            notes.push("init is known from runc's state only".to_owned());
        }
        init
    });
    let private_pid_ns = subject.private_pid_ns.unwrap_or_else(|| {
        Spec::load(subject.files()).is_ok_and(|spec| spec.private_pid_namespace())
    });
    let (mut boot, mut init_fact, mut init_fd) = look_at_init(subject, init.as_ref(), &mut notes);
    let mut others = others::execs(subject, &mut notes);
    let known = kin::Known {
        init: init.as_ref(),
        // Another boot's numbers mean nothing here.
        init_is: match boot {
            // runc's state may name a wrong one; that one is dead proves nothing then.
            Boot::Same if subject.init.is_none() && init_fact == Init::Dead => Init::Unknown,
            Boot::Same => init_fact,
            Boot::Other | Boot::Unknown => Init::Unknown,
        },
        private_pid_ns,
        pid_ns: subject.pid_ns,
        reaper: subject
            .below
            .as_ref()
            .and_then(|b| b.true_reaper(&mut notes)),
        named: others.iter().map(|exec| exec.pid).collect(),
        bundle: subject.stone.is_none().then(|| subject.files().to_owned()),
    };
    let family = Family::of(known);
    let pid_ns = family.not_its_own();
    // Of another boot nobody is signalled, whoever is there.
    let looked_into = cgroup.as_mut().filter(|_| boot != Boot::Other);
    let members = members::of(
        (subject, heard),
        looked_into,
        family.clone(),
        claimed,
        &mut notes,
    );
    if members.unread {
        // It is neither emptied nor called empty.
        cgroup = None;
    }
    if init.is_none() {
        // Of several the last one made: the others only made it.
        let marked = members.marked.iter();
        init = marked.max_by_key(|p| (p.start_ticks, p.pid)).cloned();
        if init.is_some() {
            notes.push("init is known by the mark of the runtime only".to_owned());
            (boot, init_fact, init_fd) = look_at_init(subject, init.as_ref(), &mut notes);
        }
    }
    let unproven = members.left;
    others.extend(members.marked);
    others.extend(members.kin);
    others.retain(|other| Some(other) != init.as_ref());
    others.sort_by_key(|other| (other.pid, other.start_ticks));
    others.dedup_by_key(|other| (other.pid, other.start_ticks));
    let group = look_at_group(cgroup.as_ref(), &mut notes);
    if init_fact == Init::Unnamed
        && heard != Said::Gone
        && (members.unsure
            || heard == Said::Unreadable
                && numbered(subject, &family, cgroup.as_ref(), &mut notes)
            // It runs where it would be, and nothing says that it is somebody else's.
            || heard == Said::Unreadable && members.unproven
            || matches!(runc, Found::Torn(_) | Found::Unread(_))
                && (!group_tells(group) || !sure && group == Group::Absent))
    {
        // Unread is not unwritten: it may name one that lives where nobody
        // would look for it.
        init_fact = Init::Unknown;
    }

    let mounts = match note(
        mountinfo::below(&mountinfo::as_shown(&subject.rootfs())),
        &mut notes,
    ) {
        Some(found) if found.is_empty() => Present::No,
        Some(_) => Present::Yes,
        None => Present::Unknown,
    };
    let socket = subject
        .socket
        .as_ref()
        .map_or(Present::No, |path| present(path, &mut notes));
    let below = match &subject.below {
        _ if !others.is_empty() => Present::Yes,
        None => Present::No,
        Some(below) => match note(below.pids(), &mut notes) {
            Some(pids) if pids.is_empty() => Present::No,
            Some(_) => Present::Yes,
            None => Present::Unknown,
        },
    };
    let exit = subject.exit;
    // Nothing is on record, and what runs was made from this very bundle: the record is wrong.
    let unheard = heard == Said::Nothing
        && init_fact == Init::Alive
        && state.is_some_and(|state| state.is_of(&subject.bundle));
    Observed {
        facts: Facts {
            boot,
            said: if unheard { Said::Unreadable } else { heard },
            init: init_fact,
            exit: if exit.is_some() {
                judge::Exit::Known
            } else {
                judge::Exit::NotKnown
            },
            group,
            below,
            runc_delete: subject.runc_delete,
            runc_state: runc_present,
            mounts,
            socket,
        },
        init,
        init_fd,
        others,
        unproven,
        busy: members.busy,
        runc,
        exit,
        private_pid_ns,
        pid_ns,
        pid_file: pid_file(subject.files()).filter(|_| subject.stone.is_none()),
        cgroup,
        claims,
        claimed,
        notes,
    }
}

impl Below {
    /// The reaper, if it lives. A shim that lives without one is in its place here, but what
    /// the runtime makes does not hang below it.
    fn true_reaper(&self, notes: &mut Vec<String>) -> Option<u32> {
        let pid = self.reaper.pid;
        let same = matches!(
            note(proc::open_checked(&self.reaper), notes),
            Some(Checked::Same(_))
        );
        (same && !self.spare.contains(&pid)).then_some(pid)
    }

    /// What descends from the reaper and is not spared; nothing if the reaper
    /// itself is gone.
    pub fn pids(&self) -> crate::Result<Vec<u32>> {
        match proc::open_checked(&self.reaper)? {
            Checked::Same(_) => {}
            Checked::Gone | Checked::Reused(_) | Checked::Elsewhere => return Ok(Vec::new()),
        }
        let mut pids = proc::descendants(self.reaper.pid)?;
        // What descends from the spared is not spared by that: a runc, and its
        // init, may still hang below the shim.
        let us = std::process::id();
        pids.retain(|pid| *pid != us && !self.spare.contains(pid));
        for logger in &self.loggers {
            if matches!(proc::open_checked(logger)?, Checked::Same(_)) {
                let theirs = proc::descendants(logger.pid)?;
                pids.retain(|pid| *pid != logger.pid && !theirs.contains(pid));
            }
        }
        Ok(pids)
    }
}

fn look_at_init(
    subject: &Subject,
    init: Option<&Incarnation>,
    notes: &mut Vec<String>,
) -> (Boot, Init, Option<OwnedFd>) {
    let Some(now) = note(proc::boot_id(), notes) else {
        let init = if init.is_some() {
            Init::Unknown
        } else {
            Init::Unnamed
        };
        return (Boot::Unknown, init, None);
    };
    let boot = if subject.boot.as_ref().is_some_and(|then| *then != now) {
        Boot::Other
    } else {
        Boot::Same
    };
    let Some(init) = init else {
        return (boot, Init::Unnamed, None);
    };
    match note(proc::open_checked(init), notes) {
        None => (boot, Init::Unknown, None),
        Some(Checked::Elsewhere) => (Boot::Other, Init::Dead, None),
        Some(Checked::Gone | Checked::Reused(_)) => (boot, Init::Dead, None),
        // Alive under a header of another boot: the header is wrong, and what
        // is seen outranks it.
        Some(Checked::Same(fd)) => match pidfd::is_dead(&fd) {
            Ok(false) => (Boot::Same, Init::Alive, Some(fd)),
            // A zombie: its parent will reap it, and the kernel may then tell.
            Ok(true) => (Boot::Same, Init::Dead, Some(fd)),
            Err(e) => {
                notes.push(format!("cannot ask for process {}: {e}", init.pid));
                (Boot::Same, Init::Unknown, None)
            }
        },
    }
}

fn look_at_group(cgroup: Option<&Cgroup>, notes: &mut Vec<String>) -> Group {
    let Some(cgroup) = cgroup else {
        return Group::Unknown;
    };
    if cgroup.is_ours() {
        match note(cgroup.populated(), notes) {
            Some(true) => Group::Populated,
            Some(false) => Group::Empty,
            None => Group::Unknown,
        }
    } else if cgroup.is_shared() {
        Group::Foreign
    } else {
        Group::Absent
    }
}

/// Whether a look at the cgroup is enough to know that nothing runs, or to end
/// what does: it is ours, or not there.
fn group_tells(group: Group) -> bool {
    match group {
        Group::Absent | Group::Empty | Group::Populated => true,
        Group::Foreign | Group::Unknown => false,
    }
}

/// What the record says, as far as it is believed: where the runtime was at work in this very
/// bundle, or something lies in its place that cannot be read, a record of nothing has lost what
/// was in it.
fn heard(subject: &Subject, runc: &Found) -> Said {
    let traced = || match runc {
        Found::Torn(_) | Found::Unread(_) => true,
        Found::State(_) | Found::Nothing => pid_file(subject.files()).is_some(),
    };
    if subject.said == Said::Nothing && subject.stone.is_none() && traced() {
        return Said::Unreadable;
    }
    subject.said
}

/// The recorded claims, else what runc, the spec or convention say, by which of both, and
/// whether they are all there can be. What was there before is then not known; a directory that
/// carries the container's id in its name is taken for its own as long as nobody is in it who is
/// not the container's, any other is not.
fn claims(
    subject: &Subject,
    heard: Said,
    state: Option<&RuncState>,
    hierarchies: Option<&Hierarchies>,
    notes: &mut Vec<String>,
) -> (Vec<Claim>, Claimed, bool) {
    if !subject.claims.is_empty() || subject.stone.is_some() {
        return (subject.claims.clone(), subject.claimed, true);
    }
    let Some(hierarchies) = hierarchies else {
        return (Vec::new(), Claimed::Guessed, false);
    };
    // Without a Create nothing can be there that is ours.
    if heard == Said::Nothing && state.is_none() {
        return (Vec::new(), Claimed::Recorded, true);
    }
    if let Some(state) = state.filter(|s| !s.cgroups.is_empty()) {
        notes.push("cgroups are known from runc's state only".to_owned());
        let dirs = hierarchies.list.iter().filter_map(|h| {
            let controller = h.name.split(',').find_map(|name| state.cgroups.get(name))?;
            Some((h.name.clone(), controller.clone()))
        });
        let claims = dirs.map(|(name, dir)| named(subject, name, &dir)).collect();
        let claimed = if state.is_of(&subject.bundle) && state.lives() {
            Claimed::Recorded
        } else {
            Claimed::Guessed
        };
        return (claims, claimed, true);
    }
    let by_spec = note(Spec::load(subject.files()), notes).map(|spec| spec.cgroups_path);
    let sure = by_spec.is_some();
    let path = if let Some(path) = by_spec {
        notes.push("cgroups are known from config.json only".to_owned());
        path
    } else {
        notes.push("cgroups are known by convention only".to_owned());
        format!("/{}/{}", subject.namespace, subject.id)
    };
    let placement = cgroup::place(
        hierarchies,
        &subject.id,
        &path,
        subject.systemd_cgroup,
        cgroup::systemd_host(),
    );
    let Some(placement) = note(placement, notes) else {
        return (Vec::new(), Claimed::Guessed, false);
    };
    let dirs = placement.dirs.into_iter();
    let claims = dirs.map(|(name, dir)| named(subject, name, &dir)).collect();
    (claims, Claimed::Guessed, sure)
}

/// A claim by name; see [`cgroup::named_for`].
fn named(subject: &Subject, hierarchy: String, dir: &Path) -> Claim {
    let its_own = cgroup::named_for(dir, subject.id.as_str());
    Claim {
        hierarchy,
        path: dir.to_string_lossy().into_owned(),
        before: if its_own {
            Before::Absent
        } else {
            Before::Unknown
        },
        inode: None,
    }
}

/// Whether a process lives that may be init by its number, and by nothing that would do to end
/// it. One that is somebody else's, or lives among the host's mounts as no container does, has
/// got the number since.
fn numbered(
    subject: &Subject,
    family: &Family,
    cgroup: Option<&Cgroup>,
    notes: &mut Vec<String>,
) -> bool {
    let written = pid_file(subject.files()).filter(|_| subject.stone.is_none());
    let spec = Spec::load(subject.files());
    let apart = spec.is_ok_and(|spec| !spec.namespaces.iter().any(|n| n.kind == "mount"));
    // These end with it.
    let held = cgroup.and_then(|cgroup| cgroup.our_pids().ok());
    let held = held.unwrap_or_default();
    let may_be = |pid: &u32| match family.judge(&[*pid], Claimed::Guessed) {
        Ok(judged) => {
            let lives = judged.get(pid).is_some_and(|kin| !kin.is_anothers());
            lives && (apart || !kin::is_among_the_hosts(*pid))
        }
        // Unseen is not gone.
        Err(_) => true,
    };
    let mut numbers = written.into_iter().chain(subject.awaited);
    let Some(pid) = numbers.find(|pid| !held.contains(pid) && may_be(pid)) else {
        return false;
    };
    let path = subject.files().display();
    notes.push(format!(
        "process {pid} may be its init, which `init.pid` or `exits` in {path} names by its number alone: nothing is called gone while it lives; if it is another's, remove the file"
    ));
    true
}

fn pid_file(bundle: &Path) -> Option<u32> {
    let bytes = proc::read_bounded(&bundle.join("init.pid"), 64).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}

fn present(path: &Path, notes: &mut Vec<String>) -> Present {
    match fs::symlink_metadata(path) {
        Ok(_) => Present::Yes,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Present::No,
        Err(e) => {
            notes.push(format!("cannot look at {}: {e}", path.display()));
            Present::Unknown
        }
    }
}

/// The value, or `None` and a note.
fn note<T>(result: crate::Result<T>, notes: &mut Vec<String>) -> Option<T> {
    result.map_err(|e| notes.push(said(&e))).ok()
}

pub(crate) fn said(error: &crate::Error) -> String {
    crate::chain(error)
}

/// An error if this task, of a journal that does not say whose it is (version 1), was
/// planned for another bundle than this one: then the journal is another container's.
pub fn planned_for(task: &Task, bundle: &Path) -> crate::Result<()> {
    let Some(plan) = &task.plan else {
        return Ok(());
    };
    let planned = Path::new(&plan.create.bundle);
    let real = |path: &Path| fs::canonicalize(path).ok();
    if planned.as_os_str().is_empty()
        || planned == bundle
        || real(planned).is_some_and(|planned| real(bundle) == Some(planned))
    {
        return Ok(());
    }
    Err(crate::Error::Malformed {
        path: bundle.join("journal"),
        problem: format!(
            "this journal is of the container in {}, not of the one here; it is not used",
            planned.display()
        ),
    })
}
