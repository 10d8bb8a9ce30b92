//! The same blow for all: SIGKILL to the shim of a running container. Either somebody
//! answers on the connection again, and it is measured when; or the connection ends, and
//! containerd's `delete` is run, which ends the container too.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api;
use vigil_lab::process::{Process, alive};
use vigil_sys::pidfd;

use crate::clock::Series;
use crate::contender::{Contender, Pair};
use crate::race::{Effort, number, turns};
use crate::table::{COLUMNS, OURS, Row, Unit};

/// What is written where no container survives.
const LOST: &str = "container lost";
/// What is written where one process is all there is.
const NONE: &str = "–";

/// Which of the two of ours is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Shim,
    Reaper,
}

/// What a blow did.
enum Blow {
    /// An answer came.
    Survived,
    /// The connection ended, and `delete` has ended the container.
    Lost,
}

/// Kills the shims of as many containers of each.
pub fn kills(racers: &mut [Contender; COLUMNS], effort: Effort) -> Result<Vec<Row>> {
    let mut answered: [Series; COLUMNS] = Default::default();
    // An answer comes from a shim, so when it comes there are two again.
    let mut healed = Series::default();
    let mut lost = [0; COLUMNS];
    for round in 0..effort.kills {
        for at in turns(round) {
            let racer = &mut racers[at];
            let name = racer.binary.name;
            let shims =
                blow(racer, Half::Shim, &mut answered[at]).with_context(|| name.to_owned())?;
            lost[at] += u64::from(matches!(shims, Blow::Lost));
            if at == OURS {
                let reapers =
                    blow(racer, Half::Reaper, &mut healed).context("the reaper's death")?;
                lost[at] += u64::from(matches!(reapers, Blow::Lost));
            }
        }
    }
    ensure!(
        lost[OURS] == 0,
        "{} containers of ours were lost",
        lost[OURS]
    );
    let row = |name: &str, percent| {
        let cells = std::array::from_fn(|at| answered[at].percentile(percent));
        let name = format!("shim killed: until the next answer, {name}");
        Row::new(name, Unit::Millis, cells).without(LOST)
    };
    let reaper = |name: &str, percent| {
        let cells = std::array::from_fn(|at| healed.percentile(percent).filter(|_| at == OURS));
        let name = format!("reaper killed: until two again and the next answer, {name}");
        Row::new(name, Unit::Millis, cells).without(NONE)
    };
    let lost = lost.map(|lost| Some(number(lost)));
    let name = format!(
        "containers lost in {} SIGKILLs of the shim, and as many of ours of the reaper",
        effort.kills
    );
    Ok(vec![
        row("median", 50).last(50.0),
        row("p99", 99),
        reaper("median", 50).last(50.0),
        reaper("p99", 99),
        Row::new(name, Unit::Count, lost).last(0.0),
    ])
}

fn blow(racer: &mut Contender, half: Half, answered: &mut Series) -> Result<Blow> {
    let mut pair = racer.running()?;
    let request = api::StateRequest {
        id: pair.bundle.id.clone(),
        ..Default::default()
    };
    let state: api::StateResponse = pair.line.call("State", &request)?;
    let init = i32::try_from(state.pid)?;
    let victim = half_of(racer, &pair, half)?;
    let fd = pidfd::open(u32::try_from(victim)?)?;
    let began = Instant::now();
    pidfd::send_signal(&fd, 9)?;
    let answer: Result<api::StateResponse> = pair.line.call("State", &request);
    let took = began.elapsed();
    if let Ok(state) = answer {
        let lives = state.status.value() == 2 && state.pid == u32::try_from(init)?;
        ensure!(lives && alive(init), "after the kill State says {state:?}");
        answered.push(took);
        racer.end_used(pair)?;
        return Ok(Blow::Survived);
    }
    racer.end_orphaned(pair)?;
    ensure!(!alive(init), "no shim, and its init lives on");
    Ok(Blow::Lost)
}

/// The process that serves, the only one or the child of the other; or that other.
fn half_of(racer: &Contender, pair: &Pair, half: Half) -> Result<i32> {
    let found = racer.processes_of(pair);
    let parent = |process: &Process| process.field("PPid")?.parse::<i32>().ok();
    let is_child = |process: &&Process| {
        let parent = parent(process);
        found.iter().any(|other| Some(other.pid) == parent)
    };
    let shim = found.iter().find(is_child).or(found.first());
    let shim = shim.context("no shim")?;
    match half {
        Half::Shim => Ok(shim.pid),
        Half::Reaper => parent(shim).context("no reaper"),
    }
}
