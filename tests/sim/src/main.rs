//! The simulator at length: `run` for as many steps as wanted, `seed N` for
//! one run again, `replay FILE` for one life, step by step.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use vigil_sim::{History, Life, World, run};

#[derive(Parser)]
#[command(about = "Lives of a container on a fake host, audited")]
struct Cli {
    #[command(subcommand)]
    what: What,
    /// Let a Create be called undone also when it is not, to see that it is found
    #[arg(long, global = true)]
    forgetful: bool,
    /// Where a failing history is written
    #[arg(long, global = true, default_value = ".")]
    out: PathBuf,
}

#[derive(Subcommand)]
enum What {
    /// Run after run, each with the next seed
    Run {
        /// First seed; the clock's if not given
        #[arg(long)]
        seed: Option<u64>,
        /// Steps of each run
        #[arg(long, default_value_t = 100_000)]
        steps: u64,
        /// Runs
        #[arg(long, default_value_t = 10)]
        runs: u64,
    },
    /// One run again
    Seed {
        /// Its seed
        seed: u64,
        /// Its steps
        #[arg(long, default_value_t = 100_000)]
        steps: u64,
    },
    /// One life from its file, told step by step
    Replay {
        /// The file
        file: PathBuf,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match &cli.what {
        What::Run { seed, steps, runs } => {
            let first = seed.unwrap_or_else(by_the_clock);
            for seed in first..first.saturating_add(*runs) {
                one(&cli, seed, *steps)?;
            }
            Ok(())
        }
        What::Seed { seed, steps } => one(&cli, *seed, *steps),
        What::Replay { file } => {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            replay(&History::decode(&text)?)
        }
    }
}

fn by_the_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs())
}

fn one(cli: &Cli, seed: u64, steps: u64) -> Result<()> {
    let done = run(seed, steps, |life: &mut Life| {
        life.forgetful = cli.forgetful;
    });
    println!("seed {seed}: {} steps, {} lives", done.steps, done.lives);
    let Some((history, broken)) = done.failed else {
        return Ok(());
    };
    for violation in &broken {
        println!("  {violation}");
    }
    let path = cli.out.join(format!("failed-{seed}.history"));
    let short = history.shortened();
    short.write(&path)?;
    bail!(
        "{} of {} actions are enough; replay with: cargo run -p vigil-sim -- replay {}",
        short.actions.len(),
        history.actions.len(),
        path.display()
    )
}

fn replay(history: &History) -> Result<()> {
    println!("{:?}", history.life);
    let mut world = World::new(history.life);
    for action in &history.actions {
        let happened = world.apply(action);
        let phase = world.shim.as_ref().map(|shim| &shim.task.standing);
        println!(
            "{action:?}{}\n    shim {phase:?}\n    reaper {}, group {:?}, runc {:?}\n    processes {:?}",
            if happened { "" } else { " (nothing)" },
            world.host.reaper,
            world.host.group,
            world.host.runc_state,
            world.host.processes
        );
    }
    for violation in &world.book.violations {
        println!("{violation}");
    }
    if !world.book.violations.is_empty() {
        bail!("it breaks {} invariants", world.book.violations.len());
    }
    println!("it breaks nothing");
    Ok(())
}
