//! F12: nobody takes the container's output. It may wait for its reader; nobody else may.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::{FifoReader, GENEROUS, Kit, Place, Spec, by, until};

use crate::cases;
use crate::rest::{nothing_but_the_pair, soon};
use crate::watch::Watch;
use crate::world::status;

cases! {
    Kit    All f12_reader_that_never_reads "Output fifos open and never read: State, Kill, Wait and Delete are in time";
    Kit    All f12_reader_comes_late "The reader comes after a while: what was written until then is whole, nobody got SIGPIPE";
    Kit    All f12_file_on_a_full_disk "file:// on a full disk: the container runs on, its exit is its own";
    Kit    All f12_logger_that_never_reads "A binary:// logger that never reads: State, Kill, Wait and Delete are in time";
    Kit    All f12_logger_that_dies "A binary:// logger that dies: the container runs on, its exit is its own";
    Daemon All f12_writes_while_containerd_restarts "A container that writes all the time lives through a restart of containerd";
}

const TALKS: &str = "while :; do echo 0123456789012345678901234567890123456789; done";

/// Kill, Wait and Delete of a container whose output nobody takes, each in its time.
fn ends_in_time(container: &Container) -> Result<()> {
    let task = container.task().patient(15.0);
    soon("Kill", || task.kill(&container.id, "", 9, false))?.context("Kill was refused")?;
    let at = Instant::now();
    let waited = task.wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    ensure!(at.elapsed() < GENEROUS, "Wait took {:?}", at.elapsed());
    let at = Instant::now();
    task.delete(&container.id, "")?;
    ensure!(at.elapsed() < GENEROUS, "Delete took {:?}", at.elapsed());
    Ok(())
}

/// Waits until init is stuck in writing.
fn full(container: &Container) -> Result<()> {
    let wchan = format!("/proc/{}/wchan", container.pid);
    until("the pipe to be full", by(10.0), || {
        let at = fs::read_to_string(&wchan).ok()?;
        at.contains("pipe_write").then_some(())
    })
}

fn f12_reader_that_never_reads(kit: &Kit) -> Result<()> {
    let mut container = kit.prepared(&Spec::sh(TALKS), Stdio::Output)?;
    (container.stdout, container.stderr) = (None, None);
    // Both ends are ours too, as a client's that has stopped.
    let mut held = Vec::new();
    for path in &container.bundle.stdio[1..] {
        let open = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)?;
        held.push(open);
    }
    crate::rest::create(&mut container, None)?;
    container.start()?;
    full(&container)?;
    let watch = Watch::start(&container)?;
    ensure!(status(&container, "")? == Status::RUNNING);
    std::thread::sleep(Duration::from_millis(300));
    watch.end()?.brisk()?;
    ends_in_time(&container)?;
    nothing_but_the_pair(kit, &container.id)
}

fn f12_reader_comes_late(kit: &Kit) -> Result<()> {
    let script = "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); echo line $n; done; exit 6";
    let mut container = kit.prepared(&Spec::sh(script), Stdio::Output)?;
    container.stdout = None;
    let path = container.bundle.stdio[1].clone();
    // Open, as a client that is busy with something else.
    let held = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(&path)?;
    crate::rest::create(&mut container, None)?;
    container.start()?;
    full(&container)?;
    drop(held);
    std::thread::sleep(Duration::from_millis(500));
    ensure!(
        alive(i32::try_from(container.pid)?),
        "it did not live through the loss of its reader"
    );
    let reader = FifoReader::open(path.as_ref())?;
    let status = container.exit_status()?;
    ensure!(status == 6, "exit status {status}");
    let (bytes, _) = reader.to_end(by(10.0))?;
    let text = String::from_utf8_lossy(&bytes);
    ensure!(
        text.lines().count() == 20000 && text.ends_with("line 20000\n"),
        "{} lines, the last {:?}",
        text.lines().count(),
        text.lines().last()
    );
    Ok(())
}

fn f12_file_on_a_full_disk(kit: &Kit) -> Result<()> {
    let small = kit.scratch.path("small");
    fs::create_dir(&small)?;
    nix::mount::mount(
        Some("none"),
        &small,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=64k"),
    )?;
    let outcome = (|| {
        let script = "head -c 1000000 /dev/zero; trap 'exit 7' TERM; while :; do sleep 0.05; done";
        let mut container = kit.prepared(&Spec::sh(script), Stdio::Empty)?;
        let mut request = container.bundle.create_request();
        request.stdout = format!("file://{}", small.join("log").display());
        request.stderr.clone_from(&request.stdout);
        container.pid = container.task().create(&request)?.pid;
        container.start()?;
        until("head to have given up", by(5.0), || {
            let children = format!("/proc/{0}/task/{0}/children", container.pid);
            let pid = fs::read_to_string(children).ok()?;
            let line = fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).ok()?;
            line.starts_with("sleep").then_some(())
        })?;
        container.task().kill(&container.id, "", 15, false)?;
        let waited = container.task().patient(8.0).wait(&container.id, "")?;
        ensure!(waited.exit_status == 7, "{waited:?}");
        container.task().delete(&container.id, "")?;
        nothing_but_the_pair(kit, &container.id)
    })();
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH)?;
    outcome
}

fn logged(kit: &Kit, script: &str, logger: &str) -> Result<Container> {
    let path = kit.scratch.path("logger");
    fs::write(&path, format!("#!/bin/sh\n{logger}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let mut container = kit.prepared(&Spec::sh(script), Stdio::Empty)?;
    let mut request = container.bundle.create_request();
    request.stdout = format!("binary://{}", path.display());
    request.stderr.clone_from(&request.stdout);
    container.pid = container.task().create(&request)?.pid;
    container.start()?;
    Ok(container)
}

fn f12_logger_that_never_reads(kit: &Kit) -> Result<()> {
    let logger = "exec 5>&-; for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1; done";
    let container = logged(kit, TALKS, logger)?;
    full(&container)?;
    let watch = Watch::start(&container)?;
    std::thread::sleep(Duration::from_millis(300));
    watch.end()?.brisk()?;
    ends_in_time(&container)
}

fn f12_logger_that_dies(kit: &Kit) -> Result<()> {
    let script = "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); echo line $n; done; exit 6";
    let container = logged(
        kit,
        script,
        "exec 5>&-; head -n 1 <&3 >/dev/null; kill -9 $$",
    )?;
    let waited = container.task().patient(15.0).wait(&container.id, "")?;
    // 141 would be SIGPIPE.
    ensure!(waited.exit_status == 6, "{waited:?}");
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f12_writes_while_containerd_restarts(place: &mut Place) -> Result<()> {
    place.detached("c", &["sh", "-c", TALKS])?;
    place.expect_status("c", "RUNNING")?;
    let init = place.pid("c")?;
    place.containerd.stop(9)?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(alive(init), "it died with containerd");
    place.containerd.launch()?;
    place.expect_status("c", "RUNNING")?;
    ensure!(alive(init), "it died with containerd's return");
    place.end("c")
}
