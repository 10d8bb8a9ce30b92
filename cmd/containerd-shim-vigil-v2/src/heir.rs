//! The shim becomes the reaper when that has died: the process stays, with its children and all
//! that it holds, and executes its own program again. What cannot be made anew goes through a
//! memory (`vigil_relay::estate`). If it cannot be done, both of the pair are gone, and `delete`
//! has the last word.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vigil_journal::names;
use vigil_journal::takeovers::Takeovers;
use vigil_protocol::Left;
use vigil_reaper::{CONNS, Start, TAKEOVERS, as_reaper, number};
use vigil_relay::estate::{Conn, End, Estate, Held, Request};
use vigil_relay::handed::{BEFORE, ESTATE, REAP, SERVE};
use vigil_supervise::Bequest;
use vigil_sys::{fd, fork, listen, signal};

use crate::start::BUNDLE;

/// Whether this process was started to be the reaper. Then it is, and this does not return.
pub fn run_if_heir() -> Result<()> {
    let Ok(number) = std::env::var(ESTATE) else {
        return Ok(());
    };
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.last().is_none_or(|last| last != REAP) {
        return Ok(());
    }
    args.pop();
    args.push(SERVE.into());
    let number: u32 = number.parse().context("no number of a memory")?;
    let memory = fork::inherited(number).context("the memory was not handed over")?;
    let before = std::env::var(BEFORE).ok();
    let before = before.and_then(|number| fork::inherited(number.parse::<u32>().ok()?).ok());
    let ours = [ESTATE, BEFORE, TAKEOVERS, CONNS];
    let start = Start {
        bundle: bundle()?,
        arg0: args.remove(0),
        args,
        env: std::env::vars_os()
            .filter(|(key, _)| ours.iter().all(|name| key != *name))
            .collect(),
        before,
    };
    vigil_reaper::succeed(start, memory)
}

/// Where we are, also after it was removed.
fn bundle() -> Result<PathBuf> {
    std::env::current_dir().or_else(|_| {
        let said = std::env::var_os(BUNDLE).context("nobody says where the bundle was")?;
        Ok(said.into())
    })
}

/// Goes on as the reaper; returns only if it cannot.
pub fn succeed(lock: &OwnedFd, left: Vec<Left>, bequest: &Bequest) -> Result<()> {
    let owner = &bequest.owner;
    let program = fd::hold(Path::new("/proc/self/exe")).context("cannot hold its own program")?;
    // Whoever is at such a connection could be told the end of another's answer.
    let (broken, left): (Vec<Left>, Vec<Left>) = left.into_iter().partition(|left| left.broken);
    for Left { conn, own, .. } in broken {
        log::warn!("connection {conn} is ended: half of an answer may have left with the reaper");
        let _ = listen::shutdown(own.as_fd());
    }
    let story = Takeovers::read(Path::new(names::TAKEOVERS), owner);
    let pidfds = bequest.ends.iter();
    let estate = Estate {
        whose: owner.line(),
        held: Held {
            listener: number(&bequest.listener),
            lock: number(lock),
            exits: number(&bequest.exits),
            memory: number(&bequest.memory),
            bell: number(&bequest.bell),
            program: number(&program),
            before: None,
            next_conn: bequest.conns,
        },
        conns: left.iter().map(conn).collect(),
        slots: bequest
            .slots
            .iter()
            .map(|(slot, fd)| (*slot, number(fd)))
            .collect(),
        ends: pidfds
            .map(|(pin, fd)| End {
                pin: *pin,
                pidfd: number(fd),
            })
            .collect(),
        story: story.map(|story| story.to_bytes(owner)).unwrap_or_default(),
        shim: None,
    };
    let memory = fd::memfd_with(c"vigil-estate", &estate.encode());
    let memory = memory.context("cannot make memory for what is left")?;
    let slots = bequest.slots.iter().map(|(_, fd)| fd.as_fd());
    let ends = bequest.ends.iter().map(|(_, fd)| fd.as_fd());
    let held = [
        &bequest.listener,
        &bequest.exits,
        &bequest.memory,
        &bequest.bell,
    ];
    let held = held
        .into_iter()
        .map(AsFd::as_fd)
        .chain([lock.as_fd(), program.as_fd()]);
    let conns = left.iter().map(|left| left.own.as_fd());
    let keep: Vec<BorrowedFd<'_>> = held
        .chain(slots)
        .chain(ends)
        .chain(conns)
        .chain([memory.as_fd()])
        .collect();
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let arg0 = args.remove(0);
    // What is sent meanwhile is for the reaper. The kernel itself sends SIGHUP to a session in
    // which somebody is stopped when its leader dies.
    signal::block(signal::OF_A_REAPER).context("cannot block signals")?;
    let env = std::env::vars_os();
    let why = as_reaper(&program, &arg0, &args, env, &memory).replace_us(&keep);
    Err(why).context("cannot execute its own program")
}

fn conn(left: &Left) -> Conn {
    let requests = left.requests.iter().map(|frame| Request {
        age_ms: 0,
        attempts: 0,
        proven: false,
        frame: frame.as_slice().into(),
    });
    Conn {
        number: left.conn,
        own: number(&left.own),
        passed: left.passed,
        half: left.half,
        requests: requests.collect(),
        answers: left
            .answers
            .iter()
            .map(|frame| frame.as_slice().into())
            .collect(),
        left: 0,
        pair: None,
    }
}
