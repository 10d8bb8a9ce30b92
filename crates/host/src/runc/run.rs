//! Running one call: start it with what it needs and nothing else, watch it
//! against its deadline, end its whole group, and tell how it went.
//!
//! No pipe is ever read to its end here: the container inherits what runc is
//! given, and such a pipe ends when the container does. What runc prints and
//! logs goes to memory files, bounded, and gone with the last descriptor.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use vigil_sys::{Errno, fd, pidfd, spawn};

use crate::strays;

use super::argv::{Call, DOCUMENT_FD, LOG_FD, Runtime, Verb};
use super::failure::{Class, Ended, Failure};
use super::log::{last_error, shorten};
use super::program::{Unusable, find_program};

/// What is kept of what runc prints.
const PRINTED: usize = 256 * 1024;
const TERM: i32 = 15;
const KILL: i32 = 9;

/// How long each verb may take, hooks included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Runs hooks and pulls in devices; under the two minutes after which the
    /// kubelet gives up, so that it hears our reason instead.
    pub create: Duration,
    /// Runs poststart hooks.
    pub start: Duration,
    /// Joins namespaces and cgroups, no hooks.
    pub exec: Duration,
    /// Of a container that is already dead; runc itself tries for 10 s at most
    /// to see it die, systemd may take long to drop a scope.
    pub delete: Duration,
    /// Writes a few cgroup files.
    pub update: Duration,
    /// Writes the container's memory to disk.
    pub checkpoint: Duration,
    /// Reads it back.
    pub restore: Duration,
    /// Only prints something.
    pub ask: Duration,
    /// Between SIGTERM to an overdue call and SIGKILL.
    pub grace: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            create: Duration::from_secs(110),
            start: Duration::from_mins(1),
            exec: Duration::from_mins(1),
            delete: Duration::from_secs(15),
            update: Duration::from_secs(15),
            checkpoint: Duration::from_mins(10),
            restore: Duration::from_secs(110),
            ask: Duration::from_secs(5),
            grace: Duration::from_millis(500),
        }
    }
}

impl Deadlines {
    /// That of one verb.
    pub fn of(&self, verb: Verb) -> Duration {
        match verb {
            Verb::Create => self.create,
            Verb::Start => self.start,
            Verb::Exec => self.exec,
            Verb::Delete => self.delete,
            Verb::Update => self.update,
            Verb::Checkpoint => self.checkpoint,
            Verb::Restore => self.restore,
            Verb::Features | Verb::Version => self.ask,
        }
    }
}

/// The streams of a process; `None` is `/dev/null`. Given to create, exec and
/// restore without a terminal, the container inherits them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streams<'fd> {
    /// Read end.
    pub stdin: Option<BorrowedFd<'fd>>,
    /// Write end.
    pub stdout: Option<BorrowedFd<'fd>>,
    /// Write end.
    pub stderr: Option<BorrowedFd<'fd>>,
}

/// A call about to be made.
#[derive(Debug)]
pub struct Invocation<'a> {
    /// Of which program.
    pub runtime: &'a Runtime,
    /// What.
    pub call: Call<'a>,
    /// For the container; not used by a call that hands none on.
    pub streams: Streams<'a>,
}

/// Removes a pid file, and what runc makes before it renames that to it: a runc that was
/// killed in between would be in the next one's way, which insists on making it anew.
pub fn forget_pid_file(path: &Path) {
    let _ = std::fs::remove_file(path);
    if let (Some(dir), Some(name)) = (path.parent(), path.file_name()) {
        let mut side = OsString::from(".");
        side.push(name);
        let _ = std::fs::remove_file(dir.join(side));
    }
}

impl<'a> Invocation<'a> {
    /// A call without streams.
    pub fn new(runtime: &'a Runtime, call: Call<'a>) -> Self {
        Invocation {
            runtime,
            call,
            streams: Streams::default(),
        }
    }

    /// Streams for the container.
    #[must_use]
    pub fn streams(mut self, streams: Streams<'a>) -> Self {
        self.streams = streams;
        self
    }

    /// Starts it.
    pub fn spawn(&self) -> Result<Running, Failure> {
        let verb = self.call.verb();
        if let Some(path) = self.call.pid_file() {
            forget_pid_file(path);
        }
        let program = find_program(&self.runtime.program).map_err(|why| self.unusable(why))?;
        self.spawn_program(&program).map_err(|errno| {
            let class = match errno {
                Errno::EACCES | Errno::ENOEXEC | Errno::EPERM => Class::NotExecutable,
                // Found a moment ago: its interpreter or loader is missing.
                Errno::ENOENT => Class::NotFound,
                _ => Class::NotStarted,
            };
            let message = format!("cannot execute {}: {}", program.display(), errno.desc());
            Failure {
                verb,
                exit: Ended::NotStarted(Some(errno)),
                message,
                class,
            }
        })
    }

    fn unusable(&self, why: Unusable) -> Failure {
        let name = Path::new(&self.runtime.program).display();
        let (class, message) = match why {
            Unusable::Missing => (Class::NotFound, format!("{name}: no such program")),
            Unusable::NotExecutable => (Class::NotExecutable, format!("{name}: not executable")),
        };
        Failure {
            verb: self.call.verb(),
            exit: Ended::NotStarted(None),
            message,
            class,
        }
    }

    fn spawn_program(&self, program: &Path) -> Result<Running, Errno> {
        let log = fd::memfd(c"runc-log")?;
        let printed = fd::memfd_capped(c"runc-output", PRINTED)?;
        let document = match self.call.document() {
            Some(text) => Some(fd::memfd_with(c"runc-document", text)?),
            None => None,
        };
        let call_for = self.call.id().map(|id| {
            let mark = strays::mark(&self.runtime.root, id);
            (OsString::from(strays::VARIABLE), mark)
        });
        let mut command = spawn::Command::new(program)
            .arg0(&self.runtime.program)
            .args(self.call.arguments(self.runtime))
            .envs(environment(std::env::vars_os()).chain(call_for))
            .fd(LOG_FD, log.as_fd())
            .own_group()
            .huge_pages();
        if let Some(document) = &document {
            command = command.fd(DOCUMENT_FD, document.as_fd());
        }
        if self.call.hands_on_streams() {
            for (number, stream) in [
                (0, self.streams.stdin),
                (1, self.streams.stdout),
                (2, self.streams.stderr),
            ] {
                if let Some(stream) = stream {
                    command = command.fd(number, stream);
                }
            }
        } else {
            command = command.stdout(printed.as_fd());
            // What a program tells about itself is read; no chatter in it.
            if !matches!(self.call.verb(), Verb::Features | Verb::Version) {
                command = command.stderr(printed.as_fd());
            }
        }
        let child = command.spawn()?;
        Ok(Running {
            verb: self.call.verb(),
            program: program.to_owned(),
            child,
            log,
            printed,
            begun: Instant::now(),
            overdue: Cell::new(None),
        })
    }

    /// Starts it and waits for its end; overdue, its group is ended. For
    /// `delete` and the tool, which have nothing else to do meanwhile.
    pub fn run(&self, deadline: Duration, grace: Duration) -> Result<Vec<u8>, Failure> {
        let running = self.spawn()?;
        running.wait(deadline, grace)?;
        Ok(running.printed())
    }
}

/// Ours, without what is addressed to us: the readiness socket and passed
/// descriptors of systemd (runc would wait for, or hand on, descriptors that
/// are not there) and our own variables.
pub(super) fn environment(
    ours: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    ours.filter(|(name, _)| {
        let name: &OsStr = name;
        !matches!(
            name.as_bytes(),
            b"NOTIFY_SOCKET" | b"LISTEN_FDS" | b"LISTEN_PID" | b"LISTEN_FDNAMES"
        ) && !name.as_bytes().starts_with(b"VIGIL_")
    })
}

/// A call that was started.
#[derive(Debug)]
#[must_use = "a call that is not waited for stays a zombie"]
pub struct Running {
    verb: Verb,
    program: PathBuf,
    child: spawn::Child,
    log: OwnedFd,
    pub(super) printed: OwnedFd,
    begun: Instant,
    overdue: Cell<Option<Overdue>>,
}

/// Remembered when the deadline has passed.
#[derive(Debug, Clone, Copy)]
struct Overdue {
    after: Duration,
}

impl Running {
    /// What was asked.
    pub fn verb(&self) -> Verb {
        self.verb
    }

    /// Its pid and the number of its process group, to be recorded.
    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Its deadline has passed: SIGTERM to its group. To be followed by
    /// [`Running::kill_group`] when it has not ended after the grace.
    pub fn ask_group_to_end(&self) -> Result<(), Errno> {
        if self.overdue.get().is_none() {
            self.overdue.set(Some(Overdue {
                after: self.begun.elapsed(),
            }));
        }
        self.signal(TERM)
    }

    /// SIGKILL to its group. What it made for the container is in other groups
    /// and must be looked for in the container's cgroup.
    pub fn kill_group(&self) -> Result<(), Errno> {
        if self.overdue.get().is_none() {
            self.overdue.set(Some(Overdue {
                after: self.begun.elapsed(),
            }));
        }
        self.signal(KILL)
    }

    fn signal(&self, number: i32) -> Result<(), Errno> {
        // Reaped: the number may be somebody else's by now.
        if pidfd::peek(&self.child.pidfd) == Err(Errno::ECHILD) {
            return Ok(());
        }
        match self.child.signal_group(number) {
            Err(Errno::ESRCH) => Ok(()),
            answer => answer,
        }
    }

    /// What keeps it: the processes of its tree with the kernel function each
    /// waits in, for the message of an overdue call. Bounded; may be empty.
    pub fn stuck_in(&self) -> String {
        let mut found = Vec::new();
        let mut open = vec![self.child.pid];
        while let (Some(pid), true) = (open.pop(), found.len() < 8) {
            let read = |name: &str| {
                let text = std::fs::read_to_string(format!("/proc/{pid}/{name}"));
                text.unwrap_or_default().trim().to_owned()
            };
            let comm = read("comm");
            if !comm.is_empty() {
                let place = read("wchan");
                let place = if place.is_empty() || place == "0" {
                    "running".into()
                } else {
                    place
                };
                found.push(format!("{comm} {pid} ({place})"));
            }
            let children = read(&format!("task/{pid}/children"));
            open.extend(
                children
                    .split_whitespace()
                    .filter_map(|c| c.parse::<u32>().ok()),
            );
        }
        found.join(", ")
    }

    /// How it went, without waiting: `None` while it runs. Reaps it; when it
    /// failed, what is left of its group (a hook, say) is killed first, while
    /// the number is certainly still its own.
    pub fn ended(&self) -> Option<Result<(), Failure>> {
        match pidfd::peek(&self.child.pidfd) {
            Ok(None) => return None,
            Ok(Some(0)) => {}
            Ok(Some(_)) => {
                let _ = self.child.signal_group(KILL);
            }
            Err(_) => return Some(Err(self.failure(None))),
        }
        match pidfd::wait(&self.child.pidfd) {
            Ok(Some(raw)) => Some(self.finish(raw)),
            Ok(None) => None,
            Err(_) => Some(Err(self.failure(None))),
        }
    }

    /// How it went, from its raw wait status, for who has reaped it.
    pub fn finish(&self, raw: i32) -> Result<(), Failure> {
        // One that ends well in spite of all is believed: what it was asked
        // for is there.
        if ExitStatus::from_raw(raw).success() {
            Ok(())
        } else {
            Err(self.failure(Some(raw)))
        }
    }

    /// Waits for its end; when `deadline` (from now) passes, asks its group to
    /// end, and kills it after `grace`.
    pub fn wait(&self, deadline: Duration, grace: Duration) -> Result<(), Failure> {
        let mut stuck = String::new();
        let broken = |_| self.failure(None);
        if !fd::wait_readable(self.pidfd(), deadline).map_err(broken)? {
            stuck = self.stuck_in();
            let _ = self.ask_group_to_end();
            if !fd::wait_readable(self.pidfd(), grace).map_err(broken)? {
                let _ = self.kill_group();
                // Long enough for a process that can die at all.
                fd::wait_readable(self.pidfd(), grace.max(Duration::from_millis(100)))
                    .map_err(broken)?;
            }
        }
        let result = self.ended().unwrap_or_else(|| Err(self.failure(None)));
        result.map_err(|mut failure| {
            if failure.class == Class::Overdue && !stuck.is_empty() {
                failure.message = format!("{}; it was in {stuck}", failure.message);
            }
            failure
        })
    }

    /// What it printed, as far as it was captured.
    pub fn printed(&self) -> Vec<u8> {
        let mut bytes = vec![0; PRINTED];
        let Ok(copy) = fd::duplicate(&self.printed) else {
            return Vec::new();
        };
        let count = std::fs::File::from(copy)
            .read_at(&mut bytes, 0)
            .unwrap_or(0);
        bytes.truncate(count);
        let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        bytes.truncate(end);
        bytes
    }

    /// The log by a description of its own, from its start.
    fn log(&self) -> Option<std::fs::File> {
        use std::os::fd::AsRawFd;
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.log.as_raw_fd()));
        std::fs::File::open(path).ok()
    }

    fn failure(&self, raw: Option<i32>) -> Failure {
        let status = raw.map(ExitStatus::from_raw);
        let exit = match status.map(|s| (s.code(), s.signal())) {
            Some((Some(code), _)) => Ended::Code(code),
            Some((None, Some(signal))) => Ended::Signal(signal),
            Some((None, None)) | None => Ended::Unknown,
        };
        let class = match (self.overdue.get(), exit) {
            (Some(_), _) => Class::Overdue,
            (None, Ended::Code(_)) => Class::Refused,
            (None, Ended::Signal(_)) => Class::Died,
            (None, Ended::Unknown | Ended::NotStarted(_)) => Class::Unknown,
        };
        Failure {
            verb: self.verb,
            exit,
            message: self.message(exit),
            class,
        }
    }

    fn message(&self, exit: Ended) -> String {
        let own = self
            .log()
            .and_then(last_error)
            .or_else(|| self.last_printed());
        // A program that said nothing itself is named: it need not be the one
        // the operator thinks of.
        let call = format!("{} {}", self.program.display(), self.verb);
        let told = match (self.overdue.get(), exit) {
            (Some(Overdue { after }), _) => {
                format!("{call} did not finish within {:.1} s", after.as_secs_f32())
            }
            (None, Ended::Signal(signal)) => format!("{call} ended by signal {signal}"),
            (None, Ended::Code(code)) => match own {
                // An exit code adds nothing to words.
                Some(own) => return own,
                None => format!("{call} exited with {code} and said nothing"),
            },
            (None, Ended::Unknown | Ended::NotStarted(_)) => {
                format!("{call} ended and nobody knows how")
            }
        };
        match own {
            Some(own) => format!("{told}: {own}"),
            None => told,
        }
    }

    /// The end of what it printed, for programs that did not log.
    fn last_printed(&self) -> Option<String> {
        let printed = self.printed();
        let tail = &printed[printed.len().saturating_sub(2048)..];
        let text = String::from_utf8_lossy(tail).trim().replace('\0', "");
        (!text.is_empty()).then(|| shorten(&text))
    }
}
