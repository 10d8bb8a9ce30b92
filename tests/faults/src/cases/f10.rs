//! F10: a runtime that accepts and never answers, or whose socket is gone, must not keep
//! containerd from starting nor its siblings from being served.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vigil_lab::process::{Process, alive, signal_if};
use vigil_lab::{GENEROUS, Place, by, until};

use crate::cases;

cases! {
    Daemon All f10_runtime_stopped "Runtimes are SIGSTOPped, containerd restarts: up in 15 s, the sibling served, no orphan";
    Daemon All f10_server_stopped "Only who serves is SIGSTOPped: the same";
    Daemon All f10_socket_gone "The socket file is gone when containerd restarts: the container is wholly gone or served";
    Daemon All f10_listener_without_accept "A dead runtime's socket is listened on by one who never accepts: wholly gone";
    Daemon All f10_listing_with_one_stopped "A stopped runtime: listing the others takes no longer than State's two seconds";
}

/// Two containers, `a` and `b`, and their inits.
fn two(place: &Place) -> Result<(i32, i32)> {
    for id in ["a", "b"] {
        place.detached(id, &["sleep", "1000"])?;
    }
    Ok((place.pid("a")?, place.pid("b")?))
}

fn restart(place: &mut Place, meanwhile: impl FnOnce(&Place) -> Result<()>) -> Result<()> {
    place.containerd.stop(9)?;
    meanwhile(place)?;
    let at = Instant::now();
    place.containerd.launch()?;
    ensure!(
        at.elapsed() < GENEROUS,
        "containerd took {:?}",
        at.elapsed()
    );
    Ok(())
}

/// `b` is as it was.
fn sibling_serves(place: &Place, init: i32) -> Result<()> {
    place.expect_status("b", "RUNNING")?;
    let ran = place.containerd.try_ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "b",
        "sh",
        "-c",
        "exit 4",
    ])?;
    ensure!(ran.status.code() == Some(4), "exec: {ran:?}");
    ensure!(alive(init), "its init {init} is gone");
    Ok(())
}

/// `a` is either RUNNING and alive, or gone wholly; never one without the other.
fn all_or_nothing(place: &Place, init: i32) -> Result<()> {
    let outcome = until("a to be there or gone", by(20.0), || {
        let status = place.containerd.task_status("a").ok()?;
        match status.as_deref() {
            Some("RUNNING") => alive(init).then_some(true),
            Some(_) => None,
            None => (!alive(init)).then_some(false),
        }
    });
    let running = outcome.with_context(|| {
        format!(
            "containerd says {:?}, init {}",
            place.containerd.task_status("a"),
            if alive(init) { "lives" } else { "is gone" }
        )
    })?;
    if running {
        place.end("a")
    } else {
        place.containerd.ctr(&["containers", "rm", "a"]).map(drop)
    }
}

fn signal(processes: &[Process], number: i32) {
    for process in processes {
        signal_if(process.pid, number, |now| now.cmdline == process.cmdline);
    }
}

fn stopped(place: &mut Place, which: impl Fn(Vec<Process>) -> Vec<Process>) -> Result<()> {
    let (a, b) = two(place)?;
    let chosen = which(place.shims("a"));
    ensure!(!chosen.is_empty(), "no runtime");
    let up = restart(place, |_| {
        signal(&chosen, 19);
        Ok(())
    });
    let served = up.and_then(|()| sibling_serves(place, b));
    signal(&chosen, 18);
    served?;
    all_or_nothing(place, a)?;
    place.end("b")
}

fn f10_runtime_stopped(place: &mut Place) -> Result<()> {
    stopped(place, |all| all)
}

fn f10_server_stopped(place: &mut Place) -> Result<()> {
    // Go's has one process; of ours the reaper is called `start`, and the shim `serve`.
    stopped(place, |mut all| {
        if all.len() > 1 {
            all.retain(|p| p.cmdline.ends_with(" serve"));
        }
        all
    })
}

fn f10_socket_gone(place: &mut Place) -> Result<()> {
    let (a, b) = two(place)?;
    restart(place, |place| {
        let socket = fs::read_to_string(place.containerd.bundle("a").join("address"))?;
        let path = socket.trim().trim_start_matches("unix://").to_owned();
        fs::remove_file(&path).context(path)
    })?;
    sibling_serves(place, b)?;
    all_or_nothing(place, a)?;
    place.end("b")
}

fn f10_listener_without_accept(place: &mut Place) -> Result<()> {
    let (a, b) = two(place)?;
    let mut listener = None;
    restart(place, |place| {
        place.kill_shims("a")?;
        let path = place.containerd.shim_socket("a");
        let _ = fs::remove_file(&path);
        listener = Some(UnixListener::bind(&path)?);
        Ok(())
    })?;
    sibling_serves(place, b)?;
    let path = place.containerd.shim_socket("a");
    drop(listener);
    let _ = fs::remove_file(path);
    all_or_nothing(place, a)?;
    ensure!(!alive(a), "init of what has no runtime lives");
    place.end("b")
}

fn f10_listing_with_one_stopped(place: &mut Place) -> Result<()> {
    let (a, b) = two(place)?;
    let chosen = place.shims("a");
    signal(&chosen, 19);
    let at = Instant::now();
    let listed = place.containerd.ctr(&["tasks", "ls"]);
    let took = at.elapsed();
    signal(&chosen, 18);
    let listed = listed?;
    ensure!(listed.contains("\nb "), "b is not listed: {listed}");
    ensure!(took < GENEROUS, "listing took {took:?}");
    sibling_serves(place, b)?;
    all_or_nothing(place, a)?;
    place.end("b")
}
