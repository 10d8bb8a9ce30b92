//! The client's end of stdio fifos: a reader that counts every byte itself, and a writer.
//!
//! `ctr` loses output of its own accord, so no byte count of a test may come from it.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::poll::{left, until};

#[derive(Debug, Default)]
struct Taken {
    bytes: Vec<u8>,
    ended: Option<Instant>,
}

/// Reads a fifo to its end in the background.
#[derive(Debug)]
pub struct FifoReader {
    path: PathBuf,
    taken: Arc<(Mutex<Taken>, Condvar)>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl FifoReader {
    /// Opens `path` for reading, as a client does before it calls Create, and reads on.
    ///
    /// The end is a hang-up after there was a writer; an unopened fifo is not at its end.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path);
        let mut file = file.with_context(|| format!("opening {}", path.display()))?;
        let taken = Arc::new((Mutex::new(Taken::default()), Condvar::new()));
        let shared = Arc::clone(&taken);
        // Closing our end of this pipe stops the thread when the reader is dropped.
        let (stop, wake) = std::io::pipe().context("making a pipe")?;
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            loop {
                let (stopped, hang_up) = {
                    let mut fds = [
                        PollFd::new(file.as_fd(), PollFlags::POLLIN),
                        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                    ];
                    if poll(&mut fds, PollTimeout::NONE).is_err() {
                        continue;
                    }
                    let hang_up = fds[0]
                        .revents()
                        .is_some_and(|r| r.contains(PollFlags::POLLHUP));
                    (fds[1].any().unwrap_or(true), hang_up)
                };
                if stopped {
                    return;
                }
                let (count, hung_up) = match file.read(&mut buffer) {
                    Ok(0) => (0, hang_up),
                    Ok(count) => (count, false),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => (0, false),
                    Err(_) => (0, true),
                };
                let mut taken = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                taken.bytes.extend(&buffer[..count]);
                if hung_up {
                    taken.ended = Some(Instant::now());
                }
                shared.1.notify_all();
                if hung_up {
                    return;
                }
            }
        });
        Ok(Self {
            path: path.to_owned(),
            taken,
            wake: wake.into(),
            thread: Some(thread),
        })
    }

    fn wait<T>(
        &self,
        what: &str,
        deadline: Instant,
        mut found: impl FnMut(&Taken) -> Option<T>,
    ) -> Result<T> {
        let (lock, changed) = &*self.taken;
        let mut taken = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = found(&taken) {
                return Ok(value);
            }
            if left(deadline).is_zero() {
                let got =
                    String::from_utf8_lossy(&taken.bytes[taken.bytes.len().saturating_sub(300)..])
                        .into_owned();
                bail!(
                    "{}: no {what}; {} bytes, the last: {got:?}",
                    self.path.display(),
                    taken.bytes.len()
                );
            }
            taken = changed
                .wait_timeout(taken, left(deadline))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for end of file; gives all bytes and the instant of the end.
    pub fn to_end(&self, deadline: Instant) -> Result<(Vec<u8>, Instant)> {
        self.wait("end of file", deadline, |t| {
            t.ended.map(|at| (t.bytes.clone(), at))
        })
    }

    /// Waits until `text` has been read.
    pub fn expect(&self, text: &str, deadline: Instant) -> Result<()> {
        self.wait(text, deadline, |t| {
            String::from_utf8_lossy(&t.bytes)
                .contains(text)
                .then_some(())
        })
    }

    /// What has been read so far.
    #[must_use]
    pub fn so_far(&self) -> Vec<u8> {
        self.taken
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
            .clone()
    }

    /// Goes away, as a client does that is killed: everything it has taken. What comes
    /// after is the next reader's.
    #[must_use]
    pub fn leave(mut self) -> Vec<u8> {
        self.stop();
        self.so_far()
    }

    fn stop(&mut self) {
        let _ = nix::unistd::write(self.wake.as_fd(), b"x");
        let _ = self.thread.take().map(JoinHandle::join);
    }

    /// Whether the end has been seen.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.taken
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ended
            .is_some()
    }
}

impl Drop for FifoReader {
    fn drop(&mut self) {
        // Once this returns no byte is taken any more: the next reader gets it.
        self.stop();
    }
}

/// The client's end of stdin: opened once the shim reads, closed on drop.
#[derive(Debug)]
pub struct FifoWriter(std::fs::File);

impl FifoWriter {
    /// Opens `path` for writing as soon as there is a reader.
    pub fn open(path: &Path, deadline: Instant) -> Result<Self> {
        let file = until(&format!("a reader on {}", path.display()), deadline, || {
            OpenOptions::new()
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(path)
                .ok()
        })?;
        Ok(Self(file))
    }

    /// Writes all of a small text.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.0
            .write_all(text.as_bytes())
            .context("writing to stdin")
    }
}
