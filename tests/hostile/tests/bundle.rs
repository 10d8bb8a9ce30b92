//! A bundle removed under a living pair: nobody will ask for that container again, so the pair
//! ends what it runs, removes what it had, and leaves.
//!
//! Seen with a real kubelet: the shim's program was missing when containerd was started anew,
//! so containerd removed the bundles of living containers. The pairs stayed for ever.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vigil_hostile::{FaultyRunc, Pair, logger, runc_options, trial};
use vigil_lab::bundle::{Stdio, remove_tree};
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::{Kit, Spec, by, until};

const KILL: i32 = 9;

/// As containerd does: unmounted, moved aside, removed.
fn removed(container: &Container) -> Result<()> {
    let dir = &container.bundle.dir;
    let rootfs = dir.join("rootfs");
    while nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    let aside = dir.with_file_name(format!(".{}", container.id));
    fs::rename(dir, &aside)?;
    remove_tree(&aside)
}

fn leaves(kit: &Kit, container: &Container, pair: &Pair) -> Result<()> {
    pair.gone(20.0)?;
    ensure!(!alive(i32::try_from(container.pid)?), "init lives on");
    ensure!(!container.shim.reply.socket.exists(), "the socket stays");
    let runc = Path::new("/run/containerd/runc")
        .join(kit.scratch.mark())
        .join(&container.id);
    ensure!(!runc.exists(), "runc's state stays");
    let group = format!("{}/{}", kit.scratch.mark(), container.id);
    for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let group = hierarchy.path().join(&group);
        ensure!(!group.exists(), "{} stays", group.display());
    }
    Ok(())
}

#[test]
fn a_pair_whose_bundle_is_removed_ends_its_container_and_leaves() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        removed(&container)?;
        leaves(kit, &container, &pair)
    });
}

/// By a person: the files first, the directory last.
#[test]
fn so_it_does_when_the_files_go_one_by_one() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        container.bundle.remove()?;
        leaves(kit, &container, &pair)
    });
}

/// The same, and whoever does it takes a rest before the last of it: once nobody looked again.
#[test]
fn so_it_does_when_the_directory_goes_long_after_its_files() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        let dir = &container.bundle.dir;
        let rootfs = dir.join("rootfs");
        while nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)?;
            } else {
                fs::remove_file(&path)?;
            }
        }
        // Long after the last look that the files' end is a reason for.
        std::thread::sleep(std::time::Duration::from_secs(2));
        ensure!(pair.lives(), "its place is there");
        fs::remove_dir(dir)?;
        leaves(kit, &container, &pair)
    });
}

#[test]
fn so_does_one_whose_init_has_ended() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sh("exit 3"))?;
        let pair = Pair::of(&container.shim)?;
        ensure!(container.exit_status()? == 3);
        removed(&container)?;
        leaves(kit, &container, &pair)
    });
}

#[test]
fn so_does_one_without_a_container() {
    trial(60, |kit| {
        let container = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
        let pair = Pair::of(&container.shim)?;
        removed(&container)?;
        pair.gone(20.0)
    });
}

/// The shim was stopped, or had no successor yet, when the bundle went.
#[test]
fn the_next_shim_sees_it_too() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        // It would be replaced if it were asked for anything.
        pair.signal(pair.shim, nix::libc::SIGSTOP)?;
        removed(&container)?;
        pair.signal(pair.shim, KILL)?;
        until("init to be ended", by(20.0), || {
            (!alive(i32::try_from(container.pid).ok()?)).then_some(())
        })?;
        leaves(kit, &container, &pair)
    });
}

/// It ends the container as it was made, by the journal's second copy: not with the runtime that
/// the name of an unknown one resolves to, and not the logger with it, which has last words to
/// write. Once it guessed, and killed both.
#[test]
fn the_next_shim_knows_what_there_was() {
    trial(60, |kit| {
        let runc = FaultyRunc::new(kit.scratch.dir(), "none", "none")?;
        let uri = logger(kit, "cat <&3 > said; sleep 1; echo last > last")?;
        let container = kit.prepared(&Spec::sh("echo first; sleep 999"), Stdio::Empty)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        uri.clone_into(&mut request.stdout);
        uri.clone_into(&mut request.stderr);
        let pid = container.task().create(&request)?.pid;
        container.start()?;
        let pair = Pair::of(&container.shim)?;
        pair.signal(pair.shim, nix::libc::SIGSTOP)?;
        removed(&container)?;
        pair.signal(pair.shim, KILL)?;
        until("init to be ended", by(20.0), || {
            (!alive(i32::try_from(pid).ok()?)).then_some(())
        })?;
        let said = |name: &str| fs::read_to_string(kit.scratch.path(name)).unwrap_or_default();
        until("the logger's last words", by(20.0), || {
            (said("last") == "last\n").then_some(())
        })?;
        ensure!(said("said") == "first\n", "{:?}", said("said"));
        leaves(kit, &container, &pair)?;
        ensure!(runc.calls("delete")? > 0, "another runtime was asked");
        Ok(())
    });
}

/// Its records cannot be read: the container is ended all the same, by what descends from its
/// reaper, and why it was done so is told. Nobody was told.
#[test]
fn records_of_a_removed_bundle_that_cannot_be_read_are_told_of() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        let mut copies = fs::read_dir(format!("/proc/{}/fd", pair.reaper))?.flatten();
        let copy = copies.find(|fd| {
            let is = fs::read_link(fd.path()).unwrap_or_default();
            is.to_string_lossy().contains("memfd:vigil-journal")
        });
        let copy = copy
            .context("the reaper has no copy of the journal")?
            .path();
        pair.signal(pair.shim, nix::libc::SIGSTOP)?;
        removed(&container)?;
        let length = fs::metadata(&copy)?.len();
        let file = fs::OpenOptions::new().write(true).open(&copy)?;
        file.write_all_at(&vec![0xa5; usize::try_from(length)?.min(4096)], 0)?;
        pair.signal(pair.shim, KILL)?;
        leaves(kit, &container, &pair)?;
        let told = fs::read_to_string("/run/vigil/crashes").unwrap_or_default();
        let ours = |line: &&str| line.contains(kit.scratch.mark()) && line.contains(&container.id);
        let told = told.lines().rfind(ours).map(str::to_owned);
        let told = told.context("nobody is told")?;
        ensure!(told.contains("without its records"), "{told}");
        Ok(())
    });
}

/// The runtime made it, failed all the same, and would not delete it: Create failed and something of
/// it stays, hooks owed among it. That was known to nobody once the bundle was gone, and to nobody
/// told: no tombstone said so.
#[test]
fn what_a_failed_create_has_left_goes_with_the_bundle() {
    for next in [false, true] {
        trial(90, move |kit| {
            let (well, hooks) = (kit.scratch.path("well"), kit.scratch.path("hooks"));
            let runc = kit.scratch.path("runc-of-its-own");
            let text = format!(
                "#!/bin/sh\nfor a; do case $a in create) runc \"$@\"; exit 1;; \
                 delete) [ -e {} ] || exit 1;; esac; done\nexec runc \"$@\"\n",
                well.display()
            );
            fs::write(&runc, text)?;
            fs::set_permissions(&runc, fs::Permissions::from_mode(0o755))?;
            let mut spec = Spec::sleeper();
            spec.extra = json!({"hooks": {"poststop": [{
                "path": "/bin/sh",
                "args": ["sh", "-c", format!("echo >> {}", hooks.display())],
            }]}});
            let container = kit.prepared(&spec, Stdio::Output)?;
            let mut request = container.bundle.create_request();
            request.options = Some(runc_options(&runc.to_string_lossy())).into();
            let pair = Pair::of(&container.shim)?;
            ensure!(container.task().create(&request).is_err(), "it was made");
            let state = Path::new("/run/containerd/runc").join(kit.scratch.mark());
            ensure!(state.join(&container.id).exists(), "nothing was left");
            if next {
                pair.signal(pair.shim, nix::libc::SIGSTOP)?;
            }
            fs::write(&well, "")?;
            removed(&container)?;
            if next {
                pair.signal(pair.shim, KILL)?;
            }
            leaves(kit, &container, &pair)?;
            ensure!(fs::read_to_string(&hooks)? == "\n", "hooks are owed");
            Ok(())
        });
    }
}

/// What a container's own life removes in its bundle, and a look at it, are nothing.
#[test]
fn a_bundle_that_is_there_is_left_in_peace() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        for name in ["junk", "init.pid"] {
            let path = container.bundle.dir.join(name);
            fs::write(&path, "1")?;
            fs::remove_file(&path)?;
        }
        let exec = kit.exec(&container, "e", &Spec::sh("exit 4"))?;
        container.task().start(&container.id, &exec.id)?;
        ensure!(container.task().wait(&container.id, "e")?.exit_status == 4);
        ensure!(alive(pair.shim) && alive(pair.reaper), "the pair has gone");
        ensure!(alive(i32::try_from(container.pid)?), "init has ended");
        Ok(())
    });
}
