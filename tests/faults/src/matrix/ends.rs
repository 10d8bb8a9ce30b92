//! What the client ends with: containerd's events and the answers of `delete`, held
//! against the row.

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use serde_json::Value;

/// An event containerd told of container `c`.
#[derive(Debug, Clone)]
pub struct Told {
    /// `/tasks/exit`
    pub topic: String,
    /// Its content.
    pub content: Value,
}

impl Told {
    fn status(&self) -> u64 {
        self.content["exit_status"].as_u64().unwrap_or(0)
    }
}

/// One run of `delete`: exit code, milliseconds, answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// How long it took.
    pub millis: u64,
    /// stdout, decoded, if it exited 0.
    pub answer: Option<DeleteResponse>,
}

/// Everything that was seen of container `c`.
#[derive(Debug, Default)]
pub struct Seen {
    /// In order. Empty and meaningless when containerd died too.
    pub events: Vec<Told>,
    /// Whether containerd lived to tell them.
    pub heard: bool,
    /// Each call of `delete` by containerd: one run, or two when the bundle was still there.
    pub deletes: Vec<Vec<Run>>,
    /// The number of init, if it came that far.
    pub init: Option<u32>,
    /// Whether the client was told that what it asked was done.
    pub client_ok: Option<bool>,
}

impl Seen {
    fn told(&self, topic: &str) -> Vec<&Told> {
        let is = |t: &&Told| t.topic == topic;
        self.events.iter().filter(is).collect()
    }

    /// Exits of init.
    fn exits(&self) -> Vec<&Told> {
        let mut exits = self.told("/tasks/exit");
        exits.retain(|t| t.content["id"] == t.content["container_id"]);
        exits
    }

    fn last_answers(&self) -> impl Iterator<Item = &DeleteResponse> {
        self.deletes
            .iter()
            .flatten()
            .filter_map(|run| run.answer.as_ref())
    }
}

/// What a shim's death that another made good leaves of traces: none, but that the one
/// event whose acknowledgement was in flight may come twice.
pub fn as_if_nothing_had_been(seen: &Seen, by_itself: bool) -> Result<()> {
    let mut events = seen.events.clone();
    events.dedup_by(|a, b| a.topic == b.topic && a.content == b.content);
    ensure!(
        events.len() + 1 >= seen.events.len(),
        "more than one event came twice"
    );
    let once = Seen {
        events,
        ..Seen::default()
    };
    for topic in ["/tasks/create", "/tasks/start", "/tasks/delete"] {
        // Those before the gate were told before we listened for them to be counted.
        ensure!(once.told(topic).len() <= 1, "{topic} more than once");
    }
    let exits = once.exits();
    let status = if by_itself { 7 } else { 137 };
    ensure!(
        exits.len() == 1 && exits[0].status() == status,
        "one exit with {status} expected"
    );
    ensure!(!once.told("/tasks/delete").is_empty(), "no end of the task");
    ensure!(
        seen.last_answers()
            .all(|said| u64::from(said.exit_status) == status),
        "delete says something else"
    );
    Ok(())
}

/// Reads a line of `NAME.deletes`: code, milliseconds, hex; once or twice.
pub fn runs(line: &str) -> Result<Vec<Run>> {
    let words: Vec<&str> = line.split(' ').collect();
    words
        .chunks(3)
        .map(|run| {
            let [code, millis, hex] = run else {
                bail!("half a line: {line:?}");
            };
            let code = code.parse()?;
            Ok(Run {
                code,
                millis: millis.parse()?,
                answer: (code == 0).then(|| answer(hex)).transpose()?,
            })
        })
        .collect()
}

fn answer(hex: &str) -> Result<DeleteResponse> {
    let hex = hex.trim_start_matches('-');
    let bytes: Result<Vec<u8>, _> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16))
        .collect();
    DeleteResponse::parse_from_bytes(&bytes.context("answer of delete")?)
        .context("answer of delete")
}

/// What holds for every row: `delete` in time, successful unless it was killed itself,
/// and twice the same.
pub fn always(seen: &Seen, dies_itself: bool) -> Result<()> {
    for call in &seen.deletes {
        let mut answers = Vec::new();
        for (number, run) in call.iter().enumerate() {
            ensure!(run.millis < 5000, "delete took {} ms", run.millis);
            let killed = number == 0 && dies_itself && run.code == 137;
            ensure!(run.code == 0 || killed, "delete exited {}", run.code);
            answers.extend(run.answer.as_ref());
        }
        if let [first, second] = answers[..] {
            ensure!(first == second, "delete said {first}, then {second}");
        }
    }
    if seen.heard {
        let deleted = seen.told("/tasks/delete");
        ensure!(deleted.len() <= 1, "told of its deletion {deleted:?}");
        if let Some(last) = seen.events.last()
            && !deleted.is_empty()
        {
            ensure!(
                last.topic == "/tasks/delete",
                "told after its deletion: {last:?}"
            );
        }
    }
    Ok(())
}

/// The client got an error; nobody was told of a task.
pub fn nothing_told(seen: &Seen) -> Result<()> {
    ensure!(seen.client_ok == Some(false), "the client was told it runs");
    ensure!(seen.events.is_empty(), "told of {:?}", seen.events);
    Ok(())
}

/// The client got an error; at most containerd's own pair of exit and deletion; it names
/// init if there was one.
pub fn no_task(seen: &Seen) -> Result<()> {
    ensure!(seen.client_ok == Some(false), "the client was told it runs");
    for topic in ["/tasks/create", "/tasks/start", "/tasks/exec-added"] {
        ensure!(seen.told(topic).is_empty(), "told of {topic}");
    }
    ensure!(
        seen.exits().len() <= 1,
        "told of its exit {:?}",
        seen.exits()
    );
    if let Some(init) = seen.init {
        for answer in seen.last_answers() {
            ensure!(
                answer.pid == init,
                "delete names process {}, not {init}",
                answer.pid
            );
        }
    }
    Ok(())
}

/// The same, and it was we who killed init.
pub fn created_then_killed(seen: &Seen) -> Result<()> {
    no_task(seen)?;
    for answer in seen.last_answers() {
        ensure!(
            answer.exit_status == 137,
            "delete says {}",
            answer.exit_status
        );
    }
    Ok(())
}

/// Exactly one pair, which says 137.
pub fn killed(seen: &Seen) -> Result<()> {
    ensure!(
        seen.client_ok == Some(false),
        "the client was told it is done"
    );
    one_end(seen, 137, 1)
}

/// Told once: the true end.
pub fn exited_7(seen: &Seen) -> Result<()> {
    one_end(seen, 7, 1)
}

/// The shim had told the true end; containerd may say it once more.
pub fn exited_7_again(seen: &Seen) -> Result<()> {
    one_end(seen, 7, 2)
}

/// The kernel's word for it may be lost with the reaper; then nobody says otherwise.
pub fn exited_7_or_unknown(seen: &Seen) -> Result<()> {
    one_end(seen, 7, 1).or_else(|_| one_end(seen, 255, 1))
}

/// It was deleted before the pair died; nothing more is told.
pub fn deleted_7(seen: &Seen) -> Result<()> {
    for answer in seen.last_answers() {
        ensure!(
            answer.exit_status == 7,
            "delete says {}",
            answer.exit_status
        );
    }
    if seen.heard {
        ensure!(
            seen.exits().len() == 1,
            "told of its exit {:?}",
            seen.exits()
        );
        ensure!(seen.exits()[0].status() == 7, "{:?}", seen.exits());
        ensure!(seen.told("/tasks/delete").len() == 1, "{:?}", seen.events);
    }
    Ok(())
}

fn one_end(seen: &Seen, status: u32, times: usize) -> Result<()> {
    ensure!(
        seen.last_answers().next().is_some(),
        "no answer of delete: {:?}",
        seen.deletes
    );
    for answer in seen.last_answers() {
        let said = answer.exit_status;
        ensure!(said == status, "delete says {said}, not {status}");
        if let Some(init) = seen.init {
            ensure!(
                answer.pid == init,
                "delete names process {}, not {init}",
                answer.pid
            );
        }
        ensure!(answer.exited_at.is_some(), "delete does not say when");
    }
    if seen.heard {
        let exits = seen.exits();
        ensure!(
            (1..=times).contains(&exits.len()),
            "told of its exit {exits:?}"
        );
        for exit in exits {
            ensure!(
                exit.status() == u64::from(status),
                "told of {exit:?}, not {status}"
            );
        }
        ensure!(seen.told("/tasks/delete").len() == 1, "{:?}", seen.events);
    }
    Ok(())
}
