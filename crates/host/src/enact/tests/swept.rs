//! Tombstones and who goes on with them.

use std::collections::BTreeSet;

use super::*;
use crate::sweep::{Swept, due, only, start, sweep};

/// Dead and gone, but for runc's state, whose `runc delete` has failed; its
/// bundle is removed, as containerd does then.
fn entombed() -> Container {
    let mut it = Container::of(
        true,
        |_| {},
        |dir| {
            format!(
                r#""hooks": {{"poststop": [{{"path": "/bin/sh",
                    "args": ["sh", "-c", "echo >> {}/stopped"]}}]}},"#,
                dir.display()
            )
        },
    )
    .start();
    let fails = it.dir.path().join("runc-that-fails");
    fs::write(
        &fails,
        format!(
            "#!/bin/sh\ntest -e {0}.well && exec runc \"$@\"\nexit 1\n",
            fails.display()
        ),
    )
    .unwrap();
    let status = Command::new("chmod").arg("755").arg(&fails).status();
    assert!(status.unwrap().success());
    it.subject.runtime.program = fails.into();
    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.left, [Left::RuncState(it.subject.runc_dir())]);
    fs::remove_dir_all(&it.subject.bundle).unwrap();
    it
}

fn is_well(it: &Container) {
    fs::write(it.dir.path().join("runc-that-fails.well"), "").unwrap();
}

fn hooks_run(it: &Container) -> usize {
    let text = fs::read_to_string(it.dir.path().join("stopped")).unwrap_or_default();
    text.lines().count()
}

/// What a test of this process that runs beside forks holds the sweepers' lock too, for as long
/// as it has inherited it.
fn swept(it: &Container) -> Vec<Swept> {
    let end = Instant::now() + LONG;
    let all = loop {
        if let Some(all) = sweep(&it.run(), &()).unwrap() {
            break all;
        }
        assert!(Instant::now() < end, "somebody sweeps for ever");
        std::thread::sleep(Duration::from_millis(5));
    };
    all.into_iter().map(|(_, became)| became).collect()
}

#[test]
fn what_could_not_go_goes_once_it_can() {
    let it = entombed();
    assert!(due(&it.run(), None));
    assert!(!due(
        &it.run(),
        Some(("vigil-test", it.subject.id.as_str()))
    ));
    let lines = Line::all(&it.run()).len();
    assert!(matches!(&swept(&it)[..], [Swept::Left(left)] if left[0].contains("runc's state")));
    assert_eq!(Line::all(&it.run()).len(), lines, "nothing to tell");
    assert!(it.subject.runc_dir().exists() && hooks_run(&it) == 0);
    is_well(&it);
    assert!(matches!(&swept(&it)[..], [Swept::Done]));
    assert!(!it.subject.runc_dir().exists());
    assert_eq!(hooks_run(&it), 1);
    assert_eq!(Line::all(&it.run()).len(), lines + 1);
    assert!(!due(&it.run(), None));
    assert!(swept(&it).is_empty());
}

#[test]
fn one_that_never_goes_is_tried_ever_less() {
    let it = entombed();
    let mut tries = 0;
    while due(&it.run(), None) {
        tries += 1;
        assert!(tries < 10, "as often as ever");
        assert!(matches!(&swept(&it)[..], [Swept::Left(_)]));
    }
    assert_eq!(tries, 3);
    assert!(swept(&it).is_empty());
    let stone = Tombstone::all(&it.run()).unwrap().remove(0).unwrap();
    assert_eq!(stone.tries, 3);
    // And then it is.
    is_well(&it);
    let end = Instant::now() + LONG;
    while !due(&it.run(), None) {
        assert!(Instant::now() < end, "never again");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(matches!(&swept(&it)[..], [Swept::Done]));
}

#[test]
fn nobody_sweeps_beside_another_or_where_a_bundle_is() {
    let it = entombed();
    let other = only(&it.run()).unwrap();
    assert!(other.is_some() && sweep(&it.run(), &()).unwrap().is_none());
    drop(other);
    fs::create_dir(&it.subject.bundle).unwrap();
    is_well(&it);
    assert!(matches!(&swept(&it)[..], [Swept::Alone(why)] if why.contains("bundle")));
    assert_eq!(hooks_run(&it), 0);
    fs::remove_dir(&it.subject.bundle).unwrap();
    assert!(matches!(&swept(&it)[..], [Swept::Done]));
}

/// The same id below the same root, the same cgroup path, the same socket: all
/// of it another's, made after the stone was put up.
#[test]
fn a_new_life_of_the_id_is_left_alone() {
    let first = Container::new().start();
    // Not to be unlinked: a directory.
    let socket = first.subject.socket.clone().unwrap();
    fs::remove_file(&socket).unwrap();
    fs::create_dir(&socket).unwrap();
    let mut stone = {
        let report = first.reconcile(Goal::Gone);
        assert_eq!(report.left, [Left::Socket(socket.clone())]);
        Tombstone::all(&first.run()).unwrap().remove(0).unwrap()
    };
    assert!(stone.claims.is_empty(), "what is gone is not named");
    fs::remove_dir(&socket).unwrap();
    // The worst an old stone can say: everything, as it was then.
    stone.claims = first.subject.claims.clone();
    stone.runc_state = Some(1);
    stone.bundle = first.dir.path().join("gone");
    for init in [true, false] {
        if !init {
            stone.init = None;
        }
        stone.write(&first.run()).unwrap();
        let second = Again::of(&first);
        fs::write(&socket, "").unwrap();
        assert!(matches!(&swept(&first)[..], [Swept::Done]));
        assert!(second.alive(), "it was killed by an older stone");
        assert!(first.subject.runc_dir().join("state.json").exists());
        for claim in &first.subject.claims {
            assert!(Path::new(&claim.path).exists());
        }
        assert!(socket.exists());
        fs::remove_file(&socket).unwrap();
        second.end();
    }
}

/// The container of this bundle once more.
struct Again<'a> {
    first: &'a Container,
    init: Incarnation,
}

impl<'a> Again<'a> {
    fn of(first: &'a Container) -> Self {
        sys_bind(&first.dir.path().join("image"), &first.subject.rootfs());
        let pid_file = first.subject.bundle.join("init.pid");
        let status = Command::new("runc")
            .arg("--root")
            .arg(&first.subject.runtime.root)
            .args(["run", "-d", "--bundle"])
            .arg(&first.subject.bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(first.subject.id.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let pid = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        let init = proc::incarnation(pid).unwrap().unwrap();
        Self { first, init }
    }

    fn alive(&self) -> bool {
        matches!(proc::open_checked(&self.init).unwrap(), Checked::Same(fd) if !pidfd::is_dead(&fd).unwrap())
    }

    fn end(self) {
        let status = Command::new("runc")
            .arg("--root")
            .arg(&self.first.subject.runtime.root)
            .args(["delete", "--force", self.first.subject.id.as_str()])
            .status()
            .unwrap();
        assert!(status.success());
        let rootfs = mountinfo::as_shown(&self.first.subject.rootfs());
        let _ = unmount_below(&rootfs, Manner::Detach, &crate::worker::Notes::nowhere()).unwrap();
    }
}

#[test]
fn the_sweeper_holds_nothing_of_who_started_it_and_nobody_waits() {
    let it = entombed();
    is_well(&it);
    let (heard, kept) = fd::pipe().unwrap();
    let before: BTreeSet<u32> = proc::descendants(std::process::id())
        .unwrap()
        .into_iter()
        .collect();
    assert!(start(&it.run(), None, &()).unwrap());
    drop(kept);
    assert!(
        fd::wait_readable(&heard, LONG).unwrap(),
        "it holds our pipe"
    );
    let end = Instant::now() + LONG;
    while it.subject.runc_dir().exists() || due(&it.run(), None) {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(hooks_run(&it), 1);
    assert!(!start(&it.run(), None, &()).unwrap());
    // It ends by itself; as its parent we see it as a zombie.
    let running = |pid: &u32| {
        !before.contains(pid)
            && proc::stat(*pid)
                .unwrap()
                .is_some_and(|stat| !stat.ended() && stat.comm == "vigil-sweeper")
    };
    while proc::descendants(std::process::id())
        .unwrap()
        .iter()
        .any(running)
    {
        assert!(Instant::now() < end, "it stays");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A fifo by a stone's name held the sweeper, and with it all sweeping on the host, for ever; a
/// link had it change when another's file was written.
#[test]
fn what_is_no_file_is_no_stone() {
    let it = entombed();
    is_well(&it);
    let stones = it.run().join("tombstones");
    let other = it.dir.path().join("another's");
    fs::write(&other, "").unwrap();
    let at = |path| fs::metadata(path).unwrap().modified().unwrap();
    let before = at(&other);
    let made = Command::new("mkfifo")
        .arg(stones.join("a+fifo.json"))
        .status();
    assert!(made.unwrap().success());
    std::os::unix::fs::symlink(&other, stones.join("a+link.json")).unwrap();
    fs::create_dir(stones.join("a+dir.json")).unwrap();
    let all = swept(&it);
    assert!(matches!(all[..], [Swept::Done]), "{all:?}");
    assert_eq!(at(&other), before);
    assert!(!due(&it.run(), None));
}

#[test]
fn a_stone_torn_or_half_written_hides_no_other() {
    let it = entombed();
    is_well(&it);
    let dir = it.run().join("tombstones");
    fs::write(dir.join("a-torn.json"), "{\"id\":").unwrap();
    fs::write(dir.join("a-b.7.new"), "{").unwrap();
    let old = fs::File::options()
        .write(true)
        .open(dir.join("a-b.7.new"))
        .unwrap();
    old.set_modified(SystemTime::now() - Duration::from_mins(2))
        .unwrap();
    fs::write(dir.join("a-b.8.new"), "{").unwrap();
    let became = swept(&it);
    assert_eq!(became.len(), 2);
    assert!(became.iter().any(|one| matches!(one, Swept::Done)));
    assert!(became.iter().any(|one| matches!(one, Swept::Alone(_))));
    assert!(!dir.join("a-b.7.new").exists() && dir.join("a-b.8.new").exists());
    // It is kept for a person, and not looked at all the time.
    assert!(dir.join("a-torn.json").exists() && !due(&it.run(), None));
}
