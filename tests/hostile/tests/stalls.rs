//! Something about a container stands still; what is answered from memory and by the
//! kernel is answered all the same. How fast, `vigil-bench --stalls` says; here only that
//! it is answered at all, twice round, while the stall lasts.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context, Result, ensure};
use vigil_faults::rest::soon;
use vigil_faults::stall::{Stall, Stalled};
use vigil_hostile::trial;
use vigil_lab::Kit;

/// A window was resized: nobody is hurt by it.
const HARMLESS: u32 = 28;

/// What only looks or signals.
fn looks(stalled: &Stalled) -> Result<()> {
    let (task, id) = (
        stalled.container.task().patient(3.0),
        stalled.container.id.as_str(),
    );
    soon("State", || task.state(id, ""))?;
    soon("Pids", || task.pids(id))?;
    soon("Kill", || task.kill(id, "", HARMLESS, false))?;
    soon("Stats", || task.stats(id))?;
    ensure!(!task.client().closed(), "the shim has hung up");
    Ok(())
}

fn freezes(stalled: &Stalled) -> Result<()> {
    let (task, id) = (
        stalled.container.task().patient(3.0),
        stalled.container.id.as_str(),
    );
    soon("Pause", || task.pause(id))?;
    stalled.renew()?;
    soon("Resume", || task.resume(id))?;
    soon("State", || task.state(id, "")).map(drop)
}

fn twice(stall: Stall, ask: fn(&Stalled) -> Result<()>) {
    trial(90, move |kit: &mut Kit| {
        let stalled = stall.make(kit).context("making it stand still")?;
        let mut answered = Ok(());
        for round in ["first", "second"] {
            if answered.is_ok() {
                answered = stalled
                    .renew()
                    .and_then(|()| ask(&stalled))
                    .with_context(|| format!("the {round} time"));
            }
        }
        drop(stalled.over());
        answered.with_context(|| stall.name())
    });
}

fn answers_while(stall: Stall) {
    twice(stall, |stalled| {
        looks(stalled)?;
        freezes(stalled)
    });
}

#[test]
fn runc_create_hangs() {
    answers_while(Stall::Runc("create"));
}

#[test]
fn runc_start_hangs() {
    answers_while(Stall::Runc("start"));
}

#[test]
fn runc_exec_hangs() {
    answers_while(Stall::Runc("exec"));
}

#[test]
fn runc_update_hangs() {
    twice(Stall::Runc("update"), looks);
}

#[test]
fn runc_update_hangs_before_a_pause() {
    twice(Stall::Runc("update"), freezes);
}

#[test]
fn runc_delete_hangs() {
    answers_while(Stall::Runc("delete"));
}

#[test]
fn umount_stalls() {
    answers_while(Stall::Unmount);
}

#[test]
fn the_cgroup_is_frozen() {
    answers_while(Stall::Frozen);
}

#[test]
fn the_event_sink_is_deaf() {
    answers_while(Stall::Sink);
}

#[test]
fn init_sleeps_uninterruptibly() {
    answers_while(Stall::Init);
}

#[test]
fn the_log_is_full() {
    answers_while(Stall::Log);
}
