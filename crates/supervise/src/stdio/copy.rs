//! Moving bytes from one descriptor to another. Between pipes and terminals they
//! never leave the kernel, so that our death loses none; where the kernel refuses
//! (files opened for appending, terminals before 5.11) at most one small buffer of
//! them passes through us, and is read only when there is room to write it.
//! Decides nothing about ends.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use vigil_sys::fd::{self, Watch};
use vigil_sys::splice::{Moved, splice};
use vigil_sys::{Errno, fifo};

use super::ready::{SharedFd, Watched};

/// Most to move in one call: a whole pipe.
const AT_ONCE: usize = 1 << 16;
/// `PIPE_BUF`: a write of so much to a pipe with room is whole.
const BUFFER: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where bytes go.
pub(super) enum Sink {
    /// A pipe, fifo or terminal.
    Watched(Arc<Watched>),
    /// A file or device, always ready.
    Plain(SharedFd),
    /// Nowhere; they are counted.
    Nowhere,
}

/// What became of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// So many went on (or were dropped).
    Bytes(usize),
    SourceEmpty,
    SinkFull,
    /// The source is at its end.
    Ended,
    /// A terminal nobody has open; somebody may open it again.
    HungUp,
    /// The sink takes no more.
    Broken(Errno),
}

/// One direction of copying.
pub(super) struct Mover {
    pub(super) source: Arc<Watched>,
    pub(super) sink: Sink,
    /// Bytes taken from the source so far.
    pub(super) moved: u64,
    /// Of those, never written.
    pub(super) dropped: u64,
    /// The last attempt found the sink full.
    pub(super) blocked: bool,
    /// The source was found empty since this was last cleared.
    pub(super) was_empty: bool,
    /// The kernel does not splice between these two.
    by_hand: bool,
    /// The source is a terminal: it may be opened again after a hang-up.
    pub(super) terminal: bool,
    /// Read and not yet written; empty but for rare moments.
    left: Vec<u8>,
    pause: Duration,
}

impl Mover {
    pub(super) fn new(source: Arc<Watched>, sink: Sink) -> Mover {
        let terminal = !matches!(fifo::kind_of_open(&*source), Ok(fifo::Kind::Fifo));
        let by_hand = !matches!(sink, Sink::Watched(_));
        Mover {
            source,
            sink,
            moved: 0,
            dropped: 0,
            blocked: false,
            was_empty: false,
            by_hand,
            terminal,
            left: Vec::new(),
            pause: FIRST_PAUSE,
        }
    }

    /// Bytes waiting in the source, as far as it can tell.
    pub(super) fn waiting(&self) -> u64 {
        let here = fd::readable_bytes(&*self.source).unwrap_or(0) + self.left.len();
        u64::try_from(here).unwrap_or(u64::MAX)
    }

    /// From now on everything is dropped, so that the source's writer is never
    /// blocked for ever by a sink that failed.
    pub(super) fn discard(&mut self) {
        self.dropped += self.left.len() as u64;
        self.left = Vec::new();
        self.sink = Sink::Nowhere;
        self.by_hand = true;
        self.blocked = false;
    }

    /// Tries once, without waiting.
    pub(super) fn attempt(&mut self) -> Attempt {
        let attempt = self.try_once();
        match attempt {
            Attempt::Bytes(count) => {
                self.moved += count as u64;
                self.blocked = false;
                self.pause = FIRST_PAUSE;
            }
            Attempt::SinkFull => self.blocked = true,
            Attempt::SourceEmpty | Attempt::HungUp => {
                self.blocked = false;
                self.was_empty = true;
            }
            Attempt::Ended | Attempt::Broken(_) => self.blocked = false,
        }
        attempt
    }

    fn try_once(&mut self) -> Attempt {
        if !self.by_hand
            && let Sink::Watched(sink) = &self.sink
        {
            return match splice(&*self.source, &**sink, AT_ONCE) {
                Ok(Moved::Bytes(count)) => Attempt::Bytes(count),
                Ok(Moved::SourceEmpty) => Attempt::SourceEmpty,
                Ok(Moved::SinkFull) => Attempt::SinkFull,
                Ok(Moved::Ended) | Err(Errno::EIO) if self.terminal => Attempt::HungUp,
                Ok(Moved::Ended) => Attempt::Ended,
                Err(Errno::EINVAL) => {
                    self.by_hand = true;
                    self.by_hand()
                }
                Err(Errno::EINTR) => Attempt::Bytes(0),
                Err(e) => Attempt::Broken(e),
            };
        }
        self.by_hand()
    }

    fn by_hand(&mut self) -> Attempt {
        if !self.left.is_empty() {
            return match self.write_left() {
                // They were counted when they were read.
                Ok(()) => Attempt::Bytes(0),
                Err(attempt) => attempt,
            };
        }
        if let Sink::Watched(sink) = &self.sink {
            let mut room = [Watch::writing(&**sink)];
            let looked = fd::poll(&mut room, Duration::ZERO);
            if looked.is_ok() && !room[0].ready() {
                return Attempt::SinkFull;
            }
        }
        let mut buffer = [0; BUFFER];
        let count = match (&**self.source.get_ref()).read(&mut buffer) {
            Ok(0) => return Attempt::Ended,
            Ok(count) => count,
            Err(e) => match e.kind() {
                ErrorKind::WouldBlock => return Attempt::SourceEmpty,
                ErrorKind::Interrupted => return Attempt::Bytes(0),
                // EIO: no slave open. Nothing else is an end that may pass.
                _ => {
                    return if e.raw_os_error() == Some(Errno::EIO as i32) {
                        Attempt::HungUp
                    } else {
                        Attempt::Ended
                    };
                }
            },
        };
        self.write(&buffer[..count])
    }

    /// Writes what was just read; what does not fit is left for later.
    fn write(&mut self, bytes: &[u8]) -> Attempt {
        let count = bytes.len();
        match &mut self.sink {
            Sink::Nowhere => self.dropped += count as u64,
            Sink::Plain(file) => {
                if let Err(e) = file.write_all(bytes) {
                    // A full disk may have room again: keep trying with what
                    // comes next, count what is lost.
                    if self.dropped == 0 {
                        log::warn!("stdio: output dropped: {e}");
                    }
                    self.dropped += count as u64;
                }
            }
            Sink::Watched(_) => {
                self.left = bytes.to_vec();
                if let Err(Attempt::Broken(e)) = self.write_left() {
                    self.moved += count as u64;
                    return Attempt::Broken(e);
                }
            }
        }
        Attempt::Bytes(count)
    }

    fn write_left(&mut self) -> Result<(), Attempt> {
        let Sink::Watched(sink) = &self.sink else {
            return Ok(());
        };
        while !self.left.is_empty() {
            match (&**sink.get_ref()).write(&self.left) {
                Ok(0) => return Err(Attempt::SinkFull),
                Ok(count) => drop(self.left.drain(..count)),
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock => return Err(Attempt::SinkFull),
                    ErrorKind::Interrupted => {}
                    _ => {
                        let errno = e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                        return Err(Attempt::Broken(errno));
                    }
                },
            }
        }
        self.left = Vec::new();
        Ok(())
    }

    /// Waits until something happened: bytes moved, an end, a broken sink.
    /// `over`: a terminal that hung up will not come back. Dropping this
    /// half-way loses nothing.
    pub(super) async fn step(&mut self, over: bool) -> Attempt {
        loop {
            // Two always-ready ends must not starve the rest of the shim.
            tokio::task::coop::consume_budget().await;
            let source = self.source.clone();
            let Ok(mut readable) = source.readable().await else {
                return Attempt::Ended;
            };
            match self.attempt() {
                Attempt::HungUp if over => return Attempt::Ended,
                Attempt::SourceEmpty | Attempt::HungUp => {
                    // The runtime takes a hang-up for final and would report
                    // it for ever; a terminal can be opened again.
                    let closed = readable.ready().is_read_closed();
                    readable.clear_ready();
                    if closed {
                        self.rest().await;
                    }
                }
                Attempt::SinkFull => {
                    let Sink::Watched(sink) = &self.sink else {
                        continue;
                    };
                    let sink = sink.clone();
                    let Ok(mut writable) = sink.writable().await else {
                        return Attempt::Broken(Errno::EIO);
                    };
                    // Again, under this guard: an edge that comes after it
                    // was taken is not cleared by it.
                    match self.attempt() {
                        Attempt::SinkFull => {
                            let closed = writable.ready().is_write_closed();
                            writable.clear_ready();
                            if closed {
                                self.rest().await;
                            }
                        }
                        Attempt::SourceEmpty | Attempt::HungUp => {}
                        done => return done,
                    }
                }
                done => return done,
            }
        }
    }

    async fn rest(&mut self) {
        let pause = self.pause;
        self.pause = LONGEST_PAUSE.min(pause * 2);
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::ready::watch;
    use super::*;
    use tokio::io::Interest;
    use vigil_sys::tty;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(test)
    }

    fn watched(fd: std::os::fd::OwnedFd, how: Interest) -> Arc<Watched> {
        fd::set_nonblocking(&fd, true).unwrap();
        Arc::new(watch(fd, how).unwrap())
    }

    fn lines(to: u32) -> Vec<u8> {
        (1..=to)
            .flat_map(|n| format!("{n:06}\n").into_bytes())
            .collect()
    }

    /// As on a kernel that does not splice into terminals: a terminal takes
    /// less than a buffer at once, so something is always left over.
    #[test]
    fn what_a_terminal_does_not_take_at_once_is_kept_and_follows_in_order() {
        run(async {
            let (source, feed) = fd::pipe().unwrap();
            let (master, slave) = tty::open_pair().unwrap();
            let mut mover = Mover::new(
                watched(source, Interest::READABLE),
                Sink::Watched(watched(master, Interest::READABLE | Interest::WRITABLE)),
            );
            mover.by_hand = true;
            let feeding = std::thread::spawn(move || {
                std::fs::File::from(feed).write_all(&lines(30_000)).unwrap();
            });
            let slave = std::fs::File::from(slave);
            let reading = std::thread::spawn(move || {
                // Line by line, so that each of them counts.
                let mut lines = std::io::BufRead::lines(std::io::BufReader::new(slave));
                (1..=30_000).all(|n| lines.next().unwrap().unwrap() == format!("{n:06}"))
            });
            // The echo goes to the master; nobody reads it, which a terminal
            // does not mind.
            while mover.step(false).await != Attempt::Ended {}
            assert_eq!(mover.moved, 30_000 * 7);
            feeding.join().unwrap();
            assert!(reading.join().unwrap());
        });
    }

    #[test]
    fn a_sink_that_breaks_is_left_and_the_source_is_still_read() {
        run(async {
            let (source, feed) = fd::pipe().unwrap();
            let (drain, sink) = fd::pipe().unwrap();
            drop(drain);
            for by_hand in [false, true] {
                let source = source.try_clone().unwrap();
                let sink = sink.try_clone().unwrap();
                let mut mover = Mover::new(
                    watched(source, Interest::READABLE),
                    Sink::Watched(watched(sink, Interest::WRITABLE)),
                );
                mover.by_hand = by_hand;
                let mut feed = std::fs::File::from(feed.try_clone().unwrap());
                feed.write_all(b"12345").unwrap();
                assert_eq!(mover.step(false).await, Attempt::Broken(Errno::EPIPE));
                mover.discard();
                feed.write_all(b"6789").unwrap();
                while fd::readable_bytes(&*mover.source).unwrap() > 0 {
                    mover.step(false).await;
                }
                assert_eq!((mover.dropped, mover.moved), (9, 9), "by hand: {by_hand}");
            }
        });
    }

    #[test]
    fn a_full_disk_is_counted_and_does_not_stop_the_source() {
        run(async {
            let (source, feed) = fd::pipe().unwrap();
            let full = std::fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap();
            let mut mover = Mover::new(
                watched(source, Interest::READABLE),
                Sink::Plain(full.into()),
            );
            std::fs::File::from(feed)
                .write_all(&[b'x'; 10_000])
                .unwrap();
            while mover.step(false).await != Attempt::Ended {}
            assert_eq!(mover.dropped, 10_000);
        });
    }
}
