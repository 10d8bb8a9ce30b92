//! Stands behind the shim, and behind each one that takes its place, counts its system calls
//! and kills it before or after the one it is told to. The reaper is followed only to its
//! forks, so that a successor is ours from its first instant.
//!
//! Or behind the reaper alone, until that dies; what it forks is not traced then.
//!
//! Children of a shim (runc, workers) are never traced. Everything here happens in one
//! thread, since the kernel knows a tracer by its thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::{
    PTRACE_SYSCALL_INFO_ENTRY, SYS_accept4, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_epoll_wait,
    SYS_openat, SYS_recvmsg,
};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vigil_hostile::Pair;
use vigil_lab::{by, until};

use crate::script::{Edge, Whom};

/// How long a shim that waits for events must have done so to count as quiet.
const QUIET: Duration = Duration::from_millis(3);

/// One blow that is to fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// Who is hit.
    pub whom: Whom,
    /// At which of its calls, from 1.
    pub call: u32,
    /// Before or after it.
    pub edge: Edge,
    /// Of the reaper: whether a client connects in that act, and makes up for a connection that was
    /// accepted and is lost.
    pub visited: bool,
}

/// What was seen between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Calls of the shim that served at the beginning.
    pub serving: u32,
    /// Calls of the last one that took over.
    pub successor: u32,
    /// Shims that died, of whatever.
    pub deaths: u32,
    /// Blows that fell.
    pub hits: u32,
    /// The kernel's number of the call at which the last one fell.
    pub at: i64,
    /// How the last one died: its exit code, or 256 and the signal.
    pub died: i32,
}

#[derive(Debug, Default)]
struct State {
    seen: Seen,
    aims: VecDeque<Aim>,
    shim: Option<Pid>,
    /// The shim was born since the beginning of this look.
    successor: bool,
    /// The next return of a call is the blow's place.
    at_return: bool,
    /// The reaper alone has opened a client's fifo, or accepted who brings a terminal: its death
    /// in this moment is an end that the client sees, or an exec that fails (ARCHITECTURE, *The
    /// reaper dies*). It is spared until the shim, which has it next, says something.
    alone: bool,
    /// The call under way asks whether the shim says something.
    listens: bool,
    /// Since when the shim waits for something to happen.
    waits: Option<Instant>,
    over: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Tracer {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<Result<()>>>,
}

fn held(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody who is dead by now is no failure.
fn unless_gone(done: nix::Result<()>) -> Result<()> {
    match done {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).context("ptrace"),
    }
}

impl State {
    fn entered(&mut self, call: i64) {
        let count = if self.successor {
            &mut self.seen.successor
        } else {
            &mut self.seen.serving
        };
        *count += 1;
        let waits = [SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_pwait2].contains(&call);
        self.waits = waits.then(Instant::now);
    }

    /// Whether the call just entered is the one.
    fn aimed(&self) -> Option<Edge> {
        let aim = self.aims.front()?;
        let (whom, at) = if self.successor {
            (Whom::Successor, self.seen.successor)
        } else {
            (Whom::Serving, self.seen.serving)
        };
        (aim.whom == whom && aim.call == at).then_some(aim.edge)
    }
}

/// Whether a path in the memory of somebody who is stopped is one below `/proc/self`: that of a
/// descriptor which names a fifo.
fn begins_with_self(pid: Pid, at: u64) -> bool {
    let at = std::ptr::with_exposed_provenance_mut(usize::try_from(at).unwrap_or(0));
    ptrace::read(pid, at).is_ok_and(|word| word.to_ne_bytes() == *b"/proc/se")
}

struct Watch {
    state: Arc<Mutex<State>>,
    /// Followed only to its forks; `None`: whoever is counted is the reaper.
    reaper: Option<Pid>,
    calls: bool,
}

impl Tracer {
    /// Takes its place behind a living pair. Without `calls` it only counts deaths.
    pub fn behind(pair: &Pair, calls: bool) -> Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let (reaper, shim) = (Pid::from_raw(pair.reaper), Pid::from_raw(pair.shim));
        let watch = Watch {
            state: Arc::clone(&state),
            reaper: Some(reaper),
            calls,
        };
        Self::run(state, watch, shim)
    }

    /// Takes its place behind the reaper alone, and counts its calls and its death.
    pub fn behind_the_reaper(pair: &Pair) -> Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let watch = Watch {
            state: Arc::clone(&state),
            reaper: None,
            calls: true,
        };
        Self::run(state, watch, Pid::from_raw(pair.reaper))
    }

    fn run(state: Arc<Mutex<State>>, watch: Watch, shim: Pid) -> Result<Self> {
        held(&state).shim = Some(shim);
        let (sender, ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let begun = watch.begin(shim);
            let go_on = begun.is_ok();
            let _ = sender.send(begun);
            let done = if go_on { watch.run() } else { Ok(()) };
            held(&watch.state).over = true;
            done
        });
        ready.recv().context("the tracer's thread")??;
        Ok(Self {
            state,
            thread: Some(thread),
        })
    }

    /// Begins to count anew. `aims`: where to hit from now on, in this order; `None`: what
    /// did not fall yet is still to fall.
    pub fn begin(&self, aims: Option<Vec<Aim>>) {
        let mut state = held(&self.state);
        state.seen = Seen::default();
        state.successor = false;
        if let Some(aims) = aims {
            state.aims = aims.into();
        }
    }

    /// What was seen since.
    #[must_use]
    pub fn seen(&self) -> Seen {
        held(&self.state).seen
    }

    /// Waits until a shim waits for something to happen, or everybody has gone.
    pub fn quiet(&self) -> Result<()> {
        until("the shim to have done everything", by(20.0), || {
            let state = held(&self.state);
            let quiet = state.waits.is_some_and(|since| since.elapsed() >= QUIET);
            (state.over || quiet).then_some(())
        })
    }

    /// When both of the pair are gone: what went wrong with the tracing itself.
    pub fn end(mut self) -> Result<()> {
        until("the pair to be gone", by(20.0), || {
            held(&self.state).over.then_some(())
        })?;
        let thread = self.thread.take().context("ended twice")?;
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the tracer panicked"))?
    }
}

impl Watch {
    fn begin(&self, shim: Pid) -> Result<()> {
        let forks = Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE;
        if let Some(reaper) = self.reaper {
            ptrace::seize(reaper, forks).context("seizing the reaper")?;
        }
        ptrace::seize(shim, Options::PTRACE_O_TRACESYSGOOD).context("seizing the shim")?;
        // Its calls are seen from its next stop on.
        if self.calls {
            ptrace::interrupt(shim).context("stopping the shim")?;
        }
        Ok(())
    }

    fn run(&self) -> Result<()> {
        // Not the children of other threads: those belong to whoever has started them.
        let whose = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            match waitpid(None, Some(whose)) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return Ok(()),
                Err(errno) => return Err(errno).context("waiting for those traced"),
                Ok(WaitStatus::Exited(pid, code)) => self.gone(pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.gone(pid, 256 + signal as i32),
                Ok(WaitStatus::PtraceSyscall(pid)) => self.call(pid)?,
                Ok(WaitStatus::PtraceEvent(pid, ..)) => self.event(pid)?,
                Ok(WaitStatus::Stopped(pid, signal)) => self.go_on(pid, Some(signal))?,
                Ok(_) => {}
            }
        }
    }

    fn go_on(&self, pid: Pid, signal: Option<Signal>) -> Result<()> {
        unless_gone(if self.calls && Some(pid) != self.reaper {
            ptrace::syscall(pid, signal)
        } else {
            ptrace::cont(pid, signal)
        })
    }

    fn gone(&self, pid: Pid, died: i32) {
        let mut state = held(&self.state);
        if state.shim == Some(pid) {
            state.shim = None;
            state.waits = None;
            state.at_return = false;
            state.seen.deaths += 1;
            state.seen.died = died;
        }
    }

    /// A fork of the reaper, or the first stop of what it has forked.
    fn event(&self, pid: Pid) -> Result<()> {
        let born = {
            let mut state = held(&self.state);
            let born = Some(pid) != self.reaper && state.shim != Some(pid);
            if born {
                state.shim = Some(pid);
                state.successor = true;
                state.seen.successor = 0;
            }
            born
        };
        if born {
            // It has the reaper's options; its own children are not to be traced.
            unless_gone(ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD))?;
        }
        self.go_on(pid, None)
    }

    /// Before or after a system call.
    fn call(&self, pid: Pid) -> Result<()> {
        let entry = match ptrace::syscall_info(pid) {
            Ok(at) => at.op == PTRACE_SYSCALL_INFO_ENTRY,
            Err(errno) => return unless_gone(Err(errno)),
        };
        let mut state = held(&self.state);
        let hit = if entry {
            let now = ptrace::getregs(pid).ok();
            let call = now.map_or(-1, |now| now.orig_rax.cast_signed());
            let path = now.map_or(0, |now| now.rsi);
            state.entered(call);
            let aimed = state.aimed();
            let alone = state.alone;
            state.listens = call == SYS_recvmsg;
            let visited = state.aims.front().is_some_and(|aim| aim.visited);
            let takes = call == SYS_openat && begins_with_self(pid, path)
                || call == SYS_accept4 && !visited;
            state.alone = self.reaper.is_none() && (alone || takes);
            let spared = match aimed {
                Some(Edge::Before) => alone,
                Some(Edge::After) => state.alone,
                None => false,
            };
            if spared {
                state.aims.pop_front();
            }
            let aimed = aimed.filter(|_| !spared);
            if aimed.is_some() {
                state.seen.at = call;
            }
            state.at_return = aimed == Some(Edge::After);
            aimed == Some(Edge::Before)
        } else {
            state.waits = None;
            let came = ptrace::getregs(pid).is_ok_and(|now| now.rax.cast_signed() > 0);
            if std::mem::take(&mut state.listens) && came {
                state.alone = false;
            }
            std::mem::take(&mut state.at_return)
        };
        if hit {
            state.aims.pop_front();
            state.seen.hits += 1;
            state.waits = None;
            // It is stopped and ours to reap: the number is its own.
            return unless_gone(kill(pid, Signal::SIGKILL));
        }
        drop(state);
        self.go_on(pid, None)
    }
}
