//! Opens what the streams of a process need, and never waits for anybody to do
//! so: fifos are opened non-blocking with both ends held, terminals get a
//! socket to be called on, loggers are prepared. Copies nothing; which ends
//! are kept, for how long, is `supervise`'s affair.
//!
//! Opening is synchronous. A `file://` on a file system that does not answer
//! is the one thing here that could sleep.

mod console;
mod logger;
mod plan;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use vigil_model::Options;
use vigil_sys::{Errno, fd, fifo};

pub use console::ConsolePath;
pub use logger::LoggerStart;
pub use plan::{LoggerPlan, Output, Plan, PlanError};

use crate::{Error, Result};

/// What a deposited descriptor is for. The numbers are given back by the
/// reaper to a later, perhaps newer, shim: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum SlotKind {
    /// Reading end of the client's stdin fifo.
    StdinReader = 1,
    /// Writing end of the client's stdin fifo, until CloseIO.
    StdinWriter = 2,
    /// Writing end of the pipe that is the process's stdin.
    StdinPipe = 3,
    /// Reading end of the pipe that is the process's stdout.
    StdoutPipe = 4,
    /// Both ends of the client's stdout fifo; or, for a terminal, the file or
    /// device its output goes to.
    StdoutSink = 5,
    /// Reading end of the pipe that is the process's stderr.
    StderrPipe = 6,
    /// Both ends of the client's stderr fifo.
    StderrSink = 7,
    /// Where runc will bring the terminal's master.
    ConsoleListener = 8,
    /// The terminal's master.
    Console = 9,
    /// Reading end of the logger's descriptor 3.
    LoggerStdout = 10,
    /// Reading end of the logger's descriptor 4.
    LoggerStderr = 11,
    /// Where the logger says that it is ready.
    LoggerReady = 12,
    /// A pidfd of the logger.
    Logger = 13,
    /// Writing end of the logger's descriptor 3, with a terminal only.
    LoggerFeed = 14,
    /// The client's stdin fifo, by name: the reaper holds both ends of it while
    /// the shim opens its own.
    StdinGuard = 15,
    /// The same of stdout.
    StdoutGuard = 16,
    /// The same of stderr.
    StderrGuard = 17,
    /// Who called on the console listener, with the master still in the queue.
    ConsoleCaller = 18,
}

impl SlotKind {
    /// Every kind.
    pub const ALL: [SlotKind; 18] = [
        SlotKind::StdinReader,
        SlotKind::StdinWriter,
        SlotKind::StdinPipe,
        SlotKind::StdoutPipe,
        SlotKind::StdoutSink,
        SlotKind::StderrPipe,
        SlotKind::StderrSink,
        SlotKind::ConsoleListener,
        SlotKind::Console,
        SlotKind::LoggerStdout,
        SlotKind::LoggerStderr,
        SlotKind::LoggerReady,
        SlotKind::Logger,
        SlotKind::LoggerFeed,
        SlotKind::StdinGuard,
        SlotKind::StdoutGuard,
        SlotKind::StderrGuard,
        SlotKind::ConsoleCaller,
    ];

    /// Whether it only guards a fifo.
    pub fn is_guard(self) -> bool {
        matches!(
            self,
            SlotKind::StdinGuard | SlotKind::StdoutGuard | SlotKind::StderrGuard
        )
    }

    /// As the reaper keeps it.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// As the reaper gave it back.
    pub fn from_code(code: u8) -> Option<SlotKind> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// The descriptors runc is started with, and lends to the process. Drop them
/// as soon as runc has exited: as long as we hold them, nobody sees an end.
#[derive(Debug)]
pub struct ChildFds {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// Owner of the pipes: a container that runs as another user may open
/// `/dev/stdout` again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// `io_uid`.
    pub uid: u32,
    /// `io_gid`.
    pub gid: u32,
}

impl From<&Options> for Owner {
    fn from(options: &Options) -> Owner {
        Owner {
            uid: options.io_uid,
            gid: options.io_gid,
        }
    }
}

/// Everything a plan needs, open.
#[derive(Debug)]
pub struct Opened {
    /// For runc.
    pub child: ChildFds,
    /// What we hold, all of it to be deposited before runc is started.
    pub ends: Vec<(SlotKind, OwnedFd)>,
    /// With a terminal: where runc is to bring the master.
    pub console: Option<ConsolePath>,
    /// With `binary://`: to be started after the deposit.
    pub logger: Option<LoggerStart>,
}

/// The names of the fifos of a plan. Whoever opens an end of a fifo and dies has
/// shown its client a peer, and then the end; so the reaper, which does not, is
/// given the names and opens first.
pub fn guards(plan: &Plan) -> Result<Vec<(SlotKind, OwnedFd)>> {
    let (stdout, stderr) = match &plan.output {
        Output::Paths { stdout, stderr } => (stdout.as_deref(), stderr.as_deref()),
        Output::File(_) | Output::Logger(_) => (None, None),
    };
    let paths = [
        (SlotKind::StdinGuard, plan.stdin.as_deref(), "open stdin"),
        (SlotKind::StdoutGuard, stdout, "open stdout"),
        (SlotKind::StderrGuard, stderr, "open stderr"),
    ];
    let mut named = Vec::new();
    for (kind, path, what) in paths {
        let Some(path) = path else { continue };
        if fifo::kind(path).map_err(failed(what, path))? == fifo::Kind::Fifo {
            named.push((kind, fifo::open_name(path).map_err(failed(what, path))?));
        }
    }
    Ok(named)
}

/// Opens what a plan needs. On failure nothing stays open.
pub fn open(plan: &Plan, owner: Owner) -> Result<Opened> {
    let mut ends = Vec::new();
    let mut child = ChildFds {
        stdin: null()?,
        stdout: null()?,
        stderr: null()?,
    };
    let mut console = None;
    let mut logger = None;

    if let Some(path) = &plan.stdin {
        match fifo::kind(path).map_err(failed("open stdin", path))? {
            fifo::Kind::Fifo => {
                // The reader first: a writer alone is refused.
                let reader = fifo::open_reader(path).map_err(failed("open stdin", path))?;
                let writer = fifo::open_writer(path).map_err(failed("open stdin", path))?;
                ends.push((SlotKind::StdinReader, reader));
                ends.push((SlotKind::StdinWriter, writer));
                if !plan.terminal {
                    let (theirs, ours) = pipe("stdin")?;
                    own(&theirs, owner, "stdin")?;
                    quiet(&ours, "stdin")?;
                    child.stdin = theirs;
                    ends.push((SlotKind::StdinPipe, ours));
                }
            }
            // A terminal has no use for a file as its keyboard.
            _ if plan.terminal => return Err(failed("open stdin", path)(Errno::ENOSTR)),
            _ => {
                child.stdin =
                    fifo::open_plain(path, fifo::Use::Read).map_err(failed("open stdin", path))?;
            }
        }
    }
    if plan.terminal {
        let (listener, path) = console::listen()?;
        ends.push((SlotKind::ConsoleListener, listener));
        console = Some(path);
    }

    match &plan.output {
        Output::Paths { stdout, .. } if plan.terminal => {
            if let Some(path) = stdout {
                let what = "open stdout";
                let sink = match fifo::kind(path).map_err(failed(what, path))? {
                    fifo::Kind::Fifo => fifo::open_both_ends(path),
                    _ => fifo::open_plain(path, fifo::Use::Append),
                };
                ends.push((SlotKind::StdoutSink, sink.map_err(failed(what, path))?));
            }
        }
        Output::Paths { stdout, stderr } => {
            let kinds = (SlotKind::StdoutPipe, SlotKind::StdoutSink);
            child.stdout = output(stdout.as_deref(), "stdout", kinds, owner, &mut ends)?;
            child.stderr = if stderr == stdout && ends.iter().all(|(k, _)| *k != kinds.1) {
                // One file for both, opened once.
                fd::duplicate(&child.stdout).map_err(kernel("duplicate", "stdout"))?
            } else {
                let kinds = (SlotKind::StderrPipe, SlotKind::StderrSink);
                output(stderr.as_deref(), "stderr", kinds, owner, &mut ends)?
            };
        }
        Output::File(path) => {
            child.stdout = append_to(path)?;
            child.stderr = fd::duplicate(&child.stdout).map_err(kernel("duplicate", "stdout"))?;
        }
        Output::Logger(plan_of_it) => {
            let (out, feed) = pipe("stdout")?;
            let (err, feed_err) = pipe("stderr")?;
            let (heard, ready) = pipe("ready pipe")?;
            quiet(&heard, "ready pipe")?;
            if plan.terminal {
                quiet(&feed, "stdout")?;
                ends.push((SlotKind::LoggerFeed, feed));
            } else {
                own(&feed, owner, "stdout")?;
                own(&feed_err, owner, "stderr")?;
                child.stdout = feed;
                child.stderr = feed_err;
            }
            ends.push((SlotKind::LoggerStdout, out));
            ends.push((SlotKind::LoggerStderr, err));
            ends.push((SlotKind::LoggerReady, heard));
            logger = Some(LoggerStart {
                plan: plan_of_it.clone(),
                ready,
            });
        }
    }
    Ok(Opened {
        child,
        ends,
        console,
        logger,
    })
}

/// One of the two outputs: the process's end of it. With a fifo that is a
/// pipe, and our ends are added; a file or device it gets itself.
fn output(
    path: Option<&Path>,
    what: &'static str,
    (pipe_kind, sink_kind): (SlotKind, SlotKind),
    owner: Owner,
    ends: &mut Vec<(SlotKind, OwnedFd)>,
) -> Result<OwnedFd> {
    let Some(path) = path else { return null() };
    let op = if what == "stdout" {
        "open stdout"
    } else {
        "open stderr"
    };
    match fifo::kind(path).map_err(failed(op, path))? {
        fifo::Kind::Fifo => {
            let sink = fifo::open_both_ends(path).map_err(failed(op, path))?;
            let (ours, theirs) = pipe(what)?;
            own(&theirs, owner, what)?;
            quiet(&ours, what)?;
            ends.push((pipe_kind, ours));
            ends.push((sink_kind, sink));
            Ok(theirs)
        }
        _ => fifo::open_plain(path, fifo::Use::Append).map_err(failed(op, path)),
    }
}

fn append_to(path: &Path) -> Result<OwnedFd> {
    let failed = |op| {
        move |source| Error::File {
            op,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(failed("create the directory of"))?;
    }
    let mut how = std::fs::OpenOptions::new();
    how.append(true).create(true).mode(0o644);
    how.open(path)
        .map(OwnedFd::from)
        .map_err(failed("append to"))
}

fn null() -> Result<OwnedFd> {
    fd::null().map_err(failed("open", Path::new("/dev/null")))
}

fn pipe(what: &str) -> Result<(OwnedFd, OwnedFd)> {
    fd::pipe().map_err(kernel("make a pipe for", what))
}

fn own(end: &OwnedFd, owner: Owner, what: &str) -> Result<()> {
    fd::chown(end, owner.uid, owner.gid)
        .map_err(kernel("give to io_uid and io_gid the pipe of", what))
}

/// Our own ends never block us.
fn quiet(end: impl AsFd, what: &str) -> Result<()> {
    fd::set_nonblocking(end, true).map_err(kernel("make non-blocking our end of", what))
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    move |e| Error::File {
        op,
        path: path.to_owned(),
        source: e.into(),
    }
}

fn kernel(op: &'static str, what: &str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Kernel {
        op,
        what: what.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
