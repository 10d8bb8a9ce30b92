//! Becoming another program: after its shims are of that program, and one of them serves, the reaper
//! executes it too. What it has goes through a memory; number, children, locks and descriptors
//! stay. If the new program cannot be executed, nothing has changed; if it does not understand what
//! was left, it executes the one before again; if it does not come up, it is ended by an alarm, and
//! the shim, which lives on, becomes the reaper.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use vigil_relay::estate::{Estate, Fd, Held, Shim};
use vigil_relay::handed::{BEFORE, ESTATE, REAP};
use vigil_relay::heir::millis;
use vigil_sys::spawn::Command;
use vigil_sys::{fd, process};

use crate::turn::Reaper;

/// How long the new program may take to come up.
const COMES_UP: Duration = Duration::from_secs(5);

/// The number of a descriptor, for the estate.
pub fn number(fd: impl AsFd) -> Fd {
    Fd(fd.as_fd().as_raw_fd().cast_unsigned())
}

/// The program that goes on as the reaper with what is left in `memory`; `args` are a shim's, whose
/// last says what it does.
pub fn as_reaper(
    program: impl AsFd,
    arg0: &OsStr,
    args: &[OsString],
    env: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    memory: impl AsFd,
) -> Command<'static> {
    let args = args.iter().take(args.len().saturating_sub(1));
    Command::new(fd::held_path(program))
        .arg0(arg0)
        .args(args)
        .arg(REAP)
        .envs(env)
        .env(ESTATE, memory.as_fd().as_raw_fd().to_string())
}

impl Reaper<'_> {
    /// Does it if it is due, and if no frame is under way on any connection.
    pub(crate) fn renew(&mut self) {
        if !self.line.renews() || self.departure.is_near() {
            return;
        }
        if self.reaps && !self.conns.iter().all(|conn| conn.is_between()) {
            return;
        }
        self.line.stays();
        // It would be nobody, and the shim alone. The reaper stays what it is.
        if !self.reaps {
            return;
        }
        self.deaths.say();
        for conn in self.conns.iter_mut() {
            conn.take();
        }
        // Whatever comes of it, it is not tried again: the next upgrade does.
        let _ = self.execute();
    }

    /// Returns only if it cannot.
    fn execute(&mut self) -> vigil_sys::Result<()> {
        let now = Instant::now();
        let (Some(shim), Some(control)) = (&self.shim, &self.control) else {
            return Ok(());
        };
        let config = self.config;
        let estate = Estate {
            whose: config.owner.line(),
            held: Held {
                listener: number(&config.listener),
                lock: number(&config.lock),
                exits: number(&config.exits),
                memory: number(&config.memory),
                bell: number(&self.bell),
                program: number(self.line.program()),
                before: self.line.before().map(number),
                next_conn: self.conns.next(),
            },
            conns: self.conns.iter().map(|conn| conn.leave(now)).collect(),
            slots: self
                .slots
                .iter()
                .map(|(slot, fd)| (slot, number(fd)))
                .collect(),
            ends: self.ends.leave(),
            story: self.takeovers.to_bytes(&config.owner),
            shim: Some(Shim {
                pid: shim.pid,
                control: number(control),
                serving: self.serving,
                silent: self.silent,
                proving_ms: millis(self.line.proving(now)),
            }),
        };
        let memory = fd::memfd_with(c"vigil-estate", &estate.encode())?;
        let held = [
            &config.listener,
            &config.lock,
            &config.exits,
            &config.memory,
            &config.program,
            &memory,
        ];
        let held = held.into_iter().map(AsFd::as_fd);
        let held = held.chain([
            self.bell.as_fd(),
            control.as_fd(),
            self.line.program().as_fd(),
        ]);
        let keep: Vec<BorrowedFd<'_>> = held
            .chain(self.line.before().map(AsFd::as_fd))
            .chain(self.slots.iter().map(|(_, fd)| fd.as_fd()))
            .chain(self.ends.fds())
            .chain(self.conns.iter().flat_map(|conn| conn.fds()))
            .collect();
        let (arg0, args) = (&config.arg0, &config.args);
        let env = config.env.iter().map(|(key, value)| (key, value));
        let command = as_reaper(self.line.program(), arg0, args, env, &memory)
            .env(BEFORE, config.program.as_raw_fd().to_string());
        process::end_after(Some(COMES_UP));
        let why = command.replace_us(&keep);
        process::end_after(None);
        Err(why)
    }
}
