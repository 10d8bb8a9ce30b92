//! Many lives at a time, until enough of them were killed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use vigil_lab::{ShimBinary, Version};

use crate::daemon::Daemon;
use crate::direct::Place;
use crate::life::Life;
use crate::plan::{Plan, Victims};
use crate::tally::Tally;

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
    /// Only the life of this number.
    pub only: Option<u64>,
}

/// Violations after which it is no use to go on.
const ENOUGH: u64 = 8;

/// Runs it; says what was wrong on stderr, and gives the numbers.
pub fn run(shim: &ShimBinary, wanted: &Wanted) -> Result<Tally> {
    let mut daemons = Vec::new();
    if wanted.daemon_every > 0 {
        for version in [Version::Debian, Version::V2_1] {
            if version.installed() {
                daemons.push(Daemon::start(version, shim)?);
            }
        }
    }
    let next = AtomicU64::new(wanted.only.unwrap_or(0));
    let tally = Mutex::new(Tally::default());
    let (next, shared, served) = (&next, &tally, &daemons);
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..wanted.workers)
            .map(|_| scope.spawn(move || work(shim, wanted, next, shared, served)))
            .collect();
        for worker in workers {
            worker.join().ok().context("a worker panicked")??;
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

fn work(
    shim: &ShimBinary,
    wanted: &Wanted,
    next: &AtomicU64,
    tally: &Mutex<Tally>,
    daemons: &[Daemon],
) -> Result<()> {
    let place = Place::new(shim)?;
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
        let life = Life::new(format!("s{}n{number}e", std::process::id()), plan);
        let through = wanted.daemon_every;
        // Of a shim that dies alone containerd sees nothing; those lives are driven directly.
        let seen = wanted.victims != Victims::Shim && !daemons.is_empty();
        let outcome = if seen && number % through == through - 1 {
            let which = usize::try_from(number / through)? % daemons.len();
            daemons[which].live(&life)
        } else {
            place.live(&life, number)
        };
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
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.add(&outcome.unwrap_or_default(), failed);
    }
    place.finish()
}
