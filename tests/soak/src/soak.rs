//! Many lives at a time, until enough of them were killed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use anyhow::{Context, Result};
use vigil_lab::{ShimBinary, Version};

use crate::daemon::Daemon;
use crate::direct::Place;
use crate::life::Life;
use crate::plan::{Plan, Victims};
use crate::story::Story;
use crate::tally::{Outcome, Tally};

/// How much, and of what.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Kills that must hit.
    pub kills: u64,
    /// Of the plans.
    pub seed: u64,
    /// Lives at a time.
    pub workers: u32,
    /// Who is killed.
    pub victims: Victims,
    /// Every so many-th life goes through a containerd; 0 for none.
    pub daemon_every: u64,
    /// Pairs that live throughout, with a victim killed every few seconds.
    pub elders: u32,
    /// Whether the kernel shall say nothing of the end of who is no child; a debug build alone
    /// can be made to believe so.
    pub mute: bool,
    /// Only the life of this number.
    pub only: Option<u64>,
}

/// Violations after which it is no use to go on.
const ENOUGH: u64 = 8;
/// Kills between two lines that say how far it is.
const PROGRESS: u64 = 500;

/// Runs it; says what was wrong on stderr, and gives the numbers.
pub fn run(shim: &ShimBinary, wanted: &Wanted) -> Result<Tally> {
    let mut daemons = Vec::new();
    if wanted.daemon_every > 0 && !wanted.mute {
        for version in [Version::Debian, Version::V2] {
            if version.installed() {
                daemons.push(Daemon::start(version, shim)?);
            }
        }
    }
    let next = AtomicU64::new(wanted.only.unwrap_or(0));
    let (tally, stop) = (Mutex::new(Tally::default()), AtomicBool::new(false));
    let (next, shared, served, stop) = (&next, &tally, &daemons, &stop);
    std::thread::scope(|scope| -> Result<()> {
        let elders = (0..wanted.elders)
            .map(|number| scope.spawn(move || grow_old(shim, wanted, number, stop, shared)));
        let elders: Vec<_> = elders.collect();
        let workers: Vec<_> = (0..wanted.workers)
            .map(|_| scope.spawn(move || work(shim, wanted, next, shared, served)))
            .collect();
        let worked: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::SeqCst);
        for worker in worked {
            worker.ok().context("a worker panicked")??;
        }
        for elder in elders {
            elder
                .join()
                .ok()
                .context("one that lives long panicked")??;
        }
        Ok(())
    })?;
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    for daemon in daemons {
        if let Err(error) = daemon.finish() {
            eprintln!("VIOLATION after all lives: {error:#}");
            tally.add_failure();
        }
    }
    Ok(tally)
}

/// A pair that lives as long as all the others together.
fn grow_old(
    shim: &ShimBinary,
    wanted: &Wanted,
    number: u32,
    stop: &AtomicBool,
    tally: &Mutex<Tally>,
) -> Result<()> {
    let place = Place::new(shim, wanted.mute)?;
    let story = Story::default();
    let lived = place.grow_old(number, wanted.victims, stop, &story);
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    match lived {
        Ok(grown) => tally.add_elder(grown),
        Err(error) => {
            eprintln!(
                "VIOLATION in the life of elder {number}: {error:#}\n{}",
                story.text()
            );
            tally.add_failure();
        }
    }
    drop(tally);
    place.finish()
}

/// One life, through a containerd every so often.
fn live(
    place: &Place,
    wanted: &Wanted,
    number: u64,
    life: &Life,
    daemons: &[Daemon],
) -> Result<Outcome> {
    let through = wanted.daemon_every;
    if daemons.is_empty() || number % through != through - 1 {
        return place.live(life, number);
    }
    let daemon = &daemons[usize::try_from(number / through)? % daemons.len()];
    match wanted.victims {
        Victims::Shim | Victims::Reaper | Victims::Alternating => daemon.live_on(life),
        Victims::Both => daemon.live(life),
    }
}

fn work(
    shim: &ShimBinary,
    wanted: &Wanted,
    next: &AtomicU64,
    tally: &Mutex<Tally>,
    daemons: &[Daemon],
) -> Result<()> {
    let place = Place::new(shim, wanted.mute)?;
    loop {
        {
            let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            if tally.kills() >= wanted.kills || tally.failed() >= ENOUGH {
                break;
            }
        }
        let number = next.fetch_add(1, Ordering::Relaxed);
        if wanted.only.is_some_and(|only| only != number) {
            break;
        }
        let plan = Plan::draw(wanted.seed, number, wanted.victims);
        // Ends in a letter: none is the beginning of another.
        let life = Life::new(
            format!("s{}n{number}e", std::process::id()),
            plan,
            wanted.mute,
        );
        let outcome = live(&place, wanted, number, &life, daemons);
        let trouble = outcome.as_ref().err().map(|e| format!("{e:#}"));
        let faults = life.faults();
        let failed = trouble.is_some() || !faults.is_empty();
        if failed {
            eprintln!(
                "VIOLATION in life {number} of seed {} ({}): {faults:?} {}\n{}",
                wanted.seed,
                life.id,
                trouble.unwrap_or_default(),
                life.story.text()
            );
        }
        let harms: Vec<_> = faults.iter().map(|(harm, _)| *harm).collect();
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        let before = tally.kills() / PROGRESS;
        tally.add(&outcome.unwrap_or_default(), failed, &harms);
        if tally.kills() / PROGRESS > before {
            println!("  {} kills, {} violations", tally.kills(), tally.failed());
        }
    }
    place.finish()
}
