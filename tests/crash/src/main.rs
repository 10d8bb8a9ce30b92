//! `make crash`: kills the shim at every named point, and shim or reaper before and after every system call,
//! and fails if any client, stream, event or host shows it. Prints its seed, and each life
//! that failed as a script that `--only` lives again.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use vigil_crash::run::{Tally, Wanted, all_points, calls, chapter, reapers, takeovers};
use vigil_crash::script::Script;
use vigil_lab::{ShimBinary, scratch};

/// Kills the shim, or the reaper, and never both, everywhere. `VIGIL_SHIM` names our binary (a debug
/// build: a release has no points).
#[derive(Debug, Parser)]
struct Args {
    /// How often each named point.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Every so many-th system call of what a client asks; 0 for none.
    #[arg(long, default_value_t = 1)]
    every: u32,
    /// Every so many-th system call of a takeover; 0 for none.
    #[arg(long, default_value_t = 1)]
    takeovers: u32,
    /// Every so many-th system call of the reaper's while a shim serves; 0 for none.
    #[arg(long, default_value_t = 1)]
    reapers: u32,
    /// Lives at a time.
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// Which points meet in a life, and where samples begin; the clock's if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Lives that may fail before it is no use to go on.
    #[arg(long, default_value_t = 8)]
    enough: usize,
    /// Only these lives: `STORY:BLOW,BLOW`, see `script`.
    #[arg(long)]
    only: Vec<String>,
    /// How often those.
    #[arg(long, default_value_t = 1)]
    times: usize,
}

fn main() -> ExitCode {
    match crash(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn crash(args: &Args) -> Result<()> {
    scratch::sweep();
    let shim = ShimBinary::vigil().context("no shim of ours: set VIGIL_SHIM")?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let wanted = Wanted {
        rounds: args.rounds,
        every: args.every,
        takeovers: args.takeovers,
        reapers: args.reapers,
        workers: args.workers,
        seed: args.seed.unwrap_or(u64::from(clock.subsec_micros())),
        enough: args.enough,
    };
    let began = Instant::now();
    let mut tally = Tally::default();
    if args.only.is_empty() {
        println!("crash: seed {}", wanted.seed);
        tally.join(all_points(&shim, &wanted)?);
        let scripts = calls(&shim, &wanted)?;
        tally.join(chapter(&shim, "system calls", scripts, &wanted)?);
        let scripts = takeovers(&shim, &wanted)?;
        tally.join(chapter(&shim, "takeovers", scripts, &wanted)?);
        let scripts = reapers(&shim, &wanted)?;
        tally.join(chapter(&shim, "reapers", scripts, &wanted)?);
    } else {
        for text in &args.only {
            let script: Script = text.parse()?;
            let scripts = vec![script; args.times];
            tally.join(chapter(&shim, text, scripts, &wanted)?);
        }
    }
    println!("crash: {tally}; {} s in all", began.elapsed().as_secs());
    let wrong = &tally.wrong;
    ensure!(
        wrong.is_empty(),
        "{} lives in which something was wrong, again with --only:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}
