//! Runs a suite of trials: a few at a time, each with a deadline, against one shim after
//! the other, and prints what held where.
//!
//! Understands as much of libtest's command line as cargo and nextest use: filters,
//! `--exact`, `--list`, `--ignored`, `--test-threads`. What a suite's outcome means is
//! the suite's business; this only runs, judges by its list of differences, and counts.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::containerd::Version;
use crate::kit::{Kit, ShimBinary};
use crate::{by, poll, process};

/// One shim departing from one trial, and why. A listed difference must *be* one: if the
/// trial passes after all, the suite fails, so that the list stays true.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// `go-1`, `go-2` or `vigil`; through a containerd `go@1`, `go@2`.
    pub shim: &'static str,
    /// Name of the trial.
    pub trial: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Whether it departs every time; a race in the shim may also go well.
    pub always: bool,
}

/// The containerd whose Go shim the lists of differences were made with. The suite of a
/// machine may have another: then what is listed may hold after all, what fails beside it is
/// told, and neither is held against anybody.
const LISTED: [(Version, &str); 2] = [(Version::Debian, "1.6.20"), (Version::V2, "2.1.9")];

/// Whether `shim` is one that the lists of differences know.
#[must_use]
fn listed(shim: &str) -> bool {
    let version = match shim {
        "go-1" | "go@1" => Version::Debian,
        "go-2" | "go@2" => Version::V2,
        _ => return true,
    };
    LISTED.contains(&(version, version.number()))
}

/// Names are compared where a list is compiled: a name that is none would silence nothing.
const fn is_known(shim: &str) -> bool {
    matches!(
        shim.as_bytes(),
        b"go-1" | b"go-2" | b"go@1" | b"go@2" | b"vigil"
    )
}

fn outcome(result: Result<()>, difference: Option<&Difference>, listed: bool) -> Outcome {
    match (result, difference) {
        (Ok(()), Some(d)) if d.always && listed => Outcome::Fails(format!(
            "it holds, but is listed as different: {}",
            d.reason
        )),
        (Ok(()), _) => Outcome::Holds,
        (Err(_), Some(d)) => Outcome::Differs(d.reason),
        (Err(error), None) => Outcome::Fails(format!("{error:#}")),
    }
}

/// It departs every time.
#[must_use]
pub const fn differs(shim: &'static str, trial: &'static str, reason: &'static str) -> Difference {
    assert!(is_known(shim), "a shim is go-1, go-2, go@1, go@2 or vigil");
    Difference {
        shim,
        trial,
        reason,
        always: true,
    }
}

/// It may depart.
#[must_use]
pub const fn may_differ(
    shim: &'static str,
    trial: &'static str,
    reason: &'static str,
) -> Difference {
    assert!(is_known(shim), "a shim is go-1, go-2, go@1, go@2 or vigil");
    Difference {
        shim,
        trial,
        reason,
        always: false,
    }
}

/// One thing to run.
pub struct Trial {
    /// The shim it asks, `go-1`; with a daemon `go@1`.
    pub shim: String,
    /// What it asks.
    pub name: String,
    /// Runs with nothing else beside it.
    pub alone: bool,
    /// Runs it; an error is a failure.
    pub run: Box<dyn Fn() -> Result<()> + Send + Sync>,
}

impl Trial {
    /// `go-1::exit_status_7`
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}::{}", self.shim, self.name)
    }
}

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Holds,
    /// Otherwise, as the list says, for this reason.
    Differs(&'static str),
    /// Otherwise, and nobody knows why.
    Fails(String),
}

/// A trial that ran.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Of the trial.
    pub shim: String,
    /// Of the trial.
    pub name: String,
    /// How.
    pub outcome: Outcome,
    /// In which time.
    pub took: Duration,
}

/// What to run, and how to judge it.
pub struct Suite {
    /// In this order, as far as threads keep it.
    pub trials: Vec<Trial>,
    /// What is known to be otherwise.
    pub differences: &'static [Difference],
    /// How often a trial of a Go shim that failed is tried again.
    pub go_tries: usize,
}

impl Suite {
    /// Runs what the command line asks for. What ran, in no order; `None` if the command line asked for a list.
    #[must_use]
    pub fn main(mut self) -> Option<Vec<Ended>> {
        let asked = Asked::new(std::env::args().skip(1));
        if asked.ignored && asked.list {
            return None;
        }
        self.trials.retain(|t| asked.matches(&t.full_name()));
        if asked.list {
            for trial in &self.trials {
                println!("{}: test", trial.full_name());
            }
            return None;
        }
        crate::scratch::sweep();
        Some(self.run(asked.threads))
    }

    fn judged(&self, trial: &Trial) -> Outcome {
        let difference = self
            .differences
            .iter()
            .find(|d| d.shim == trial.shim && d.trial == trial.name);
        let result = match difference {
            Some(_) => poll::in_vain(|| (trial.run)()),
            None => (trial.run)(),
        };
        outcome(result, difference, listed(&trial.shim))
    }

    fn attempt(&self, trial: &Trial) -> Ended {
        let at = Instant::now();
        let mut outcome = self.judged(trial);
        // Go's shims have races of their own; they are the measure
        // here, not what is judged. Ours gets one try, and one more in CI, on
        // machines nobody knows: what holds only then is named.
        let ci = std::env::var_os("CI").is_some();
        let tries = if trial.shim.starts_with("go") {
            self.go_tries
        } else {
            usize::from(ci)
        };
        for _ in 0..tries {
            if let Outcome::Fails(error) = &outcome {
                println!("again            {}: {error}", trial.full_name());
                outcome = self.judged(trial);
            }
        }
        let (name, took) = (trial.full_name(), at.elapsed());
        let seconds = took.as_secs_f64();
        match &outcome {
            Outcome::Holds => println!("holds    {seconds:5.1}s  {name}"),
            Outcome::Differs(reason) => println!("differs  {seconds:5.1}s  {name}  ({reason})"),
            Outcome::Fails(error) => println!("FAILS    {seconds:5.1}s  {name}: {error}"),
        }
        Ended {
            shim: trial.shim.clone(),
            name: trial.name.clone(),
            outcome,
            took,
        }
    }

    fn run(&self, threads: usize) -> Vec<Ended> {
        let began = Instant::now();
        let next = AtomicUsize::new(0);
        let ended = Mutex::new(Vec::new());
        // Whoever must be alone writes, everybody else reads.
        let company = RwLock::new(());
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    while let Some(trial) = self.trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let one = if trial.alone {
                            let _alone = company.write().unwrap_or_else(PoisonError::into_inner);
                            self.attempt(trial)
                        } else {
                            let _beside = company.read().unwrap_or_else(PoisonError::into_inner);
                            self.attempt(trial)
                        };
                        ended
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(one);
                    }
                });
            }
        });
        let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        let count = |is: fn(&Outcome) -> bool| ended.iter().filter(|e| is(&e.outcome)).count();
        println!(
            "\n{} hold, {} differ as listed, {} fail; {:.0} s",
            count(|o| *o == Outcome::Holds),
            count(|o| matches!(o, Outcome::Differs(_))),
            count(|o| matches!(o, Outcome::Fails(_))),
            began.elapsed().as_secs_f64()
        );
        print!("{}", crate::times::table());
        for one in &ended {
            if let Outcome::Fails(error) = &one.outcome {
                println!("  {}::{}: {error}", one.shim, one.name);
            }
        }
        for (version, number) in LISTED {
            if version.installed() && version.number() != number {
                println!(
                    "  the Go shim of {} is not judged: the differences were listed with {number}",
                    version.number()
                );
            }
        }
        ended
    }
}

/// Success unless something failed that is judged: ours, and Go's if `go_judged` and it is
/// the one whose differences are listed.
#[must_use]
pub fn verdict(ended: &[Ended], go_judged: bool) -> ExitCode {
    let failed = ended
        .iter()
        .filter(|e| !e.shim.starts_with("go") || go_judged && listed(&e.shim))
        .any(|e| matches!(e.outcome, Outcome::Fails(_)));
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// The part of libtest's command line that is understood.
struct Asked {
    filters: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
    threads: usize,
}

impl Asked {
    fn new(args: impl Iterator<Item = String>) -> Self {
        let mut asked = Self {
            filters: Vec::new(),
            exact: false,
            list: false,
            ignored: false,
            // One more than there are processors: a trial waits more than it works.
            threads: 1 + std::thread::available_parallelism().map_or(2, usize::from),
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => asked.exact = true,
                "--list" => asked.list = true,
                "--ignored" => asked.ignored = true,
                "--test-threads" => {
                    asked.threads = args
                        .next()
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(asked.threads);
                }
                "--format" | "--color" | "--skip" | "-Z" => drop(args.next()),
                _ if arg.starts_with('-') => {}
                _ => asked.filters.push(arg),
            }
        }
        asked
    }

    fn matches(&self, name: &str) -> bool {
        self.filters.is_empty()
            || self.filters.iter().any(|filter| {
                if self.exact {
                    name == filter
                } else {
                    name.contains(filter.as_str())
                }
            })
    }
}

/// Runs `test` with a kit of its own for at most `deadline`; afterwards nothing may be left,
/// and if it is `strict`, events must have come in order and what only reads in time.
pub fn with_kit(
    binary: &ShimBinary,
    deadline: Duration,
    strict: bool,
    test: fn(&Kit) -> Result<()>,
) -> Result<()> {
    let mut kit = Kit::new(binary)?;
    kit.strict = strict;
    let mark = kit.scratch.mark().to_owned();
    bounded(&mark, deadline, move || {
        // After a failure the kit's drop cleans up; after a success nothing may be left.
        test(&kit).and_then(|()| kit.finish().context("after it"))
    })
}

/// Runs `test` for at most `deadline`; what bears `mark` is killed if it takes longer.
pub fn bounded(
    mark: &str,
    deadline: Duration,
    test: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let (sender, done) = mpsc::channel();
    let generosity = poll::generosity();
    let thread = std::thread::spawn(move || {
        poll::wait_as(generosity);
        let _ = sender.send(test());
    });
    let result = match done.recv_timeout(deadline) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            // Everything it waits for has this mark; without it, it comes back with an error.
            let _ = process::kill_marked(mark, by(5.0));
            let late = done.recv_timeout(Duration::from_secs(30));
            Err(anyhow::anyhow!(
                "not done after {deadline:?}; then: {late:?}"
            ))
        }
        Err(RecvTimeoutError::Disconnected) => Err(anyhow::anyhow!("it panicked")),
    };
    let _ = thread.join();
    result
}

/// The shims there are, Debian's first; `VIGIL_ONLY` names one.
#[must_use]
pub fn shims() -> Vec<ShimBinary> {
    let wanted = std::env::var("VIGIL_ONLY").ok();
    let known = [
        Some(ShimBinary::go_1()),
        Some(ShimBinary::go_2()),
        ShimBinary::vigil(),
    ];
    known
        .into_iter()
        .flatten()
        .filter(|s| s.path.exists() && wanted.as_ref().is_none_or(|w| w == s.name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The day the suite has another containerd 2, some of its differences are gone: that
    /// must not fail whoever tests Vigil. With the one that is listed, the list stays true.
    #[test]
    fn another_version_of_gos_shim_may_hold_what_is_listed() {
        let known = differs("go-2", "x", "it was so in the version that is listed");
        let judge = |result, listed| outcome(result, Some(&known), listed);
        assert!(matches!(judge(Ok(()), true), Outcome::Fails(_)));
        assert_eq!(judge(Ok(()), false), Outcome::Holds);
        for listed in [true, false] {
            let result = judge(Err(anyhow::anyhow!("no")), listed);
            assert_eq!(result, Outcome::Differs(known.reason));
        }
    }
}
