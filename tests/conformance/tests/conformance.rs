//! Runs the suite: Debian's Go shim first, then the newer Go shim, then ours.
//!
//! Its own harness, because the outcome is a table (behaviour × shim), and because a
//! behaviour that passes where a difference is listed is as wrong as one that fails.

use std::process::ExitCode;

fn main() -> ExitCode {
    vigil_conformance::runner::main()
}
