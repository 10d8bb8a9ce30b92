//! One life: a story played once, with its blows.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vigil_lab::Kit;
use vigil_lab::by;
use vigil_lab::process::kill_marked;
use vigil_sys::points::Point;

use crate::script::{Blow, Script, Whom};
use crate::stage::Stage;
use crate::tracer::{Aim, Seen, Tracer};

/// What came of a life.
#[derive(Debug, Clone, Default)]
pub struct Lived {
    /// Of each act.
    pub seen: Vec<Seen>,
    /// Points at which a shim died.
    pub reached: Vec<Point>,
    /// Signals of which nobody knows whether they were delivered.
    pub unknown: u32,
    /// Act that took longest.
    pub slowest: Duration,
}

impl Lived {
    /// Blows that fell.
    #[must_use]
    pub fn blows(&self) -> u32 {
        let calls: u32 = self.seen.iter().map(|seen| seen.hits).sum();
        calls + u32::try_from(self.reached.len()).unwrap_or(0)
    }

    /// Calls of shims that took over.
    #[must_use]
    pub fn successor_calls(&self) -> u32 {
        self.seen
            .iter()
            .map(|seen| seen.successor)
            .max()
            .unwrap_or(0)
    }
}

/// Whose system calls are counted although none is a blow's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Nobody's.
    Nobodys,
    /// The shims'.
    Shims,
    /// The reaper's.
    Reapers,
}

/// Plays it under the id `id`.
pub fn live(kit: &Arc<Kit>, id: &str, script: &Script, count: Count) -> Result<Lived> {
    let points = kit.scratch.path(&format!("points-{id}"));
    fs::create_dir(&points)?;
    let mut lived = Lived::default();
    let played = play(kit, id, script, count, &points, &mut lived);
    // Whatever went wrong: the tracer's thread ends with those it traces.
    let _ = kill_marked(id, by(10.0));
    played.map(|()| lived)
}

fn play(
    kit: &Arc<Kit>,
    id: &str,
    script: &Script,
    count: Count,
    points: &std::path::Path,
    lived: &mut Lived,
) -> Result<()> {
    let mut stage = Stage::set(kit, id, points)?;
    // Only now: a shim that dies before it was ever ready fails its `start`, which is right.
    for blow in &script.blows {
        if let Blow::Point(point) = blow {
            fs::write(points.join(point.code()), "kill")?;
        }
    }
    let of_reaper = count == Count::Reapers || script.hits_the_reaper();
    let calls = count != Count::Nobodys
        || script
            .blows
            .iter()
            .any(|blow| !matches!(blow, Blow::Point(_)));
    let tracer = if of_reaper {
        Tracer::behind_the_reaper(&stage.pair)?
    } else {
        Tracer::behind(&stage.pair, calls)?
    };
    let mut aims = aims(script);
    for (at, act) in script.story.acts.iter().enumerate() {
        let due: Vec<Aim> = aims.remove(at);
        tracer.begin((!due.is_empty()).then_some(due));
        let began = Instant::now();
        let done = (act.run)(&mut stage);
        lived.slowest = lived.slowest.max(began.elapsed());
        if calls && done.is_ok() {
            tracer.quiet()?;
        }
        let seen = tracer.seen();
        lived.seen.push(seen);
        done.with_context(|| format!("{:?}; log: {}", lived.seen, stage.log()))
            .with_context(|| act.name)?;
    }
    tracer.end().context("tracing")?;
    let armed = script.blows.iter().filter_map(|blow| match blow {
        Blow::Point(point) => Some(*point),
        Blow::Call { .. } | Blow::Reaper { .. } | Blow::Takeover { .. } => None,
    });
    let reached = |point: &Point| points.join(point.code()).with_extension("reached").exists();
    lived.reached = armed.filter(reached).collect();
    lived.unknown = stage.unknown;
    let deaths: u32 = lived.seen.iter().map(|seen| seen.deaths).sum();
    let killed = lived.seen.last().is_some_and(|seen| seen.died > 256);
    ensure!(
        !stage.cut_off || killed,
        "a shim that left by itself did not answer Shutdown"
    );
    // A connection that the reaper had accepted and nobody else knew of goes with it.
    let unheard = u32::from(of_reaper && lived.blows() > 0);
    ensure!(
        stage.unheard <= unheard,
        "{} connections were lost",
        stage.unheard
    );
    stage.events(deaths)?;
    // The last shim leaves, too, unless it was killed while it left.
    let leavers = deaths - lived.blows().min(deaths);
    ensure!(
        leavers <= 1,
        "{deaths} shims died of {} blows; log: {}",
        lived.blows(),
        stage.log()
    );
    stage.nothing_left()?;
    fs::remove_dir_all(points)?;
    Ok(())
}

/// By act: where the shim is to be hit in it. A blow at a successor falls in the act of the
/// blow before it; after a point, in whichever act that is reached.
fn aims(script: &Script) -> Acts {
    let mut acts = Acts::default();
    let mut last = 0;
    for blow in &script.blows {
        let aim = match *blow {
            Blow::Point(_) => continue,
            Blow::Call { act, call, edge } | Blow::Reaper { act, call, edge } => {
                last = act;
                Aim {
                    whom: Whom::Serving,
                    call,
                    edge,
                    visited: script.story.acts[act].name == "visit",
                }
            }
            Blow::Takeover { call, edge } => Aim {
                whom: Whom::Successor,
                call,
                edge,
                visited: false,
            },
        };
        acts.0.push_back((last, aim));
    }
    acts
}

#[derive(Debug, Default)]
struct Acts(VecDeque<(usize, Aim)>);

impl Acts {
    fn remove(&mut self, act: usize) -> Vec<Aim> {
        let mut due = Vec::new();
        while self.0.front().is_some_and(|(at, _)| *at == act) {
            due.extend(self.0.pop_front().map(|(_, aim)| aim));
        }
        due
    }
}
