//! F08, what else the waiter waits for: a create that had to be abandoned, a mount that would not
//! go, a cgroup with somebody in it who does not die. Nobody asks again once `delete` has
//! answered: within seconds of the obstacle's end nothing is left.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio as Streams};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::ice::{Ice, Layer, sleeps};
use crate::rest::prepared_with;
use crate::world::{cgroups, nothing_left, pid, runc_state, scripted};

cases! {
    Kit Ours f08_create_killed_with_its_pair "The pair killed while its runc create is in D: out of D, all of it goes by itself";
    Kit Ours f08_create_given_up "runc create in D until its deadline, Create refused, the pair leaves: out of D, all of it goes by itself";
    Kit Ours f08_mount_of_a_pair_that_left "The rootfs would not go when the pair left: once it can, it goes by itself" alone;
    Kit Ours f08_mount_of_a_killed_pair "The rootfs would not go when `delete` ran: once it can, it goes by itself" alone;
    Kit Ours f08_busy_cgroup "Somebody in D in the container's cgroup when the pair was killed: out of D, all of it goes by itself";
    Kit Ours f08_bundle_removed_piece_by_piece "The bundle removed under a waiter, its `pair` first and its directory last: the rest goes by itself, and so does the waiter";
    Kit Ours f08_busy_cgroup_at_delete "Somebody in D in the container's cgroup at Delete and Shutdown: out of D, all of it goes by itself";
}

/// At most so long, whatever becomes of the test.
const STALL: u32 = 60;

/// `delete` as containerd runs it: in time. After one that says *gone* the bundle is removed,
/// after one that fails it is forgotten.
fn deleted_once(container: &Container) -> Result<()> {
    let at = Instant::now();
    let said = container.shim.delete();
    let took = at.elapsed();
    ensure!(took < GENEROUS, "`delete` took {took:?}");
    if said?.ran.status.success() {
        // What is mounted there stays, and keeps its directory.
        let _ = container.bundle.remove();
    }
    Ok(())
}

pub(super) fn tombstone(kit: &Kit, id: &str) -> std::path::PathBuf {
    Path::new("/run/vigil/tombstones").join(format!("{}+{id}.json", kit.scratch.mark()))
}

/// Nothing of it on the host: no process, cgroup, mount, state of runc's, tombstone or waiter;
/// and nobody has asked for that.
pub(super) fn goes_by_itself(kit: &Kit, container: &Container) -> Result<()> {
    let id = &container.id;
    let stone = tombstone(kit, id);
    let argument = format!("-id {id} ");
    let waits = |p: &Process| {
        p.cmdline.contains("containerd-shim-vigil-v2") && p.cmdline.contains(&argument)
    };
    let mut left = Vec::new();
    let gone = until("all of it to go by itself", by(25.0), || {
        left = cgroups(kit.scratch.mark(), id);
        left.extend([stone.clone(), runc_state(kit, id)]);
        left.retain(|path| path.exists());
        let waiter = Process::marked(kit.scratch.mark()).iter().any(waits);
        (left.is_empty() && !waiter).then_some(())
    });
    gone.with_context(|| {
        let stone = fs::read_to_string(&stone).unwrap_or_default();
        format!("left of {id}: {left:?} {stone}")
    })?;
    nothing_left(kit, id)
}

/// Something is left and said to be, while it cannot go: else nothing is tested.
fn is_left(kit: &Kit, container: &Container) -> Result<()> {
    let stone = tombstone(kit, &container.id);
    until("a tombstone", by(10.0), || stone.exists().then_some(()))
}

/// A Create whose runc sleeps in D, and that runc. It is asked for beside us: nobody answers.
fn creating(kit: &Kit, ice: &Ice, deadline_ms: &str) -> Result<(Container, i32)> {
    let body = format!(
        "[ \"$verb\" = create ] && {{ echo $$ >$dir/pid; echo x >{}/x; }}",
        ice.files().display()
    );
    let (dir, options) = scripted(kit, "slow", &body)?;
    let env = [("VIGIL_DEADLINE_CREATE_MS", deadline_ms)];
    let container = prepared_with(kit, &Spec::sleeper(), Stdio::Output, &env)?;
    let mut request = container.bundle.create_request();
    request.options = Some(options).into();
    ice.freeze(Layer::Files, STALL)?;
    let task = container.task().patient(40.0);
    std::thread::spawn(move || task.create(&request));
    let runc = until("runc to begin", by(20.0), || {
        fs::read_to_string(dir.join("pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    })?;
    sleeps(runc)?;
    Ok((container, runc))
}

fn f08_create_killed_with_its_pair(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let (container, runc) = creating(kit, &ice, "30000")?;
    container.shim.kill_all()?;
    let said = deleted_once(&container).and_then(|()| is_left(kit, &container));
    thawed(kit, &ice, &container, runc, said)
}

/// Its runc was in D until now, whatever was `said` meanwhile; then all of it goes.
fn thawed(kit: &Kit, ice: &Ice, it: &Container, runc: i32, said: Result<()>) -> Result<()> {
    let stuck = alive(runc);
    ice.thaw();
    said?;
    ensure!(stuck, "runc was not in D: nothing was tested");
    goes_by_itself(kit, it)?;
    ensure!(!alive(runc), "runc lives on");
    Ok(())
}

fn f08_create_given_up(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let (container, runc) = creating(kit, &ice, "500")?;
    let pair: Vec<i32> = container.shim.processes().iter().map(|p| p.pid).collect();
    // Refused once the deadline is over; then as containerd does.
    let task = container.task().patient(20.0);
    let _ = task.delete(&container.id, "");
    let _ = task.shutdown(&container.id);
    let left = until("the pair to leave", by(20.0), || {
        pair.iter().all(|pid| !alive(*pid)).then_some(())
    });
    let said = left
        .and_then(|()| deleted_once(&container))
        .and_then(|()| is_left(kit, &container));
    thawed(kit, &ice, &container, runc, said)
}

/// A container with a dirty root file system on `ice`.
fn on(kit: &Kit, ice: &Ice) -> Result<Container> {
    let spec = Spec::sh("head -c 2000000 /dev/zero >/dirt; echo ready; exec sleep 1000");
    let mut container = kit.prepared(&spec, Stdio::Output)?;
    container.bundle.rootfs = vec![ice.overlay(&kit.scratch.path("base"))];
    container.pid = container
        .task()
        .create(&container.bundle.create_request())?
        .pid;
    container.start()?;
    container.out()?.expect("ready", by(20.0))?;
    Ok(container)
}

fn f08_mount_of_a_pair_that_left(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = on(kit, &ice)?;
    container.task().kill(&container.id, "", 9, true)?;
    ensure!(container.exit_status()? == 137);
    ice.freeze(Layer::Device, STALL)?;
    let left = container
        .task()
        .patient(30.0)
        .delete(&container.id, "")
        .map_err(anyhow::Error::from)
        .and_then(|_| Ok(container.task().shutdown(&container.id)?))
        .and_then(|()| deleted_once(&container))
        .and_then(|()| is_left(kit, &container));
    ice.thaw();
    left?;
    goes_by_itself(kit, &container)
}

fn f08_mount_of_a_killed_pair(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = on(kit, &ice)?;
    ice.freeze(Layer::Device, STALL)?;
    let left = container
        .shim
        .kill_all()
        .and_then(|()| deleted_once(&container))
        .and_then(|()| is_left(kit, &container));
    ice.thaw();
    left?;
    goes_by_itself(kit, &container)
}

/// A process that nobody of the container has started, in D, moved into its cgroup.
fn stranger_in(kit: &Kit, ice: &Ice, container: &Container) -> Result<Child> {
    ice.freeze(Layer::Files, STALL)?;
    let stranger = Command::new("sh")
        .arg("-c")
        .arg(format!("echo x >{}/x", ice.files().display()))
        .stdin(Streams::null())
        .stdout(Streams::null())
        .stderr(Streams::null())
        .spawn()?;
    sleeps(i32::try_from(stranger.id())?)?;
    for group in cgroups(kit.scratch.mark(), &container.id) {
        // One that has no such rules (cpuset without a node) takes nobody.
        let _ = fs::write(group.join("cgroup.procs"), stranger.id().to_string());
    }
    Ok(stranger)
}

fn f08_busy_cgroup(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = kit.running(&Spec::sleeper())?;
    let mut stranger = stranger_in(kit, &ice, &container)?;
    let left = container
        .shim
        .kill_all()
        .and_then(|()| deleted_once(&container))
        .and_then(|()| is_left(kit, &container));
    ice.thaw();
    let ended = stranger.wait();
    left?;
    ended?;
    goes_by_itself(kit, &container)
}

/// Once in thirty lives a waiter looked at a bundle that was being removed, took it for another
/// life's without its `pair`, and waited for ever to be told that it goes: of a directory that
/// somebody holds open, as the waiter does itself, the kernel does not tell.
fn f08_bundle_removed_piece_by_piece(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = kit.running(&Spec::sleeper())?;
    let mut stranger = stranger_in(kit, &ice, &container)?;
    let left = container
        .shim
        .kill_all()
        .and_then(|()| container.shim.delete().map(drop))
        .and_then(|()| is_left(kit, &container))
        .and_then(|()| Ok(fs::remove_file(container.bundle.dir.join("pair"))?));
    ice.thaw();
    let ended = stranger.wait();
    left?;
    ended?;
    // For the waiter to see it so, each time.
    std::thread::sleep(Duration::from_millis(500));
    fs::remove_file(container.bundle.dir.join("journal"))?;
    std::thread::sleep(Duration::from_millis(500));
    container.bundle.remove()?;
    goes_by_itself(kit, &container)
}

fn f08_busy_cgroup_at_delete(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = kit.running(&Spec::sleeper())?;
    let mut stranger = stranger_in(kit, &ice, &container)?;
    let _ = container.task().kill(&container.id, "", 9, true);
    let task = container.task().patient(30.0);
    // It waits for the rest of the container, and then is refused or leaves a tombstone.
    let answer = task.wait(&container.id, "").map(drop);
    let answer = answer.and_then(|()| task.delete(&container.id, "").map(drop));
    let shut = task.shutdown(&container.id);
    let left = deleted_once(&container).and_then(|()| is_left(kit, &container));
    ice.thaw();
    let ended = stranger.wait();
    left.with_context(|| format!("after {answer:?} and {shut:?}"))?;
    ended?;
    ensure!(!alive(pid(&container)?), "init lives on");
    goes_by_itself(kit, &container)
}
