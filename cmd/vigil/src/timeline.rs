//! The story of a container as its journal has it: each line with its place in
//! the journal and its time. What cannot be read is a line of its own and
//! hides nothing else.

use std::fmt::Write as _;

use vigil_host::chain;
use vigil_journal::Replayed;
use vigil_model::{Change, KIND_RECORD, KIND_SNAPSHOT, Milestone, Moment, Record, Task, Who};

use crate::words::{clock, date, event};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Place in the journal.
    pub seq: u64,
    /// When, if that is known.
    pub at: Option<Moment>,
    /// What.
    pub text: String,
}

/// Every line of a journal, in order.
pub fn entries(replayed: &Replayed) -> Vec<Entry> {
    let mut entries = Vec::new();
    for record in &replayed.records {
        let seq = record.seq;
        let mut add = |at, text| entries.push(Entry { seq, at, text });
        match record.kind {
            KIND_RECORD => match Record::decode(&record.payload) {
                Ok(step) => {
                    for text in step.changes.iter().filter_map(tell) {
                        add(Some(step.at), text);
                    }
                    for published in &step.publish {
                        let text = format!("tell containerd: {}", event(&published.event));
                        add(Some(step.at), text);
                    }
                }
                Err(e) => add(None, format!("(not to be read: {})", chain(&e))),
            },
            KIND_SNAPSHOT => match Task::decode(&record.payload) {
                Ok(task) => {
                    for (at, milestone) in &task.story {
                        add(Some(*at), passed(milestone));
                    }
                    let execs = task.execs_started;
                    add(
                        None,
                        format!("(the journal was cut here; {execs} execs so far)"),
                    );
                }
                Err(e) => add(None, format!("(not to be read: {})", chain(&e))),
            },
            kind => add(None, format!("(a record of unknown type {kind})")),
        }
    }
    entries
}

/// The lines for people, with a line for each new day.
pub fn people(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut day = String::new();
    for Entry {
        seq,
        at,
        text: what,
    } in entries
    {
        // Writing to a String cannot fail.
        let time = match at {
            Some(at) => {
                let today = date(*at);
                if today != day {
                    let _ = writeln!(text, "      {today} UTC");
                    day = today;
                }
                clock(*at)
            }
            None => " ".repeat(12),
        };
        let _ = writeln!(text, "{seq:>4}  {time}  {what}");
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
        Change::CreateNotUndone => "create failed and could not be undone".to_owned(),
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
        Change::Idle
        | Change::Updated
        | Change::Took(_)
        | Change::Signalled { .. }
        | Change::Acked { .. }
        | Change::Drained(_) => {
            return None;
        }
        Change::Exited { who, exit } => format!("{who} ended: {}", exit.status),
        Change::RestGone => "nothing else of it is left".to_owned(),
        Change::Told(who) => match who {
            Who::Init => "end of init told".to_owned(),
            Who::Exec(exec) => format!("end of exec {exec} told"),
        },
        Change::Deleted => "deleted".to_owned(),
        Change::BroughtToNothing { .. } => "brought to nothing without its shim".to_owned(),
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
