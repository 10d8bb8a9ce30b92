//! The suite: every behaviour against every shim, then the daemon's.

use std::process::ExitCode;
use std::time::Duration;

use vigil_lab::suite::{Suite, Trial, shims, verdict, with_kit};

use crate::behaviour::all;
use crate::daemon;
use crate::differences::DIFFERENCES;

/// How often a behaviour of a Go shim that failed is tried again.
const GO_TRIES: usize = 2;
/// How long one behaviour may take.
const DEADLINE: Duration = Duration::from_mins(3);

fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for binary in shims() {
        for behaviour in all() {
            let asked = binary.clone();
            trials.push(Trial {
                shim: binary.name.to_owned(),
                name: behaviour.name.to_owned(),
                alone: false,
                run: Box::new(move || with_kit(&asked, DEADLINE, false, behaviour.run)),
            });
        }
    }
    trials.extend(daemon::trials());
    trials
}

/// The harness; see the module.
#[must_use]
pub fn main() -> ExitCode {
    if std::env::var_os("VIGIL_REPORT_SOURCES").is_some() {
        for behaviour in all() {
            println!("{:45} {}", behaviour.name, behaviour.source);
        }
    }
    let suite = Suite {
        trials: trials(),
        differences: DIFFERENCES,
        go_tries: GO_TRIES,
    };
    suite
        .main()
        .map_or(ExitCode::SUCCESS, |ended| verdict(&ended, true))
}
