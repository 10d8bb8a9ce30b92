//! Runs the fault suite and prints, one row a class, what holds for which shim.
//!
//! Its own harness, because the outcome is a table, and because a case that passes
//! where a difference is listed is as wrong as one that fails.

use std::process::ExitCode;

fn main() -> ExitCode {
    vigil_faults::runner::main()
}
