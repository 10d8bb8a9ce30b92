//! containerd comes back, and finds shims that are dying, or that stand still: its
//! containers are all there, and it is up as fast as ever.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vigil_hostile::{Pair, shim, trial, trial_under};
use vigil_lab::bundle::Stdio;
use vigil_lab::containerd::IMAGE;
use vigil_lab::process::{Process, alive, signal_if};
use vigil_lab::{Containerd, Kit, Spec, Version, by, until};

const RUNTIME: &str = "io.containerd.vigil.v2";
const KILL: i32 = 9;
const STOP: i32 = 19;

/// Runs `test` under each containerd that is there.
fn under_each(seconds: u64, test: fn(&mut Containerd) -> Result<()>) {
    for version in [Version::Debian, Version::V2] {
        if !version.installed() {
            continue;
        }
        let tried = (|| {
            let mut daemon = Containerd::start(version, Some(&shim()?))?;
            let mark = daemon.namespace().to_owned();
            trial_under(seconds, &mark, move || {
                test(&mut daemon).with_context(|| daemon.log_tail())?;
                daemon.expect_clean()
            })
        })();
        if let Err(error) = tried {
            panic!("{version:?}: {error:#}");
        }
    }
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("c{n}")).collect()
}

fn run(daemon: &Containerd, ids: &[String]) -> Result<()> {
    for id in ids {
        daemon.ctr(&[
            "run",
            "-d",
            "--runtime",
            RUNTIME,
            IMAGE,
            id,
            "sleep",
            "1000",
        ])?;
    }
    Ok(())
}

/// Kills all of them and takes them away; each tells its exit.
fn end(daemon: &Containerd, ids: &[String]) -> Result<()> {
    for id in ids {
        daemon.ctr(&["tasks", "kill", "-s", "SIGKILL", id])?;
        until("it to be stopped", by(10.0), || {
            let status = daemon.task_status(id).ok()??;
            (status == "STOPPED").then_some(())
        })
        .with_context(|| id.clone())?;
        daemon.ctr(&["tasks", "rm", id])?;
        daemon.ctr(&["containers", "rm", id])?;
    }
    Ok(())
}

fn all_run(daemon: &Containerd, ids: &[String]) -> Result<()> {
    let table = daemon.ctr(&["tasks", "ls"])?;
    for id in ids {
        let mut lines = table.lines();
        let runs = lines.any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.first() == Some(&id.as_str()) && words.last() == Some(&"RUNNING")
        });
        ensure!(runs, "{id} does not run:\n{table}");
    }
    Ok(())
}

/// The shims of these containers: children of what is not a child of one of them.
fn shims(daemon: &Containerd, ids: &[String]) -> Vec<Process> {
    let all = Process::marked(daemon.namespace());
    let ours: Vec<_> = all
        .into_iter()
        .filter(|p| p.cmdline.contains("containerd-shim-vigil") && !p.cmdline.ends_with(" delete"))
        .filter(|p| {
            ids.iter()
                .any(|id| p.cmdline.contains(&format!("-id {id} ")))
        })
        .collect();
    let parent = |p: &Process| p.field("PPid").and_then(|pid| pid.parse::<i32>().ok());
    let is_shim = |p: &&Process| ours.iter().any(|other| Some(other.pid) == parent(p));
    ours.iter().filter(is_shim).cloned().collect()
}

fn signal(process: &Process, number: i32) -> bool {
    signal_if(process.pid, number, |now| now.cmdline == process.cmdline)
}

fn kills_while_it_starts(daemon: &mut Containerd) -> Result<()> {
    let ids = ids(6);
    run(daemon, &ids)?;
    for round in 0_u64..2 {
        // Some die while nobody is there, the others one after the other while it starts.
        let living = shims(daemon, &ids);
        ensure!(living.len() == ids.len(), "{} shims", living.len());
        let (before, during) = living.split_at(2);
        daemon.stop(KILL)?;
        ensure!(before.iter().all(|shim| signal(shim, KILL)));
        let up = AtomicBool::new(false);
        let hit = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut hit = 0;
                for (at, shim) in (1..).zip(during) {
                    std::thread::sleep(Duration::from_millis(at * (10 + 15 * round)));
                    hit += usize::from(signal(shim, KILL) && !up.load(Ordering::SeqCst));
                }
                hit
            });
            let launched = daemon.launch();
            up.store(true, Ordering::SeqCst);
            launched.map(|()| killer.join().expect("the killer"))
        })?;
        println!(
            "round {round}: {hit} of {} died while it started",
            during.len()
        );
        all_run(daemon, &ids).with_context(|| format!("round {round}"))?;
    }
    end(daemon, &ids)
}

#[test]
fn shims_die_while_containerd_starts() {
    under_each(120, kills_while_it_starts);
}

/// From SIGKILL of the daemon until all of these are listed as running again.
fn restart(daemon: &mut Containerd, ids: &[String]) -> Result<Duration> {
    daemon.stop(KILL)?;
    let began = Instant::now();
    daemon.launch()?;
    all_run(daemon, ids)?;
    Ok(began.elapsed())
}

fn many_stand_still(daemon: &mut Containerd) -> Result<()> {
    let ids = ids(20);
    run(daemon, &ids)?;
    // Three tries, for the machine does other things too; four deaths in a minute are allowed.
    let mut tries = Vec::new();
    for _ in 0..3 {
        let plain = restart(daemon, &ids)?;
        let still = shims(daemon, &ids);
        ensure!(still.len() == ids.len(), "{} shims", still.len());
        ensure!(still.iter().all(|shim| signal(shim, STOP)));
        let stopped = restart(daemon, &ids)?;
        until("each to be replaced", by(20.0), || {
            still.iter().all(|shim| !alive(shim.pid)).then_some(())
        })?;
        all_run(daemon, &ids)?;
        println!("up after {plain:?}, with 20 stopped shims after {stopped:?}");
        tries.push((plain, stopped));
        // Asked one after the other they would take twenty times the two seconds of a watch.
        if stopped <= (plain * 2).max(plain + Duration::from_secs(10)) {
            return end(daemon, &ids);
        }
    }
    bail!("up without and with stopped shims after {tries:?}")
}

#[test]
fn twenty_stopped_shims_do_not_keep_containerd_waiting() {
    under_each(240, many_stand_still);
}

/// Both die, one a millisecond after the other: as a death of both, whichever was first.
fn apart(kit: &Kit, reaper_first: bool) -> Result<()> {
    let container = kit.prepared(&Spec::sh("trap '' TERM; sleep 1000"), Stdio::Output)?;
    let made = container
        .task()
        .create(&container.bundle.create_request())?;
    container.start()?;
    let exec = kit.exec(&container, "x", &Spec::sleeper())?;
    container.task().start(&container.id, "x")?;
    drop(exec);
    let pair = Pair::of(&container.shim)?;
    let (first, second) = if reaper_first {
        (pair.reaper, pair.shim)
    } else {
        (pair.shim, pair.reaper)
    };
    pair.signal(first, KILL)?;
    std::thread::sleep(Duration::from_millis(1));
    // It may be leaving by itself.
    let _ = pair.signal(second, KILL);
    // Who took over in that millisecond goes too, or is left alone with it all.
    until("the pair to be gone", by(10.0), || {
        let living = container.shim.processes();
        for process in &living {
            signal(process, KILL);
        }
        living.is_empty().then_some(())
    })?;
    until("the connection to drop", by(5.0), || {
        container.task().client().closed().then_some(())
    })?;
    let said = container.shim.delete()?.ok()?;
    ensure!(
        said.pid == made.pid && said.exit_status == 137,
        "`delete` says {said}"
    );
    let init = i32::try_from(made.pid)?;
    ensure!(!alive(init), "init lives");
    Ok(())
}

#[test]
fn the_pair_dies_a_millisecond_apart() {
    for reaper_first in [false, true] {
        for _ in 0..4 {
            trial(60, move |kit| {
                apart(kit, reaper_first).with_context(|| format!("reaper first: {reaper_first}"))
            });
        }
    }
}
