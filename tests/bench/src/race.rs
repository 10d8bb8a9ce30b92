//! The measurements. In every round each contender has its turn, another one first each
//! time, so that whatever else the machine does hits all alike; only figures of one run
//! are to be compared.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api;
use vigil_lab::{Containerd, ShimBinary, Version};

use crate::clock::{self, Series};
use crate::contender::{Contender, Pair};
use crate::memory;
use crate::table::{COLUMNS, OURS, Row, Unit};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Runs of `start` and of `delete`.
    pub starts: usize,
    /// Containers, used for latencies, memory and the rest; a multiple of [`BATCH`].
    pub containers: usize,
    /// Calls of State and of Pids.
    pub calls: usize,
    /// Runs of `ctr run`.
    pub ctrs: usize,
    /// Shims killed, each of another container.
    pub kills: usize,
    /// Length of the idle time.
    pub idle: Duration,
}

/// Containers made in one turn when memory is measured.
pub const BATCH: usize = 5;
/// For memory accounts to follow what has happened: the kernel frees and counts in batches.
const SETTLE: Duration = Duration::from_millis(400);

/// The contenders' places in the order of round `round`.
pub fn turns(round: usize) -> impl Iterator<Item = usize> {
    (0..COLUMNS).map(move |turn| (turn + round) % COLUMNS)
}

fn each(series: &[Series; COLUMNS], percent: usize) -> [Option<f64>; COLUMNS] {
    std::array::from_fn(|at| series[at].percentile(percent))
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// `start`, the first answer, `delete`.
pub fn starts(racers: &mut [Contender; COLUMNS], effort: Effort) -> Result<Vec<Row>> {
    let (mut starts, mut answers, mut unused, mut used): (
        [Series; COLUMNS],
        [Series; COLUMNS],
        [Series; COLUMNS],
        [Series; COLUMNS],
    ) = Default::default();
    let mut failed = [0; COLUMNS];
    for round in 0..effort.starts {
        for at in turns(round) {
            let pair = racers[at].start()?;
            starts[at].push(pair.start.took);
            answers[at].push(pair.first_answer);
            let deleted = racers[at].end_unused(pair)?;
            failed[at] += usize::from(!deleted.ok);
            unused[at].push(deleted.took);
        }
    }
    // A whole life is slower to make than to look at; a third is enough.
    for round in 0..effort.starts.div_ceil(3) {
        for at in turns(round) {
            let pair = racers[at].running()?;
            let deleted = racers[at].end_used(pair)?;
            ensure!(deleted.ok, "{}: delete failed", racers[at].binary.name);
            used[at].push(deleted.took);
        }
    }
    ensure!(failed[OURS] == 0, "`delete` of a bundle alone failed");
    for (racer, failed) in racers.iter().zip(failed) {
        if failed > 0 {
            eprintln!(
                "note: `delete` of {} exits 1 where no container was created: its figure is that of a failure",
                racer.binary.name
            );
        }
    }
    Ok(vec![
        Row::new("`start` to EOF, median", Unit::Millis, each(&starts, 50))
            .now(2.0)
            .last(1.5),
        // What it takes when nobody else wants the processors.
        Row::new("`start` to EOF, least", Unit::Millis, each(&starts, 0)),
        Row::new("`start` to EOF, p99", Unit::Millis, each(&starts, 99)),
        Row::new(
            "`start` to the first answer, median",
            Unit::Millis,
            each(&answers, 50),
        )
        .last(2.0),
        Row::new(
            "`start` to the first answer, p99",
            Unit::Millis,
            each(&answers, 99),
        ),
        Row::new(
            "`delete`, bundle only, median",
            Unit::Millis,
            each(&unused, 50),
        )
        .now(2.0)
        .last(1.0),
        Row::new(
            "`delete` after a whole life, median",
            Unit::Millis,
            each(&used, 50),
        )
        .now(2.0)
        .last(1.0),
    ])
}

/// Makes the containers and says what they cost, at rest and in switches; leaves them running.
pub fn memory(
    racers: &mut [Contender; COLUMNS],
    effort: Effort,
    crowd: &mut [Vec<Pair>; COLUMNS],
) -> Result<Vec<Row>> {
    let mut taken: [Vec<i64>; COLUMNS] = Default::default();
    for round in 0..effort.containers / BATCH {
        for at in turns(round) {
            let before = settled()?;
            for _ in 0..BATCH {
                crowd[at].push(racers[at].running()?);
            }
            taken[at].push(settled()? - before);
        }
    }
    let containers = number(effort.containers as u64);
    let (mut share, mut threads) = ([None; COLUMNS], [None; COLUMNS]);
    let (mut open, mut more) = ([None; COLUMNS], [None; COLUMNS]);
    for (at, racer) in racers.iter().enumerate() {
        let processes = racer.processes();
        ensure!(
            processes.len() >= crowd[at].len(),
            "{}: {} processes for {} containers",
            racer.binary.name,
            processes.len(),
            crowd[at].len()
        );
        let sum: u64 = processes.iter().map(memory::pss).sum::<Result<u64>>()?;
        share[at] = Some(number(sum) / 1024.0 / containers);
        let sum: u64 = processes.iter().filter_map(memory::threads).sum();
        threads[at] = Some((number(sum) / containers).round());
        let sum = memory::descriptors(&processes)?;
        open[at] = Some((number(sum) / containers).round());
    }
    for (at, racer) in racers.iter().enumerate() {
        let pair = crowd[at].last_mut().context("no container")?;
        more[at] = Some(number(racer.descriptors_of_an_exec(pair)?));
    }
    let taken = taken.map(|batches| Some(middle(batches) / 1024.0 / number(BATCH as u64)));
    let at = format!("at {}", effort.containers);
    Ok(vec![
        Row::new(format!("PSS a container, {at}"), Unit::Mebi, share)
            .now(0.5)
            .last(0.4),
        Row::new(
            format!("memory taken a container, kernel and all, {at}"),
            Unit::Mebi,
            taken,
        )
        .last_of_best(0.25),
        Row::new("threads a container", Unit::Count, threads).last(2.0),
        Row::new("open descriptors a container", Unit::Count, open),
        Row::new("open descriptors a living exec", Unit::Count, more).last(15.0),
    ])
}

/// The middle one: the machine's other programs take and free memory too, and one batch that
/// they hit must not decide.
fn middle(mut values: Vec<i64>) -> f64 {
    values.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    values.get(values.len() / 2).map_or(f64::NAN, |v| *v as f64)
}

/// Memory taken, the median of three looks after the dust has settled.
fn settled() -> Result<i64> {
    let mut looks = [0; 3];
    for look in &mut looks {
        std::thread::sleep(SETTLE / 3);
        *look = memory::taken()?;
    }
    looks.sort_unstable();
    Ok(looks[1])
}

/// Latency of what is answered from memory.
pub fn calls(crowd: &mut [Vec<Pair>; COLUMNS], effort: Effort) -> Result<Vec<Row>> {
    let mut state: [Series; COLUMNS] = Default::default();
    let mut pids: [Series; COLUMNS] = Default::default();
    for round in 0..effort.calls {
        for at in turns(round) {
            // Always the same one: a shim that was not asked for long is another measure.
            let pair = crowd[at].first_mut().context("no container")?;
            let id = pair.bundle.id.clone();
            let request = api::StateRequest {
                id: id.clone(),
                ..Default::default()
            };
            let began = Instant::now();
            let _: api::StateResponse = pair.line.call("State", &request)?;
            state[at].push(began.elapsed());
            let request = api::PidsRequest {
                id,
                ..Default::default()
            };
            let began = Instant::now();
            let _: api::PidsResponse = pair.line.call("Pids", &request)?;
            pids[at].push(began.elapsed());
        }
    }
    let mut rows = Vec::new();
    for (name, series) in [("State", &state), ("Pids", &pids)] {
        rows.push(Row::new(format!("{name}, median"), Unit::Millis, each(series, 50)).last(1.0));
        rows.push(Row::new(format!("{name}, p99"), Unit::Millis, each(series, 99)).last(10.0));
    }
    Ok(rows)
}

/// Context switches while one client is connected, one Wait pending, and nothing happens.
pub fn idle(
    racers: &[Contender; COLUMNS],
    crowd: &mut [Vec<Pair>; COLUMNS],
    effort: Effort,
) -> Result<Vec<Row>> {
    let mut processes = Vec::new();
    for (racer, pairs) in racers.iter().zip(crowd) {
        let pair = pairs.first_mut().context("no container")?;
        let request = api::WaitRequest {
            id: pair.bundle.id.clone(),
            ..Default::default()
        };
        pair.line.send("Wait", &request)?;
        processes.push(racer.processes_of(pair));
    }
    // What the last calls have caused is not idleness yet.
    std::thread::sleep(Duration::from_secs(2).min(effort.idle));
    let count = || -> Result<Vec<u64>> {
        let sums = processes.iter();
        sums.map(|list| list.iter().map(memory::switches).sum())
            .collect()
    };
    let before = count()?;
    std::thread::sleep(effort.idle);
    let after = count()?;
    let cells = std::array::from_fn(|at| Some(number(after[at].saturating_sub(before[at]))));
    let name = format!("context switches in {} s idle", effort.idle.as_secs());
    Ok(vec![Row::new(name, Unit::Count, cells).last(0.0)])
}

/// `ctr run --rm … true`, each shim under its own containerd, ours under both.
pub fn ctr(ours: &ShimBinary, effort: Effort) -> Result<Vec<Row>> {
    let daemons = [
        Containerd::start(Version::Debian, Some(ours))?,
        Containerd::start(Version::V2, Some(ours))?,
    ];
    let runtimes = ["io.containerd.runc.v2", "io.containerd.vigil.v2"];
    let mut series: [[Series; 2]; 2] = Default::default();
    // The first of each fills caches, and is not counted.
    for round in 0..=effort.ctrs {
        for turn in 0..4 {
            let (daemon, runtime) = ((turn + round) % 4 / 2, (turn + round) % 2);
            let id = format!("r{round}-{runtime}");
            let mut command = daemons[daemon].ctr_command(&[
                "run",
                "--rm",
                "--runtime",
                runtimes[runtime],
                vigil_lab::containerd::IMAGE,
                &id,
                "true",
            ]);
            let ran = clock::run(&mut command, true)?;
            ensure!(
                ran.status.success(),
                "ctr run under {}: {}: {}",
                runtimes[runtime],
                ran.status,
                String::from_utf8_lossy(&ran.out)
            );
            if round > 0 {
                series[daemon][runtime].push(ran.took);
            }
        }
    }
    for daemon in &daemons {
        daemon.expect_clean()?;
    }
    let [old, new] = series.map(|pair| pair.map(|series| series.percentile(50)));
    let row = |version: &str, cells| {
        let name = format!("`ctr run --rm … true` under {version}, median");
        Row::new(name, Unit::Millis, cells).last(65.0)
    };
    Ok(vec![
        row(Version::Debian.number(), [old[0], None, old[1]]),
        row(Version::V2.number(), [None, new[0], new[1]]),
    ])
}

/// Size of the file containerd executes.
pub fn sizes(racers: &[Contender; COLUMNS]) -> Result<Vec<Row>> {
    let mut cells = [None; COLUMNS];
    for (cell, racer) in cells.iter_mut().zip(racers) {
        *cell = Some(number(std::fs::metadata(&racer.binary.path)?.len()) / 1e6);
    }
    Ok(vec![
        Row::new("size of the program", Unit::Mega, cells).last(3.0),
    ])
}
