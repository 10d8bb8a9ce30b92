//! The suite: every case against ours, and against Go's shims when they are asked.
//!
//! `VIGIL_FAULTS=all` asks all shims and takes the time it takes; otherwise ours alone.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use vigil_lab::suite::{Suite, Trial, bounded, shims, verdict, with_kit};
use vigil_lab::{Place, ShimBinary};

use crate::case::{Asked, Case, Run};
use crate::cases;
use crate::differences::DIFFERENCES;
use crate::elsewhere;
use crate::{matrix, table};

/// How long one case may take.
const DEADLINE: Duration = Duration::from_mins(5);

/// Every case there is.
#[must_use]
pub fn all() -> Vec<Case> {
    cases::all()
}

fn attempt(shim: &ShimBinary, run: Run) -> anyhow::Result<()> {
    match run {
        Run::Kit(test) => with_kit(shim, DEADLINE, true, test),
        Run::Daemon(test) => {
            let mut place = Place::start(shim.containerd(), shim)?;
            let mark = place.containerd.namespace().to_owned();
            bounded(&mark, DEADLINE, move || {
                let result = test(&mut place)
                    .and_then(|()| place.containerd.expect_clean().context("after it"));
                result.with_context(|| place.containerd.log_tail())
            })
        }
    }
}

fn trials(shims: &[ShimBinary]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for shim in shims {
        for case in all() {
            if case.asked == Asked::Ours && shim.name != "vigil" {
                continue;
            }
            let asked = shim.clone();
            trials.push(Trial {
                shim: shim.name.to_owned(),
                name: case.name.to_owned(),
                alone: case.alone,
                run: Box::new(move || attempt(&asked, case.run)),
            });
        }
        if shim.name == "vigil" {
            trials.extend(matrix::trials(shim));
        }
    }
    trials
}

/// The harness; see the module.
#[must_use]
pub fn main() -> ExitCode {
    let all_shims = std::env::var("VIGIL_FAULTS").is_ok_and(|which| which == "all")
        || std::env::var_os("VIGIL_ONLY").is_some();
    let mut shims = shims();
    if !all_shims {
        shims.retain(|shim| shim.name == "vigil");
    }
    let suite = Suite {
        trials: trials(&shims),
        differences: DIFFERENCES,
        go_tries: 0,
    };
    let Some(ended) = suite.main() else {
        return ExitCode::SUCCESS;
    };
    print!("\n{}", table::text(&ended));
    if let Some(path) = std::env::var_os("VIGIL_FAULTS_TABLE")
        && let Err(error) = std::fs::write(&path, table::compact(&ended))
    {
        eprintln!("the table was not written to {}: {error}", path.display());
    }
    if all_shims {
        print!("\n{}", elsewhere::text());
    }
    verdict(&ended, false)
}
