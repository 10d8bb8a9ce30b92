//! The runtime containerd executes: `start` makes a pair, `delete` has the
//! last word on a container, `-info` describes the runtime, and `serve` is
//! what the reaper starts as the shim. Errors go to stderr as one line, exit 1.

mod apart;
mod delete;
mod ended;
mod heir;
mod info;
mod last_words;
mod leave;
mod serve;
mod start;
mod waiter;

use std::process::ExitCode;

use vigil_protocol::{Action, Invocation, flags};

/// What `-info` and the log call this runtime.
pub(crate) const RUNTIME: &str = "io.containerd.vigil.v2";

fn main() -> ExitCode {
    if let Err(error) = heir::run_if_heir() {
        // Nobody reads what it says; whoever is the parent is told by the status.
        eprintln!("{RUNTIME}: {}", vigil_supervise::chain(error.as_ref()));
        return ExitCode::FAILURE;
    }
    let mut args = std::env::args_os();
    let name = args
        .next()
        .and_then(|name| {
            std::path::PathBuf::from(name)
                .file_name()
                .map(ToOwned::to_owned)
        })
        .map_or_else(
            || RUNTIME.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
    let outcome = match flags::parse(args) {
        Ok(Invocation::Version) => version(&name),
        Ok(Invocation::Info) => info::run(),
        Ok(Invocation::Run {
            action: Action::Start,
            flags,
        }) => start::run(&flags),
        Ok(Invocation::Run {
            action: Action::Delete,
            flags,
        }) => delete::run(&flags),
        Ok(Invocation::Run {
            action: Action::Serve,
            flags,
        }) => serve::run(&flags),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", vigil_supervise::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn version(name: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout();
    writeln!(out, "{name}:")?;
    writeln!(out, "  Version:  {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "  Runtime:  {RUNTIME}")?;
    Ok(())
}
