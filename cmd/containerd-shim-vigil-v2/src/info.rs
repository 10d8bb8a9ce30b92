//! `-info`: what this runtime is and what its runc can do. A runc that is
//! missing or says nothing costs the features, not the answer.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use vigil_host::runc::{Call, Deadlines, Invocation, Runtime};
use vigil_protocol::{bootstrap, info};

use crate::RUNTIME;

/// Answers on stdout.
pub fn run() -> Result<()> {
    let stdin = bootstrap::read(std::io::stdin().lock())?;
    let question = info::question(&stdin)?;
    let program = match question.options.binary_name.as_str() {
        "" => "runc",
        name => name,
    };
    let runtime = Runtime {
        program: OsString::from(program),
        root: PathBuf::from("/run/containerd/runc"),
        systemd_cgroup: false,
    };
    let deadlines = Deadlines::default();
    let features = Invocation::new(&runtime, Call::Features)
        .run(deadlines.ask, deadlines.grace)
        .ok()
        .filter(|json| !json.is_empty());
    let version = env!("CARGO_PKG_VERSION");
    let answer = info::answer(question, RUNTIME, version, "", features)?;
    std::io::stdout()
        .write_all(&answer)
        .context("cannot write the answer to stdout")
}
