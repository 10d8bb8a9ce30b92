//! Create where an earlier life of the same id, or somebody else's, is in the way.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio as Pipe};

use anyhow::{Result, ensure};
use serde_json::json;
use vigil_hostile::{FaultyRunc, Pair, as_ever, refused, succeeded, trial};
use vigil_lab::bundle::{Bundle, Stdio};
use vigil_lab::process::{Process, signal_if};
use vigil_lab::{Kit, Spec, by, until};

/// The id of the first container of a kit.
const FIRST: &str = "c1";

fn runc_state(kit: &Kit) -> PathBuf {
    PathBuf::from(format!(
        "/run/containerd/runc/{}/{FIRST}",
        kit.scratch.mark()
    ))
}

/// runc's record of a container that has died, and whose bundle is gone.
fn earlier_life(kit: &Kit) -> Result<()> {
    let base = kit.scratch.path("base");
    let spec = Spec {
        extra: json!({"root": {"path": base, "readonly": true}}),
        ..Spec::sleeper()
    };
    let (state, mark) = (kit.scratch.path("earlier"), kit.scratch.mark());
    let bundle = Bundle::make(&state, mark, FIRST, &spec, Stdio::Empty, &base)?;
    let dir = runc_state(kit);
    let made = Command::new("runc")
        .arg("--root")
        .arg(dir.parent().unwrap())
        .args(["create", "--pid-file"])
        .arg(kit.scratch.path("earlier.pid"))
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg(FIRST)
        .stdin(Pipe::null())
        .stdout(Pipe::null())
        .stderr(Pipe::null())
        .status()?;
    ensure!(made.success(), "runc create: {made}");
    let pid: i32 = fs::read_to_string(kit.scratch.path("earlier.pid"))?.parse()?;
    ensure!(signal_if(pid, 9, |p| p.cgroup.contains(mark)), "no init");
    until("init to die", by(10.0), || {
        Process::read(pid)
            .is_none_or(|p| p.state == 'Z')
            .then_some(())
    })?;
    fs::remove_dir_all(&bundle.dir)?;
    Ok(())
}

/// `runc delete` was under way, called by a worker of a shim that died: it is waited for,
/// not called beside itself, which would run hooks twice.
#[test]
fn what_a_dead_shim_was_clearing_away_is_cleared_once() {
    trial(60, |kit| {
        earlier_life(kit)?;
        let runc = FaultyRunc::new(kit.scratch.dir(), "delete", "waits-then-done")?;
        let container = kit.prepared(&Spec::sh("exit 5"), Stdio::Output)?;
        ensure!(container.id == FIRST, "{}", container.id);
        let pair = Pair::of(&container.shim)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        let creating = {
            let task = container.task().patient(30.0);
            std::thread::spawn(move || task.create(&request))
        };
        runc.waits()?;
        succeeded(&container.shim, &pair)?;
        // The next one has looked, and would have called again.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let calls = runc.calls("delete")?;
        runc.go()?;
        creating.join().unwrap()?;
        ensure!(calls == 1, "runc delete was called {calls} times");
        container.start()?;
        ensure!(container.exit_status()? == 5);
        Ok(())
    });
}

/// What cannot be read may name a container that lives: the id is not free.
#[test]
fn a_state_that_cannot_be_read_is_nobodys_to_remove() {
    trial(60, |kit| {
        let dir = runc_state(kit);
        // Reading it fails, whoever asks: it leads to itself.
        fs::create_dir_all(&dir)?;
        let state = dir.join("state.json");
        std::os::unix::fs::symlink(&state, &state)?;
        let mut container = kit.prepared(&Spec::sh("echo hello; exit 4"), Stdio::Output)?;
        let asked = container.task().create(&container.bundle.create_request());
        let there = state.is_symlink();
        fs::remove_dir_all(&dir)?;
        refused(
            asked,
            2,
            &["an earlier container c1", "nobody can say whose"],
        )?;
        ensure!(there, "it was removed");
        as_ever(kit, &mut container, 4, "hello")
    });
}

/// The cgroup of this id's name already has processes of a container that somebody else looks
/// after, as another containerd of another state directory does. Go's shim creates beside it;
/// ours refused.
#[test]
fn a_cgroup_that_another_shim_uses_is_shared() {
    trial(60, |kit| {
        let path = format!("/{}/second", kit.scratch.mark());
        let placed = |dir: &std::path::Path| -> Result<()> {
            let config = dir.join("config.json");
            let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
            spec["linux"]["cgroupsPath"] = json!(path);
            Ok(fs::write(&config, serde_json::to_vec(&spec)?)?)
        };
        let first = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
        placed(&first.bundle.dir)?;
        let pid = first.task().create(&first.bundle.create_request())?.pid;
        first.start()?;
        let (state, mark) = (kit.scratch.path("state"), kit.scratch.mark());
        let base = kit.scratch.path("base");
        let spec = Spec::sh("exit 5");
        let bundle = Bundle::make(&state, mark, "second", &spec, Stdio::Empty, &base)?;
        placed(&bundle.dir)?;
        let shim = kit.adopt(kit.shim(&bundle)?)?;
        let task = &shim.task;
        task.create(&bundle.create_request())?;
        task.start("second", "")?;
        ensure!(task.wait("second", "")?.exit_status == 5);
        task.delete("second", "")?;
        task.shutdown("second")?;
        ensure!(
            Process::read(i32::try_from(pid)?).is_some(),
            "the other container was hurt"
        );
        let state = first.task().state(&first.id, "")?;
        ensure!(state.status.value() == 2, "not RUNNING: {state:?}");
        Ok(())
    });
}
