//! `vigil show`: all that is known of one container, each fact in the column
//! of its source: recorded by Vigil, observed on the host, published to
//! containerd. Then its story. Works with whatever files there are.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use vigil_host::chain;
use vigil_host::enact::{Line, Tombstone};
use vigil_journal::Tail;
use vigil_journal::pair::Incarnation;
use vigil_model::{Task, TaskEvent, Who};
use vigil_relay::cause::Cause;

use crate::ask::{Ask, Asking};
use crate::look::{Look, Telling, exit_waits};
use crate::place::{self, Name, Node};
use crate::processes::{self, Loose};
use crate::table::{Cell, Colour, Paint, render};
use crate::{Answer, Code, Exit, crashes, history, json, pair, timeline, words};

/// Arguments of `vigil show`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    name: Name,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    node: Node,
}

/// Tells all.
pub fn run(args: &Args) -> Result<Answer> {
    let Some(found) = args.node.find(&args.name)? else {
        return afterwards(args);
    };
    let belief = Asking::new(&args.ask).belief(found.namespace.as_str(), found.id.as_str());
    let look = Look::at(&found, &args.node.runc_root, &belief);
    let mut unread = Vec::new();
    let life = look.recorded.salt.map(|salt| format!("{salt:016x}"));
    let crashes = crashes::read(&args.node.kept.run, &mut unread, |note| {
        let own = note.id == found.id.as_str() && note.namespace == found.namespace.as_str();
        // An earlier container of this id is another one. Notes of version 1 do not say which
        // they are of; no container that says its life was served by who wrote them.
        own && (life.is_none() || note.salt == life)
    });
    let versions = Versions::of(&look);
    let text = if args.json {
        let mut value = json::task(&look);
        value["versions"] = json!({ "reaper": versions.reaper, "shim": versions.shim });
        value["timeline"] = story(&look);
        value["crashes"] = json!(crashes);
        json::text(&value)
    } else {
        let mut text = people(&look, &versions, &args.node.flags(), Colour::of_stdout());
        for note in unread {
            let _ = writeln!(text, "note: {note}");
        }
        text + &crashes::people(&crashes)
    };
    let code = if look.wrong().is_some() {
        Code::Wrong
    } else {
        Code::Done
    };
    Ok(Answer { text, code })
}

/// Its bundle is gone; what it left may not be.
fn afterwards(args: &Args) -> Result<Answer> {
    let id = &args.name.container;
    let namespace = args.name.namespace()?;
    let meant = |its_id: &str, its_namespace: &str| {
        its_id == id
            && namespace
                .as_ref()
                .is_none_or(|n| n.as_str() == its_namespace)
    };
    let mut notes = Vec::new();
    let run = &args.node.kept.run;
    let stones = Tombstone::all(run).unwrap_or_else(|e| vec![Err(e)]);
    let lines = Line::all(run);
    // What may not be read may be of it.
    let unread = stones.iter().filter_map(|stone| stone.as_ref().err());
    let unread = unread.chain(lines.iter().filter_map(|line| line.as_ref().err()));
    place::all_may_be_read(unread)?;
    let stones: Vec<Tombstone> = readable(stones, &mut notes)
        .into_iter()
        .filter(|stone| meant(&stone.id, &stone.namespace))
        .collect();
    let lines: Vec<Line> = readable(lines, &mut notes)
        .into_iter()
        .filter(|line| meant(&line.id, &line.namespace))
        .collect();
    let crashes = crashes::read(&args.node.kept.run, &mut notes, |note| {
        meant(&note.id, &note.namespace)
    });
    let loose: Vec<Loose> = processes::loose(&args.node)?
        .into_iter()
        .filter(|pair| meant(pair.found.id.as_str(), pair.found.namespace.as_str()))
        .collect();
    if stones.is_empty() && lines.is_empty() && crashes.is_empty() && loose.is_empty() {
        let mut error = anyhow!(
            "no bundle below {} and nothing in {} is of it{}",
            args.node.state.display(),
            args.node.kept.run.display(),
            // The namespace may come from the environment, and be nobody's intent.
            args.node.instead(&args.name)?
        );
        for note in notes {
            error = error.context(note);
        }
        return Err(error.context(id.clone()).context(Exit(Code::Nothing)));
    }
    let (state, instead) = (args.node.state.display(), args.node.instead(&args.name)?);
    let code = if !stones.is_empty() || !loose.is_empty() {
        Code::Wrong
    } else if instead.lives {
        Code::Nothing
    } else {
        Code::Done
    };
    if instead.lives {
        notes.push(format!("no bundle below {state}{instead}"));
    }
    if args.json {
        let value = json!({
            "bundle": null,
            "pairs": loose.iter().map(Loose::value).collect::<Vec<_>>(),
            "tombstones": stones,
            "history": lines,
            "crashes": crashes,
            "notes": notes,
        });
        let text = json::text(&value);
        return Ok(Answer { text, code });
    }
    let mut text = if instead.lives {
        format!("{id} is not here; what is told is of an earlier one\n")
    } else {
        format!("{id} is gone: no bundle below {state}{instead}\n")
    };
    for pair in &loose {
        let _ = writeln!(text, "in {}: {}", pair.found.namespace, pair.words());
    }
    for stone in &stones {
        let (namespace, left) = (&stone.namespace, stone.left.join("; "));
        let _ = writeln!(text, "tombstone in {namespace}, left of it: {left}");
    }
    if !lines.is_empty() || !notes.is_empty() {
        text.push('\n');
        text.push_str(&history::people(&lines, &notes));
    }
    text.push_str(&crashes::people(&crashes));
    Ok(Answer { text, code })
}

fn readable<T>(all: Vec<vigil_host::Result<T>>, notes: &mut Vec<String>) -> Vec<T> {
    all.into_iter()
        .filter_map(|one| one.map_err(|e| notes.push(chain(&e))).ok())
        .collect()
}

fn story(look: &Look) -> Value {
    let entries = look.recorded.replayed.as_ref().map(timeline::entries);
    let entries = entries.unwrap_or_default().into_iter();
    entries
        .map(|entry| json!({ "seq": entry.seq, "at": entry.at, "text": entry.text }))
        .collect()
}

/// What the two processes say that they are; `None`: it is not to be had.
struct Versions {
    reaper: Option<String>,
    shim: Option<String>,
}

impl Versions {
    /// Asked of the programs they run, whatever lies by that name now.
    fn of(look: &Look) -> Self {
        let recorded = look.recorded.pair.as_ref();
        let ask = |half: Option<pair::Half>, who: Option<&Incarnation>| {
            let alive = half.is_some_and(|half| half.alive == Some(true));
            who.filter(|_| alive)
                .and_then(|who| pair::version(who).ok())
        };
        Self {
            reaper: ask(look.pair.reaper, recorded.map(|pair| &pair.reaper)),
            shim: ask(look.pair.shim, recorded.and_then(|pair| pair.shim.as_ref())),
        }
    }

    fn words(&self, look: &Look) -> String {
        let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".to_owned());
        if look.pair.any_alive() {
            let (reaper, shim) = (shown(&self.reaper), shown(&self.shim));
            format!("reaper {reaper}, shim {shim}")
        } else {
            "-".to_owned()
        }
    }
}

fn people(look: &Look, versions: &Versions, flags: &str, colour: Colour) -> String {
    let mut text = String::new();
    let (namespace, id) = (&look.found.namespace, &look.found.id);
    let paint = if look.wrong().is_some() {
        Paint::Bad
    } else {
        Paint::Good
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "container   {id} in namespace {namespace}");
    let _ = writeln!(text, "bundle      {}", look.found.bundle.display());
    let _ = writeln!(
        text,
        "verdict     {}",
        colour.paint(look.judgement.words, paint)
    );
    if let Some(wrong) = look.wrong() {
        let _ = writeln!(text, "wrong       {}", colour.paint(wrong, Paint::Bad));
    }
    // The sentence is the row's; it fits where the row's name does.
    if let Some(row) = look.row
        && row.name == look.judgement.words
        && look.pair.life != pair::Life::Alive
    {
        let _ = writeln!(text, "how         {}", row.how);
    }
    let _ = writeln!(text, "journal     {}", journal(look));
    let _ = writeln!(text, "containerd  {}", look.belief.words());
    let halves = [look.pair.reaper, look.pair.shim];
    let alive = halves.iter().flatten();
    let alive = alive.filter(|half| half.alive == Some(true));
    let alive: Vec<String> = alive.map(|half| half.pid.to_string()).collect();
    if !alive.is_empty() {
        let (who, pids) = match alive.len() {
            1 => ("process", alive.concat()),
            _ => ("both,", alive.join(" ")),
        };
        let _ = writeln!(
            text,
            "to end it   vigil kill {id} -n {namespace}{flags}; by hand, SIGSTOP and then SIGKILL to {who} {pids}"
        );
    }
    text.push('\n');
    let titles = ["", "RECORDED", "OBSERVED", "PUBLISHED"];
    text.push_str(&render(&titles, &facts(look, versions), colour));
    for note in &look.notes {
        let _ = writeln!(text, "note: {note}");
    }
    let entries = look.recorded.replayed.as_ref().map(timeline::entries);
    if let Some(entries) = entries.filter(|entries| !entries.is_empty()) {
        text.push('\n');
        text.push_str(&timeline::people(&entries));
    }
    let story = look.recorded.takeovers.as_ref();
    let story = story.map(|told| &told.last).into_iter().flatten();
    for (at, one) in story.enumerate() {
        let cause = Cause::parse(&one.cause);
        let (when, why) = (words::moment(words::taken(one)), words::cause(&cause));
        let title = if at == 0 {
            "\ntakeovers   "
        } else {
            "            "
        };
        let _ = write!(text, "{title}{when}  {why}");
        let _ = match cause {
            Cause::Refused(says) | Cause::Looping(_, says) => writeln!(text, ": {says}"),
            _ => writeln!(text),
        };
    }
    text
}

fn journal(look: &Look) -> String {
    let Some(replayed) = &look.recorded.replayed else {
        return "?".to_owned();
    };
    let (generation, records) = (replayed.header.generation, replayed.records.len());
    let mut text = format!("generation {generation}, {records} records");
    match &replayed.tail {
        Tail::Clean => {}
        Tail::Torn { at, dropped } => {
            let _ = write!(text, "; torn at byte {at}, {dropped} bytes");
            if look.pair.life == pair::Life::Alive {
                text.push_str(" (or being written)");
            }
        }
        Tail::Corrupt { at, .. } => {
            let _ = write!(text, "; CORRUPT at byte {at}");
        }
    }
    text
}

/// One row a fact; `-` where a source has no say in it.
fn facts(look: &Look, versions: &Versions) -> Vec<Vec<Cell>> {
    let facts = &look.seen.facts;
    let task = look.recorded.task.as_ref();
    let of_task = |say: &dyn Fn(&Task) -> String| task.map_or_else(|| "?".to_owned(), say);
    let none = || "-".to_owned();
    let shown = |word: &str| words::shown(word).to_owned();
    let row = |name: &str, recorded: String, observed: String, published: String| {
        vec![
            Cell(name.to_owned(), Paint::Title),
            Cell::of(recorded),
            Cell::of(observed),
            Cell::of(published),
        ]
    };
    let published = look.published.as_ref();
    let last = |telling: &Telling| match &telling.last {
        Some(event) => words::event(&event.event),
        // Nothing was taken so far.
        None if telling.events == telling.waiting as u64 => none(),
        None => "? (cut from the journal)".to_owned(),
    };
    let phase = of_task(&|task| {
        let mut text = words::phase(&task.standing.phase).to_owned();
        for verb in task.standing.verbs() {
            let _ = write!(text, ", {verb} under way");
        }
        text
    });
    let init = match &look.seen.init {
        Some(init) => format!("process {} {}", init.pid, shown(words::init(facts.init))),
        None => shown(words::init(facts.init)),
    };
    let recorded_init = of_task(&|task| {
        let init = task.standing.phase.init();
        init.map_or_else(none, |init| format!("process {}", init.pid))
    });
    let group = match look.frozen {
        Some(freeze) => format!("{}, {}", words::group(facts.group), words::freeze(freeze)),
        None => shown(words::group(facts.group)),
    };
    let claims = match (task, look.subject.claims.len()) {
        (Some(_), 0) => none(),
        (Some(_), n) => format!("{n} claimed"),
        (None, _) => "?".to_owned(),
    };
    let pair_recorded = match &look.recorded.pair {
        Some(pair) => match &pair.shim {
            Some(shim) => format!("reaper {}, shim {}", pair.reaper.pid, shim.pid),
            None => format!("reaper {}", pair.reaper.pid),
        },
        None => "?".to_owned(),
    };
    let takeovers = look.recorded.takeovers.as_ref();
    let takeovers = takeovers.map_or_else(|| "?".to_owned(), |told| told.count.to_string());
    let socket = match &look.recorded.socket {
        None => "?".to_owned(),
        Some(_) if look.subject.socket.is_none() => "its pair's".to_owned(),
        Some(_) => shown(words::present(facts.socket)),
    };
    let boot = look.recorded.boot().map_or_else(
        || "?".to_owned(),
        // Enough to tell two apart.
        |boot| boot.0.chars().take(8).collect(),
    );
    let events = published.map_or_else(
        || "?".to_owned(),
        |telling| {
            let mut text = format!("{} told", telling.events - telling.waiting as u64);
            if telling.waiting > 0 {
                let _ = write!(text, ", {} waiting", telling.waiting);
            }
            if telling.dropped > 0 {
                let _ = write!(text, ", {} dropped", telling.dropped);
            }
            text
        },
    );
    vec![
        row(
            "task",
            phase,
            none(),
            published.map_or_else(|| "?".to_owned(), last),
        ),
        row("init", recorded_init, init, none()),
        row(
            "exit",
            recorded_exit(look),
            observed_exit(look),
            told_exit(look),
        ),
        row("execs", of_task(&|task| execs(task)), none(), none()),
        row(
            "events",
            of_task(&|task| format!("{}", task.next_seq - 1)),
            none(),
            events,
        ),
        row("pair", pair_recorded, words::pair(&look.pair), none()),
        row("versions", none(), versions.words(look), none()),
        row("takeovers", takeovers, none(), none()),
        row("boot", boot, shown(words::boot(facts.boot)), none()),
        row("cgroups", claims, group, none()),
        row(
            "runc",
            format!(
                "delete {}",
                words::runc_delete(facts.runc_delete, facts.runc_state)
            ),
            format!("state {}", shown(words::present(facts.runc_state))),
            none(),
        ),
        row(
            "mounts",
            of_task(&mounts),
            shown(words::present(facts.mounts)),
            none(),
        ),
        row(
            "socket",
            look.recorded
                .socket
                .as_ref()
                .map_or_else(|| "?".to_owned(), |path| path.display().to_string()),
            socket,
            none(),
        ),
    ]
}

fn mounts(task: &Task) -> String {
    let asked = task.plan.as_ref().map(|plan| plan.create.rootfs.len());
    asked.map_or_else(|| "-".to_owned(), |n| format!("{n} asked"))
}

fn execs(task: &Task) -> String {
    let there = task.standing.execs.len();
    let started = task.execs_started;
    format!("{there} there, {started} started so far")
}

fn recorded_exit(look: &Look) -> String {
    match &look.recorded.task {
        None => "?".to_owned(),
        Some(task) => task
            .standing
            .phase
            .exit()
            .map_or_else(|| "-".to_owned(), |exit| exit.status.to_string()),
    }
}

/// By the reaper, which is the eye here.
fn observed_exit(look: &Look) -> String {
    match &look.recorded.seen_end {
        Some(exit) => format!("{}, by the reaper", exit.status),
        None => "-".to_owned(),
    }
}

fn told_exit(look: &Look) -> String {
    let Some(task) = &look.recorded.task else {
        return "?".to_owned();
    };
    let waits = exit_waits(task);
    let last = look
        .published
        .as_ref()
        .and_then(|telling| telling.last.as_ref());
    match last.map(|event| &event.event) {
        _ if waits => "waiting".to_owned(),
        Some(
            TaskEvent::Exit {
                who: Who::Init,
                exit,
                ..
            }
            | TaskEvent::Delete { exit, .. },
        ) => exit.status.to_string(),
        _ => "-".to_owned(),
    }
}
