//! `vigil repair`: what would be done about what dead pairs left, and with
//! `--write` the doing. The plan and the hands are those of `delete`. A living
//! pair's container is never touched; the lock, held while we work, sees to it.
//!
//! The bundle stays: containerd learns the exit from it when it asks.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use vigil_host::enact::{Ended, Left, Report, Source, Tombstone, now, reconcile};
use vigil_host::observe::{Below, Subject, observe, planned_for};
use vigil_host::{chain, starts, strays, sweep};
use vigil_journal::lock::{self, LockError};
use vigil_journal::{Journal, Owner, Settings, Tail, ended, names};
use vigil_model::{KIND_RECORD, Phase, Record, Task};
use vigil_reconcile::{Action, Goal, Said, Verdict, plan, row};
use vigil_sys::listen;

use crate::ask::Belief;
use crate::look::Look;
use crate::pair::Life;
use crate::place::{self, Found, Name, Node};
use crate::processes::{self, Loose};
use crate::table::{Colour, Paint};
use crate::{Answer, Code, Exit, json, kill, words};

/// For seeing whether anybody listens.
const CONNECT: Duration = Duration::from_millis(100);
/// For calls of runc that outlived their pair.
const CALLS: Duration = Duration::from_secs(1);

/// Arguments of `vigil repair`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Id of the container, or path of its bundle; without it, all are planned for.
    container: Option<String>,
    /// Every container of the node, and every tombstone.
    #[arg(long, conflicts_with = "container")]
    all: bool,
    /// Carry the plan out; for everything only with `--all`.
    #[arg(long)]
    write: bool,
    /// containerd namespace; without it, wherever the id is.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// How long each container may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    deadline: u16,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: Node,
}

/// What is to be done about one container, and what became of it.
#[derive(Debug)]
struct Case {
    namespace: String,
    id: String,
    /// What is true of it.
    verdict: &'static str,
    /// Whether a tombstone is all there is.
    stone: bool,
    /// Whether its pair lives.
    paired: bool,
    /// What would be done.
    actions: Vec<Action>,
    /// Why nothing would be done although something is wrong.
    left_alone: Option<String>,
    /// What was done; `None`: nothing was to be.
    outcome: Option<Result<Report>>,
    notes: Vec<String>,
}

/// Plans, and with `--write` acts.
pub fn run(args: &Args) -> Result<Answer> {
    if args.write && !args.all && args.container.is_none() {
        return Err(anyhow!("--write needs a container, or --all").context(Exit(Code::Usage)));
    }
    let namespace = args
        .namespace
        .as_deref()
        .map(place::namespace)
        .transpose()?;
    let name = |container: &String| Name {
        container: container.clone(),
        namespace: args.namespace.clone(),
    };
    let mut notes = Vec::new();
    let mut wrong = false;
    let found = if let Some(container) = &args.container {
        args.node.find(&name(container))?.into_iter().collect()
    } else {
        let bundles = args.node.bundles(namespace.as_ref())?;
        wrong = !bundles.notes.is_empty();
        notes.extend(bundles.notes);
        notes.extend(bundles.strange);
        bundles.ours
    };
    let mut cases: Vec<Case> = found.iter().map(|found| task(args, found)).collect();
    // A sweeper has a few seconds' work at most.
    let _only = if args.write {
        wait_for_sweeper(&args.node.kept.run, deadline(args))?
    } else {
        None
    };
    for stone in Tombstone::all(&args.node.kept.run)? {
        let stone = match stone {
            Ok(stone) => stone,
            Err(e) => {
                notes.push(chain(&e));
                wrong = true;
                continue;
            }
        };
        let meant = args.container.as_ref().is_none_or(|id| *id == stone.id)
            && namespace
                .as_ref()
                .is_none_or(|n| n.as_str() == stone.namespace);
        // A repair of its bundle has taken it away, or put it up again.
        let done = found
            .iter()
            .any(|f| f.id.as_str() == stone.id && f.namespace.as_str() == stone.namespace);
        if meant && !done {
            cases.push(entombed(args, &stone));
        }
    }
    for pair in processes::loose(&args.node)? {
        let at = &pair.found;
        let meant = args
            .container
            .as_ref()
            .is_none_or(|id| id == at.id.as_str())
            && namespace.as_ref().is_none_or(|n| *n == at.namespace);
        if meant {
            cases.push(unbundled(args, &pair));
        }
    }
    if args.container.is_none() {
        notes.extend(args.node.abroad(namespace.as_ref(), cases.is_empty())?);
        let became = if args.write {
            "it is removed"
        } else {
            "--write --all removes it"
        };
        for socket in starts::deserted(&args.node.kept.run, args.write) {
            wrong |= socket.exists();
            notes.push(format!(
                "socket {} is left of a pair that died before anybody called: {became}",
                socket.display()
            ));
        }
    }
    if let (Some(container), true) = (&args.container, cases.is_empty()) {
        return Err(anyhow!(
            "no bundle below {} and no tombstone in {}{}",
            args.node.state.display(),
            args.node.kept.run.display(),
            args.node.instead(&name(container))?
        )
        .context(container.clone())
        .context(Exit(Code::Nothing)));
    }
    let code = code(&cases, wrong);
    let text = if args.json {
        let cases: Vec<Value> = cases.iter().map(value).collect();
        json::text(&json!({ "wrote": args.write, "cases": cases, "notes": notes }))
    } else {
        people(&cases, &notes, args.write, Colour::of_stdout())
    };
    Ok(Answer { text, code })
}

fn code(cases: &[Case], wrong: bool) -> Code {
    if cases
        .iter()
        .any(|case| matches!(case.outcome, Some(Err(_))))
    {
        return Code::Failed;
    }
    let unfinished = |case: &Case| match &case.outcome {
        Some(Ok(done)) => !done.left.is_empty() || done.may_live(),
        Some(Err(_)) => true,
        None => !case.actions.is_empty() || case.left_alone.is_some(),
    };
    if wrong || cases.iter().any(unfinished) {
        Code::Wrong
    } else {
        Code::Done
    }
}

/// One bundle.
fn task(args: &Args, found: &Found) -> Case {
    let look = Look::at(found, &args.node.runc_root, &Belief::NotAsked);
    let (goal, left_alone) = aim(&look);
    let actions = goal.map_or_else(Vec::new, |goal| {
        plan(look.verdict(), &look.seen.facts, goal)
    });
    let mut case = Case {
        namespace: found.namespace.to_string(),
        id: found.id.to_string(),
        verdict: look.judgement.words,
        stone: false,
        paired: look.pair.life == Life::Alive,
        // What is over has had its line of history.
        actions: if look.is_over() { Vec::new() } else { actions },
        left_alone: left_alone
            .or_else(|| look.wrong().filter(|_| look.forgotten).map(str::to_owned)),
        outcome: None,
        notes: look.notes.clone(),
    };
    if let (Some(goal), true, false) = (goal, args.write, case.actions.is_empty()) {
        case.outcome = Some(act(&args.node, found, goal, deadline(args), false));
    }
    case
}

/// What a repair may aim at, and why at nothing if that needs a word.
fn aim(look: &Look) -> (Option<Goal>, Option<String>) {
    if !look.ours || look.copy_of.is_some() {
        return (None, look.wrong().map(str::to_owned));
    }
    match look.pair.life {
        Life::Gone => match look.verdict() {
            Verdict::Impossible => (
                None,
                Some("the facts contradict each other; nothing is touched".to_owned()),
            ),
            _ => (Some(Goal::Gone), None),
        },
        // Deleted by a pair that is about to leave: what lies about is nobody's.
        Life::Alive if look.verdict() == Verdict::Leftovers && look.subject.said == Said::Gone => {
            (Some(Goal::Keep), None)
        }
        Life::Alive => (
            None,
            look.wrong()
                .map(|wrong| format!("{wrong}; its pair is alive, and it is the pair's")),
        ),
        Life::Ending => (None, look.wrong().map(str::to_owned)),
        Life::Unknown => (None, Some("its pair could not be looked at".to_owned())),
    }
}

/// Looks again with the lock in hand, and acts on what is seen then. Another try of the same has
/// nothing to tell in the history unless it finishes.
pub fn act(node: &Node, found: &Found, goal: Goal, until: Instant, again: bool) -> Result<Report> {
    let path = found.bundle.join(names::LOCK);
    let mut without = None;
    let lock = match goal {
        Goal::Keep => None,
        Goal::Gone => match lock::hold(&path) {
            Ok(lock) => Some(lock),
            Err(LockError::Held { .. }) => {
                let look = Look::once(found, &node.runc_root, &Belief::NotAsked);
                let why = match look.pair.life {
                    Life::Ending => look.at_work(),
                    Life::Alive | Life::Gone | Life::Unknown => "its pair lives".to_owned(),
                };
                return Err(anyhow!("{}: {why}", path.display()));
            }
            // Something else has its name, or no file can be made: then it is for the recorded
            // processes to say that the pair is gone.
            Err(e) => {
                without = Some(chain(&e));
                None
            }
        },
    };
    let mut look = Look::once(found, &node.runc_root, &Belief::NotAsked);
    if let Some(why) = &without
        && look.pair.life != Life::Gone
    {
        return Err(anyhow!("it is not seen whether its pair lives").context(why.clone()));
    }
    if let Some(original) = &look.copy_of {
        return Err(copied(found, original));
    }
    if goal == Goal::Gone && look.pair.any_alive() {
        return Err(anyhow!("a process of its pair lives"));
    }
    let mut calls = Ok(Vec::new());
    if goal == Goal::Gone {
        // A runc that outlived its pair would undo the clean-up.
        calls = end_calls(&look, until);
        look = Look::once(found, &node.runc_root, &Belief::NotAsked);
    }
    let mut subject = look.subject;
    subject.again = again;
    if goal == Goal::Gone {
        // The lock is ours now, and reads as a living pair's.
        subject.socket.clone_from(&look.recorded.socket);
    }
    let unknown = match calls {
        Ok(left) => {
            subject.left.extend(left.into_iter().map(strays::left));
            None
        }
        Err(error) => Some(chain(&error)),
    };
    let mut report = reconcile(&subject, observe(&subject), goal, &node.kept.run, until);
    report.notes.extend(unknown);
    report.notes.extend(without);
    if goal == Goal::Gone && !report.may_live() {
        remember(found, &report)?;
    }
    drop(lock);
    Ok(report)
}

/// Nobody is ended whose bundle is another.
pub fn copied(found: &Found, original: &Path) -> anyhow::Error {
    let (bundle, original) = (found.bundle.display(), original.display());
    anyhow!("{bundle} is a copy: its container's bundle is {original}, which is to be named")
}

/// Ends the calls that outlived the pair; who of them does not die.
fn end_calls(look: &Look, until: Instant) -> vigil_host::Result<Vec<u32>> {
    let (root, id) = (&look.subject.runtime.root, look.found.id.as_str());
    let session = look
        .recorded
        .pair
        .as_ref()
        .map(vigil_journal::pair::Pair::session);
    let until = until.min(Instant::now() + CALLS);
    strays::end(root, id, session, until)
}

fn deadline(args: &Args) -> Instant {
    Instant::now() + Duration::from_secs(u64::from(args.deadline))
}

/// A pair whose bundle is gone: nobody asks for its container, and its records are gone too.
fn unbundled(args: &Args, pair: &Loose) -> Case {
    let mut case = Case {
        namespace: pair.found.namespace.to_string(),
        id: pair.found.id.to_string(),
        verdict: "a pair without a bundle",
        stone: false,
        paired: true,
        actions: vec![
            Action::KillBelow,
            Action::KillCgroup,
            Action::RuncDelete,
            Action::Unmount,
            Action::RemoveCgroups,
            Action::RemoveRuncState,
            Action::UnlinkSocket,
        ],
        left_alone: None,
        outcome: None,
        notes: vec![pair.words()],
    };
    if args.write {
        case.outcome = Some(end_loose(&args.node, pair, deadline(args)));
    }
    case
}

/// Ends the container of such a pair, then the pair.
pub fn end_loose(node: &Node, pair: &Loose, until: Instant) -> Result<Report> {
    let found = &pair.found;
    let mut subject = Subject::unrecorded(
        found.id.clone(),
        found.namespace.clone(),
        found.bundle.clone(),
        &node.runc_root,
    );
    subject.below = pair.reaper.as_ref().map(|(reaper, _)| Below {
        reaper: reaper.clone(),
        spare: pair.shim.iter().map(|(shim, _)| shim.pid).collect(),
        loggers: Vec::new(),
    });
    let mut report = reconcile(
        &subject,
        observe(&subject),
        Goal::Gone,
        &node.kept.run,
        until,
    );
    let halves = pair.reaper.iter().chain(&pair.shim);
    kill::end(&halves.map(|(_, pidfd)| pidfd).collect::<Vec<_>>(), until)?;
    if let Some(socket) = &pair.socket
        && listen::is_deserted(socket, CONNECT)
    {
        match std::fs::remove_file(socket) {
            Ok(()) => report.done.push(Action::UnlinkSocket),
            Err(_) => report.left.push(Left::Socket(socket.clone())),
        }
    }
    Ok(report)
}

/// Records the end before anybody asks for it: containerd, when it is back, runs `delete` and
/// is told this. Where the journal cannot keep it, the file beside it does.
fn remember(found: &Found, report: &Report) -> Result<()> {
    let owner = found.owner();
    let life = ended::life(&found.bundle);
    let end = Ended {
        pid: report.pid,
        exit: report.exit,
    };
    let told = ended::read(&found.bundle, &owner).ok().flatten();
    if told.and_then(|line| Ended::parse(&line, life)).is_some() {
        return Ok(());
    }
    let why = match in_journal(found, &owner, &end) {
        Ok(true) => return Ok(()),
        Ok(false) => "its journal does not name init".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    ended::write(&found.bundle, &owner, &end.line(life)?)
        .context(why)
        .context("its end is not recorded")
}

/// Whether the journal says the same from now on.
fn in_journal(found: &Found, owner: &Owner, end: &Ended) -> Result<bool> {
    let path = found.bundle.join(names::JOURNAL);
    let replayed = vigil_journal::replay(&path, owner)?;
    if let Tail::Corrupt { at, .. } = replayed.tail {
        return Err(anyhow!("{} is corrupt at byte {at}", path.display()));
    }
    if replayed.header.owner.is_none() {
        let frames = replayed.records.iter();
        let task = Task::replay(frames.map(|record| (record.kind, &record.payload[..])))?;
        planned_for(&task, &found.bundle)?;
    }
    let opened = Journal::open(&path, owner, Settings::default())?;
    let frames = opened.replayed.records.iter();
    let mut task = Task::replay(frames.map(|record| (record.kind, &record.payload[..])))?;
    if let Some(record) = Record::of_end(&task, end.pid, end.exit, now()) {
        let mut journal = opened.journal;
        journal.append(KIND_RECORD, &record.encode()?)?;
        task.apply(&record);
    }
    // What was on record before stays.
    Ok(matches!(task.standing.phase, Phase::Deleted { .. }))
}

/// A container of which a tombstone is all there is.
fn entombed(args: &Args, stone: &Tombstone) -> Case {
    let mut case = Case {
        namespace: stone.namespace.clone(),
        id: stone.id.clone(),
        verdict: "tombstone",
        stone: true,
        paired: false,
        actions: Vec::new(),
        left_alone: None,
        outcome: None,
        notes: stone
            .left
            .iter()
            .map(|left| format!("left: {left}"))
            .collect(),
    };
    if let (Some(at_work), true) = (&stone.at_work, stone.worked_on().is_some()) {
        let pid = at_work.worker.pid;
        case.left_alone = Some(format!("a `delete`, process {pid}, is at work on it"));
        return case;
    }
    let subject = match stone.named() {
        Ok(subject) => subject,
        Err(e) => {
            case.left_alone = Some(chain(&e));
            return case;
        }
    };
    let _lock = match lock_of(&stone.bundle) {
        Ok(lock) => lock,
        Err(why) => {
            case.left_alone = Some(why);
            return case;
        }
    };
    let seen = observe(&subject);
    case.notes.extend(seen.notes.iter().cloned());
    let row = row(&seen.facts);
    case.verdict = row.map_or("no row", |row| row.name);
    case.actions = plan(
        row.map_or(Verdict::Impossible, |row| row.verdict),
        &seen.facts,
        Goal::Gone,
    );
    if args.write {
        let run = &args.node.kept.run;
        case.outcome = Some(sweep::take_up(run, stone, deadline(args)).map_err(Into::into));
    }
    case
}

/// The right to sweep. Nobody else's sweeper is at it then.
fn wait_for_sweeper(run: &Path, until: Instant) -> Result<Option<std::fs::File>> {
    loop {
        let only = sweep::only(run)?;
        let tombstones = run.join("tombstones");
        if only.is_some() || !tombstones.exists() || Instant::now() >= until {
            return Ok(only);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A tombstone's id may be in use again. Its cgroups and mounts are then
/// another life's, whose bundle has a lock.
fn lock_of(bundle: &Path) -> Result<Option<std::fs::File>, String> {
    if !bundle.exists() {
        return Ok(None);
    }
    let path = bundle.join(names::LOCK);
    if !path.exists() {
        return Err("its id is in use again; a shim is about to be started for it".to_owned());
    }
    match lock::hold(&path) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Held { .. }) => Err("its id is in use again".to_owned()),
        Err(e) => Err(chain(&e)),
    }
}

fn value(case: &Case) -> Value {
    let done = match &case.outcome {
        Some(Ok(done)) => Some(done),
        Some(Err(_)) | None => None,
    };
    json!({
        "namespace": case.namespace,
        "id": case.id,
        "verdict": case.verdict,
        "tombstone": case.stone,
        "pair_alive": case.paired,
        "plan": case.actions.iter().map(|action| words::action(*action)).collect::<Vec<_>>(),
        "left_alone": case.left_alone,
        "done": done.map(|report| report.done.iter().map(|a| words::action(*a)).collect::<Vec<_>>()),
        "left": done.map(|report| report.left.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "exit": done.map(|report| json::exit(report.exit)),
        "failed": match &case.outcome {
            Some(Err(e)) => Some(format!("{e:#}")),
            Some(Ok(_)) | None => None,
        },
        "notes": case.notes,
    })
}

fn people(cases: &[Case], notes: &[String], write: bool, colour: Colour) -> String {
    let mut text = String::new();
    let mut planned = false;
    // Writing to a String cannot fail.
    for case in cases {
        let stone = if case.stone {
            " (by its tombstone)"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{}/{}: {}{stone}",
            case.namespace, case.id, case.verdict
        );
        // The report has what was noticed last.
        if !matches!(case.outcome, Some(Ok(_))) {
            for note in &case.notes {
                let _ = writeln!(text, "  note: {note}");
            }
        }
        if let Some(why) = &case.left_alone {
            let why = format!("left alone: {why}");
            let _ = writeln!(text, "  {}", colour.paint(&why, Paint::Bad));
        }
        match &case.outcome {
            Some(Ok(done)) => told(&mut text, done, colour),
            Some(Err(e)) => {
                let why = format!("failed: {e:#}");
                let _ = writeln!(text, "  {}", colour.paint(&why, Paint::Bad));
            }
            None if case.actions.is_empty() => {
                if case.left_alone.is_none() {
                    let pair = if case.paired {
                        "; its pair is alive"
                    } else {
                        ""
                    };
                    let _ = writeln!(text, "  nothing to do{pair}");
                }
            }
            None => {
                planned = true;
                for (at, action) in case.actions.iter().enumerate() {
                    let _ = writeln!(text, "  {:>2}. {}", at + 1, words::action(*action));
                }
            }
        }
    }
    for note in notes {
        let _ = writeln!(text, "note: {note}");
    }
    if cases.is_empty() {
        let _ = writeln!(text, "no containers and no tombstones");
    }
    if planned && !write {
        let _ = writeln!(text, "nothing was changed; --write carries the plan out");
    }
    text
}

pub fn told(text: &mut String, report: &Report, colour: Colour) {
    for action in &report.done {
        let _ = writeln!(text, "  done: {}", words::action(*action));
    }
    for left in &report.left {
        let _ = writeln!(
            text,
            "  {}",
            colour.paint(&format!("left: {left}"), Paint::Bad)
        );
    }
    for note in &report.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    let source = match report.source {
        Source::Record => " (on record)",
        Source::Kernel => " (by the kernel)",
        Source::Killed => " (alive when it was killed here)",
        Source::Nobody => "",
    };
    let _ = writeln!(text, "  its end: {}{source}", report.exit.status);
}
