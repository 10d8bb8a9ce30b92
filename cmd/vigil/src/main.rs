//! `vigil`, the operator's tool: what is recorded, observed and believed of a
//! container, and its repair. Links neither the shim's loop nor the reaper, so
//! that it works when no shim does; it names the source of what it says, and
//! changes nothing but by `repair --write`, `kill` and `upgrade`.

mod ask;
mod crashes;
mod history;
mod holders;
mod json;
mod judge;
mod kill;
mod look;
mod pair;
mod place;
mod processes;
mod program;
mod ps;
mod recorded;
mod repair;
mod show;
mod table;
mod timeline;
mod upgrade;
mod words;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Looks at Vigil's containers, repairs what the death of a pair left, and upgrades their shims.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the node's tasks: what is recorded, what is seen, and what is true.
    Ps(ps::Args),
    /// Tells all of one container: recorded, observed, published; then its story.
    Show(show::Args),
    /// Plans the repair of what dead pairs left; carries it out with `--write`.
    Repair(repair::Args),
    /// Ends a container that nobody else can: both of its pair, at once, then the rest.
    Kill(kill::Args),
    /// Gives containers the shim of another program, without their noticing.
    Upgrade(upgrade::Args),
    /// Prints the lines that containers leave when they are gone.
    History(history::Args),
}

/// How this program ends; scripts may rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// It did what was asked, and nothing is wrong.
    Done = 0,
    /// It failed; the reason is on stderr.
    Failed = 1,
    /// It was called wrongly (clap says so, with the same number).
    Usage = 2,
    /// It did what was asked, and something is wrong with a task, or left.
    Wrong = 3,
    /// There is no such container.
    Nothing = 4,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, and nothing is wrong
  1  failed; the reason is on stderr
  2  called wrongly
  3  done, and something is wrong with a task, or is left of one
  4  there is no such container";

/// What a command says: all of it at once, so that a failure halfway prints
/// no half table.
#[derive(Debug)]
pub struct Answer {
    /// For stdout.
    pub text: String,
    /// How to end.
    pub code: Code,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Ps(args) => ps::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Kill(args) => kill::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::History(args) => history::run(&args),
    };
    let code = match outcome.and_then(|answer| print(&answer)) {
        Ok(code) => code,
        Err(error) => {
            // Nobody may be there to read this either.
            let _ = writeln!(std::io::stderr(), "vigil: {error:#}");
            error
                .downcast_ref()
                .map_or(Code::Failed, |Exit(code)| *code)
        }
    };
    ExitCode::from(code as u8)
}

/// An error that ends the program with a code of its own; a context of the
/// error it belongs to.
#[derive(Debug)]
pub struct Exit(pub Code);

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Code::Done => "done",
            Code::Failed => "failed",
            Code::Usage => "called wrongly",
            Code::Wrong => "something is wrong",
            Code::Nothing => "no such container",
        })
    }
}

fn print(answer: &Answer) -> anyhow::Result<Code> {
    let mut out = std::io::stdout().lock();
    match out
        .write_all(answer.text.as_bytes())
        .and_then(|()| out.flush())
    {
        Ok(()) => Ok(answer.code),
        // Its reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(answer.code),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to stdout")),
    }
}
