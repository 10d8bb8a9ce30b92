//! F17: somebody else holds on to the root file system. Delete succeeds, in time, with
//! the mount gone from where it was; what others hold is theirs.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as Pipe};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::residue::mount_points;
use vigil_lab::{GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::nothing_but_the_pair;
use crate::world::{deleted, nothing_left};

cases! {
    Kit All f17_cwd_in_the_rootfs "A process of the host's has its cwd in the rootfs: Delete in 4 s, unmounted, the holder named";
    Kit All f17_pinned_by_a_namespace "Another mount namespace has a copy of the mount: Delete in 4 s, unmounted here";
    Kit All f17_stacked "Two mounts more on the rootfs: all are gone";
    Kit All f17_mount_inside "Mounts of the host's inside the rootfs, on each other: all are gone";
    Kit All f17_file_below "A file in the bare directory below the mount: Delete works, and does not remove it";
    Kit All f17_busy_in_delete "The pair killed, a process in the rootfs: `delete` in 4 s, unmounted";
    Kit All f17_stacked_in_delete "The pair killed, mounts on and inside the rootfs: `delete` takes all";
}

/// Somebody who holds something, until the end of the test.
struct Holder(Child);

impl Holder {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Pipe::null())
            .stdout(Pipe::null())
            .stderr(Pipe::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rootfs(container: &Container) -> PathBuf {
    container.bundle.dir.join("rootfs")
}

/// A container that has ended.
fn ended(kit: &Kit) -> Result<Container> {
    let container = kit.running(&Spec::sh("exit 4"))?;
    ensure!(container.exit_status()? == 4);
    ensure!(
        mount_points().contains(&rootfs(&container).display().to_string()),
        "the rootfs is no mount"
    );
    Ok(container)
}

/// Delete succeeds in time, and nothing is mounted at or below the rootfs.
fn goes(kit: &Kit, container: &Container) -> Result<()> {
    let at = Instant::now();
    let said = container.task().patient(15.0).delete(&container.id, "");
    let took = at.elapsed();
    let said = said.context("Delete")?;
    ensure!(said.exit_status == 4, "{said:?}");
    ensure!(took < GENEROUS, "Delete took {took:?}");
    nothing_but_the_pair(kit, &container.id)
}

fn in_rootfs(container: &Container) -> Result<Holder> {
    let holder = Holder::start(
        Command::new("sleep")
            .arg("300")
            .current_dir(rootfs(container)),
    )?;
    let cwd = format!("/proc/{}/cwd", holder.0.id());
    until("it to be there", by(5.0), || {
        (fs::read_link(&cwd).ok()? == rootfs(container)).then_some(())
    })?;
    Ok(holder)
}

fn f17_cwd_in_the_rootfs(kit: &Kit) -> Result<()> {
    let container = ended(kit)?;
    let holder = in_rootfs(&container)?;
    let _ = container.bundle.log_text();
    goes(kit, &container)?;
    let log = container.bundle.log_text();
    ensure!(
        log.contains(&holder.0.id().to_string()),
        "the holder {} is not named: {log}",
        holder.0.id()
    );
    Ok(())
}

fn f17_pinned_by_a_namespace(kit: &Kit) -> Result<()> {
    let container = ended(kit)?;
    let holder = Holder::start(Command::new("unshare").args([
        "-m",
        "--propagation",
        "private",
        "sleep",
        "300",
    ]))?;
    let table = format!("/proc/{}/mountinfo", holder.0.id());
    let wanted = rootfs(&container).display().to_string();
    let own = fs::read_link("/proc/self/ns/mnt")?;
    until("its copy of the mounts", by(5.0), || {
        let theirs = fs::read_link(format!("/proc/{}/ns/mnt", holder.0.id())).ok()?;
        let copied = fs::read_to_string(&table).ok()?.contains(&wanted);
        (theirs != own && copied).then_some(())
    })?;
    goes(kit, &container)
}

fn bind(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding {}", to.display()))
}

fn stack(kit: &Kit, container: &Container) -> Result<()> {
    for _ in 0..2 {
        bind(&kit.scratch.path("base"), &rootfs(container))?;
    }
    Ok(())
}

fn inside(container: &Container) -> Result<()> {
    let tmp = rootfs(container).join("tmp");
    for _ in 0..2 {
        mount(
            Some("none"),
            &tmp,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=64k"),
        )?;
    }
    fs::create_dir(tmp.join("deeper"))?;
    mount(
        Some("none"),
        &tmp.join("deeper"),
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=64k"),
    )?;
    Ok(())
}

fn f17_stacked(kit: &Kit) -> Result<()> {
    let container = ended(kit)?;
    stack(kit, &container)?;
    goes(kit, &container)
}

fn f17_mount_inside(kit: &Kit) -> Result<()> {
    let container = ended(kit)?;
    inside(&container)?;
    goes(kit, &container)
}

fn f17_file_below(kit: &Kit) -> Result<()> {
    let mut container = kit.prepared(&Spec::sh("exit 4"), Stdio::Output)?;
    let below = rootfs(&container).join("somebody's");
    fs::write(&below, "words")?;
    crate::rest::create(&mut container, None)?;
    ensure!(!below.exists(), "nothing was mounted");
    container.start()?;
    ensure!(container.exit_status()? == 4);
    goes(kit, &container)?;
    ensure!(fs::read_to_string(&below)? == "words");
    container.task().shutdown(&container.id)?;
    container.shim.delete()?.ok()?;
    ensure!(
        below.exists(),
        "`delete` removed what is not the container's"
    );
    Ok(())
}

fn f17_busy_in_delete(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    let holder = in_rootfs(&container)?;
    container.shim.kill_all()?;
    let at = Instant::now();
    deleted(&container)?;
    ensure!(at.elapsed() < GENEROUS, "{:?}", at.elapsed());
    drop(holder);
    nothing_left(kit, &container.id)
}

fn f17_stacked_in_delete(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    inside(&container)?;
    stack(kit, &container)?;
    container.shim.kill_all()?;
    deleted(&container)?;
    let left = nothing_left(kit, &container.id);
    while umount2(&rootfs(&container), MntFlags::MNT_DETACH).is_ok() {}
    left
}
