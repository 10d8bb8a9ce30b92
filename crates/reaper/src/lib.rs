//! The parent: holds what cannot be made again. Parenthood, the listening
//! socket, containerd's connections with what is unanswered on them, and the
//! ends of pipes the shim deposited. It relays frames, records deaths, starts
//! the shim, and knows no method, no container and no runtime. One thread, one
//! epoll loop, no wake-up when idle, no memory kept after a burst.
#![forbid(unsafe_code)]

mod conn;
mod control;
mod successor;
mod turn;

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use vigil_journal::exits::{ExitsError, Recorder};
use vigil_journal::pair::{Incarnation, Pair, PairError};
use vigil_journal::{BootId, BootIdError, names};
use vigil_relay::slots::Slots;
use vigil_relay::succession::{Deaths, Watchdog};
use vigil_sys::epoll::{Epoll, Interest, Watched};
use vigil_sys::event::Doorbell;
use vigil_sys::map::{SharedMap, thrifty_heap};
use vigil_sys::signal::{self, Signals};
use vigil_sys::spawn::{Child, Command};
use vigil_sys::{Errno, fork, listen, pidfd, process, scm, wait};

use crate::turn::Reaper;

/// The shim's end of the control socket, as the shim sees it.
pub const CONTROL_FD: u16 = 3;
/// The doorbell rung after each recorded death.
pub const DOORBELL_FD: u16 = 4;
/// The lock.
pub const LOCK_FD: u16 = 5;
/// The write end of the ready pipe.
pub const READY_FD: u16 = 6;

/// How many shims of this pair have died in the last minute, in the environment of one that
/// takes over.
pub const TAKEOVERS: &str = "VIGIL_TAKEOVERS";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// What `start` has prepared.
#[derive(Debug)]
pub struct Config {
    /// Bound, not listening: who calls listen(2) is who peers see.
    pub listener: OwnedFd,
    /// The pair's lock, held by being open.
    pub lock: OwnedFd,
    /// What `vigil_journal::exits::create` made.
    pub exits: OwnedFd,
    /// Where `pair` is written.
    pub bundle: PathBuf,
    /// The shim's program; `/proc/self/exe` stays the same file over an upgrade.
    pub program: PathBuf,
    /// Its arguments, the name first.
    pub argv: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The reaper's `comm`, 15 bytes at most.
    pub name: CString,
}

/// Why there is no pair after all. `start` shows it, so the source is told too.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("reaper cannot {0}: {1}")]
    Step(&'static str, #[source] Errno),
    #[error("reaper has no boot id: {0}")]
    Boot(#[from] BootIdError),
    #[error("reaper cannot map the exit records: {0}")]
    Exits(#[from] ExitsError),
    #[error("reaper: {0}")]
    Pair(#[from] PairError),
    #[error("shim ended before it was ready: {}", wait::describe(*.0))]
    ShimEnded(i32),
}

/// Becomes the reaper. Called in a child forked from `start`, which has one
/// thread and in which every descriptor that is not given here is closed or
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
            fail(&ready, &error);
            1
        }
    };
    process::exit_now(code)
}

/// Tells `start` why there is nothing to be ready, if `start` is still there.
/// One line, so that what the shim has told before stays readable.
pub(crate) fn fail(ready: &OwnedFd, error: &Error) {
    let _ = scm::write(ready.as_fd(), format!("E{error}\n").as_bytes());
}

/// Gives an [`Errno`] the name of its step.
pub(crate) fn step<T>(step: &'static str, result: vigil_sys::Result<T>) -> Result<T, Error> {
    result.map_err(|errno| Error::Step(step, errno))
}

fn begin<'c>(config: &'c Config, ready: &OwnedFd) -> Result<Reaper<'c>, Error> {
    thrifty_heap();
    // An ignored SIGCHLD, if we were given one, would lose every status.
    step("reset its signals", signal::reset_for_exec())?;
    let acted_upon = [signal::CHLD, signal::TERM, signal::INT, signal::USR2];
    let survived = [signal::HUP, signal::USR1, signal::PIPE];
    let signals = step(
        "take signals",
        Signals::new(&[&acted_upon[..], &survived].concat()),
    )?;
    step("begin a session", process::new_session())?;
    step("adopt orphans", process::set_subreaper(true))?;
    step("take its name", process::set_name(&config.name))?;
    step("let go of its stdio", fork::null_stdio())?;

    let boot = BootId::parse(&step("read the boot id", process::boot_id())?)?;
    let map = SharedMap::read_write(config.exits.as_fd());
    // Leaked: needed until the process ends.
    let map = Box::leak(Box::new(step("map the exit records", map)?));
    let deaths = Recorder::format(map.words(), boot)?;

    let bell = step("make a doorbell", Doorbell::new())?;
    let epoll = step("make an epoll set", Epoll::new())?;
    step("listen", listen::listen(config.listener.as_fd(), BACKLOG))?;
    let listener = Watched::new(&epoll, &config.listener, turn::LISTENER, Interest::READ);
    let listener = step("watch the listener", listener)?;
    let signals = Watched::new(&epoll, signals, turn::SIGNALS, Interest::READ);
    let signals = step("watch signals", signals)?;
    let (control, theirs) = step("make a control socket", scm::pair_seqpacket())?;
    let control = Watched::new(&epoll, control, turn::CONTROL, Interest::READ);
    let control = step("watch the control socket", control)?;

    let shim = start_shim(config, &theirs, &bell, ready, 0)?;
    write_pair(config, boot, &shim).inspect_err(|_| {
        // Nobody could check who this shim is before killing it.
        let _ = pidfd::send_signal(&shim.pidfd, signal::KILL);
    })?;
    Ok(Reaper {
        config,
        boot,
        epoll,
        signals,
        listener,
        listen_at: None,
        conns: Vec::new(),
        next_conn: 0,
        burst: false,
        bell,
        deaths,
        deaths_due: true,
        slots: Slots::default(),
        control: Some(control),
        shim,
        shim_lives: true,
        serving: false,
        shim_deaths: Deaths::default(),
        watchdog: Watchdog::default(),
        progress: 0,
        ready_by: None,
        spare: successor::spare(),
        ready: None,
        going: false,
        told_to_go: false,
        until: None,
    })
}

pub(crate) fn start_shim(
    config: &Config,
    control: &OwnedFd,
    bell: &Doorbell,
    ready: &OwnedFd,
    takeovers: u32,
) -> Result<Child, Error> {
    let takeovers =
        (takeovers > 0).then(|| (OsString::from(TAKEOVERS), takeovers.to_string().into()));
    let mut argv = config.argv.iter();
    let shim = Command::new(&config.program)
        .arg0(
            argv.next()
                .map_or(config.program.as_os_str(), OsString::as_os_str),
        )
        .args(argv)
        .envs(config.env.iter().map(|(key, value)| (key, value)))
        .envs(
            takeovers
                .iter()
                .map(|(key, value): &(OsString, OsString)| (key, value)),
        )
        .own_group()
        .fd(CONTROL_FD, control.as_fd())
        .fd(DOORBELL_FD, bell.as_fd())
        .fd(LOCK_FD, config.lock.as_fd())
        .fd(READY_FD, ready.as_fd())
        .spawn();
    step("start the shim", shim)
}

/// Names both processes for `delete`, before the shim is given anything to serve.
pub(crate) fn write_pair(config: &Config, boot: BootId, shim: &Child) -> Result<(), Error> {
    let pid_ns = step("see its pid namespace", process::pid_namespace())?;
    let incarnation = |pid: u32, pidfd: &OwnedFd| -> Result<Incarnation, Error> {
        let start_ticks = step("see a start time", process::start_ticks(pid))?;
        let pidfd_inode = step("identify a process", pidfd::inode(pidfd))?;
        Ok(Incarnation {
            pid,
            start_ticks,
            pid_ns,
            boot,
            pidfd_inode,
        })
    };
    let own = step("open itself", pidfd::open(process::pid()))?;
    let reaper = incarnation(process::pid(), &own)?;
    let shim = Some(incarnation(shim.pid, &shim.pidfd)?);
    Ok(Pair { reaper, shim }.write(&config.bundle.join(names::PAIR))?)
}
