//! F26 and F27: bundles whose files are missing, torn, of length zero, directories, or of
//! another boot. Nothing of it may keep `delete` from its work, and nothing written in
//! another life may be taken for this one's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use vigil_lab::bundle::{Bundle, Stdio};
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::{Kit, Spec, by, until};

use crate::cases;
use crate::world::{
    Stranger, cgroups, deleted, init_gone, nothing_left, pid, runc_state, with_pid,
};

cases! {
    Kit All  f26_a_directory_for_each_file "A directory in place of each file of the bundle";
    Kit All  f26_all_torn "All files torn at once: half of each";
    Kit All  f26_all_gone "All files gone at once, the container running";
    Kit All  f26_nul_bytes_at_the_end "NUL bytes after the end of each file, as a power cut leaves them";
    Kit All  f26_state_json "runc's state.json missing, empty, torn";
    Kit All  f26_empty_bundle "An empty bundle, and one with nothing but a mounted rootfs";
    Kit Ours f26_torn_tail_after_an_exit "The journal's last record torn: the exit is the reaper's";
    Kit All  f27_length_zero "Every file has length zero after a power cut";
    Kit Ours f27_another_boot "Files of another boot; init's pid and cgroup are strangers' now";
    Kit Ours f27_another_boot_and_no_journal "The same, and the journal is lost: nobody is hurt all the same";
    Kit Ours f27_start_over_another_boot "A new life over the bundle files of another boot";
}

/// Names of everything in the bundle that a runtime or containerd may have written.
fn names(bundle: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(bundle)?
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_file()));
    Ok(names
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect())
}

/// The pair killed, the bundle spoilt, `delete`: whatever it says, the container is gone.
fn survives(kit: &Kit, c: &Container, spoil: impl FnOnce(&Path) -> Result<()>) -> Result<u32> {
    c.shim.kill_all()?;
    spoil(&c.bundle.dir)?;
    let said = deleted(c)?;
    ensure!(!alive(pid(c)?), "init lives on");
    nothing_left(kit, &c.id)?;
    deleted(c).context("the second time")?;
    c.bundle.remove()?;
    Ok(said.exit_status)
}

fn f26_a_directory_for_each_file(kit: &Kit) -> Result<()> {
    let first = kit.running(&Spec::sleeper())?;
    let mut all = names(&first.bundle.dir)?;
    all.push("all at once".into());
    for name in &all {
        let c = kit.running(&Spec::sleeper())?;
        let status = survives(kit, &c, |bundle| {
            for file in names(bundle)? {
                if file == *name || name == "all at once" {
                    fs::remove_file(bundle.join(&file))?;
                    fs::create_dir(bundle.join(&file))?;
                }
            }
            Ok(())
        });
        let status = status.with_context(|| format!("a directory for {name}"))?;
        ensure!(
            [137, 255].contains(&status),
            "a directory for {name}: {status}"
        );
    }
    Ok(())
}

fn f26_all_torn(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let status = survives(kit, &c, |bundle| {
        for file in names(bundle)? {
            let whole = fs::read(bundle.join(&file))?;
            let mut half = &whole[..whole.len() / 2];
            // Half a number may be that of one of the host's who cannot be looked at.
            let number = str::from_utf8(half).ok().and_then(|half| half.parse().ok());
            if number.is_some_and(alive) {
                half = &[];
            }
            fs::write(bundle.join(&file), half)?;
        }
        Ok(())
    })?;
    ensure!([137, 255].contains(&status), "{status}");
    Ok(())
}

fn f26_all_gone(kit: &Kit) -> Result<()> {
    // In the host's pid namespace nobody else ends what init leaves behind.
    let spec = Spec {
        own_pids: false,
        ..Spec::sh("(setsid sleep 1000 &); sleep 1000 & echo ready; wait")
    };
    let c = kit.running(&spec)?;
    c.out()?.expect("ready\n", by(5.0))?;
    let status = survives(kit, &c, |bundle| {
        for file in names(bundle)? {
            fs::remove_file(bundle.join(&file))?;
        }
        Ok(())
    })?;
    ensure!([137, 255].contains(&status), "{status}");
    Ok(())
}

fn f26_nul_bytes_at_the_end(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 7"))?;
    ensure!(c.exit_status()? == 7);
    let status = survives(kit, &c, |bundle| {
        for file in names(bundle)? {
            let mut bytes = fs::read(bundle.join(&file))?;
            bytes.resize(bytes.len() + 4096, 0);
            fs::write(bundle.join(&file), bytes)?;
        }
        Ok(())
    })?;
    ensure!(status == 7, "status {status}, not the journal's 7");
    Ok(())
}

fn f26_state_json(kit: &Kit) -> Result<()> {
    for how in ["missing", "empty", "half", "directory"] {
        let c = kit.running(&Spec::sleeper())?;
        let state = runc_state(kit, &c.id).join("state.json");
        let status = survives(kit, &c, |_| {
            let whole = fs::read(&state)?;
            match how {
                "empty" => fs::write(&state, "")?,
                "half" => fs::write(&state, &whole[..whole.len() / 2])?,
                _ => fs::remove_file(&state)?,
            }
            if how == "directory" {
                fs::create_dir(&state)?;
            }
            Ok(())
        });
        let status = status.with_context(|| format!("state.json {how}"))?;
        ensure!(status == 137, "state.json {how}: {status}");
    }
    Ok(())
}

fn f26_empty_bundle(kit: &Kit) -> Result<()> {
    for mounted in [false, true] {
        let bundle = kit.bundle(&Spec::sleeper(), Stdio::Empty)?;
        for name in fs::read_dir(&bundle.dir)?.flatten() {
            if name.file_name() != "rootfs" {
                fs::remove_file(name.path())?;
            }
        }
        let rootfs = bundle.dir.join("rootfs");
        if mounted {
            let (base, none) = (kit.scratch.path("base"), None::<&str>);
            // Twice, one above the other, as a repeated Create may leave it.
            for _ in 0..2 {
                mount(Some(&base), &rootfs, none, MsFlags::MS_BIND, none)?;
            }
        }
        for _ in 0..2 {
            let said = kit.caller.delete(&bundle.id, &bundle.dir)?.ok()?;
            ensure!(
                said.exit_status == 255 || said.exit_status == 137,
                "{said:?}"
            );
            nothing_left(kit, &bundle.id)?;
        }
    }
    Ok(())
}

fn f26_torn_tail_after_an_exit(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 7"))?;
    ensure!(c.exit_status()? == 7);
    let status = survives(kit, &c, |bundle| {
        let path = bundle.join("journal");
        let mut bytes = fs::read(&path)?;
        // The last byte that was written: of the last record's checksum.
        let last = bytes
            .iter()
            .rposition(|b| *b != 0)
            .context("an empty journal")?;
        bytes[last] ^= 0x55;
        Ok(fs::write(&path, bytes)?)
    })?;
    ensure!(status == 7, "status {status}: the reaper had recorded 7");
    Ok(())
}

fn f27_length_zero(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let status = survives(kit, &c, |bundle| {
        for file in names(bundle)? {
            fs::write(bundle.join(file), "")?;
        }
        Ok(fs::write(runc_state(kit, &c.id).join("state.json"), "")?)
    })?;
    ensure!([137, 255].contains(&status), "{status}");
    Ok(())
}

/// crc32c, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = !0_u32;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 {
                sum >> 1 ^ 0x82f6_3b78
            } else {
                sum >> 1
            };
        }
    }
    !sum
}

/// A boot that never was.
const ELSEWHEN: &[u8; 36] = b"00000000-dead-4bad-8bad-0123456789ab";

/// Makes the bundle's files those of another boot, by the layouts of the journal crate's FORMAT.md.
fn of_another_boot(bundle: &Path) -> Result<()> {
    let now = fs::read("/proc/sys/kernel/random/boot_id")?;
    let now = now.get(..36).context("a boot id")?;
    let swap = |bytes: &mut Vec<u8>| {
        let at = bytes.windows(36).position(|w| w == now)?;
        bytes.get_mut(at..at + 36)?.copy_from_slice(ELSEWHEN);
        Some(at)
    };
    let path = bundle.join("journal");
    let mut journal = fs::read(&path)?;
    ensure!(
        swap(&mut journal) == Some(32),
        "the boot id is not where FORMAT.md says"
    );
    let sum = crc32c(&journal[..252]);
    journal[252..256].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, journal)?;
    let path = bundle.join("exits");
    let mut exits = fs::read(&path)?;
    ensure!(swap(&mut exits).is_some(), "no boot id in exits");
    fs::write(&path, exits)?;
    let path = bundle.join("pair");
    let mut pair = fs::read(&path)?;
    while swap(&mut pair).is_some() {}
    let text = String::from_utf8(pair)?;
    let (lines, _) = text.split_once("sum ").context("no sum")?;
    let mut pair = format!("{lines}sum {:08x}\n", crc32c(lines.as_bytes())).into_bytes();
    pair.resize(512, b'\n');
    fs::write(&path, pair)?;
    Ok(())
}

/// A bundle as a reboot leaves it on a disk: pair, container, cgroup and runc's state gone.
fn rebooted(kit: &Kit, spec: &Spec) -> Result<Container> {
    let c = kit.running(spec)?;
    c.shim.kill_all()?;
    for process in vigil_lab::process::Process::marked(&format!("{}/{}", kit.scratch.mark(), c.id))
    {
        vigil_lab::process::signal_if(process.pid, 9, |now| now.cgroup == process.cgroup);
    }
    init_gone(&c, 5.0)?;
    until("the cgroups to be empty", by(5.0), || {
        cgroups(kit.scratch.mark(), &c.id)
            .iter()
            .all(|d| fs::remove_dir(d).is_ok())
            .then_some(())
    })?;
    fs::remove_dir_all(runc_state(kit, &c.id))?;
    let _ = nix::mount::umount2(
        &c.bundle.dir.join("rootfs"),
        nix::mount::MntFlags::MNT_DETACH,
    );
    let _ = fs::remove_file(&c.shim.reply.socket);
    // Only ours can be told what boot it was; Go's files say nothing of it.
    if c.bundle.dir.join("journal").exists() {
        of_another_boot(&c.bundle.dir)?;
    }
    Ok(c)
}

fn f27_another_boot(kit: &Kit) -> Result<()> {
    ended_of_another_boot(kit, &rebooted(kit, &Spec::sleeper())?)
}

/// What the journal's header would say, the file `pair` says too. Whose the cgroup is that
/// is there now nobody can say then: nothing is done while somebody is in it.
fn f27_another_boot_and_no_journal(kit: &Kit) -> Result<()> {
    let c = rebooted(kit, &Spec::sleeper())?;
    fs::remove_file(c.bundle.dir.join("journal"))?;
    let mut member = Stranger::new()?;
    let places = made_again(kit, &c)?;
    member.enter(places.iter().map(AsRef::as_ref))?;
    ensure!(deleted(&c).is_err(), "it was judged all the same");
    member.unhurt().context("in a cgroup of that name")?;
    drop(member);
    let said = deleted(&c)?;
    ensure!(said.exit_status == 255, "{said:?}");
    Ok(())
}

fn ended_of_another_boot(kit: &Kit, c: &Container) -> Result<()> {
    // The number of init, and of the reaper, are somebody else's by now; so is the path of the cgroup.
    let mut namesake = with_pid(c.pid)?;
    let mut member = Stranger::new()?;
    let places = made_again(kit, c)?;
    member.enter(places.iter().map(AsRef::as_ref))?;
    let said = deleted(c)?;
    namesake.unhurt().context("with init's number")?;
    member.unhurt().context("in a cgroup of that name")?;
    ensure!(
        places.iter().all(|p| p.is_dir()),
        "a stranger's cgroup was removed"
    );
    ensure!(
        said.exit_status == 255,
        "{said:?}: nobody knows how it ended"
    );
    deleted(c)?;
    namesake.unhurt()?;
    drop(member);
    until("the stranger's cgroups to go", by(5.0), || {
        places
            .iter()
            .all(|p| fs::remove_dir(p).is_ok() || !p.exists())
            .then_some(())
    })
}

/// Cgroups at the path of the container's, made by somebody else.
pub(crate) fn made_again(kit: &Kit, c: &Container) -> Result<Vec<std::path::PathBuf>> {
    let mut places = Vec::new();
    for parent in cgroups(kit.scratch.mark(), ".") {
        let place = parent.components().as_path().join(&c.id);
        fs::create_dir_all(&place)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(parent.join(file)) {
                let _ = fs::write(place.join(file), all);
            }
        }
        // runc keeps the namespace's cpuset filled; where it does not, nobody can enter.
        if Stranger::new()?.enter([place.as_path()]).is_ok() {
            places.push(place);
        } else {
            fs::remove_dir(&place)?;
        }
    }
    ensure!(!places.is_empty(), "no cgroup of {}", kit.scratch.mark());
    Ok(places)
}

fn f27_start_over_another_boot(kit: &Kit) -> Result<()> {
    let old = rebooted(kit, &Spec::sh("exit 3"))?;
    // containerd has removed nothing: the same id is created in what is there.
    let Container {
        bundle,
        stdout,
        stderr,
        ..
    } = old;
    drop((stdout, stderr));
    let shim = kit.shim(&bundle)?;
    kit.read_all(&bundle)?;
    let life = |bundle: &Bundle| -> Result<u32> {
        shim.task.create(&bundle.create_request())?;
        shim.task.start(&bundle.id, "")?;
        let status = shim.task.wait(&bundle.id, "")?.exit_status;
        shim.task.delete(&bundle.id, "")?;
        Ok(status)
    };
    let status = life(&bundle)?;
    ensure!(status == 3, "{status}");
    Ok(())
}
