//! `delete`: the last word on a container, when its pair is gone or is to go.
//! Takes the lock, reads what was recorded, brings the container to nothing,
//! and prints the true exit. stdout carries the protobuf and nothing else.
//! Every file may be missing; it may run twice, and beside a live pair.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vigil_host::enact::{Ended, Left, RUN, Report, Tombstone, reconcile_to_gone};
use vigil_host::observe::{self, Subject};
use vigil_host::{proc, starts, strays, sweep};
use vigil_journal::pair::Pair;
use vigil_journal::takeovers::Takeovers;
use vigil_journal::{Owner, exits, lock, names};
use vigil_model::{BootId, Exit, Incarnation, KIND_RECORD, Phase, Record, Task};
use vigil_protocol::address::Address;
use vigil_protocol::{Flags, delete};
use vigil_reconcile::Said;
use vigil_supervise::{crash, exit_of};
use vigil_sys::points::{self, Point};
use vigil_sys::{listen, signal};

use crate::apart::{self, Asker, Outcome};
use crate::ended;
use crate::waiter::{self, Case};
use crate::{last_words, leave};

/// All of it; containerd kills `delete` after 5 s.
const BUDGET: Duration = Duration::from_millis(3500);
/// For calls of runc that outlived the pair.
const CALLS: Duration = Duration::from_millis(500);
/// Where runc keeps its state unless the options say otherwise.
pub(crate) const RUNC_ROOT: &str = "/run/containerd/runc";

/// Processes that are killed at the work before it is left to the waiter.
const KILLED_MAX: usize = 2;

/// Cleans up and answers: in a process that goes on if this one is killed.
pub fn run(flags: &Flags) -> Result<()> {
    for number in [signal::TERM, signal::INT] {
        signal::ignore(number).context("cannot ignore a signal")?;
    }
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().context("no -bundle given, and the cwd is gone")?,
        bundle => PathBuf::from(bundle),
    };
    let case = Case::asked(flags, &bundle);
    let mut signal = 0;
    for _ in 0..KILLED_MAX {
        match apart::run(|asker| work(flags, &bundle, &case, asker)) {
            Outcome::Over(done) => return done,
            Outcome::Killed(by) => signal = by,
            Outcome::Late(worker) => {
                // Should it be killed at it, somebody waits for what is left.
                case.given_up();
                case.leave();
                bail!(
                    "the removal of container {} is not over in time; process {worker} goes on with it",
                    flags.id
                );
            }
        }
    }
    case.given_up();
    case.leave();
    bail!(
        "the process that removes container {} was killed by signal {signal}, {KILLED_MAX} times",
        flags.id
    )
}

/// All of it.
fn work(flags: &Flags, bundle: &Path, case: &Case<'_>, asker: Asker) -> Result<()> {
    points::reach(Point::DeleteBegun);
    // It may be long since it was asked for: whatever is found by a name is of the life that was
    // meant only if that is the name's still, afterwards.
    let meant = || Ok(case.is_meant()?);
    meant()?;
    let deadline = Instant::now() + BUDGET;
    let (namespace, id) = (flags.namespace.as_str(), flags.id.as_str());
    if let Ok(stone) = Tombstone::of_id(namespace, id, Path::new(RUN))
        && stone.is_overdue(Path::new(RUN))
        && let Err(error) = leave::end_delete(&stone)
    {
        eprintln!("warning: {error:#}");
    }
    let socket = socket(flags, bundle);
    let owner = case.owner();
    let last_words = last_words::of(bundle, &owner);
    let _lock = match lock((flags, &owner), bundle, socket.as_deref(), &meant) {
        Ok(lock) => lock,
        Err(error) if error.is::<leave::Superseded>() => {
            lift(flags, bundle);
            return Err(error);
        }
        Err(error) if error.is::<leave::AtWork>() => {
            lift(flags, bundle);
            // It ends in time, as we do. What is on record it will tell too.
            let Some(end) = on_record(bundle, &owner) else {
                return Err(error);
            };
            eprintln!("note: {error}");
            return answer(&end);
        }
        Err(error) => {
            lift(flags, bundle);
            case.given_up();
            case.leave();
            return Err(error);
        }
    };
    meant()?;
    if let Some((words, at)) = last_words {
        eprintln!("note: {words}");
        let replayed = vigil_journal::replay(&bundle.join(names::JOURNAL), &owner);
        let gist = replayed.map_or_else(|_| Vec::new(), |replayed| crash::gist(&replayed));
        crash::tell(bundle, &owner, at, words, &gist);
    }
    // The pair is gone; whoever listens there now is a stranger, and the file is the stranger's.
    let socket = socket.filter(|path| leave::is_deserted(path));
    let recorded_first = |subject: &Subject| {
        announce(subject, &owner);
        points::reach(Point::DeleteLocked);
        // From here on a `start` of this id knows of us.
        meant()
    };
    let subject = subject(flags, &owner, bundle, socket, recorded_first)
        .inspect_err(|_| lift(flags, bundle))?;
    let subject = Subject {
        announces: true,
        ..subject
    };
    let report = reconcile_to_gone(&subject, deadline);
    lift(flags, bundle);
    tell(&report);
    if report.may_live() {
        // Then containerd keeps the bundle, and does not ask again before it is started anew.
        case.given_up();
        if !report.left.is_empty() {
            case.leave();
        }
        bail!(
            "container {} may still be alive: {}",
            flags.id,
            report.verdict
        );
    }
    points::reach(Point::DeleteNotRecorded);
    // Nobody waits: the bundle may have been removed, and the id be in use again.
    let end = if case.is_meant().is_err() {
        Ended {
            pid: report.pid,
            exit: report.exit,
        }
    } else {
        keep_end_of(bundle, &owner, &report)
    };
    points::reach(Point::DeleteNotPrinted);
    answer(&end)?;
    let own = (flags.namespace.as_str(), flags.id.as_str());
    if case.is_meant().is_ok() {
        starts::over(Path::new(RUN), own);
    }
    // What other containers left. The sweeper is a process of its own, and out of processes it is
    // for the next one to do.
    let _ = starts::deserted(Path::new(RUN), true);
    let _ = sweep::start(Path::new(RUN), Some(own), &waiter::Dead);
    // The last act: until it, whoever asked may be killed and have heard nothing.
    let unheard = asker.is_gone();
    if unheard {
        // To containerd that is a failure.
        case.given_up();
    }
    if unheard || !report.left.is_empty() {
        case.leave();
    }
    Ok(())
}

/// Records how it ended, unless that was told before; which it was then.
pub(crate) fn keep_end_of(bundle: &Path, owner: &Owner, report: &Report) -> Ended {
    let known = remembered(bundle, owner);
    let dated = |known: &Remembered| known.task.dated(report.exit);
    let end = Ended {
        pid: report.pid,
        exit: known.as_ref().map_or(report.exit, dated),
    };
    let end = ended::read(bundle, owner).unwrap_or(end);
    keep_end(bundle, owner, known, &end);
    end
}

fn answer(end: &Ended) -> Result<()> {
    let answer = delete::response(end.pid, &end.exit)?;
    let mut out = std::io::stdout();
    out.write_all(&answer)
        .and_then(|()| out.flush())
        .context("cannot write the answer to stdout")
}

/// The end that somebody has recorded already.
fn on_record(bundle: &Path, owner: &Owner) -> Option<Ended> {
    if let Some(end) = ended::read(bundle, owner) {
        return Some(end);
    }
    let task = remembered(bundle, owner).ok()?.task;
    let phase = &task.standing.phase;
    if let Phase::Deleted { pid, exit } = phase {
        let (pid, exit) = (*pid, *exit);
        return Some(Ended { pid, exit });
    }
    let init = phase.init()?;
    let exit = match phase {
        Phase::Stopped { exit, .. } => *exit,
        _ => task.dated(recorded_exit(bundle, owner, init)?),
    };
    Some(Ended {
        pid: init.pid,
        exit,
    })
}

/// The lock of the bundle, once whoever had it is gone. Without a bundle, or where there
/// is no lock to be had, a pair may be alive all the same: then who listens has to leave.
fn lock(
    (flags, owner): (&Flags, &Owner),
    bundle: &Path,
    socket: Option<&Path>,
    meant: leave::Meant<'_>,
) -> Result<Option<File>> {
    if bundle.is_dir() {
        let path = bundle.join(names::LOCK);
        if path.exists()
            && let Ok(file) = lock::hold(&path)
        {
            return Ok(Some(file));
        }
        if remembered(bundle, owner).is_ok() {
            // What its pair is to leave behind.
            announce(&recorded(flags, owner, bundle, None).0, owner);
        }
        let listening = socket.map(|socket| (socket, flags));
        match leave::take_lock_from(bundle, owner, listening, meant) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if leave::is_without_lock(&error) => {
                eprintln!("warning: {}", vigil_supervise::chain(error.as_ref()));
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(path) = socket
        && let Ok(connection) = listen::connect(path, Duration::from_millis(100))
    {
        // A stranger is none of our business, and neither is its socket.
        if let Err(error) = leave::dismiss_listener(&connection, flags, meant) {
            meant()?;
            eprintln!("warning: {}", vigil_supervise::chain(error.as_ref()));
        }
    }
    Ok(None)
}

/// The pair's socket: where it said it is, or where it must be.
pub(crate) fn socket(flags: &Flags, bundle: &Path) -> Option<PathBuf> {
    let said = proc::read_line(&bundle.join(names::ADDRESS)).ok();
    let said = said
        .as_deref()
        .and_then(|uri| uri.trim().strip_prefix("unix://"));
    // A power cut leaves NUL bytes; what is no socket is nobody's address.
    let plain = |path: &&str| {
        let kind = std::fs::symlink_metadata(path).map(|meta| meta.file_type());
        path.starts_with('/') && kind.is_ok_and(|kind| kind.is_socket())
    };
    let must = Address::new(&flags.address, &flags.namespace, &flags.id, None).ok();
    // A name that is a hash, and not of this container, is another's, however its address got here.
    let own = |path: &&str| {
        must.as_ref()
            .is_none_or(|must| !must.is_of_another(Path::new(path)))
    };
    if let Some(path) = said.filter(plain).filter(own) {
        return Some(PathBuf::from(path));
    }
    Some(PathBuf::from(must?.path()))
}

/// Names in a tombstone what is about to be done away with: if this process dies at it, whoever
/// comes goes on.
pub(crate) fn announce(subject: &Subject, owner: &Owner) {
    let stone = Tombstone {
        claims: Tombstone::narrow(&subject.claims),
        ..Tombstone::of(subject, Vec::new())
    };
    if let Err(error) = stone.announce(Path::new(RUN), session(subject, owner)) {
        eprintln!("warning: {}", vigil_host::chain(&error));
    }
}

/// Takes that away again, where nothing came to be left.
pub(crate) fn lift(flags: &Flags, bundle: &Path) {
    let subject = &unrecorded(flags, bundle);
    if let Err(error) = Tombstone::of(subject, Vec::new()).lift(Path::new(RUN)) {
        eprintln!("warning: {}", vigil_host::chain(&error));
    }
}

/// Everything that was recorded, gathered, and nothing of the pair's at work any more: for
/// who holds the lock. `before` is called before anything of it is ended, which nothing is if it
/// fails.
pub(crate) fn subject(
    flags: &Flags,
    owner: &Owner,
    bundle: &Path,
    socket: Option<PathBuf>,
    before: impl FnOnce(&Subject) -> Result<()>,
) -> Result<Subject> {
    let (mut subject, midway) = recorded(flags, owner, bundle, socket);
    before(&subject)?;
    // A call of runc may have outlived the pair in the middle of it.
    if midway {
        let left = end_calls(&subject, owner);
        subject.left.extend(left);
    }
    Ok(subject)
}

fn unrecorded(flags: &Flags, bundle: &Path) -> Subject {
    let (id, namespace) = (flags.id.clone(), flags.namespace.clone());
    Subject::unrecorded(id, namespace, bundle.to_owned(), Path::new(RUNC_ROOT))
}

/// Everything that was recorded, gathered; what cannot be read is not known. And whether
/// something may have been under way.
pub(crate) fn recorded(
    flags: &Flags,
    owner: &Owner,
    bundle: &Path,
    socket: Option<PathBuf>,
) -> (Subject, bool) {
    let mut subject = unrecorded(flags, bundle);
    subject.socket = socket;
    subject.life = waiter::life(bundle, owner);
    let told = Takeovers::read(&bundle.join(names::TAKEOVERS), owner);
    subject.takeovers = told.map_or(0, |told| told.count);
    let mut midway = true;
    match remembered(bundle, owner) {
        Ok(Remembered { task, boot, whole }) => {
            midway = task.standing.midway() || !whole;
            subject.recall(&task, boot, whole);
        }
        Err(error) => {
            eprintln!("warning: {}", vigil_supervise::chain(error.as_ref()));
            // Of another boot nothing is there any more, whoever has its names now.
            let pair = Pair::read(&bundle.join(names::PAIR), owner).ok();
            subject.boot = pair.map(|pair| BootId(pair.reaper.boot.to_string()));
        }
    }
    if subject.exit.is_none()
        && let Some(init) = &subject.init
    {
        subject.exit = recorded_exit(bundle, owner, init);
    }
    // The journal is bad, or failed before it could name init.
    if subject.init.is_none() && subject.exit.is_none() && subject.said != Said::Nothing {
        if let Some((init, exit)) = ended_init(bundle, owner) {
            subject.init = Some(init);
            subject.exit = Some(exit);
        } else {
            subject.awaited = awaited_init(bundle, owner);
        }
    }
    (subject, midway)
}

/// The session of its pair, if that is on record.
fn session(subject: &Subject, owner: &Owner) -> Option<u32> {
    let pair = Pair::read(&subject.bundle.join(names::PAIR), owner).ok();
    pair.map(|pair| pair.session())
}

/// Before anything is judged: a runc still at work would undo the clean-up. What does not die
/// may leave something yet, and is waited for.
fn end_calls(subject: &Subject, owner: &Owner) -> Vec<Left> {
    let deadline = Instant::now() + CALLS;
    let session = session(subject, owner);
    let id = subject.id.as_str();
    match strays::end(&subject.runtime.root, id, session, deadline) {
        Ok(left) => left.into_iter().map(strays::left).collect(),
        Err(error) => {
            eprintln!("warning: {}", vigil_host::chain(&error));
            Vec::new()
        }
    }
}

/// What the journal says.
pub(crate) struct Remembered {
    pub(crate) task: Task,
    boot: BootId,
    /// Its last record was not cut off.
    whole: bool,
}

pub(crate) fn remembered(bundle: &Path, owner: &Owner) -> Result<Remembered> {
    let path = bundle.join(names::JOURNAL);
    let replayed = vigil_journal::replay(&path, owner)?;
    if let vigil_journal::Tail::Corrupt { at, damage, .. } = replayed.tail {
        bail!("{} is corrupt at byte {at} ({damage:?})", path.display());
    }
    let frames = replayed
        .records
        .iter()
        .map(|record| (record.kind, &record.payload[..]));
    let task = Task::replay(frames).with_context(|| format!("cannot read {}", path.display()))?;
    if replayed.header.owner.is_none() {
        observe::planned_for(&task, bundle)?;
    }
    Ok(Remembered {
        task,
        boot: BootId(replayed.header.boot.to_string()),
        whole: replayed.tail == vigil_journal::Tail::Clean,
    })
}

/// What the reaper saw of init's end, if the shim did not live to record it.
fn recorded_exit(bundle: &Path, owner: &Owner, init: &Incarnation) -> Option<Exit> {
    let snapshot = match exits::read(&bundle.join(names::EXITS), owner) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            eprintln!("warning: {error}");
            return None;
        }
    };
    let death = snapshot.exits().ok()?.find(init.pid, init.start_ticks)?;
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
    let boot = exits.boot_id()?;
    let init = Incarnation {
        pid: death.pid,
        start_ticks: death.start_ticks,
        pid_ns: proc::pid_namespace().ok()?,
        boot: BootId(boot.to_string()),
        pidfd_inode: None,
    };
    Some((init, exit_of(&death)))
}

/// Init, maybe, where the reaper saw no end of it.
fn awaited_init(bundle: &Path, owner: &Owner) -> Option<u32> {
    let snapshot = exits::read(&bundle.join(names::EXITS), owner).ok()?;
    snapshot.exits().ok()?.awaited(0)
}

/// Records what was found before it is told, so that a second `delete` tells
/// the same. The lock is ours, so nobody else writes the journal; what is not `known` to be
/// this container's is not written to.
fn keep_end(bundle: &Path, owner: &Owner, known: Result<Remembered>, end: &Ended) {
    if !bundle.is_dir() {
        return;
    }
    let kept = match known.and_then(|_| remember_end(bundle, owner, end)) {
        Ok(true) => return,
        Ok(false) => ended::write(bundle, owner, end),
        Err(error) => ended::write(bundle, owner, end).with_context(|| format!("{error:#}")),
    };
    if let Err(error) = kept {
        eprintln!(
            "warning: the end is not recorded: {}",
            vigil_supervise::chain(error.as_ref())
        );
    }
}

/// Whether the journal says the same from now on.
fn remember_end(bundle: &Path, owner: &Owner, end: &Ended) -> Result<bool> {
    let path = bundle.join(names::JOURNAL);
    let settings = vigil_journal::Settings::default();
    let opened = vigil_journal::Journal::open(&path, owner, settings)?;
    let frames = opened.replayed.records.iter();
    let mut task = Task::replay(frames.map(|record| (record.kind, &record.payload[..])))?;
    if let Some(record) = Record::of_end(&task, end.pid, end.exit, vigil_supervise::now()) {
        let mut journal = opened.journal;
        journal.append(KIND_RECORD, &record.encode()?)?;
        task.apply(&record);
    }
    let Ended { pid, exit } = *end;
    Ok(task.standing.phase == Phase::Deleted { pid, exit })
}

/// With exit 0 containerd logs stderr as warnings.
fn tell(report: &Report) {
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    for left in &report.left {
        eprintln!("left over: {left}");
    }
}
