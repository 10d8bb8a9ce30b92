//! `make bench`: Debian's Go shims and ours, side by side in one run, against the targets.
//!
//! Owns the order of the measurements and the printing. It drives shims directly and
//! containerd for `ctr run`; it must leave nothing behind, and fails if something is.

mod clock;
mod contender;
mod kills;
mod line;
mod memory;
mod race;
mod sink;
mod stalls;
mod table;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vigil_lab::{ShimBinary, scratch};

use crate::contender::{Contender, Pair};
use crate::race::{BATCH, Effort};
use crate::table::COLUMNS;

const USAGE: &str = "\
usage: vigil-bench [--quick] [--markdown] [--containers N] [--only PART]… | --stalls
  --quick         fewer rounds and containers: shows that it works, proves little
  --markdown      the table as Markdown
  --containers N  how many at once for memory (50; a multiple of 5)
  --stalls        only this: what is answered while something stands still
  --only PART     starts, memory, calls, idle, kills or ctr; may be given more than once
VIGIL_SHIM names our binary.";

/// A load above which others are at work too.
const QUIET: f64 = 0.5;

struct Wanted {
    effort: Effort,
    markdown: bool,
    stalls: bool,
    only: Vec<String>,
}

fn wanted() -> Result<Wanted> {
    let mut wanted = Wanted {
        effort: Effort {
            starts: 40,
            containers: 50,
            calls: 1000,
            ctrs: 15,
            kills: 100,
            idle: Duration::from_secs(10),
        },
        markdown: false,
        stalls: false,
        only: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => {
                wanted.effort = Effort {
                    starts: 6,
                    containers: 2 * BATCH,
                    calls: 100,
                    ctrs: 3,
                    kills: 5,
                    idle: Duration::from_secs(2),
                }
            }
            "--markdown" => wanted.markdown = true,
            "--stalls" => wanted.stalls = true,
            "--containers" => {
                let count = args.next().context(USAGE)?.parse().context(USAGE)?;
                ensure!(count > 0 && count % BATCH == 0, "{USAGE}");
                wanted.effort.containers = count;
            }
            "--only" => wanted.only.push(args.next().context(USAGE)?),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(wanted)
}

fn main() -> Result<()> {
    let wanted = wanted()?;
    let effort = wanted.effort;
    let does = |part: &str| wanted.only.is_empty() || wanted.only.iter().any(|p| p == part);
    if let Some(load) = memory::load().filter(|load| *load > QUIET) {
        eprintln!(
            "note: the machine is busy (load {load:.1}): times are those of waiting for a processor, \
             memory moves for others; only ratios of one run mean anything"
        );
    }
    scratch::sweep();
    contender::sweep();
    let ours = ShimBinary::vigil().context("no shim of ours: set VIGIL_SHIM")?;
    let binaries = [ShimBinary::go_1(), ShimBinary::go_2(), ours.clone()];
    let titles = ["go-1", "go-2", "vigil"].map(ShimBinary::title);
    let columns = titles.each_ref().map(String::as_str);
    if wanted.stalls {
        let lines = stalls::measure(&binaries, effort.calls.min(300));
        println!("{}", stalls::table(columns, &lines, wanted.markdown));
        println!("targets missed: {}", stalls::missed(&lines));
        return Ok(());
    }
    let mut racers = Vec::new();
    for binary in &binaries {
        racers.push(Contender::new(binary)?);
    }
    let mut racers: [Contender; COLUMNS] = racers.try_into().ok().context("as many as columns")?;

    let mut rows = Vec::new();
    if does("memory") || does("calls") || does("idle") {
        let mut crowd: [Vec<Pair>; COLUMNS] = Default::default();
        let mut effort = effort;
        if !does("memory") {
            effort.containers = BATCH;
        }
        say("memory");
        rows.extend(race::memory(&mut racers, effort, &mut crowd)?);
        if does("calls") {
            say("calls");
            rows.extend(race::calls(&mut crowd, effort)?);
        }
        if does("idle") {
            say("idle");
            rows.extend(race::idle(&racers, &mut crowd, effort)?);
        }
        say("ending the containers");
        for (racer, pairs) in racers.iter().zip(crowd) {
            for pair in pairs {
                racer.end_used(pair)?;
            }
        }
    }
    if does("starts") {
        say("start and delete");
        rows.extend(race::starts(&mut racers, effort)?);
    }
    if does("kills") {
        say("killing shims");
        rows.extend(kills::kills(&mut racers, effort)?);
    }
    rows.extend(race::sizes(&racers)?);
    for racer in racers {
        racer.finish()?;
    }
    if does("ctr") {
        say("ctr run");
        rows.extend(race::ctr(&ours, effort)?);
    }

    let table = if wanted.markdown {
        table::markdown(columns, &rows)
    } else {
        table::text(columns, &rows)
    };
    println!("{table}");
    let missed = rows.iter().filter(|row| row.missed()).count();
    println!("targets of this version missed: {missed}");
    Ok(())
}

/// Progress, beside the table.
fn say(what: &str) {
    eprintln!("bench: {what}");
}
