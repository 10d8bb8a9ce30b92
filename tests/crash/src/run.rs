//! Which lives are lived: every point so often, every system call or a spread sample of
//! them; several at a time. Counts what was reached, since a blow that never falls proves
//! nothing.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vigil_lab::{Kit, ShimBinary};
use vigil_sim::rng::Rng;
use vigil_sys::points::Point;

use crate::life::{Count, Lived, live};
use crate::script::{Blow, Edge, Script};
use crate::story::{STORIES, Story};

/// Points no shim that serves comes past, and why.
pub const ELSEWHERE: &[(Point, &str)] = &[
    (Point::StartBeforeBind, "in `start`, before there is a pair"),
    (Point::AddressNotPrinted, "in `start`, after the pair is up"),
    (Point::DeathNotRecorded, "in the reaper"),
    (Point::DeathNotReaped, "in the reaper"),
    (Point::DeleteBegun, "in `delete`"),
    (Point::DeleteLocked, "in `delete`"),
    (Point::DeleteNotRecorded, "in `delete`"),
    (Point::DeleteNotPrinted, "in `delete`"),
];

/// Where a shim dies before another takes over and dies too: instants with something under
/// way, and one with nothing.
const BASES: &[(&str, &str)] = &[
    ("life", "@S4"),
    ("life", "@S5"),
    ("life", "@S7b"),
    ("life", "@S9"),
    ("life", "@S11"),
    ("life", "@S12"),
    ("life", "@S13"),
    ("life", "@S14"),
    ("exec", "@E1"),
    ("exec", "@E2"),
    ("exec", "@E3"),
    ("terminal", "@E1"),
    ("changes", "@P1"),
    ("exec", "echo.1b"),
];

/// A call's number that no act and no takeover comes to.
const NEVER: u32 = 1 << 30;

/// How much of it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// How often each point.
    pub rounds: u32,
    /// Every so many-th system call of the acts; 0 for none.
    pub every: u32,
    /// The same of takeovers.
    pub takeovers: u32,
    /// The same of the reaper's, while a shim serves.
    pub reapers: u32,
    /// Lives at a time.
    pub workers: u32,
    /// Where samples begin, and which points meet.
    pub seed: u64,
    /// Lives that may fail before it is no use to go on.
    pub enough: usize,
}

/// What came of all lives.
#[derive(Debug, Default)]
pub struct Tally {
    lives: u32,
    blows: u32,
    missed: u32,
    unknown: u32,
    slowest: Duration,
    reached: BTreeMap<Point, u32>,
    /// What was wrong, each with the script that shows it.
    pub wrong: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} lives, {} killed ({} blows came too late, or were spared), {} failed; \
             {} signals of unknown fate; the slowest act took {} ms",
            self.lives,
            self.blows,
            self.missed,
            self.wrong.len(),
            self.unknown,
            self.slowest.as_millis(),
        )
    }
}

/// Lives all of these, each under a fresh id, each worker on a kit of its own.
pub fn live_all(shim: &ShimBinary, scripts: Vec<Script>, wanted: &Wanted) -> Result<Tally> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let queue = Mutex::new(VecDeque::from(scripts));
    let tally = Mutex::new(Tally::default());
    let work = || -> Result<()> {
        let mut kit = Arc::new(Kit::new(shim)?);
        loop {
            let next = queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(script) = next else { break };
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            // Ends in a letter: none is the beginning of another.
            let id = format!("k{}n{number}e", std::process::id());
            let lived = live(&kit, &id, &script, Count::Nobodys);
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.add(&script, &lived);
            if lived.is_err() {
                // What is left of it is the scratch's to remove, and not the next life's.
                drop(std::mem::replace(&mut kit, Arc::new(Kit::new(shim)?)));
            }
            if tally.wrong.len() >= wanted.enough {
                queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
        finish(kit).context("after all lives")
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..wanted.workers.max(1))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().ok().context("a worker panicked")?)
    })?;
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Nothing of any of its lives may be left.
fn finish(kit: Arc<Kit>) -> Result<()> {
    let kit = Arc::into_inner(kit).context("somebody is still on the stage")?;
    kit.finish()
}

impl Tally {
    fn add(&mut self, script: &Script, lived: &Result<Lived>) {
        self.lives += 1;
        match lived {
            Ok(lived) => {
                let blows = u32::try_from(script.blows.len()).unwrap_or(0);
                self.blows += lived.blows();
                self.missed += blows - lived.blows().min(blows);
                self.unknown += lived.unknown;
                self.slowest = self.slowest.max(lived.slowest);
                for point in &lived.reached {
                    *self.reached.entry(*point).or_default() += 1;
                }
            }
            Err(error) => {
                let wrong = format!("{script}: {error:#}");
                eprintln!("WRONG: {wrong}");
                self.wrong.push(wrong);
            }
        }
    }

    /// Takes another's numbers in.
    pub fn join(&mut self, other: Tally) {
        self.lives += other.lives;
        self.blows += other.blows;
        self.missed += other.missed;
        self.unknown += other.unknown;
        self.slowest = self.slowest.max(other.slowest);
        for (point, times) in other.reached {
            *self.reached.entry(point).or_default() += times;
        }
        self.wrong.extend(other.wrong);
    }

    /// Points a shim comes past that it did not reach `rounds` times, each as often as it lacks.
    pub fn missing(&self, rounds: u32) -> Vec<Point> {
        let lacks = |point: &Point| {
            let times = self.reached.get(point).copied().unwrap_or(0);
            rounds.saturating_sub(times) as usize
        };
        let all = shims_points().map(|point| vec![point; lacks(&point)]);
        all.flatten().collect()
    }
}

fn story(name: &str) -> Result<&'static Story> {
    let found = STORIES.iter().find(|story| story.name == name);
    found.with_context(|| format!("no story {name}"))
}

/// Points a shim that serves, or takes over, comes past.
pub fn shims_points() -> impl Iterator<Item = Point> {
    let elsewhere = |point: &Point| ELSEWHERE.iter().any(|(other, _)| other == point);
    Point::ALL
        .iter()
        .copied()
        .filter(move |point| !elsewhere(point))
}

/// Every point so often, two in a life, with other neighbours each round.
pub fn points(wanted: &Wanted) -> Result<Vec<Script>> {
    let mut rng = Rng::new(wanted.seed);
    let whole = story("whole")?;
    let mut scripts = Vec::new();
    for _ in 0..wanted.rounds {
        let mut left: Vec<Point> = shims_points().collect();
        // A shim that takes over comes past this one, so another has to die before.
        left.retain(|point| *point != Point::PairNotReady);
        let mut first = Some(Point::PairNotReady);
        while !left.is_empty() {
            let mut take = || {
                let at = rng.below(u32::try_from(left.len()).unwrap_or(1));
                (!left.is_empty()).then(|| left.swap_remove(at as usize))
            };
            let pair = [first.take().or_else(&mut take), take()];
            scripts.push(Script {
                story: whole,
                blows: pair.into_iter().flatten().map(Blow::Point).collect(),
            });
        }
    }
    Ok(scripts)
}

/// Every point so often, counted: what one point's death made another unreachable by is
/// tried again by itself.
pub fn all_points(shim: &ShimBinary, wanted: &Wanted) -> Result<Tally> {
    let mut tally = chapter(shim, "points", points(wanted)?, wanted)?;
    let missing = tally.missing(wanted.rounds);
    if tally.wrong.is_empty() && !missing.is_empty() {
        let alone = missing.into_iter().map(alone).collect::<Result<_>>()?;
        tally.join(chapter(shim, "points once more", alone, wanted)?);
        let missing = tally.missing(wanted.rounds);
        ensure!(
            missing.is_empty(),
            "points not reached {} times: {missing:?}",
            wanted.rounds
        );
    }
    Ok(tally)
}

fn alone(point: Point) -> Result<Script> {
    let mut blows = vec![Blow::Point(point)];
    if point == Point::PairNotReady {
        blows.insert(0, Blow::Point(Point::BeforeCreate));
    }
    let story = story("whole")?;
    Ok(Script { story, blows })
}

/// Every `every`-th of these, from an offset on.
fn sample<T>(all: Vec<T>, every: u32, seed: u64) -> Vec<T> {
    let every = every.max(1) as usize;
    let offset = Rng::new(seed).draw() % every as u64;
    let offset = usize::try_from(offset).unwrap_or(0);
    all.into_iter().skip(offset).step_by(every).collect()
}

/// Counts the calls of a life, and says how many they are.
fn counted(shim: &ShimBinary, script: &Script, whose: Count) -> Result<Lived> {
    let kit = Arc::new(Kit::new(shim)?);
    let id = format!("k{}c{}e", std::process::id(), script.story.name);
    let lived = live(&kit, &id, script, whose).with_context(|| script.to_string())?;
    finish(kit)?;
    Ok(lived)
}

/// Before and after each call of each act, two blows in a life.
pub fn calls(shim: &ShimBinary, wanted: &Wanted) -> Result<Vec<Script>> {
    let mut scripts = Vec::new();
    if wanted.every == 0 {
        return Ok(scripts);
    }
    for story in STORIES {
        let none = Script {
            story,
            blows: Vec::new(),
        };
        if story.acts.iter().all(|act| !act.tried) {
            continue;
        }
        let lived = counted(shim, &none, Count::Shims)?;
        let mut all = Vec::new();
        for (act, (of, seen)) in story.acts.iter().zip(&lived.seen).enumerate() {
            if !of.tried {
                continue;
            }
            println!("  {} {}: {} calls", story.name, of.name, seen.serving);
            for call in 1..=seen.serving {
                for edge in [Edge::Before, Edge::After] {
                    all.push(Blow::Call { act, call, edge });
                }
            }
        }
        let chosen = sample(all, wanted.every, wanted.seed);
        scripts.extend(in_pairs(story, chosen));
    }
    Ok(scripts)
}

/// An early act's blow with a late one's, so that all fall in half as many lives.
fn in_pairs(story: &'static Story, blows: Vec<Blow>) -> Vec<Script> {
    let act = |blow: &Blow| match blow {
        Blow::Call { act, .. } => *act,
        Blow::Point(_) | Blow::Reaper { .. } | Blow::Takeover { .. } => 0,
    };
    let half = blows.len().div_ceil(2);
    let mut late = blows;
    let early: Vec<Blow> = late.drain(..half).collect();
    let mut late = late.into_iter();
    let mut scripts = Vec::new();
    for first in early {
        let (mut together, then) = (vec![first], late.next());
        match then {
            Some(then) if act(&then) == act(&first) => scripts.push(vec![then]),
            Some(then) => together.push(then),
            None => {}
        }
        scripts.push(together);
    }
    let script = |blows| Script { story, blows };
    scripts.into_iter().map(script).collect()
}

/// Before and after each call of the reaper in each act, one in a life.
pub fn reapers(shim: &ShimBinary, wanted: &Wanted) -> Result<Vec<Script>> {
    let mut all = Vec::new();
    if wanted.reapers == 0 {
        return Ok(all);
    }
    for story in STORIES {
        let blows = Vec::new();
        if story.acts.iter().all(|act| !act.tried) {
            continue;
        }
        let lived = counted(shim, &Script { story, blows }, Count::Reapers)?;
        for (act, (of, seen)) in story.acts.iter().zip(&lived.seen).enumerate() {
            if !of.tried {
                continue;
            }
            println!(
                "  {} {}: {} calls of the reaper",
                story.name, of.name, seen.serving
            );
            for call in 1..=seen.serving {
                for edge in [Edge::Before, Edge::After] {
                    let blows = vec![Blow::Reaper { act, call, edge }];
                    all.push(Script { story, blows });
                }
            }
        }
    }
    Ok(sample(all, wanted.reapers, wanted.seed))
}

/// Before and after each call of a shim that takes over; where nothing is asked of it, twice
/// in a row.
pub fn takeovers(shim: &ShimBinary, wanted: &Wanted) -> Result<Vec<Script>> {
    let mut all = Vec::new();
    if wanted.takeovers == 0 {
        return Ok(all);
    }
    for (name, first) in BASES {
        // Counted with a blow that never falls, so that its calls are counted.
        let counting: Script = format!("{name}:{first},^{NEVER}b").parse()?;
        let calls = counted(shim, &counting, Count::Shims)?.successor_calls();
        println!("  {name} {first}: {calls} calls of the next shim");
        for call in 1..=calls {
            for edge in [Edge::Before, Edge::After] {
                // Before it is given the requests.
                let again = if first.starts_with('@') {
                    String::new()
                } else {
                    format!(",^{}{edge}", call.div_ceil(2))
                };
                all.push(format!("{name}:{first},^{call}{edge}{again}").parse()?);
            }
        }
    }
    Ok(sample(all, wanted.takeovers, wanted.seed))
}

/// Lives some scripts and says what came of them.
pub fn chapter(
    shim: &ShimBinary,
    title: &str,
    scripts: Vec<Script>,
    wanted: &Wanted,
) -> Result<Tally> {
    let began = Instant::now();
    let tally = live_all(shim, scripts, wanted)?;
    println!("{title}: {tally}; {} s", began.elapsed().as_secs());
    Ok(tally)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_is_a_shims_or_has_a_reason() {
        let ours: BTreeSet<Point> = shims_points().collect();
        assert_eq!(ours.len() + ELSEWHERE.len(), Point::ALL.len());
        let wanted = Wanted {
            rounds: 3,
            every: 1,
            takeovers: 1,
            reapers: 1,
            workers: 1,
            seed: 5,
            enough: 1,
        };
        let mut times: BTreeMap<Point, u32> = BTreeMap::new();
        for script in points(&wanted).unwrap() {
            assert!(script.blows.len() <= 2);
            for blow in script.blows {
                if let Blow::Point(point) = blow {
                    *times.entry(point).or_default() += 1;
                }
            }
        }
        assert_eq!(times.len(), ours.len());
        assert!(times.values().all(|times| *times == 3));
    }

    #[test]
    fn a_point_that_is_not_reached_is_told() {
        let tally = Tally {
            reached: shims_points().map(|point| (point, 2)).collect(),
            ..Tally::default()
        };
        assert!(tally.missing(2).is_empty());
        assert_eq!(tally.missing(3).len(), shims_points().count());
    }

    #[test]
    fn each_call_is_in_one_life() {
        let story = story("life").unwrap();
        let of = |act, call| Blow::Call {
            act,
            call,
            edge: Edge::Before,
        };
        let all: Vec<Blow> = (0..3)
            .flat_map(|act| (1..6).map(move |call| of(act, call)))
            .collect();
        let scripts = in_pairs(story, all.clone());
        let mut met: Vec<Blow> = scripts.iter().flat_map(|s| s.blows.clone()).collect();
        assert!(
            scripts
                .iter()
                .all(|s| s.to_string().parse::<Script>().is_ok())
        );
        met.sort_by_key(|blow| match blow {
            Blow::Call { act, call, .. } => (*act, *call),
            Blow::Point(_) | Blow::Reaper { .. } | Blow::Takeover { .. } => (0, 0),
        });
        assert_eq!(met, all);
    }
}
