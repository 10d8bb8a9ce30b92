//! The shim's end of the control socket: calls to the reaper and what the
//! reaper sends of itself. Owns no state of the container; a call is answered
//! by an Ack with its number, or fails when the reaper is gone or silent.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use vigil_relay::control::{
    ADOPT_MAX, Call, ControlError, MESSAGE_MAX, OLDEST, Slot, ToReaper, ToShim, VERSION,
};
use vigil_sys::points::pretended;
use vigil_sys::{Errno, fd, process, scm};

use crate::Error;
use crate::watched::{SharedFd, Watched, shared, watch};

/// Longest wait for an Ack. The reaper answers within one turn of its loop;
/// one that does not is stuck, and nothing may wait for it for ever.
const ACK_WAIT: Duration = Duration::from_secs(5);

/// A reaper that says nothing any more is dead within this time, or it is none to be trusted.
const DYING: Duration = Duration::from_secs(1);

/// For tests: the version this shim says that it speaks, and the oldest it can
/// do with in a reaper.
const SPEAKS: &str = "VIGIL_PRETEND_CONTROL";
const NEEDS: &str = "VIGIL_PRETEND_NEEDS";

/// What the reaper sends unasked.
#[derive(Debug)]
pub enum FromReaper {
    /// A connection of containerd.
    Connection {
        /// Its number.
        conn: u32,
        /// Our end of the socketpair that carries its frames.
        pair: OwnedFd,
        /// containerd's own connection, for after the reaper's death.
        own: OwnedFd,
    },
    /// The node goes down, or the reaper is of no use: flush and leave.
    Leave,
    /// Another shim is to take over.
    Retire,
    /// The reaper is dead: this process is to be the next.
    Gone,
}

type Waiting = BTreeMap<u32, oneshot::Sender<Result<u64, Error>>>;

#[derive(Debug)]
struct Calls {
    next: u32,
    waiting: Waiting,
    /// Nobody is there to answer, and those who waited know.
    over: bool,
    /// The reaper is dead: nobody is told of anything any more, since whoever comes next asks
    /// for it again.
    orphaned: bool,
}

#[derive(Debug)]
struct Shared {
    socket: Watched,
    // Bookkeeping of calls in flight, never lifecycle state.
    calls: Mutex<Calls>,
    hello: Mutex<Option<JoinHandle<Result<u64, Error>>>>,
    /// Slots that came and were not taken yet.
    given: Mutex<Vec<(Slot, OwnedFd)>>,
    /// What the reaper holds of ours, for as long as it does.
    held: Mutex<BTreeMap<u32, (u8, Weak<File>)>>,
    /// Its pid.
    reaper: u32,
    /// We serve and do not leave, so its death is not our end.
    serving: AtomicBool,
    /// The number that no connection has had yet.
    conns: AtomicU32,
}

/// A handle to the control socket; clones share it.
#[derive(Debug, Clone)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Takes the inherited socket over, says hello, and delivers what the
    /// reaper sends unasked to `unasked`.
    pub async fn open(
        socket: OwnedFd,
        reaper: u32,
        conns: u32,
        unasked: mpsc::UnboundedSender<FromReaper>,
    ) -> Result<Self, Error> {
        let both = Interest::READABLE | Interest::WRITABLE;
        let socket = watch(socket, both).map_err(|source| Error::Runtime {
            op: "watch the control socket",
            source,
        })?;
        let calls = Mutex::new(Calls {
            next: 1,
            waiting: BTreeMap::new(),
            over: false,
            orphaned: false,
        });
        let control = Self(Arc::new(Shared {
            socket,
            calls,
            hello: Mutex::default(),
            given: Mutex::default(),
            held: Mutex::default(),
            reaper,
            serving: AtomicBool::new(false),
            conns: AtomicU32::new(conns),
        }));
        tokio::spawn(receive(control.0.clone(), unasked));
        // Sent first, waited for last: whoever is greeted has work meanwhile.
        let hello = control.clone();
        let version = pretended(SPEAKS).unwrap_or(VERSION);
        let greeting = ToReaper::Hello { version };
        let hello = tokio::spawn(async move { hello.call(greeting, &[]).await });
        *control
            .0
            .hello
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(hello);
        // Lets it go out now.
        tokio::task::yield_now().await;
        Ok(control)
    }

    /// Waits until the reaper has said its version, and that it speaks ours.
    pub async fn greeted(&self) -> Result<(), Error> {
        let hello = self
            .0
            .hello
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match hello {
            Some(hello) => {
                let reaper = hello.await.unwrap_or(Err(Error::ReaperGone))?;
                let needed = pretended(NEEDS).unwrap_or(OLDEST);
                if reaper < u64::from(needed) {
                    return Err(Error::ReaperOld { reaper, needed });
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Tells the reaper that the journal is open and requests are served. Its answer is what it
    /// hands over from then on; if it dies over that, this shim follows it.
    pub async fn ready(&self) -> Result<(), Error> {
        let call = {
            let mut calls = self.0.calls.lock().unwrap_or_else(PoisonError::into_inner);
            if calls.over {
                return Err(Error::ReaperGone);
            }
            self.0.serving.store(true, Ordering::Relaxed);
            calls.number()
        };
        let request = ToReaper::Ready;
        self.send(Call { call, request }, &[]).await
    }

    /// Gives the reaper a copy of each descriptor; they are in its hands when
    /// this returns.
    pub async fn deposit(&self, slots: Vec<Slot>, fds: &[SharedFd]) -> Result<(), Error> {
        self.note(slots.iter().zip(fds));
        let lent: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let numbers: Vec<u32> = slots.iter().map(|slot| slot.slot).collect();
        let done = self.call(ToReaper::Deposit { slots }, &lent).await;
        if done.is_err() {
            self.forget(&numbers);
        }
        done.map(drop)
    }

    /// Has the reaper close its copies; they are closed when this returns.
    pub async fn ended(&self, slots: Vec<u32>) -> Result<(), Error> {
        // Whoever is the reaper next holds none of them either.
        self.forget(&slots);
        self.call(ToReaper::Ended { slots }, &[]).await.map(drop)
    }

    fn note<'a>(&self, held: impl Iterator<Item = (&'a Slot, &'a SharedFd)>) {
        let mut all = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(held.map(|(slot, fd)| (slot.slot, (slot.kind, Arc::downgrade(fd)))));
    }

    fn forget(&self, slots: &[u32]) {
        let mut all = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in slots {
            all.remove(slot);
        }
    }

    /// The number that no connection has had yet.
    pub fn conns(&self) -> u32 {
        self.0.conns.load(Ordering::Relaxed)
    }

    /// What the reaper held of ours when it died.
    pub fn held(&self) -> Vec<(Slot, SharedFd)> {
        let all = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let all = all.iter().filter_map(|(slot, (kind, fd))| {
            let (slot, kind) = (*slot, *kind);
            Some((Slot { slot, kind }, fd.upgrade()?))
        });
        all.collect()
    }

    /// Pins the exit record of a process that may have ended since `since`;
    /// returns the index of the pinned slot.
    pub async fn register(&self, pid: u32, start_ticks: u64, since: u64) -> Result<usize, Error> {
        let request = ToReaper::Register {
            pid,
            start_ticks,
            since,
        };
        // One that died in the middle of it may have pinned it: then it is the same slot.
        let index = self.call(request, &[]).await?;
        Ok(usize::try_from(index).unwrap_or(usize::MAX))
    }

    /// Lets go of a pinned exit record.
    pub async fn unregister(&self, index: usize) -> Result<(), Error> {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.call(ToReaper::Unregister { index }, &[])
            .await
            .map(drop)
    }

    /// Takes over what earlier shims deposited, by slot, in the order of their
    /// numbers.
    pub async fn adopt(&self) -> Result<Vec<(Slot, SharedFd)>, Error> {
        let mut all: Vec<(Slot, SharedFd)> = Vec::new();
        loop {
            let after = all.last().map_or(0, |(slot, _)| slot.slot);
            let held = self.call(ToReaper::Adopt { after }, &[]).await?;
            let mut given = self.0.given.lock().unwrap_or_else(PoisonError::into_inner);
            let came = given.len() as u64;
            // Nobody would copy what one of them carries, and nobody would know.
            if came != held {
                return Err(Error::SlotsLost { held, came });
            }
            let came_now = given.drain(..).map(|(slot, fd)| (slot, shared(fd)));
            all.extend(came_now);
            drop(given);
            self.note(all.iter().map(|(slot, fd)| (slot, fd)));
            // Fewer than asked for are the last; 0 also ends a reaper that lies.
            if came < ADOPT_MAX as u64 || all.last().is_none_or(|(slot, _)| slot.slot <= after) {
                return Ok(all);
            }
        }
    }

    /// Has the reaper accept who calls on the listener it holds there, and hold the
    /// connection as `slot`; ours is a copy. `None`: nobody calls.
    pub async fn accept(&self, listener: u32, slot: Slot) -> Result<Option<SharedFd>, Error> {
        self.call(ToReaper::Accept { listener, slot }, &[]).await?;
        let mut given = self.0.given.lock().unwrap_or_else(PoisonError::into_inner);
        let at = given.iter().position(|(came, _)| *came == slot);
        let fd = at.map(|at| shared(given.swap_remove(at).1));
        drop(given);
        self.note(fd.iter().map(|fd| (&slot, fd)));
        Ok(fd)
    }

    /// Tells the reaper that this shim leaves for good. A reaper that dies meanwhile, or has died, is
    /// no reason to stay.
    pub async fn end(&self) -> Result<(), Error> {
        self.0.serving.store(false, Ordering::Relaxed);
        self.0
            .calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .orphaned = false;
        self.call(ToReaper::End, &[]).await.map(drop)
    }

    async fn call(&self, request: ToReaper, fds: &[BorrowedFd<'_>]) -> Result<u64, Error> {
        let (answer, answered) = oneshot::channel();
        let call = {
            let mut calls = self.0.calls.lock().unwrap_or_else(PoisonError::into_inner);
            if calls.over && !calls.orphaned {
                return Err(Error::ReaperGone);
            }
            let call = calls.number();
            // Of one that nobody answers either: nobody is told.
            calls.waiting.insert(call, answer);
            call
        };
        let outcome = self.exchange(Call { call, request }, fds, answered).await;
        if outcome.is_err() {
            self.0
                .calls
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .waiting
                .remove(&call);
        }
        outcome
    }

    async fn exchange(
        &self,
        call: Call,
        fds: &[BorrowedFd<'_>],
        answered: oneshot::Receiver<Result<u64, Error>>,
    ) -> Result<u64, Error> {
        self.send(call, fds).await?;
        match tokio::time::timeout(ACK_WAIT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::ReaperGone),
            Err(_) => Err(Error::ReaperSilent),
        }
    }

    /// One that is dead or dying is no error: when that is sure, whoever waits is told.
    async fn send(&self, call: Call, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = call.encode().map_err(|source| Error::Control { source })?;
        // The socket nearly always has room: waited for only when it has not.
        // Readiness is cleared before the next try, so that no edge is missed.
        while let Err(errno) = scm::send(self.0.socket.get_ref().as_fd(), &bytes, fds) {
            if errno != Errno::EAGAIN {
                break;
            }
            let ready = self.0.socket.writable().await;
            let mut ready = ready.map_err(|source| Error::Runtime {
                op: "wait for the control socket",
                source,
            })?;
            ready.clear_ready();
        }
        Ok(())
    }
}

impl Shared {
    /// Says that a connection has come. Nobody waits for the answer, which an older reaper
    /// does not have; one that does not get to hear it hears the first bytes of ours.
    fn taken(&self, conn: u32) {
        let call = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls.number()
        };
        let request = ToReaper::Taken { conn };
        let bytes = Call { call, request }.encode();
        let socket = self.socket.get_ref().as_fd();
        if let Err(errno) = bytes.map_or(Ok(0), |bytes| scm::send(socket, &bytes, &[])) {
            log::warn!("control socket: connection {conn} is not acknowledged: {errno}");
        }
    }
}

impl Calls {
    /// A number for the next call; 0 is nobody's.
    fn number(&mut self) -> u32 {
        let call = self.next;
        self.next = call.checked_add(1).unwrap_or(1);
        call
    }
}

/// Descriptors held for nothing but to be let go of when there are none for what the reaper
/// sends: a connection, which it offers again then.
const SPARE: usize = 4;

fn spare() -> Vec<OwnedFd> {
    (0..SPARE).map_while(|_| fd::null().ok()).collect()
}

async fn receive(shared: Arc<Shared>, unasked: mpsc::UnboundedSender<FromReaper>) {
    let mut spares = spare();
    loop {
        let Ok(mut ready) = shared.socket.readable().await else {
            break;
        };
        let mut bytes = [0; MESSAGE_MAX];
        let mut fds = Vec::new();
        let len = match scm::recv(shared.socket.get_ref().as_fd(), &mut bytes, &mut fds) {
            Ok(0) => break,
            Ok(len) => len,
            Err(Errno::EAGAIN) => {
                ready.clear_ready();
                continue;
            }
            // Out of descriptors for those it brought: there are some for the next, and a
            // connection comes again.
            Err(Errno::ENOBUFS) => {
                spares.clear();
                log::warn!("control socket: no descriptors for what the reaper sent");
                continue;
            }
            // Longer than any message: that one is lost, and the reaper is as alive as before.
            Err(errno @ (Errno::EMSGSIZE | Errno::ENOMEM)) => {
                log::error!("control socket: a message is lost: {errno}");
                continue;
            }
            Err(errno) => {
                log::error!("control socket: {errno}");
                break;
            }
        };
        match ToShim::decode(&bytes[..len]) {
            Ok(ToShim::Ack { call, answer }) => {
                if spares.len() < SPARE {
                    spares = spare();
                }
                let waiting = shared
                    .calls
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .waiting
                    .remove(&call);
                if let Some(waiting) = waiting {
                    let answer = answer.map_err(|source| Error::Denied { source });
                    // The caller may have given up; then nobody is told.
                    let _ = waiting.send(answer);
                }
            }
            Ok(ToShim::Conn { conn }) => {
                let mut fds = fds.into_iter();
                if let (Some(pair), Some(own)) = (fds.next(), fds.next()) {
                    shared.taken(conn);
                    shared
                        .conns
                        .fetch_max(conn.wrapping_add(1), Ordering::Relaxed);
                    let connection = FromReaper::Connection { conn, pair, own };
                    if unasked.send(connection).is_err() {
                        break;
                    }
                } else {
                    log::error!("control socket: connection {conn} came without its descriptors");
                }
            }
            Ok(ToShim::Slot(slot)) => {
                // Without one it is of no use, and stays with the reaper.
                if let Some(fd) = fds.into_iter().next() {
                    let mut given = shared.given.lock().unwrap_or_else(PoisonError::into_inner);
                    given.push((slot, fd));
                }
            }
            Ok(ToShim::Leave) => {
                if unasked.send(FromReaper::Leave).is_err() {
                    break;
                }
            }
            Ok(ToShim::Retire) => {
                if unasked.send(FromReaper::Retire).is_err() {
                    break;
                }
            }
            Err(ControlError::UnknownType { .. }) => {
                log::warn!("control socket: the reaper speaks of something newer");
            }
            Err(error) => log::error!("control socket: {error}"),
        }
    }
    let serves = || shared.serving.load(Ordering::Relaxed);
    // It may have begun to leave while we looked.
    let orphaned = serves() && shared.is_orphaned().await && serves();
    {
        let mut calls = shared.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.over = true;
        calls.orphaned = orphaned;
        if !orphaned {
            calls.waiting.clear();
        }
    }
    let last = if orphaned {
        FromReaper::Gone
    } else {
        FromReaper::Leave
    };
    // Nobody listening is the owner leaving; then there is nobody to tell.
    let _ = unasked.send(last);
}

impl Shared {
    /// Whether the reaper is dead, now that it says nothing any more; if so, we are the
    /// parent of what is made from now on.
    async fn is_orphaned(&self) -> bool {
        // At once: what the runtime makes in this moment is to be ours.
        if let Err(errno) = process::set_subreaper(true) {
            log::error!("orphans are not adopted: {errno}");
        }
        let until = tokio::time::Instant::now() + DYING;
        // A process closes its files a moment before its children lose their parent.
        while process::parent_pid() == self.reaper {
            if tokio::time::Instant::now() >= until {
                log::error!(
                    "the reaper, process {}, has closed its control socket and lives",
                    self.reaper
                );
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }
}
