//! What one container had to leave goes with the next `start` or `delete` on the host,
//! which neither wait for it nor say anything of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::json;
use vigil_faults::world::{Medium, in_small_run};
use vigil_hostile::{Armed, FaultyRunc, trial, vigil};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::place::kill_at_once;
use vigil_lab::process::{Process, alive};
use vigil_lab::{GENEROUS, Kit, Spec, by, until};

/// Dead, its bundle removed, and its tombstone up: its runtime would not delete it, and
/// there is a hook to be run.
struct Left {
    stone: PathBuf,
    runc_state: PathBuf,
    hooks: PathBuf,
    runc: FaultyRunc,
}

impl Left {
    fn by(kit: &Kit, fault: &str) -> Result<Self> {
        let hooks = kit.scratch.path("hooks");
        let mut spec = Spec::sleeper();
        spec.extra = json!({"hooks": {"poststop": [{
            "path": "/bin/sh",
            "args": ["sh", "-c", format!("echo >> {}", hooks.display())],
        }]}});
        let runc = FaultyRunc::new(kit.scratch.dir(), "delete", fault)?;
        let mut container = kit.prepared(&spec, Stdio::Output)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        container.pid = container.task().create(&request)?.pid;
        container.start()?;
        container.shim.kill_all()?;
        let said = container.shim.delete()?.ok()?;
        ensure!(said.exit_status == 137, "{said:?}");
        ensure!(!alive(i32::try_from(container.pid)?));
        let (mark, id) = (kit.scratch.mark(), &container.id);
        let left = Self {
            stone: Path::new("/run/vigil/tombstones").join(format!("{mark}+{id}.json")),
            runc_state: Path::new("/run/containerd/runc").join(mark).join(id),
            hooks,
            runc,
        };
        ensure!(left.stone.exists() && left.runc_state.exists());
        ensure!(left.hooks_run() == 0);
        container.bundle.remove()?;
        Ok(left)
    }

    fn hooks_run(&self) -> usize {
        let text = fs::read_to_string(&self.hooks).unwrap_or_default();
        text.lines().count()
    }

    fn is_well(&self) -> Result<()> {
        self.runc.commit("nothing", "exit-1")
    }

    fn goes(&self) -> Result<()> {
        until("the tombstone to be swept", by(15.0), || {
            (!self.stone.exists()).then_some(())
        })?;
        ensure!(!self.runc_state.exists());
        ensure!(self.hooks_run() == 1, "{} times", self.hooks_run());
        Ok(())
    }
}

fn another(kit: &Kit) -> Result<Container> {
    kit.prepared(&Spec::sleeper(), Stdio::Output)
}

#[test]
fn the_next_start_sweeps() {
    trial(60, |kit| {
        let left = Left::by(kit, "exit-1")?;
        left.is_well()?;
        another(kit)?;
        left.goes()
    });
}

#[test]
fn the_next_delete_sweeps() {
    trial(60, |kit| {
        let other = another(kit)?;
        let left = Left::by(kit, "exit-1")?;
        left.is_well()?;
        other.shim.delete()?.ok()?;
        left.goes()
    });
}

/// Something in the sweep hangs: `start` and `delete` are as quick as ever.
#[test]
fn nobody_waits_for_the_sweeper() {
    trial(90, |kit| {
        let left = Left::by(kit, "hangs-deaf")?;
        for _ in 0..2 {
            let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
            let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
            ensure!(ran.took < GENEROUS, "start took {:?}", ran.took);
            ensure!(
                ran.stderr.is_empty(),
                "{:?}",
                String::from_utf8_lossy(&ran.stderr)
            );
            let shim = kit.adopt(vigil_lab::Shim::connect(&kit.caller, &bundle, ran)?)?;
            let deleted = shim.delete()?;
            ensure!(deleted.ran.took < GENEROUS, "{:?}", deleted.ran.took);
            deleted.ok()?;
        }
        ensure!(left.stone.exists() && left.hooks_run() == 0);
        left.is_well()?;
        // The one that hung is given up; a later one finds it well.
        until("a sweeper to find it well", by(30.0), || {
            let swept = another(kit).is_ok() && !left.stone.exists();
            swept.then_some(())
        })?;
        left.goes()
    });
}

/// The pair dies before anybody has called: after `start` has answered, or together with a `start`
/// that has not. containerd then removes the bundle and asks for no `delete`, and the socket's
/// file stayed for ever, since its name says nothing of whose it is. The next `start` removes it.
#[test]
fn a_socket_nobody_called_on_goes_with_the_next_start() {
    trial(60, |kit| {
        let armed = Armed::of(kit)?;
        for answered in [true, false] {
            let bundle = kit.bundle(&Spec::sleeper(), Stdio::Empty)?;
            if !answered {
                armed.arm("S2", "kill")?;
            }
            let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
            ensure!(ran.status.success() == answered, "{}", ran.status);
            let address = fs::read_to_string(bundle.dir.join("address"))?;
            let socket = Path::new(address.trim_start_matches("unix://")).to_owned();
            ensure!(socket.exists(), "no socket: {address}");
            let id = format!("-id {} ", bundle.id);
            let mut pair = Process::marked(kit.scratch.mark());
            pair.retain(|p| p.cmdline.contains("containerd-shim") && p.cmdline.contains(&id));
            ensure!(pair.len() == 2, "{pair:?}");
            kill_at_once(&pair)?;
            bundle.remove()?;
            let _next = kit.running(&Spec::sleeper())?;
            until("the socket to go", by(20.0), || {
                (!socket.exists()).then_some(())
            })?;
        }
        Ok(())
    });
}

/// The operator is told of such a socket, and removes it.
#[test]
fn a_socket_nobody_called_on_goes_with_a_repair() {
    trial(60, |kit| {
        in_small_run(kit, Medium::Tmpfs("size=64m"), |_| {
            let bundle = kit.bundle(&Spec::sleeper(), Stdio::Empty)?;
            let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
            ensure!(ran.status.success(), "{}", ran.status);
            let address = fs::read_to_string(bundle.dir.join("address"))?;
            let socket = Path::new(address.trim_start_matches("unix://")).to_owned();
            let id = format!("-id {} ", bundle.id);
            let mut pair = Process::marked(kit.scratch.mark());
            pair.retain(|p| p.cmdline.contains("containerd-shim") && p.cmdline.contains(&id));
            let (code, said) = vigil(kit, &["repair"])?;
            ensure!(code == 0 && !said.contains("socket"), "{code}: {said}");
            kill_at_once(&pair)?;
            bundle.remove()?;
            for args in [["repair"].as_slice(), &["repair", "--json"]] {
                let (code, said) = vigil(kit, args)?;
                let named = said.contains(&*socket.to_string_lossy());
                ensure!(code == 3 && named, "{args:?}: {code}: {said}");
                ensure!(socket.exists(), "{args:?} removed it");
            }
            let (code, said) = vigil(kit, &["repair", "--all", "--write"])?;
            ensure!(code == 0 && !socket.exists(), "{code}: {said}");
            let (code, said) = vigil(kit, &["repair"])?;
            ensure!(code == 0 && !said.contains("socket"), "{code}: {said}");
            let notes = fs::read_dir("/run/vigil/starts")?.count();
            ensure!(notes == 0, "{notes} notes are left");
            Ok(())
        })
    });
}
