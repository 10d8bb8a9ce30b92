//! Real mounts, each test in a worker with a mount namespace of its own:
//! whatever goes wrong, nothing stays mounted on the host.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use super::*;
use crate::worker::{Outcome, Worker};

type Step = std::result::Result<(), String>;

/// Runs `work` in a private mount namespace with an empty directory.
fn privately(work: impl FnOnce(&Path, &Notes) -> Step) -> Vec<Detached> {
    let dir = tempfile::tempdir().unwrap();
    let worker = Worker::start_noting("test", |notes| {
        sys::unshare_private().map_err(|e| e.to_string())?;
        work(dir.path(), notes)
    })
    .unwrap();
    let outcome = worker.wait(Duration::from_mins(1)).unwrap();
    assert_eq!(outcome, Outcome::Done);
    worker.told()
}

fn mount(kind: &str, source: &Path, target: &str, options: &[&str]) -> Mount {
    Mount {
        kind: kind.into(),
        source: source.display().to_string(),
        target: target.into(),
        options: options.iter().map(ToString::to_string).collect(),
    }
}

fn text(error: impl std::error::Error) -> String {
    chain(&error)
}

fn ensure(condition: bool, what: &str) -> Step {
    if condition {
        Ok(())
    } else {
        Err(what.to_owned())
    }
}

fn patient() -> Manner {
    Manner::Patient(Duration::from_millis(200))
}

fn left(path: &Path) -> std::result::Result<usize, String> {
    mountinfo::below(path).map(|all| all.len()).map_err(text)
}

#[test]
fn nothing_asked_nothing_done() {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    mount_all(&[], &rootfs, &Notes::nowhere()).unwrap();
    assert!(!rootfs.exists());
    let none = unmount_below(&rootfs, patient(), &Notes::nowhere()).unwrap();
    assert_eq!(none, Unmounted::default());
    let none = unmount_below(
        Path::new("/no/such/place"),
        Manner::Detach,
        &Notes::nowhere(),
    );
    assert_eq!(none.unwrap(), Unmounted::default());
}

#[test]
fn binds_and_tmpfs_in_order_and_all_gone_afterwards() {
    let notes = privately(|dir, notes| {
        let (from, rootfs) = (dir.join("from"), dir.join("root fs"));
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        fs::write(from.join("file"), "x").unwrap();
        let mounts = [
            mount("bind", &from, "", &["rbind", "ro"]),
            mount(
                "tmpfs",
                Path::new("tmpfs"),
                "/sub",
                &["size=64k", "nosuid", "mode=700"],
            ),
            mount("tmpfs", Path::new("tmpfs"), "sub", &["private"]),
        ];
        mount_all(&mounts, &rootfs, notes).map_err(text)?;
        ensure(rootfs.join("file").exists(), "bind is not there")?;
        let written = fs::write(rootfs.join("new"), "");
        ensure(
            written.is_err_and(|e| e.raw_os_error() == Some(30)),
            "bind is not read-only",
        )?;
        fs::write(rootfs.join("sub/new"), "").map_err(|e| e.to_string())?;
        ensure(!from.join("sub/new").exists(), "tmpfs is not on top")?;
        ensure(left(&rootfs)? == 3, "not three mounts")?;
        let done = unmount_below(&rootfs, patient(), notes).map_err(text)?;
        ensure(
            done == Unmounted {
                gone: 3,
                detached: vec![],
            },
            &format!("{done:?}"),
        )?;
        ensure(left(&rootfs)? == 0, "something is left")
    });
    assert_eq!(notes, []);
}

#[test]
fn targets_stay_inside_the_rootfs() {
    privately(|dir, notes| {
        let (outside, rootfs) = (dir.join("outside"), dir.join("rootfs"));
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(rootfs.join("inside")).unwrap();
        symlink("../../../../outside", rootfs.join("up")).unwrap();
        symlink(&outside, rootfs.join("absolute")).unwrap();
        symlink("/inside", rootfs.join("good")).unwrap();
        let tmpfs = |target| [mount("tmpfs", Path::new("tmpfs"), target, &[])];
        for bad in ["up", "absolute", "../outside", "missing"] {
            let error = mount_all(&tmpfs(bad), &rootfs, notes);
            let named = error.is_err_and(|e| text(e).contains(bad));
            ensure(
                named,
                &format!("{bad} was mounted, or the error does not name it"),
            )?;
        }
        mount_all(&tmpfs("good"), &rootfs, notes).map_err(text)?;
        ensure(
            left(&rootfs.join("inside"))? == 1,
            "the good one is not there",
        )?;
        ensure(left(&outside)? == 0, "escaped")
    });
}

#[test]
fn a_failed_mount_undoes_those_before_it() {
    privately(|dir, notes| {
        let rootfs = dir.join("rootfs");
        let mounts = [
            mount("tmpfs", Path::new("tmpfs"), "", &[]),
            mount("no-such-fs", Path::new("none"), "", &[]),
        ];
        let error = mount_all(&mounts, &rootfs, notes)
            .err()
            .map(text)
            .unwrap_or_default();
        ensure(
            error.contains("no-such-fs") && error.contains("ENODEV"),
            &error,
        )?;
        ensure(left(&rootfs)? == 0, "the first is left")?;
        // Refused before the first is made.
        let refused = [
            mount("tmpfs", Path::new("tmpfs"), "", &[]),
            mount("ext4", Path::new("x"), "", &["X-containerd.mkfs.size=1"]),
        ];
        let error = mount_all(&refused, &rootfs, notes)
            .err()
            .map(text)
            .unwrap_or_default();
        ensure(error.contains("X-containerd.mkfs.size=1"), &error)
    });
}

#[test]
fn overlay_with_sixty_layers_of_long_names() {
    privately(|dir, notes| {
        // overlay refuses layers on the file system it is itself mounted from
        // in some containers; a tmpfs serves always.
        let base = dir.join("s".repeat(60));
        fs::create_dir(&base).unwrap();
        sys::mount(
            Some(OsStr::new("tmpfs")),
            &base,
            Some("tmpfs"),
            Flags::empty(),
            None,
        )
        .map_err(text)?;
        let mut lower = Vec::new();
        for number in 0..60 {
            let layer = base.join(number.to_string()).join("fs");
            fs::create_dir_all(&layer).unwrap();
            fs::write(layer.join(format!("f{number}")), "").unwrap();
            fs::write(layer.join("same"), number.to_string()).unwrap();
            lower.push(layer.display().to_string());
        }
        fs::create_dir_all(base.join("up")).unwrap();
        fs::create_dir_all(base.join("work")).unwrap();
        let options = [
            format!("workdir={}", base.join("work").display()),
            format!("upperdir={}", base.join("up").display()),
            format!("lowerdir={}", lower.join(":")),
        ];
        let size: usize = options.iter().map(String::len).sum();
        ensure(size > sys::page_size(), "the options would have fitted")?;
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let rootfs = dir.join("rootfs");
        let overlay = [mount("overlay", Path::new("overlay"), "", &options)];
        mount_all(&overlay, &rootfs, notes).map_err(text)?;
        ensure(
            (0..60).all(|n| rootfs.join(format!("f{n}")).exists()),
            "a layer is missing",
        )?;
        ensure(
            fs::read_to_string(rootfs.join("same")).is_ok_and(|s| s == "0"),
            "wrong order",
        )?;
        fs::write(rootfs.join("new"), "").map_err(|e| e.to_string())?;
        ensure(
            base.join("up/new").exists(),
            "not written to the upper layer",
        )?;
        let done = unmount_below(&rootfs, patient(), notes).map_err(text)?;
        ensure(done.gone == 1, "not unmounted")
    });
}

#[test]
fn too_many_options_are_an_error_with_the_numbers() {
    privately(|dir, notes| {
        let long = format!("x={}", "y".repeat(5000));
        let mounts = [mount("tmpfs", Path::new("tmpfs"), "", &[&long])];
        let error = mount_all(&mounts, &dir.join("r"), notes)
            .err()
            .map(text)
            .unwrap_or_default();
        ensure(error.contains("5002 bytes"), &error)
    });
}

#[test]
fn owners_are_mapped() {
    privately(|dir, notes| {
        let base = dir.join("base");
        fs::create_dir(&base).unwrap();
        sys::mount(
            Some(OsStr::new("tmpfs")),
            &base,
            Some("tmpfs"),
            Flags::empty(),
            None,
        )
        .map_err(text)?;
        let (a, b) = (base.join("a"), base.join("b"));
        for (layer, name) in [(&a, "of-a"), (&b, "of-b")] {
            fs::create_dir(layer).unwrap();
            fs::write(layer.join(name), "").unwrap();
        }
        let maps = ["uidmap=0:100000:1000", "gidmap=0:200000:1000"];
        let bound = dir.join("bound");
        let bind = [mount("bind", &a, "", &[&["rbind"][..], &maps].concat())];
        mount_all(&bind, &bound, notes).map_err(text)?;
        let owner = |path: PathBuf| {
            fs::metadata(path)
                .map(|m| (m.uid(), m.gid()))
                .map_err(|e| e.to_string())
        };
        ensure(
            owner(bound.join("of-a"))? == (100_000, 200_000),
            "bind is not mapped",
        )?;
        ensure(left(&bound)? == 1, "the plain bind is still below")?;

        let rootfs = dir.join("rootfs");
        let lower = format!("lowerdir={}:{}", a.display(), b.display());
        let overlay = [mount(
            "overlay",
            Path::new("overlay"),
            "",
            &[&[lower.as_str()][..], &maps].concat(),
        )];
        mount_all(&overlay, &rootfs, notes).map_err(text)?;
        for name in ["of-a", "of-b"] {
            let owner = owner(rootfs.join(name))?;
            ensure(
                owner == (100_000, 200_000),
                &format!("{name} belongs to {owner:?}"),
            )?;
        }
        ensure(
            !dir.join("idmapped").exists(),
            "the temporary mounts are left",
        )?;
        ensure(left(dir)? == 3, "more mounts than the three")
    });
}

/// A small ext4 in a file.
fn ext4(dir: &Path) -> std::result::Result<PathBuf, String> {
    let image = dir.join("image");
    fs::File::create(&image)
        .and_then(|f| f.set_len(8 << 20))
        .map_err(|e| e.to_string())?;
    run("mke2fs", &["-q", "-F", "-t", "ext4"], &image)?;
    Ok(image)
}

fn run(program: &str, args: &[&str], on: &Path) -> Step {
    let status = std::process::Command::new(program)
        .args(args)
        .arg(on)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("{program}: {other:?}")),
    }
}

/// Thaws also when the test fails: what sleeps there cannot be killed.
struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = run("fsfreeze", &["-u"], &self.0);
    }
}

#[test]
fn a_worker_that_cannot_die_is_left_and_named() {
    privately(|dir, notes| {
        let rootfs = dir.join("rootfs");
        mount_all(&[mount("ext4", &ext4(dir)?, "", &["loop"])], &rootfs, notes).map_err(text)?;
        run("fsfreeze", &["-f"], &rootfs)?;
        let frozen = Frozen(rootfs.clone());
        let stuck = Worker::start_noting("stuck", |notes| {
            notes.doing("write into the frozen");
            fs::write(rootfs.join("new"), "").map_err(|e| e.to_string())
        })
        .map_err(text)?;
        let begun = Instant::now();
        let outcome = stuck.wait(Duration::from_millis(300)).map_err(text)?;
        ensure(begun.elapsed() < Duration::from_mins(1), "waited for it")?;
        let doing = "write into the frozen".to_owned();
        let expected = Outcome::Overdue {
            pid: stuck.pid(),
            left: true,
            doing,
        };
        ensure(outcome == expected, &format!("{outcome:?}"))?;
        drop(frozen);
        // Now the SIGKILL reaches it.
        let outcome = stuck.wait(Duration::from_secs(20)).map_err(text)?;
        ensure(
            matches!(outcome, Outcome::Failed(_)),
            &format!("{outcome:?}"),
        )?;
        let done = unmount_below(&rootfs, patient(), notes).map_err(text)?;
        ensure(done.gone == 1, "not unmounted")
    });
}

#[test]
fn a_loop_device_lives_as_long_as_its_mount() {
    let attached = |file: &Path| {
        let mut count = 0;
        for device in fs::read_dir("/sys/block").unwrap().flatten() {
            let backing = fs::read_to_string(device.path().join("loop/backing_file"));
            count += usize::from(backing.is_ok_and(|b| Path::new(b.trim()) == file));
        }
        count
    };
    privately(|dir, notes| {
        let image = dir.join("image");
        fs::write(&image, "").unwrap();
        fs::File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        let made = std::process::Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .arg(&image)
            .status()
            .map_err(|e| format!("mke2fs: {e}"))?;
        ensure(made.success(), "mke2fs failed")?;
        let rootfs = dir.join("rootfs");
        let mounts = [mount("ext4", &image, "", &["loop", "ro"])];
        mount_all(&mounts, &rootfs, notes).map_err(text)?;
        ensure(rootfs.join("lost+found").exists(), "not mounted")?;
        ensure(attached(&image) == 1, "not one device")?;
        let done = unmount_below(&rootfs, patient(), notes).map_err(text)?;
        ensure(done.gone == 1, "not unmounted")?;
        let begun = Instant::now();
        while attached(&image) != 0 {
            ensure(
                begun.elapsed() < Duration::from_mins(1),
                "the device is left",
            )?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    });
}

#[test]
fn what_is_busy_is_detached_and_said() {
    let notes = privately(|dir, notes| {
        let rootfs = dir.join("rootfs");
        let mounts = [
            mount("tmpfs", Path::new("one"), "", &[]),
            mount("tmpfs", Path::new("two"), "", &[]),
        ];
        mount_all(&mounts, &rootfs, notes).map_err(text)?;
        let held = fs::File::create(rootfs.join("held")).map_err(|e| e.to_string())?;
        let begun = Instant::now();
        let done = unmount_below(&rootfs, patient(), notes).map_err(text)?;
        let patience = begun.elapsed();
        ensure(patience > Duration::from_millis(190), "gave up at once")?;
        ensure(patience < Duration::from_mins(1), "took too long")?;
        ensure(
            done.gone == 1 && done.detached.len() == 1,
            &format!("{done:?}"),
        )?;
        ensure(left(&rootfs)? == 0, "still listed")?;
        drop(held);
        Ok(())
    });
    let said: Vec<Detached> = notes;
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(
        (said[0].kind.as_str(), said[0].source.as_str()),
        ("tmpfs", "two")
    );
    assert!(said[0].path.ends_with("rootfs"));
}

#[test]
fn a_fuse_mount_needs_its_program() {
    privately(|dir, notes| {
        let mounts = [mount("fuse.nothing", Path::new("x"), "", &["allow_other"])];
        let error = mount_all(&mounts, &dir.join("r"), notes)
            .err()
            .map(text)
            .unwrap_or_default();
        ensure(error.contains("mount.fuse"), &error)
    });
}
