//! `vigil`, the operator's tool: what is recorded, observed and believed of a
//! container. Links neither the shim's loop nor the reaper, so that it works
//! when no shim does; it reads, and names the source of what it says.

mod place;
mod show;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Looks at Vigil's containers.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells the story of one container from its journal and exit records.
    Show(show::Args),
}

/// How this program ends; scripts may rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    /// It did what was asked.
    Done = 0,
    /// It failed; the reason is on stderr.
    Failed = 1,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Show(args) => show::run(&args),
    };
    let code = match outcome {
        Ok(()) => Code::Done,
        Err(error) if place::is_broken_pipe(&error) => Code::Done,
        Err(error) => {
            eprintln!("vigil: {error:#}");
            Code::Failed
        }
    };
    ExitCode::from(code as u8)
}
