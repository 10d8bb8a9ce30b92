//! Becoming the reaper after one that is gone: everything it had comes from what its shim left in
//! a memory before it became this program. Takes each descriptor once, starts a shim, and is a
//! reaper like any other from then on. What cannot be taken is missed by somebody, and is no
//! reason to leave all the others.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vigil_journal::exits::{Recorder, Slot};
use vigil_journal::takeovers::Takeovers;
use vigil_journal::{Owner, names, panic};
use vigil_relay::cause::Cause;
use vigil_relay::estate::{Estate, Fd, Shim};
use vigil_relay::tokens::CONTROL;
use vigil_sys::event::Doorbell;
use vigil_sys::spawn::Child;
use vigil_sys::{Errno, fd, fork, listen, map, pidfd, process};

use crate::conn::Conn;
use crate::renew::as_reaper;
use crate::turn::Reaper;
use crate::{Config, Result, alone, prepare, step};

/// Longest estate: what all requests hold, and as much for the rest.
const ESTATE_MAX: u64 = 128 << 20;

/// What the process that becomes the reaper was started with.
#[derive(Debug)]
pub struct Start {
    /// Where it works.
    pub bundle: PathBuf,
    /// Its name in its arguments.
    pub arg0: OsString,
    /// Its arguments, which its shims are given.
    pub args: Vec<OsString>,
    /// Its environment, likewise.
    pub env: Vec<(OsString, OsString)>,
    /// What the reaper was until now, if this is another program.
    pub before: Option<OwnedFd>,
}

/// Becomes the reaper of what is left in `memory`; never returns. In a process of one thread in
/// which every descriptor named there was handed over the exec.
pub fn succeed(start: Start, memory: OwnedFd) -> ! {
    let memory = File::from(memory);
    let code = match read(&memory) {
        Ok(estate) => {
            // What was asked stays in no memory that is not needed.
            drop(memory);
            let whose = estate.whose.clone();
            let ran = config(start, &estate).and_then(|config| run(&config, estate));
            ran.unwrap_or_else(|error| last_words(&whose, &error))
        }
        // Nothing was taken yet: the one that wrote it understands it.
        Err(_) => back(&start, &memory),
    };
    process::exit_now(code)
}

fn run(config: &Config, estate: Estate) -> Result<i32> {
    let reaper = begin(config, estate)?;
    map::release_heap();
    Ok(reaper.run())
}

/// Leaves where `delete` finds it why there is no pair any more.
fn last_words(whose: &str, error: &crate::Error) -> i32 {
    if let Some(owner) = Owner::parse_line(whose) {
        let words = format!("no reaper after the one that died: {error}");
        let _ = panic::leave(names::PANIC.as_ref(), &owner, &words);
    }
    1
}

fn read(memory: &File) -> Result<Estate> {
    let mut bytes = Vec::new();
    let read = memory.take(ESTATE_MAX).read_to_end(&mut bytes);
    step("read what is left", read)?;
    step("understand what is left", Estate::decode(&bytes))
}

/// Becomes the program again that it was until now; returns only if it cannot.
fn back(start: &Start, mut memory: &File) -> i32 {
    let Some(before) = &start.before else {
        return 1;
    };
    let env = start.env.iter().map(|(key, value)| (key, value));
    let command = as_reaper(before, &start.arg0, &start.args, env, memory);
    if memory.rewind().is_ok() {
        let _ = command.replace_us(&[memory.as_fd()]);
    }
    1
}

fn taken(fd: Fd) -> Result<OwnedFd, Errno> {
    fork::inherited(fd.0)
}

fn config(start: Start, estate: &Estate) -> Result<Config> {
    let held = estate.held;
    let owner = Owner::parse_line(&estate.whose).ok_or("it is no owner");
    let owner = step("read whose it is", owner)?;
    let config = Config {
        owner,
        listener: step("take the listener", taken(held.listener))?,
        lock: step("take the lock", taken(held.lock))?,
        exits: step("take the exit records", taken(held.exits))?,
        memory: step("take the second copy", taken(held.memory))?,
        program: step("take its program", taken(held.program))?,
        bundle: start.bundle,
        arg0: start.arg0,
        args: start.args,
        env: start.env,
        name: c"containerd-shim".to_owned(),
    };
    Ok(config)
}

fn begin(config: &Config, estate: Estate) -> Result<Reaper<'_>> {
    let (boot, signals, words) = prepare(config)?;
    let mut deaths = step("take the exit records", Recorder::new(words))?;
    // The memory is what counts; the next record tries again.
    let _ = deaths.keep_in(names::EXITS.as_ref());
    let bell = step("take the doorbell", taken(estate.held.bell))?;
    let mut reaper = alone(config, (boot, signals, deaths), Doorbell::from(bell))?;
    if let Ok((takeovers, _)) = Takeovers::parse(&estate.story) {
        reaper.takeovers = takeovers;
    }
    for (slot, fd) in estate.slots {
        if let Ok(fd) = taken(fd) {
            // Of several under one number the first counts.
            let _ = reaper.slots.deposit(&[slot], vec![fd]);
        }
    }
    let budget = reaper.conns.budget().clone();
    let conns = estate.conns.into_iter().filter_map(|left| {
        let own = taken(left.own).ok()?;
        let pair = left.pair.and_then(|pair| taken(pair.fd).ok());
        // The rest of a request that was lost will never come.
        if left.half.is_some() && fd::readable_bytes(&own) == Ok(0) {
            let _ = listen::shutdown(own.as_fd());
        }
        Some(Conn::go_on(&reaper.epoll, left, own, pair, &budget))
    });
    let conns: Vec<Conn> = conns.collect();
    reaper.conns.go_on(estate.held.next_conn, conns);
    (0..reaper.conns.len()).for_each(|place| reaper.settle(place));
    for end in estate.ends {
        let Ok(pidfd) = taken(end.pidfd) else {
            continue;
        };
        // One that is reaped has no number any more, but its slot.
        let slot = usize::try_from(end.pin).ok();
        let slot = slot.and_then(|pin| reaper.deaths.exits().slot(pin));
        if let Some(Slot::Waiting { pid, .. }) = slot {
            reaper.ends.add(&reaper.epoll, end.pin, pid, pidfd);
        }
    }
    let before = estate.held.before.and_then(|fd| taken(fd).ok());
    let proving = estate.shim.map_or(0, |shim| shim.proving_ms);
    let proving = Duration::from_millis(proving.into());
    reaper.line.go_on(Instant::now(), before, proving);
    match estate.shim {
        Some(shim) => reaper.go_on(&shim)?,
        None => reaper.inherit(),
    }
    process::end_after(None);
    Ok(reaper)
}

impl Reaper<'_> {
    /// The shim lives, and notices nothing.
    fn go_on(&mut self, shim: &Shim) -> Result<()> {
        let control = step("take the control socket", taken(shim.control))?;
        let control = self.epoll.watch(control, CONTROL);
        self.control = Some(step("watch the control socket", control)?);
        // A child that is not reaped: its number is its own.
        let pidfd = step("open the shim", pidfd::open(shim.pid))?;
        let pid = shim.pid;
        self.shim = Some(Child { pid, pidfd });
        (self.serving, self.silent) = (shim.serving, shim.silent);
        if self.serving {
            self.hand_out();
        }
        Ok(())
    }

    /// The first shim of this reaper; later, if that cannot be now.
    fn inherit(&mut self) {
        self.line.inherits(Instant::now());
        self.takeovers.add(&Cause::Heir.to_string());
        self.tell_takeovers();
        self.try_again();
    }
}
