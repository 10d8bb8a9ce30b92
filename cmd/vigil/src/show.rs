//! `vigil show`: the story of one container, each line with its time and its
//! source. Reads only; a journal being written may show a torn last record.

use std::io::Write;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use vigil_journal::{Tail, names, replay};
use vigil_model::{
    Change, KIND_RECORD, KIND_SNAPSHOT, Milestone, Moment, Record, Task, TaskEvent, Who,
};

use crate::place::Place;

/// Arguments of `vigil show`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

/// Prints the story.
pub fn run(args: &Args) -> Result<()> {
    let bundle = args.place.bundle();
    let path = bundle.join(names::JOURNAL);
    let replayed =
        replay(&path).with_context(|| format!("no story of {}", args.place.container))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "bundle     {}", bundle.display())?;
    writeln!(
        out,
        "journal    generation {}, {} records",
        replayed.header.generation,
        replayed.records.len()
    )?;
    match &replayed.tail {
        Tail::Clean => {}
        Tail::Torn { at, dropped } => {
            writeln!(out, "           torn at byte {at}, {dropped} bytes")?;
        }
        Tail::Corrupt { at, damage, .. } => {
            writeln!(out, "           CORRUPT at byte {at}: {damage:?}")?;
        }
    }
    let frames = || {
        replayed
            .records
            .iter()
            .map(|record| (record.kind, &record.payload[..]))
    };
    let task = Task::replay(frames()).context("the journal holds what this version cannot read")?;
    writeln!(out, "recorded   {}", standing(&task))?;
    writeln!(out)?;
    for record in &replayed.records {
        match record.kind {
            KIND_RECORD => {
                let step = Record::decode(&record.payload)?;
                let time = clock(step.at);
                for change in &step.changes {
                    if let Some(line) = tell(change) {
                        writeln!(out, "{:>4}  {time}  {line}", record.seq)?;
                    }
                }
                for published in &step.publish {
                    writeln!(
                        out,
                        "{:>4}  {time}  tell containerd: {}",
                        record.seq,
                        told(&published.event)
                    )?;
                }
            }
            KIND_SNAPSHOT => {
                let task = Task::decode(&record.payload)?;
                for (at, milestone) in &task.story {
                    writeln!(
                        out,
                        "{:>4}  {}  {}",
                        record.seq,
                        clock(*at),
                        passed(milestone)
                    )?;
                }
                let execs = task.execs_started;
                writeln!(
                    out,
                    "{:>4}  (the journal was cut here; {execs} execs so far)",
                    record.seq
                )?;
            }
            kind => writeln!(out, "{:>4}  record of unknown type {kind}", record.seq)?,
        }
    }
    Ok(())
}

fn standing(task: &Task) -> String {
    use std::fmt::Write as _;

    use vigil_model::Phase;
    let mut text = match &task.standing.phase {
        Phase::Empty => "no container".to_owned(),
        Phase::Creating => "being created".to_owned(),
        Phase::Created { init: None } => "to be restored from a checkpoint".to_owned(),
        Phase::Created { init: Some(init) } => format!("created, init {}", init.pid),
        Phase::Running { init } => format!("running, init {}", init.pid),
        Phase::Paused { init } => format!("paused, init {}", init.pid),
        Phase::Stopped { exit, told, .. } => {
            format!(
                "stopped, {}{}",
                exit.status,
                if *told { "" } else { ", not told yet" }
            )
        }
        Phase::Deleted { exit, .. } => format!("deleted, {}", exit.status),
    };
    if let Some(verb) = task.standing.busy {
        let _ = write!(text, ", {verb} under way");
    }
    if !task.standing.execs.is_empty() {
        let _ = write!(text, ", {} execs", task.standing.execs.len());
    }
    if !task.outbox.is_empty() {
        let _ = write!(text, ", {} events wait for containerd", task.outbox.len());
    }
    text
}

fn tell(change: &Change) -> Option<String> {
    Some(match change {
        Change::Creating(plan) => {
            let claims: Vec<&str> = plan
                .claims
                .iter()
                .map(|claim| claim.path.as_str())
                .collect();
            format!(
                "create asked; cgroups {}",
                claims.first().unwrap_or(&"unknown")
            )
        }
        Change::Created {
            init: Some(init), ..
        } => format!("created: init is {}", init.pid),
        Change::Created { init: None, .. } => "created: to be restored by start".to_owned(),
        Change::CreateUndone => "create failed and was undone".to_owned(),
        Change::Busy(verb) => format!("{verb} asked"),
        Change::Started { .. } => "started".to_owned(),
        Change::Frozen => "paused".to_owned(),
        Change::Thawed => "resumed".to_owned(),
        Change::ExecAdded { exec, .. } => format!("exec {exec} added"),
        Change::ExecStarting(exec) => format!("exec {exec}: start asked"),
        Change::ExecStarted { exec, process } => format!("exec {exec} runs as {}", process.pid),
        Change::ExecFailed(exec) => format!("exec {exec} could not be started"),
        Change::ExecDeleted(exec) => format!("exec {exec} deleted"),
        Change::Signalling(signal) => {
            let all = if signal.all {
                " and everything with it"
            } else {
                ""
            };
            format!("signal {} for {}{all}", signal.signal, signal.who)
        }
        Change::Idle | Change::Signalled { .. } | Change::Acked { .. } | Change::Drained(_) => {
            return None;
        }
        Change::Exited { who, exit } => format!("{who} ended: {}", exit.status),
        Change::RestGone => "nothing else of it is left".to_owned(),
        Change::Told(who) => match who {
            Who::Init => "end of init told".to_owned(),
            Who::Exec(exec) => format!("end of exec {exec} told"),
        },
        Change::Deleted => "deleted".to_owned(),
        Change::Oom { count } => format!("out of memory: {count} killed so far"),
        Change::EventDropped => "an event was dropped: the outbox is full".to_owned(),
        Change::Ending => "shutdown asked".to_owned(),
    })
}

fn passed(milestone: &Milestone) -> String {
    match milestone {
        Milestone::Asked => "create asked".to_owned(),
        Milestone::Created(pid) => format!("created: init is {pid}"),
        Milestone::Started => "started".to_owned(),
        Milestone::Paused => "paused".to_owned(),
        Milestone::Resumed => "resumed".to_owned(),
        Milestone::Signalled(signal) => format!("signal {signal} for init"),
        Milestone::Oom(count) => format!("out of memory: {count} killed so far"),
        Milestone::Ended(exit) => format!("init ended: {}", exit.status),
    }
}

fn told(event: &TaskEvent) -> String {
    match event {
        TaskEvent::Create { pid, .. } => format!("create, pid {pid}"),
        TaskEvent::Start { pid } => format!("start, pid {pid}"),
        TaskEvent::ExecAdded { exec } => format!("exec {exec} added"),
        TaskEvent::ExecStarted { exec, pid } => format!("exec {exec} started, pid {pid}"),
        TaskEvent::Oom => "out of memory".to_owned(),
        TaskEvent::Paused => "paused".to_owned(),
        TaskEvent::Resumed => "resumed".to_owned(),
        TaskEvent::Exit { who, exit, .. } => format!("exit of {who}, {}", exit.status),
        TaskEvent::Delete { exit, .. } => format!("delete, {}", exit.status),
    }
}

/// Time of day in UTC; the date is the boot's business.
fn clock(at: Moment) -> String {
    let day = at.secs.rem_euclid(86_400);
    let (hours, minutes, seconds) = (day / 3600, day / 60 % 60, day % 60);
    format!(
        "{hours:02}:{minutes:02}:{seconds:02}.{:03}",
        at.nanos / 1_000_000
    )
}
