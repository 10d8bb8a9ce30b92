//! What containerd believes of its tasks, asked through `ctr`, with an end. It
//! speaks gRPC, which this tool does not link; and it may be down, which is
//! when this tool is needed most. Nothing is decided by what `ctr` prints
//! beyond the one word it has for a task's status.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::look::Look;
use crate::program;

/// For one namespace. containerd asks every shim in turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether to ask, and whom.
#[derive(Debug, Args)]
pub struct Ask {
    /// Ask containerd, through ctr(8), what it believes.
    #[arg(long)]
    pub ask: bool,
    /// containerd's socket, for `--ask`.
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock",
        env = "CONTAINERD_ADDRESS"
    )]
    pub address: PathBuf,
}

/// What containerd says of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Belief {
    /// It was not asked.
    NotAsked,
    /// It was, and did not say; why.
    Unknown(String),
    /// It has no such task.
    NoTask,
    /// Its word for it: `RUNNING`, `STOPPED` …
    Status(String),
}

impl Belief {
    /// How it reads in a column.
    pub fn words(&self) -> &str {
        match self {
            Belief::NotAsked => "not asked",
            Belief::Unknown(_) => "?",
            Belief::NoTask => "no task",
            Belief::Status(status) => status,
        }
    }

    /// What containerd has wrong, if it can be told.
    pub fn against(&self, look: &Look) -> Option<&'static str> {
        match self {
            Belief::NotAsked | Belief::Unknown(_) => None,
            Belief::NoTask => {
                (look.has_task() == Some(true)).then_some("containerd has no task of it")
            }
            Belief::Status(status) => match (status.as_str(), look.runs()) {
                ("STOPPED", Some(true)) => Some("containerd believes it stopped, and it runs"),
                ("RUNNING" | "PAUSED" | "PAUSING" | "CREATED", Some(false)) => {
                    Some("containerd believes it runs, and it does not")
                }
                (_, _) => None,
            },
        }
    }
}

/// Asks about one namespace at a time, each once.
#[derive(Debug)]
pub struct Asking<'a> {
    ask: &'a Ask,
    known: BTreeMap<String, Result<BTreeMap<String, String>, String>>,
}

impl<'a> Asking<'a> {
    /// Nobody was asked yet.
    pub fn new(ask: &'a Ask) -> Self {
        Self {
            ask,
            known: BTreeMap::new(),
        }
    }

    /// What is believed of a task.
    pub fn belief(&mut self, namespace: &str, id: &str) -> Belief {
        if !self.ask.ask {
            return Belief::NotAsked;
        }
        let ask = self.ask;
        let answer = self
            .known
            .entry(namespace.to_owned())
            .or_insert_with(|| ctr(ask, namespace));
        match answer {
            Err(why) => Belief::Unknown(why.clone()),
            Ok(tasks) => tasks
                .get(id)
                .map_or(Belief::NoTask, |status| Belief::Status(status.clone())),
        }
    }
}

/// Runs `ctr tasks ls`.
fn ctr(ask: &Ask, namespace: &str) -> Result<BTreeMap<String, String>, String> {
    let failed = |why: &dyn std::fmt::Display| format!("containerd was not heard: ctr: {why}");
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(&ask.address)
        .args(["--connect-timeout", "2s", "--namespace", namespace])
        .args(["tasks", "ls"]);
    let told = program::ask(&mut command, PATIENCE).map_err(|why| failed(&why))?;
    if !told.status.success() {
        let said = told.err.lines().last().unwrap_or_default();
        return Err(failed(&format!("{}: {said}", told.status)));
    }
    Ok(parse(&told.out))
}

/// `TASK PID STATUS`, one line each, below a line of titles.
fn parse(table: &str) -> BTreeMap<String, String> {
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (id, _pid, status) = (words.next()?, words.next()?, words.next()?);
            Some((id.to_owned(), status.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrs_table_is_read() {
        let table = "TASK    PID     STATUS    \nc1      4711    RUNNING\nc2  0  STOPPED\n\n";
        let tasks = parse(table);
        assert_eq!(tasks.len(), 2);
        assert_eq!(tasks["c1"], "RUNNING");
        assert_eq!(tasks["c2"], "STOPPED");
        assert!(parse("").is_empty());
    }
}
