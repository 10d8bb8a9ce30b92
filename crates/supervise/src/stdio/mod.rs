//! The streams of one process: opened before runc runs, copied while the
//! process lives, closed by rule after it is gone. What each end is and when it
//! is closed is said in DESIGN's section on stdio; here is who holds which end
//! between two tasks. Never blocks, never waits without a bound, never lets a
//! client's behaviour hold up a request.
//!
//! ```text
//! open ─ deposit ─► (runc runs) ─► started ─► process_gone ─► close_all
//!                                     │            └ resolves when it may be told
//!                                     └ one task per output, one for stdin
//! ```

mod console;
mod copy;
mod error;
mod input;
mod keeper;
mod log_fifo;
mod logger;
mod output;
mod ready;

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vigil_host::stdio::{ChildFds, ConsolePath, LoggerStart, Owner, Plan, SlotKind};
use vigil_model::{Namespace, Stdio, TaskId};
use vigil_sys::points::{self, Point};
use vigil_sys::{fifo, tty};

pub use error::Error;
pub use keeper::{Keeper, NoKeeper, SlotId};
pub use log_fifo::LogFifo;
pub use output::Patience;
pub use vigil_sys::tty::Size;

use copy::{Mover, Sink};
use input::{Input, Writer};
use keeper::Slots;
use output::{Copy, Life, Stage};
use ready::{SharedFd, Watched, shared};

/// What this module's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// From runc's exit to the console it must have sent before.
const CONSOLE_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at how full a pipe is that runc holds.
const FIRST_FILLING_LOOK: Duration = Duration::from_millis(20);
const LONGEST_FILLING_LOOK: Duration = Duration::from_millis(320);
/// Between two looks at what a client reads.
const LOOK: Duration = Duration::from_millis(2);
/// For our own tasks to close what they hold, each call of the keeper included.
const CLOSE_WAIT: Duration = Duration::from_secs(8);

/// Whose streams, and how.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// As in the request.
    pub stdio: &'a Stdio,
    /// The container, for a logger.
    pub task: &'a TaskId,
    /// Its namespace, for a logger.
    pub namespace: &'a Namespace,
    /// Owner of the pipes.
    pub owner: Owner,
}

#[derive(Debug)]
struct End {
    fd: SharedFd,
    slot: SlotId,
}

/// The streams of one process. Dropping it stops all copying and closes our
/// ends, but has nothing released: as if the shim had died.
#[derive(Debug)]
pub struct Streams<K> {
    slots: Arc<Slots<K>>,
    patience: Patience,
    /// What no task holds: everything before [`Streams::started`], little after.
    ends: BTreeMap<SlotKind, End>,
    /// What keeps clients from seeing an end while ours are being opened; the
    /// keeper alone holds them.
    guards: Vec<SlotId>,
    console_path: Option<ConsolePath>,
    writer: Writer,
    /// The tasks own the master; when they are done, it is gone.
    console: Weak<Watched>,
    logger: Option<Arc<Watched>>,
    /// Released when it has ended: until then it is known by it.
    logger_slot: Option<SlotId>,
    /// The clients' fifos, while a task holds them.
    sinks: Vec<Weak<Watched>>,
    life: watch::Sender<Life>,
    /// For the tasks to come: stdout or terminal, stderr, logger.
    stages: Vec<watch::Sender<Stage>>,
    seen: Vec<watch::Receiver<Stage>>,
    tasks: Vec<JoinHandle<()>>,
}

impl<K: Keeper> Streams<K> {
    fn empty(keeper: K, patience: Patience) -> Self {
        let (stages, seen) = (0..3).map(|_| watch::channel(Stage::default())).unzip();
        Streams {
            slots: Arc::new(Slots::new(keeper)),
            patience,
            ends: BTreeMap::new(),
            guards: Vec::new(),
            console_path: None,
            writer: Writer::default(),
            console: Weak::new(),
            logger: None,
            logger_slot: None,
            sinks: Vec::new(),
            life: watch::Sender::new(Life::Running),
            stages,
            seen,
            tasks: Vec::new(),
        }
    }

    /// Opens everything and has all of it in the keeper's hands; starts the
    /// logger, if any, and waits for it, 30 s at most. The first of the pair
    /// is for runc alone; drop it when runc has exited.
    pub async fn open(
        asked: &Asked<'_>,
        keeper: K,
        patience: Patience,
    ) -> Result<(ChildFds, Self)> {
        Self::empty(keeper, patience).open_anew(asked).await
    }

    /// The same for streams that an earlier shim had begun to open, in place of
    /// what is held of them: no client sees an end in between.
    pub async fn open_anew(mut self, asked: &Asked<'_>) -> Result<(ChildFds, Self)> {
        match self.try_open(asked).await {
            Ok(child) => Ok((child, self)),
            Err(error) => {
                self.close_all(Duration::ZERO).await;
                Err(error)
            }
        }
    }

    async fn try_open(&mut self, asked: &Asked<'_>) -> Result<ChildFds> {
        let plan = Plan::of(asked.stdio)?;
        self.guard(&plan).await?;
        // The keeper lets go of them first, ours last.
        let held = (std::mem::take(&mut self.ends), self.writer.take());
        self.slots.ended_all_but(&self.guards).await;
        let opened = vigil_host::stdio::open(&plan, asked.owner)?;
        points::reach(Point::FifosOpened);
        self.console_path = opened.console;
        self.deposit(opened.ends).await?;
        self.unguard().await;
        drop(held);
        if let Some(start) = opened.logger {
            self.start_logger(asked, start).await?;
        }
        Ok(opened.child)
    }

    /// Has the keeper hold both ends of each fifo before we open one of them.
    async fn guard(&mut self, plan: &Plan) -> Result<()> {
        if !self.guards.is_empty() {
            return Ok(());
        }
        let named = vigil_host::stdio::guards(plan)?;
        let named: Vec<_> = named
            .into_iter()
            .map(|(kind, fd)| (kind, shared(fd)))
            .collect();
        match self.slots.deposit(&named).await {
            Ok(slots) => self.guards = slots,
            // Only a death in the next moment would show.
            Err(error) => log::warn!("stdio: fifos are opened unguarded: {error}"),
        }
        Ok(())
    }

    async fn unguard(&mut self) {
        let guards = std::mem::take(&mut self.guards);
        self.slots.ended(&guards).await;
    }

    /// Continues what an earlier shim began, with the descriptors it had
    /// deposited. [`Streams::started`] comes next (as soon as runc has exited),
    /// then [`Streams::process_gone`] if it is.
    pub fn resume(held: Vec<(SlotId, SlotKind, SharedFd)>, keeper: K, patience: Patience) -> Self {
        let mut streams = Self::empty(keeper, patience);
        streams.slots.adopt(held.iter().map(|(slot, ..)| *slot));
        for (slot, kind, fd) in held {
            streams.keep(kind, End { fd, slot });
        }
        streams
    }

    async fn deposit(&mut self, ends: Vec<(SlotKind, OwnedFd)>) -> Result<()> {
        let ends: Vec<_> = ends
            .into_iter()
            .map(|(kind, fd)| (kind, shared(fd)))
            .collect();
        let slots = self
            .slots
            .deposit(&ends)
            .await
            .map_err(|e| Error::Deposit(e.into()))?;
        for ((kind, fd), slot) in ends.into_iter().zip(slots) {
            self.keep(kind, End { fd, slot });
        }
        Ok(())
    }

    fn keep(&mut self, kind: SlotKind, end: End) {
        if kind.is_guard() {
            // The keeper's is enough.
            self.guards.push(end.slot);
        } else if kind == SlotKind::StdinWriter {
            self.writer = Writer::new(end.fd, end.slot);
        } else {
            if kind == SlotKind::Logger {
                self.logger_slot = Some(end.slot);
                if self.logger.is_none()
                    && let Err(error) = self.watch_logger(&end.fd)
                {
                    log::warn!("stdio: {error}");
                }
            }
            self.ends.insert(kind, end);
        }
    }

    async fn start_logger(&mut self, asked: &Asked<'_>, start: LoggerStart) -> Result<()> {
        let (must_say, program) = (start.plan.must_say_ready, start.plan.program.clone());
        let lent = |kind| self.ends.get(&kind).map(|end| end.fd.as_fd());
        let (Some(stdout), Some(stderr)) =
            (lent(SlotKind::LoggerStdout), lent(SlotKind::LoggerStderr))
        else {
            return Ok(());
        };
        let child = start.start(asked.task, asked.namespace, stdout, stderr)?;
        // A logger that is not ours to deposit is still ours to end.
        let copy = child.pidfd.try_clone().map_err(|source| Error::Watch {
            what: "the logger",
            source,
        })?;
        self.watch_logger(&shared(copy))?;
        self.deposit(vec![(SlotKind::Logger, child.pidfd)]).await?;
        if let Some(heard) = self.ends.remove(&SlotKind::LoggerReady) {
            logger::ready(&heard.fd, must_say, &program).await?;
            self.slots.ended(&[heard.slot]).await;
        }
        Ok(())
    }

    fn watch_logger(&mut self, pidfd: &SharedFd) -> Result<()> {
        let watched = ready::watch_shared(pidfd, Interest::READABLE);
        let watched = watched.map_err(|source| Error::Watch {
            what: "the logger",
            source,
        })?;
        self.logger = Some(Arc::new(watched));
        Ok(())
    }

    /// For runc's `--console-socket`; with a terminal only, until it is used.
    pub fn console_socket(&self) -> Option<&Path> {
        self.console_path.as_ref().map(ConsolePath::socket)
    }

    /// Resolves when the process's outputs should be copied although runc runs
    /// still, since one of their pipes is filling up.
    pub async fn filling(&self) {
        let pipes = [SlotKind::StdoutPipe, SlotKind::StderrPipe];
        let filling = || {
            let mut open = pipes.iter().filter_map(|kind| self.ends.get(kind));
            open.any(|end| {
                let held = vigil_sys::fd::readable_bytes(&end.fd).unwrap_or(0);
                // Each page may be hardly more than half full.
                held >= vigil_sys::fd::pipe_capacity(&end.fd).unwrap_or(0) / 2
            })
        };
        if !pipes.iter().any(|kind| self.ends.contains_key(kind)) {
            return std::future::pending().await;
        }
        let mut pause = FIRST_FILLING_LOOK;
        while !filling() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_FILLING_LOOK);
        }
    }

    /// runc has exited: takes the console from it and starts copying.
    pub async fn started(&mut self) -> Result<()> {
        self.unguard().await;
        let console = self.console().await?;
        let source = match &console {
            Some((master, slot)) => Some((master.clone(), *slot)),
            None => self.watched(SlotKind::StdoutPipe, Interest::READABLE)?,
        };
        self.console = console
            .as_ref()
            .map(|(master, _)| Arc::downgrade(master))
            .unwrap_or_default();
        let mut stages = std::mem::take(&mut self.stages).into_iter();
        let (Some(out), Some(err), Some(log)) = (stages.next(), stages.next(), stages.next())
        else {
            // Started before.
            return Ok(());
        };
        self.start_output(source, SlotKind::StdoutSink, out, "stdout")?;
        let source = self.watched(SlotKind::StderrPipe, Interest::READABLE)?;
        self.start_output(source, SlotKind::StderrSink, err, "stderr")?;
        self.start_input(console.map(|(master, _)| master))?;
        self.start_listening(log);
        self.console_path = None;
        Ok(())
    }

    /// The master: received now, or by an earlier shim.
    async fn console(&mut self) -> Result<Option<(Arc<Watched>, SlotId)>> {
        if let Some(listener) = self.ends.remove(&SlotKind::ConsoleListener) {
            if self.console_path.is_none() {
                let copy = listener.fd.try_clone().ok();
                let copy = copy.map(|copy| UnixListener::from(OwnedFd::from(copy)));
                self.console_path = copy.and_then(|copy| ConsolePath::of(&copy));
            }
            let mut done = vec![listener.slot];
            let caller = self.ends.remove(&SlotKind::ConsoleCaller);
            done.extend(caller.as_ref().map(|caller| caller.slot));
            if !self.ends.contains_key(&SlotKind::Console) {
                let caller = if let Some(caller) = caller {
                    caller.fd
                } else {
                    let called =
                        console::caller(&listener.fd, listener.slot, &self.slots, CONSOLE_WAIT);
                    let (caller, slot) = called.await?;
                    done.extend(slot);
                    caller
                };
                let master = console::master(&caller, CONSOLE_WAIT).await?;
                self.deposit(vec![(SlotKind::Console, master)]).await?;
            }
            self.slots.ended(&done).await;
        }
        self.watched(SlotKind::Console, Interest::READABLE | Interest::WRITABLE)
    }

    /// Takes an end and has the runtime watch it.
    fn watched(&mut self, kind: SlotKind, how: Interest) -> Result<Option<(Arc<Watched>, SlotId)>> {
        let Some(end) = self.ends.remove(&kind) else {
            return Ok(None);
        };
        let watched = ready::watch_shared(&end.fd, how).map_err(|source| Error::Watch {
            what: "an end of a stream",
            source,
        })?;
        Ok(Some((Arc::new(watched), end.slot)))
    }

    fn start_output(
        &mut self,
        source: Option<(Arc<Watched>, SlotId)>,
        sink_kind: SlotKind,
        stage: watch::Sender<Stage>,
        name: &'static str,
    ) -> Result<()> {
        let plain = self
            .ends
            .get(&sink_kind)
            .is_some_and(|end| fifo::kind_of_open(&end.fd) != Ok(fifo::Kind::Fifo));
        let mut unread_in = None;
        let mut sink_slot = None;
        let mut held_until_read = false;
        let mut sink = Sink::Nowhere;
        if plain {
            if let Some(end) = self.ends.remove(&sink_kind) {
                sink = Sink::Plain(end.fd);
                sink_slot = Some(end.slot);
            }
        } else {
            let fifo = self.watched(sink_kind, Interest::WRITABLE)?;
            held_until_read = fifo.is_some();
            let feed = if name == "stdout" {
                self.watched(SlotKind::LoggerFeed, Interest::WRITABLE)?
            } else {
                None
            };
            if let Some((fd, slot)) = fifo.or(feed) {
                if held_until_read {
                    self.sinks.push(Arc::downgrade(&fd));
                }
                unread_in = Some(fd.clone());
                sink_slot = Some(slot);
                sink = Sink::Watched(fd);
            }
        }
        if source.is_none() && sink_slot.is_none() {
            return Ok(());
        }
        let (source, source_slot) = source.unzip();
        let copy = Copy {
            mover: source.map(|source| Mover::new(source, sink)),
            source_slot,
            unread_in,
            held_until_read,
            sink_slot,
            slots: self.slots.clone(),
            life: self.life.subscribe(),
            stage,
            patience: self.patience,
            name,
        };
        self.tasks.push(tokio::spawn(copy.run()));
        Ok(())
    }

    fn start_input(&mut self, console: Option<Arc<Watched>>) -> Result<()> {
        let reader = self.watched(SlotKind::StdinReader, Interest::READABLE)?;
        let pipe = self.watched(SlotKind::StdinPipe, Interest::WRITABLE)?;
        let mut own_slots: Vec<SlotId> = pipe.iter().map(|(_, slot)| *slot).collect();
        let sink = console.or(pipe.map(|(fd, _)| fd));
        let (Some((reader, slot)), Some(sink)) = (reader, sink) else {
            return Ok(());
        };
        own_slots.push(slot);
        let input = Input {
            mover: Mover::new(reader, Sink::Watched(sink)),
            writer: self.writer.clone(),
            own_slots,
            slots: self.slots.clone(),
            life: self.life.subscribe(),
        };
        self.tasks.push(tokio::spawn(input.run()));
        Ok(())
    }

    fn start_listening(&mut self, stage: watch::Sender<Stage>) {
        drop(self.ends.remove(&SlotKind::Logger));
        let kinds = [SlotKind::LoggerStdout, SlotKind::LoggerStderr];
        let pipes: Vec<_> = kinds
            .into_iter()
            .filter_map(|kind| self.ends.remove(&kind))
            .map(|end| (end.fd, end.slot))
            .collect();
        if pipes.is_empty() {
            return;
        }
        let listening = logger::Listening {
            logger: self.logger.clone(),
            pipes,
            slots: self.slots.clone(),
            life: self.life.subscribe(),
            stage,
            patience: self.patience,
        };
        self.tasks.push(tokio::spawn(listening.run()));
    }

    /// CloseIO: closes our writer of the stdin fifo. The process sees the end
    /// when the client has closed its own.
    pub fn close_stdin(&self) -> impl Future<Output = ()> + Send + use<K> {
        let taken = self.writer.take();
        let slots = self.slots.clone();
        async move {
            if let Some((fd, slot)) = taken {
                slots.ended(&[slot]).await;
                drop(fd);
            }
        }
    }

    /// ResizePty. Without a console there is nothing to do, and no error.
    pub fn resize(&self, size: Size) -> Result<()> {
        let Some(master) = self.console.upgrade() else {
            return Ok(());
        };
        tty::resize(&*master, size).map_err(|e| Error::Console {
            op: "resize",
            source: e.into(),
        })
    }

    /// The process is gone. The future resolves when its exit may be told: what
    /// it wrote is in its clients' fifos and, for at most 100 ms, read. Never
    /// later than [`Patience::told`]. May be called again.
    pub fn process_gone(&self) -> impl Future<Output = ()> + Send + use<K> {
        self.advance(Life::Gone);
        let seen = self.seen.clone();
        async move {
            for mut output in seen {
                // An error: nothing is copied there (any more).
                let _ = output.wait_for(|stage| stage.told).await;
            }
        }
    }

    /// For who asks late: resolves when the clients have read what is in their
    /// fifos, or have not in [`Patience::read`]. A client that opens them first
    /// and asks then throws away what it has not read when it is answered.
    pub fn read(&self) -> impl Future<Output = ()> + Send + use<K> {
        let sinks = self.sinks.clone();
        let patience = self.patience.read;
        async move {
            let unread = || {
                let open = sinks.iter().filter_map(Weak::upgrade);
                let mut unread = open.map(|sink| vigil_sys::fd::readable_bytes(&*sink));
                unread.any(|bytes| bytes.is_ok_and(|bytes| bytes > 0))
            };
            let read = async {
                while unread() {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let _ = tokio::time::timeout(patience, read).await;
        }
    }

    fn advance(&self, to: Life) {
        self.life.send_if_modified(|now| {
            let forward = *now < to;
            if forward {
                *now = to;
            }
            forward
        });
    }

    /// For Delete of a process that is gone: `None` if nobody can write any more.
    /// Else resolves when that is so, or when whoever still holds a pipe has had
    /// [`Patience::drain`], and then loses it. As Go's shim, whose clients read
    /// until Delete is answered and not longer.
    pub fn left_behind(&self) -> Option<impl Future<Output = ()> + Send + use<K>> {
        let open = |seen: &watch::Receiver<Stage>| {
            let stage = *seen.borrow();
            // What a client does not make room for is not waited for.
            stage.dry && !stage.over && seen.has_changed().is_ok()
        };
        if !self.seen.iter().any(open) {
            return None;
        }
        let (seen, life) = (self.seen.clone(), self.life.clone());
        let patience = self.patience.drain;
        Some(async move {
            let over = async {
                for mut output in seen {
                    // An error: nothing is copied there (any more).
                    let _ = output.wait_for(|stage| stage.over).await;
                }
            };
            if tokio::time::timeout(patience, over).await.is_err() {
                log::info!("stdio: taken from processes left behind");
                life.send_replace(Life::Closing);
            }
        })
    }

    /// Delete, or runc failed. Gives a client that is slow `drain` to make
    /// room for what is still in the process's pipes, then closes everything;
    /// what a client has not read from its fifo stays there while it has it
    /// open. A logger gets `drain` to end by itself, then SIGTERM, and SIGKILL
    /// 12 s later: a caller in a hurry runs this beside its answer.
    pub async fn close_all(mut self, drain: Duration) {
        self.stages.clear();
        self.advance(Life::Gone);
        let mut seen = std::mem::take(&mut self.seen);
        let dry = async {
            for output in &mut seen {
                let _ = output.wait_for(|stage| stage.dry).await;
            }
        };
        let _ = tokio::time::timeout(drain, dry).await;
        self.advance(Life::Closing);
        let mut tasks = std::mem::take(&mut self.tasks);
        let closed = async {
            for task in &mut tasks {
                // An error is a panic or an abort; its ends are closed then.
                let _ = task.await;
            }
        };
        if tokio::time::timeout(CLOSE_WAIT, closed).await.is_err() {
            log::warn!("stdio: ends closed without waiting for their tasks");
        }
        self.tasks = tasks;
        // A feed not yet given to a task keeps a logger waiting.
        let ends = std::mem::take(&mut self.ends);
        let logger_slot = self.logger_slot.take();
        self.slots.ended_all_but(logger_slot.as_slice()).await;
        drop(ends);
        drop(self.writer.take());
        if let Some(logger) = self.logger.take() {
            logger::end(&logger, drain).await;
        }
        self.slots.ended_all_but(&[]).await;
    }
}

impl<K> Drop for Streams<K> {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
