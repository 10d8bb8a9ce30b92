//! Runs the table: a few behaviours at a time, each with a deadline, against one shim
//! after the other, and prints what held where.
//!
//! Understands as much of libtest's command line as cargo and nextest use: filters,
//! `--exact`, `--list`, `--ignored`, `--test-threads`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vigil_lab::{Kit, ShimBinary, by, process};

use crate::behaviour::{Behaviour, all};
use crate::daemon;
use crate::differences::listed;

/// How often a behaviour of a Go shim that failed is tried again.
const GO_TRIES: usize = 2;
/// How long one behaviour may take.
const DEADLINE: Duration = Duration::from_mins(1);

/// One thing to run: its full name, and the function.
pub struct Trial {
    /// `go-1.6.20::exit_status_7`
    pub name: String,
    /// Runs it; an error is a failure.
    pub run: Box<dyn Fn() -> Result<Outcome> + Send + Sync>,
}

/// How a trial that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As the contract says.
    Holds,
    /// Otherwise, as `differences` says.
    Differs(&'static str),
}

fn try_direct(binary: &ShimBinary, behaviour: &Behaviour) -> Result<()> {
    let kit = Kit::new(binary)?;
    let mark = kit.scratch.mark().to_owned();
    let run = behaviour.run;
    let (sender, done) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = run(&kit);
        // After a failure the kit's drop cleans up; after a success nothing may be left.
        let result = result.and_then(|()| kit.finish().context("after it"));
        let _ = sender.send(result);
    });
    let result = match done.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            // Everything it waits for has this mark; without it, it comes back with an error.
            let _ = process::kill_marked(&mark, by(5.0));
            let _ = done.recv_timeout(Duration::from_secs(30));
            Err(anyhow::anyhow!("not done after {DEADLINE:?}"))
        }
        Err(RecvTimeoutError::Disconnected) => Err(anyhow::anyhow!("it panicked")),
    };
    let _ = thread.join();
    result
}

fn judged(shim: &str, behaviour: &str, result: Result<()>) -> Result<Outcome> {
    match (result, listed(shim, behaviour)) {
        (Ok(()), Some(d)) if d.always => {
            anyhow::bail!("it holds, but differences.rs lists it: {}", d.reason)
        }
        (Ok(()), _) => Ok(Outcome::Holds),
        (Err(_), Some(d)) => Ok(Outcome::Differs(d.reason)),
        (Err(error), None) => Err(error),
    }
}

/// The shims there are, Debian's first.
#[must_use]
pub fn shims() -> Vec<ShimBinary> {
    let wanted = std::env::var("VIGIL_ONLY").ok();
    let known = [
        Some(ShimBinary::go_1_6()),
        Some(ShimBinary::go_2_1()),
        ShimBinary::vigil(),
    ];
    known
        .into_iter()
        .flatten()
        .filter(|s| s.path.exists() && wanted.as_ref().is_none_or(|w| w == s.name))
        .collect()
}

fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for binary in shims() {
        for behaviour in all() {
            let binary = binary.clone();
            trials.push(Trial {
                name: format!("{}::{}", binary.name, behaviour.name),
                run: Box::new(move || {
                    judged(binary.name, behaviour.name, try_direct(&binary, &behaviour))
                }),
            });
        }
    }
    for (name, run) in daemon::trials() {
        let full = name.clone();
        let run = move || {
            let (shim, behaviour) = name.rsplit_once("::").unwrap_or(("", name.as_str()));
            judged(shim, behaviour, run())
        };
        trials.push(Trial {
            name: full,
            run: Box::new(run),
        });
    }
    trials
}

/// The harness; see the module.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let valued = ["--test-threads", "--format", "--color", "--skip", "-Z"];
    let mut filters = Vec::new();
    let mut skip_next = false;
    for arg in &args {
        if std::mem::take(&mut skip_next) {
            continue;
        }
        if valued.contains(&arg.as_str()) {
            skip_next = true;
        } else if !arg.starts_with('-') {
            filters.push(arg.clone());
        }
    }
    let exact = flag("--exact");
    let matches = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| {
                if exact {
                    name == f
                } else {
                    name.contains(f.as_str())
                }
            })
    };
    if flag("--ignored") && flag("--list") {
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<Trial> = trials().into_iter().filter(|t| matches(&t.name)).collect();
    if flag("--list") {
        for trial in &chosen {
            println!("{}: test", trial.name);
        }
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("VIGIL_REPORT_SOURCES").is_some() {
        for behaviour in all() {
            println!("{:45} {}", behaviour.name, behaviour.source);
        }
    }
    vigil_lab::scratch::sweep();
    let threads = args
        .iter()
        .position(|a| a == "--test-threads")
        .and_then(|at| args.get(at + 1)?.parse().ok())
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
    run_all(&chosen, threads)
}

fn run_all(trials: &[Trial], threads: usize) -> ExitCode {
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let at = Instant::now();
                    let mut result = (trial.run)();
                    // Go's shims have races of their own; they are the measure
                    // here, not what is judged. Ours gets one try.
                    for _ in 0..GO_TRIES {
                        if !trial.name.starts_with("go") {
                            break;
                        }
                        if let Err(error) = &result {
                            println!("again            {}: {error:#}", trial.name);
                            result = (trial.run)();
                        }
                    }
                    let took = at.elapsed().as_secs_f64();
                    match result {
                        Ok(Outcome::Holds) => {
                            counts[0].fetch_add(1, Ordering::Relaxed);
                            println!("holds    {:5.1}s  {}", took, trial.name);
                        }
                        Ok(Outcome::Differs(reason)) => {
                            counts[1].fetch_add(1, Ordering::Relaxed);
                            println!("differs  {:5.1}s  {}  ({reason})", took, trial.name);
                        }
                        Err(error) => {
                            println!("FAILS    {:5.1}s  {}: {error:#}", took, trial.name);
                            failures
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push((trial.name.clone(), format!("{error:#}")));
                        }
                    }
                }
            });
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    println!(
        "\n{} hold, {} differ as listed, {} fail; {:.0} s",
        counts[0].load(Ordering::Relaxed),
        counts[1].load(Ordering::Relaxed),
        failures.len(),
        began.elapsed().as_secs_f64()
    );
    for (name, error) in &failures {
        println!("  {name}: {error}");
    }
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
