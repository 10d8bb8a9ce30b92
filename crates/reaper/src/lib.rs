//! The parent: holds what cannot be made again. Parenthood, the listening
//! socket, containerd's connections with what is unanswered on them, and the
//! ends of pipes the shim deposited. It relays frames, records deaths, starts
//! the shim, and knows no method, no container and no runtime. One thread, one
//! epoll loop, no wake-up when idle, no memory kept after a burst.
#![forbid(unsafe_code)]

mod conn;
mod control;
mod ends;
mod heir;
mod renew;
mod successor;
mod turn;

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use vigil_journal::exits::Recorder;
use vigil_journal::pair::{Incarnation, Pair};
use vigil_journal::takeovers::Takeovers;
use vigil_journal::{BootId, Owner, names};
use vigil_relay::conns::Conns;
use vigil_relay::departure::Departure;
use vigil_relay::slots::Slots;
use vigil_relay::succession::Succession;
use vigil_relay::tokens::{CONTROL, LISTENER, SIGNALS};
use vigil_sys::epoll::{Epoll, Resting};
use vigil_sys::event::Doorbell;
use vigil_sys::map::{SharedMap, thrifty_heap};
use vigil_sys::signal::{self, Signals};
use vigil_sys::spawn::{Child, Command};
use vigil_sys::{fd, fork, listen, pidfd, process, scm};

use crate::ends::Ends;
use crate::successor::SPARE;
use crate::turn::Reaper;

pub use heir::{Start, succeed};
pub use renew::{as_reaper, number};
pub use vigil_relay::handed::{
    CONNS, CONTROL_FD, DOORBELL_FD, EXITS_FD, LISTENER_FD, LOCK_FD, MEMORY_FD, READY_FD, TAKEOVERS,
};

/// Connections that may wait to be accepted: thousands may come at once.
const BACKLOG: i32 = 4096;

/// What `start` has prepared.
#[derive(Debug)]
pub struct Config {
    /// Whose pair this is, which every file says.
    pub owner: Owner,
    /// Bound, not listening: who calls listen(2) is who peers see.
    pub listener: OwnedFd,
    /// The pair's lock, held by being open.
    pub lock: OwnedFd,
    /// Memory for the exit records, of their length, which nobody can cut.
    pub exits: OwnedFd,
    /// Held for the shims: a second copy of their journal.
    pub memory: OwnedFd,
    /// Where `pair` is written.
    pub bundle: PathBuf,
    /// The shim's program, held open: it stays the same file until another is asked for.
    pub program: OwnedFd,
    /// Its name in its arguments.
    pub arg0: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The reaper's `comm`, 15 bytes at most.
    pub name: CString,
}

/// Why there is no pair after all. `start` shows it, so the source is told too.
#[derive(Debug, thiserror::Error)]
#[error("reaper cannot {0}: {1}")]
pub(crate) struct Error(&'static str, #[source] Fault);

type Fault = Box<dyn std::error::Error>;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Becomes the reaper. Called in a child forked from `start`, which has one
/// thread, whose working directory is the bundle and in which every descriptor that is not given here is closed or
/// close-on-exec; never returns. `ready` is the write end of a pipe that is
/// told `R` when the shim serves, or lines of `E` and a text, by shim and
/// reaper, when it will not; then it is closed.
pub fn run(config: &Config, ready: OwnedFd) -> ! {
    let code = match begin(config, &ready) {
        Ok(mut reaper) => {
            reaper.ready = Some(ready);
            reaper.run()
        }
        Err(error) => {
            fail(&ready, &error.to_string());
            1
        }
    };
    process::exit_now(code)
}

/// Tells `start` why there is nothing to be ready, if `start` is still there.
/// One line, so that what the shim has told before stays readable.
pub(crate) fn fail(ready: &OwnedFd, why: &str) {
    let _ = scm::write(ready.as_fd(), format!("E{why}\n").as_bytes());
}

/// Gives an error the name of its step.
pub(crate) fn step<T, E: Into<Fault>>(name: &'static str, result: Result<T, E>) -> Result<T> {
    result.map_err(|error| Error(name, error.into()))
}

/// What a process needs that is to be a reaper, and is for nobody else.
fn prepare(config: &Config) -> Result<(BootId, Signals, &'static [AtomicU64])> {
    thrifty_heap();
    // An ignored SIGCHLD, if we were given one, would lose every status.
    let signals = step("take signals", Signals::alone(signal::OF_A_REAPER))?;
    step("adopt orphans", process::set_subreaper(true))?;
    step("take its name", process::set_name(&config.name))?;
    let boot = step("read the boot id", process::boot_id())?;
    let boot = step("read the boot id", BootId::parse(&boot))?;
    let words = SharedMap::for_ever(config.exits.as_fd());
    Ok((boot, signals, step("map the exit records", words)?))
}

fn begin<'c>(config: &'c Config, ready: &OwnedFd) -> Result<Reaper<'c>> {
    let (boot, signals, words) = prepare(config)?;
    step("begin a session", process::new_session())?;
    step("let go of its stdio", fork::null_stdio())?;
    // In the bundle as it is, whatever has its name later.
    let deaths = Recorder::begin(words, boot, &config.owner, names::EXITS.as_ref());
    let deaths = step("format exits", deaths)?;

    let bell = step("make a doorbell", Doorbell::new())?;
    let mut reaper = alone(config, (boot, signals, deaths), bell)?;
    let (control, theirs) = step("make a control socket", scm::pair_seqpacket())?;
    let control = reaper.epoll.watch(control, CONTROL);
    reaper.control = Some(step("watch the control socket", control)?);
    let shim = start_shim(
        config,
        reaper.line.program(),
        &theirs,
        &reaper.bell,
        ready,
        (0, 0),
    )?;
    write_pair(config, boot, &shim).inspect_err(|_| {
        // Nobody could check who this shim is before killing it.
        let _ = pidfd::send_signal(&shim.pidfd, signal::KILL);
    })?;
    reaper.shim = Some(shim);
    Ok(reaper)
}

/// A reaper without a shim.
fn alone<'c>(
    config: &'c Config,
    (boot, signals, deaths): (BootId, Signals, Recorder<'static>),
    bell: Doorbell,
) -> Result<Reaper<'c>> {
    let epoll = step("make an epoll set", Epoll::new())?;
    step("listen", listen::listen(config.listener.as_fd(), BACKLOG))?;
    let listener = Resting::new(&epoll, &config.listener, LISTENER);
    let listener = step("watch the listener", listener)?;
    let signals = step("watch signals", epoll.watch(signals, SIGNALS))?;
    let program = step("keep its program", fd::duplicate(&config.program))?;
    Ok(Reaper {
        config,
        boot,
        epoll,
        signals,
        listener,
        conns: Conns::new(process::open_files().unwrap_or(0)),
        bell,
        deaths,
        deaths_due: true,
        slots: Slots::default(),
        ends: Ends::default(),
        control: None,
        shim: None,
        closed: None,
        silent: true,
        reaps: false,
        serving: false,
        line: Succession::new(program),
        takeovers: Takeovers::default(),
        spare: fd::spares(SPARE),
        ready: None,
        heard: None,
        departure: Departure::default(),
    })
}

pub(crate) fn start_shim(
    config: &Config,
    program: &OwnedFd,
    control: &OwnedFd,
    bell: &Doorbell,
    ready: &OwnedFd,
    (takeovers, conns): (u32, u32),
) -> Result<Child> {
    let shim = Command::new(fd::held_path(program))
        .arg0(&config.arg0)
        .args(&config.args)
        .envs(config.env.iter().map(|(key, value)| (key, value)))
        .env(TAKEOVERS, takeovers.to_string())
        .env(CONNS, conns.to_string())
        .own_group()
        .fd(CONTROL_FD, control.as_fd())
        .fd(DOORBELL_FD, bell.as_fd())
        .fd(LOCK_FD, config.lock.as_fd())
        .fd(READY_FD, ready.as_fd())
        .fd(LISTENER_FD, config.listener.as_fd())
        .fd(MEMORY_FD, config.memory.as_fd())
        .fd(EXITS_FD, config.exits.as_fd())
        .spawn();
    step("start the shim", shim)
}

/// Names both processes for `delete`, before the shim is given anything to serve.
pub(crate) fn write_pair(config: &Config, boot: BootId, shim: &Child) -> Result<()> {
    let incarnation = |pid: u32, pidfd: &OwnedFd| {
        let identity = process::identify(pid, pidfd).map(|it| Incarnation::new(boot, it));
        step("identify a process", identity)
    };
    let own = step("open itself", pidfd::open(process::pid()))?;
    let reaper = incarnation(process::pid(), &own)?;
    let shim = Some(incarnation(shim.pid, &shim.pidfd)?);
    let session = step("see its session", process::session())?;
    let session = (session != reaper.pid).then_some(session);
    let pair = Pair {
        reaper,
        shim,
        session,
    };
    let written = pair.write(&config.bundle.join(names::PAIR), &config.owner);
    step("name the pair", written)
}
