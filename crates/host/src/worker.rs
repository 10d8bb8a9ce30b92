//! Workers: short-lived processes for what may sleep uninterruptibly (mount,
//! umount, rmdir of trees, fsync). A thread that sleeps on a stalled device is
//! deaf to SIGKILL and takes its process with it; a worker that does so is
//! left to the reaper, and who started it names it and goes on.
//!
//! A worker holds none of our descriptors. What it says comes back through a
//! memfd, so a full pipe can stop nobody and the words survive its death.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use vigil_sys::{Errno, fd, pidfd, process, spawn};

use crate::{Error, Result};

/// What a worker can say in all, bytes; the rest is dropped.
const WORDS: usize = 64 * 1024;
/// How long one that was killed gets to be gone.
const DYING: Duration = Duration::from_millis(100);
/// SIGKILL, the same on every architecture.
const KILL: i32 = 9;

/// How a worker ended, as far as it did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It did what it was started for.
    Done,
    /// It could not; why.
    Failed(String),
    /// Its time was up and it was killed.
    Overdue {
        /// Its pid.
        pid: u32,
        /// True if it could not even die (D state): it is still there, and
        /// becomes the reaper's. The one case in which the pid means something.
        left: bool,
        /// The last thing it said it was about to do; may be empty.
        doing: String,
    },
}

/// How a worker says what it is about to do and what there is to know.
#[derive(Debug)]
pub struct Notes {
    file: Option<File>,
}

impl Notes {
    /// Notes that nobody reads, for running the work on one's own thread.
    pub fn nowhere() -> Self {
        Notes { file: None }
    }

    /// Remembers what comes next; named when the worker is overdue.
    pub fn doing(&self, what: &str) {
        self.line('>', what);
    }

    /// Something the one who started the worker must know, such as a mount
    /// that was only detached.
    pub fn say(&self, what: &str) {
        self.line('*', what);
    }

    /// Something that decides: typed, so that nobody has to know it by its words.
    pub fn tell(&self, what: &impl Serialize) {
        // Only what has no form in JSON fails, and nothing told here is such.
        if let Ok(text) = serde_json::to_string(what) {
            self.line('=', &text);
        }
    }

    fn line(&self, mark: char, text: &str) {
        use std::io::Write as _;
        let Some(mut file) = self.file.as_ref() else {
            return;
        };
        let full = file.metadata().map_or(true, |m| m.len() >= WORDS as u64);
        // The verdict is always written: without it the work counts as failed.
        if full && !matches!(mark, '!' | '.') {
            return;
        }
        let mut line = String::with_capacity(text.len() + 2);
        line.push(mark);
        // What is told is whole or nothing: cut, nobody could read it.
        let most = if mark == '=' { 4 * 4096 } else { 4096 };
        line.extend(
            text.chars()
                .take(most)
                .map(|c| if c == '\n' { ' ' } else { c }),
        );
        line.push('\n');
        // One write a line. If even memory for it is lacking, the parent finds
        // no verdict and says so.
        let _ = file.write_all(line.as_bytes());
    }
}

/// A worker that has been started and not yet been asked how it went.
#[derive(Debug)]
#[must_use = "a worker that is not waited for stays a zombie"]
pub struct Worker {
    name: String,
    child: spawn::Child,
    said: File,
    begun: Instant,
}

impl Worker {
    /// Forks a worker, `comm` `vigil-NAME`. For processes with one thread. The
    /// work must not use descriptors opened before: they are closed.
    pub fn start(
        name: &str,
        work: impl FnOnce() -> std::result::Result<(), String>,
    ) -> Result<Worker> {
        Self::start_noting(name, |_| work())
    }

    /// As [`Worker::start_noting`], for work that nobody must do once we have died: it ends
    /// with us, and does not begin if we have ended. A name would not do, by which the next
    /// of us finds and ends it: it takes a moment to get one.
    pub fn start_bound(
        name: &str,
        work: impl FnOnce(&Notes) -> std::result::Result<(), String>,
    ) -> Result<Worker> {
        let us = std::process::id();
        Self::start_noting(name, move |notes| match process::die_with(us) {
            Ok(true) => work(notes),
            Ok(false) => Err("who began it has died".to_owned()),
            Err(errno) => Err(format!("cannot be bound to who began it: {errno}")),
        })
    }

    /// As [`Worker::start`], for work that says what it does.
    pub fn start_noting(
        name: &str,
        work: impl FnOnce(&Notes) -> std::result::Result<(), String>,
    ) -> Result<Worker> {
        let failed = |source: Errno| Error::Kernel {
            op: "start worker",
            what: name.to_owned(),
            source,
        };
        let said = fd::memfd(c"vigil-worker").map_err(failed)?;
        let comm = std::ffi::CString::new(format!("vigil-{name}")).unwrap_or_default();
        let keep = [said.as_fd()];
        let child = spawn::fork_worker(&keep, || {
            let _ = process::set_name(&comm);
            let Ok(file) = keep[0].try_clone_to_owned().map(File::from) else {
                return 1;
            };
            let notes = Notes { file: Some(file) };
            match work(&notes) {
                Ok(()) => {
                    notes.line('.', "");
                    0
                }
                Err(why) => {
                    notes.line('!', &why);
                    1
                }
            }
        })
        .map_err(failed)?;
        Ok(Worker {
            name: name.to_owned(),
            child,
            said: said.into(),
            begun: Instant::now(),
        })
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// A duplicate of the pidfd, for those who must own what they wait on.
    pub fn pidfd_owned(&self) -> Result<OwnedFd> {
        fd::duplicate(&self.child.pidfd).map_err(|e| self.error("watch worker", e))
    }

    /// Its pid, for saying who it is; nobody signals by it.
    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// What it was started as.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SIGKILL to it and what it started, by its group.
    pub fn kill(&self) -> Result<()> {
        match self.child.signal_group(KILL) {
            // The group is made by the child itself; before that it is alone.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(self.error("kill worker", e)),
        }
        match pidfd::send_signal(&self.child.pidfd, KILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(self.error("kill worker", e)),
        }
    }

    /// What it said so far with [`Notes::say`].
    pub fn notes(&self) -> Vec<String> {
        self.lines('*')
    }

    /// What it told so far with [`Notes::tell`]; what is no such thing is left out.
    pub fn told<T: DeserializeOwned>(&self) -> Vec<T> {
        let lines = self.lines('=');
        lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// How it went, without waiting: to be called when [`Worker::pidfd`] is
    /// readable, or when it was killed and did not go. Reaps it.
    pub fn finish(&self) -> Outcome {
        let status = match pidfd::wait(&self.child.pidfd) {
            Ok(Some(raw)) => Some(ExitStatus::from_raw(raw)),
            Ok(None) => return self.overdue(true),
            // Reaped by somebody else; its words are still there.
            Err(_) => None,
        };
        let clean = status.is_none_or(|s| s.success());
        if clean && !self.lines('.').is_empty() {
            return Outcome::Done;
        }
        Outcome::Failed(match (self.lines('!').pop(), status) {
            (Some(why), _) => why,
            (None, Some(status)) => format!("worker {} ended with {status}", self.name),
            (None, None) => format!("worker {} ended and left no word", self.name),
        })
    }

    /// Waits for its end, at most `timeout`; then kills it.
    pub fn wait(&self, timeout: Duration) -> Result<Outcome> {
        if self.ended_within(timeout)? {
            return Ok(self.finish());
        }
        self.kill()?;
        if !self.ended_within(DYING)? {
            return Ok(self.overdue(true));
        }
        // It may have finished in the very last moment.
        Ok(match self.finish() {
            Outcome::Done => Outcome::Done,
            Outcome::Failed(_) | Outcome::Overdue { .. } => self.overdue(false),
        })
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    fn ended_within(&self, timeout: Duration) -> Result<bool> {
        fd::wait_readable(&self.child.pidfd, timeout).map_err(|e| self.error("wait for worker", e))
    }

    fn overdue(&self, left: bool) -> Outcome {
        let doing = self.lines('>').pop().unwrap_or_default();
        Outcome::Overdue {
            pid: self.child.pid,
            left,
            doing,
        }
    }

    fn error(&self, op: &'static str, source: Errno) -> Error {
        Error::Kernel {
            op,
            what: self.name.clone(),
            source,
        }
    }

    fn lines(&self, mark: char) -> Vec<String> {
        let mut bytes = vec![0; WORDS + 4 * 8192];
        let mut have = 0;
        while let Ok(count) = self.said.read_at(&mut bytes[have..], have as u64) {
            have += count;
            if count == 0 || have == bytes.len() {
                break;
            }
        }
        String::from_utf8_lossy(&bytes[..have])
            .lines()
            .filter_map(|line| line.strip_prefix(mark))
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn done_and_failed_are_told_apart_and_the_reason_comes_back() {
        let done = Worker::start("t", || Ok(())).unwrap();
        assert_eq!(done.wait(LONG).unwrap(), Outcome::Done);
        let failed = Worker::start("t", || Err("no\nroom".into())).unwrap();
        assert_eq!(
            failed.wait(LONG).unwrap(),
            Outcome::Failed("no room".into())
        );
        let died = Worker::start("t", || std::process::abort()).unwrap();
        let Outcome::Failed(why) = died.wait(LONG).unwrap() else {
            panic!()
        };
        assert!(why.contains("signal: 6"), "{why}");
        let silent = Worker::start("t", || process::exit_now(0)).unwrap();
        assert_eq!(
            silent.wait(LONG).unwrap(),
            Outcome::Failed("worker t ended with exit status: 0".into()),
        );
    }

    #[test]
    fn overdue_is_killed_with_what_it_started_and_says_what_it_did() {
        let (r, w) = fd::pipe().unwrap();
        let worker = Worker::start_noting("t", |notes| {
            notes.doing("sleep");
            notes.say("began");
            std::thread::sleep(Duration::from_mins(10));
            Ok(())
        })
        .unwrap();
        drop(w);
        // It does not hold our pipe.
        assert!(fd::wait_readable(&r, LONG).unwrap());
        while worker.notes().is_empty() {
            assert!(worker.age() < LONG);
            std::thread::yield_now();
        }
        let begun = Instant::now();
        assert_eq!(
            worker.wait(Duration::from_millis(20)).unwrap(),
            Outcome::Overdue {
                pid: worker.pid(),
                left: false,
                doing: "sleep".into()
            },
        );
        assert!(begun.elapsed() < Duration::from_mins(1));
        assert_eq!(worker.notes(), ["began"]);
        assert_eq!(
            pidfd::send_signal(worker.pidfd(), 0),
            Err(Errno::ESRCH),
            "still there"
        );
    }

    #[test]
    fn endless_talk_is_cut_and_the_verdict_kept() {
        let worker = Worker::start_noting("t", |notes| {
            for number in 0..100_000 {
                notes.say(&format!("word {number}"));
            }
            Err("enough".into())
        })
        .unwrap();
        assert_eq!(worker.wait(LONG).unwrap(), Outcome::Failed("enough".into()));
        let all = worker.notes();
        assert!(all.len() > 1000 && all.len() < 10_000, "{}", all.len());
    }

    /// Found by the soaks: one that was about to mount when its shim was killed, and had no
    /// name yet to be found by, mounted beside those who undid it.
    #[test]
    fn one_that_is_bound_ends_with_who_began_it() {
        let long = || std::thread::sleep(Duration::from_mins(10));
        let outer = Worker::start_noting("t", |notes| {
            let inner = Worker::start_bound("t", |_| {
                long();
                Ok(())
            });
            notes.say(&inner.map_or(0, |inner| inner.pid()).to_string());
            long();
            Ok(())
        })
        .unwrap();
        let end = Instant::now() + LONG;
        while outer.notes().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = outer.notes()[0].parse().unwrap();
        let inner = pidfd::open(pid).unwrap();
        assert!(!pidfd::is_dead(&inner).unwrap());
        outer.kill().unwrap();
        assert!(fd::wait_readable(&inner, LONG).unwrap(), "it lives on");
        let _ = outer.wait(LONG);
    }

    #[test]
    fn a_running_worker_is_not_said_to_have_ended() {
        let worker = Worker::start("t", || {
            std::thread::sleep(Duration::from_mins(10));
            Ok(())
        })
        .unwrap();
        assert!(matches!(
            worker.finish(),
            Outcome::Overdue { left: true, .. }
        ));
        worker.kill().unwrap();
        assert!(
            worker
                .wait(LONG)
                .is_ok_and(|o| matches!(o, Outcome::Failed(_)))
        );
    }
}
