//! `make soak`: kills both processes, or one of them at a time, of thousands of containers at
//! random moments and fails if anything is left, lost, untrue or wrong. Prints its seed; a
//! life can be lived again.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use vigil_lab::{ShimBinary, scratch};
use vigil_soak::plan::Victims;
use vigil_soak::soak::{Wanted, run};

/// Random lives, each ended by SIGKILL of reaper and shim. `VIGIL_SHIM` names our binary.
#[derive(Debug, Parser)]
struct Args {
    /// Kills that must hit before it ends; if not given 2,000 of both, 10,000 of shims alone, 5,000
    /// otherwise.
    #[arg(long)]
    lives: Option<u64>,
    /// Seed of the plans; the clock's if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Lives at a time.
    #[arg(long, default_value_t = 6)]
    workers: u32,
    /// Who is killed.
    #[arg(long, value_enum, default_value = "both")]
    victims: Victims,
    /// Every so many-th life goes through a containerd; 0 for none.
    #[arg(long, default_value_t = 8)]
    daemon_every: u64,
    /// Pairs that live throughout, if one is killed at a time.
    #[arg(long, default_value_t = 8)]
    elders: u32,
    /// The kernel shall say nothing of the end of who is no child of the reaper's (a debug build
    /// can be made to believe so): what is unknown then is counted, and no violation.
    #[arg(long)]
    mute: bool,
    /// Only the life of this number.
    #[arg(long)]
    only: Option<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    scratch::sweep();
    let shim = ShimBinary::vigil().context("no shim of ours: set VIGIL_SHIM")?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let wanted = Wanted {
        kills: args.lives.unwrap_or(match args.victims {
            Victims::Shim => 10_000,
            Victims::Both => 2_000,
            Victims::Reaper | Victims::Alternating => 5_000,
        }),
        seed: args.seed.unwrap_or(u64::from(clock.subsec_micros())),
        workers: if args.only.is_some() { 1 } else { args.workers },
        victims: args.victims,
        daemon_every: args.daemon_every,
        elders: match args.victims {
            victims if victims.one_lives_on() && args.only.is_none() => args.elders,
            _ => 0,
        },
        mute: args.mute,
        only: args.only,
    };
    println!(
        "soak: {} kills of {:?}, seed {}",
        wanted.kills, wanted.victims, wanted.seed
    );
    let began = Instant::now();
    let tally = run(&shim, &wanted)?;
    let seconds = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let rate = tally.kills() as f64 / seconds;
    println!("{tally}\n  in {seconds:.0} s, {rate:.1} kills a second");
    ensure!(
        tally.failed() == 0,
        "{} lives in which something was wrong; again with --seed {}",
        tally.failed(),
        wanted.seed
    );
    Ok(())
}
