//! Reconciliation on real containers: runc makes them, something of what we
//! knew is lost, and everything has to go all the same, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vigil_model::{Before, BootId, Claim, Incarnation, Namespace, TaskId};
use vigil_reconcile::{Action, Group, RuncDelete};
use vigil_sys::{fd, pidfd};

use super::*;

mod owed;
mod swept;
mod unnamed;

use crate::cgroup::{self, Cgroup};
use crate::proc::{self, Checked};
use crate::rootfs::{Manner, mountinfo, unmount_below};
use crate::runc::Runtime;

static NEXT: AtomicU32 = AtomicU32::new(0);
const LONG: Duration = Duration::from_mins(1);

/// A container made by the real runc, as containerd would have it made.
struct Container {
    dir: tempfile::TempDir,
    hierarchies: Hierarchies,
    subject: Subject,
    init: Incarnation,
    strangers: Vec<Child>,
}

impl Container {
    fn new() -> Self {
        Self::with(true, |_| {})
    }

    /// `prepare` is given the claims before runc runs.
    fn with(private_pid_ns: bool, prepare: impl FnOnce(&[Claim])) -> Self {
        Self::of(private_pid_ns, prepare, |_| String::new())
    }

    /// `hooks` is given the test's directory, and gives what goes into the
    /// spec beside the rest.
    fn of(
        private_pid_ns: bool,
        prepare: impl FnOnce(&[Claim]),
        hooks: impl FnOnce(&Path) -> String,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = format!(
            "vigil-test-{}-r{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let bundle = dir.path().join("bundle");
        let image = dir.path().join("image");
        let rootfs = bundle.join("rootfs");
        fs::create_dir_all(&rootfs).unwrap();
        fs::create_dir_all(image.join("bin")).unwrap();
        fs::create_dir_all(image.join("proc")).unwrap();
        fs::copy("/bin/busybox", image.join("bin/busybox")).expect("busybox-static is installed");
        sys_bind(&image, &rootfs);
        let config = config(&name, private_pid_ns, &hooks(dir.path()));
        fs::write(bundle.join("config.json"), config).unwrap();
        let socket = dir.path().join("socket");
        fs::write(&socket, "").unwrap();

        let hierarchies = Hierarchies::read().unwrap();
        let id = TaskId::new(name.as_str()).unwrap();
        let placement = cgroup::place(&hierarchies, &id, &format!("/{name}"), None, false).unwrap();
        prepare(&cgroup::claims(&hierarchies, &placement));
        let mut claims = cgroup::claims(&hierarchies, &placement);
        let root = dir.path().join("runc");
        let pid_file = bundle.join("init.pid");
        let status = Command::new("runc")
            .arg("--root")
            .arg(&root)
            .args(["create", "--bundle"])
            .arg(&bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .expect("runc is installed");
        assert!(status.success());
        let pid: u32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        Cgroup::take(&hierarchies, &mut claims, pid).unwrap();
        let init = proc::incarnation(pid).unwrap().unwrap();
        Self {
            hierarchies,
            subject: Subject {
                id,
                namespace: Namespace::new("vigil-test").unwrap(),
                bundle,
                moved: None,
                runtime: Runtime {
                    program: "runc".into(),
                    root,
                    systemd_cgroup: false,
                },
                systemd_cgroup: None,
                said: Said::Live,
                boot: Some(init.boot.clone()),
                init: Some(init.clone()),
                life: None,
                pid: None,
                awaited: None,
                exit: None,
                execs: Vec::new(),
                claims,
                claimed: vigil_reconcile::Claimed::Recorded,
                private_pid_ns: None,
                pid_ns: None,
                runc_delete: RuncDelete::NotTried,
                socket: Some(socket),
                below: None,
                left: Vec::new(),
                stone: None,
                again: false,
                announces: false,
                takeovers: 0,
            },
            init,
            strangers: Vec::new(),
            dir,
        }
    }

    fn start(self) -> Self {
        let status = Command::new("runc")
            .arg("--root")
            .arg(&self.subject.runtime.root)
            .args(["start", self.subject.id.as_str()])
            .status()
            .unwrap();
        assert!(status.success());
        self
    }

    fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn reconcile(&self, goal: Goal) -> Report {
        let deadline = Instant::now() + LONG;
        reconcile_with(
            &self.subject,
            &self.hierarchies,
            goal,
            &self.run(),
            deadline,
        )
    }

    fn alive(&self) -> bool {
        match proc::open_checked(&self.init).unwrap() {
            Checked::Same(fd) => !pidfd::is_dead(&fd).unwrap(),
            Checked::Gone | Checked::Reused(_) | Checked::Elsewhere => false,
        }
    }

    /// Nothing of it is on the host any more but its bundle.
    fn assert_gone(&self, report: &Report) {
        assert_eq!(report.left, [], "{report:?}");
        assert!(!report.may_live(), "{report:?}");
        // Who is dying has left its cgroup a moment before it is dead.
        let until = Instant::now() + LONG;
        while self.alive() {
            assert!(Instant::now() < until, "{report:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        for claim in &self.subject.claims {
            assert!(!Path::new(&claim.path).exists(), "{}", claim.path);
        }
        assert!(!self.subject.runc_dir().exists(), "{report:?}");
        assert!(mountinfo::below(&self.subject.rootfs()).unwrap().is_empty());
        assert!(!self.subject.socket.as_ref().unwrap().exists());
        assert!(Tombstone::all(&self.run()).unwrap().is_empty());
        let history = fs::read_to_string(self.run().join("history")).unwrap();
        assert!(history.contains(self.subject.id.as_str()));
    }

    fn stranger_in_the_cgroup(claims: &[Claim]) -> Child {
        for claim in claims {
            let dir = Path::new(&claim.path);
            fs::create_dir(dir).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = fs::read_to_string(dir.parent().unwrap().join(file)) {
                    fs::write(dir.join(file), all).unwrap();
                }
            }
        }
        let child = Command::new("sh")
            .args(["-c", "for f; do echo $$ > $f; done; exec sleep 100", "sh"])
            .args(claims.iter().map(|c| format!("{}/cgroup.procs", c.path)))
            .spawn()
            .unwrap();
        let last = format!("{}/cgroup.procs", claims.last().unwrap().path);
        let end = Instant::now() + LONG;
        while fs::read_to_string(&last).unwrap().is_empty() {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        child
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for child in &mut self.strangers {
            let _ = child.kill();
            let _ = child.wait();
        }
        let end = Instant::now() + LONG;
        let claims: Vec<_> = self
            .subject
            .claims
            .iter()
            .map(|claim| Claim {
                before: Before::Absent,
                inode: None,
                ..claim.clone()
            })
            .collect();
        if let Ok(cgroup) = Cgroup::open(&self.hierarchies, &claims) {
            let _ = cgroup.kill_until(end);
            let _ = cgroup.remove_until(end);
        }
        let _ = unmount_below(
            &mountinfo::as_shown(&self.subject.rootfs()),
            Manner::Detach,
            &crate::worker::Notes::nowhere(),
        );
    }
}

fn sys_bind(from: &Path, to: &Path) {
    let status = Command::new("mount")
        .arg("--bind")
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

fn config(name: &str, private_pid_ns: bool, hooks: &str) -> String {
    let pid_ns = if private_pid_ns {
        r#"{"type": "pid"}, "#
    } else {
        ""
    };
    format!(
        r#"{{"ociVersion": "1.0.2",
        "process": {{"cwd": "/", "user": {{"uid": 0, "gid": 0}},
            "args": ["/bin/busybox", "sh", "-c",
                     "/bin/busybox sleep 100 & /bin/busybox sleep 100 & wait"]}},
        "root": {{"path": "rootfs"}}, "hostname": "x", {hooks}
        "mounts": [{{"destination": "/proc", "type": "proc", "source": "proc"}}],
        "linux": {{"cgroupsPath": "/{name}",
            "namespaces": [{{"type": "mount"}}, {pid_ns}{{"type": "uts"}}]}}}}"#
    )
}

#[test]
fn a_running_container_goes_wholly_and_again_is_nothing() {
    let mut it = Container::new().start();
    let kept = it.reconcile(Goal::Keep);
    assert_eq!(kept.verdict, Verdict::StillRunning);
    assert!(kept.done.is_empty() && it.alive());

    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.verdict, Verdict::StillRunning);
    assert_eq!(report.exit.status, Status::Signalled(9), "{report:?}");
    assert!(matches!(report.source, Source::Killed | Source::Kernel));
    assert_eq!(report.pid, it.init.pid);
    it.assert_gone(&report);

    it.subject.said = Said::Gone;
    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.verdict, Verdict::NothingLeft, "{report:?}");
    it.assert_gone(&report);
}

#[test]
fn a_created_and_a_frozen_one_go_too() {
    for frozen in [false, true] {
        let it = Container::new();
        if frozen {
            let cgroup = Cgroup::open(&it.hierarchies, &it.subject.claims).unwrap();
            cgroup.request_freeze(true).unwrap();
        }
        let report = it.reconcile(Goal::Gone);
        assert_eq!(report.exit.status, Status::Signalled(9), "{report:?}");
        it.assert_gone(&report);
    }
}

#[test]
fn without_the_journal_runcs_state_is_enough() {
    let mut it = Container::new().start();
    let claims = std::mem::take(&mut it.subject.claims);
    it.subject.init = None;
    it.subject.boot = None;
    it.subject.said = Said::Unreadable;
    let report = it.reconcile(Goal::Gone);
    it.subject.claims = claims;
    assert_eq!(report.row, "running without a record");
    assert_eq!(report.exit.status, Status::Signalled(9));
    it.assert_gone(&report);
}

#[test]
fn without_the_journal_and_runcs_state_the_spec_is_enough() {
    for spec in [true, false] {
        let mut it = Container::new().start();
        fs::remove_dir_all(it.subject.runc_dir()).unwrap();
        if !spec {
            // What is left is the name by convention, /NAMESPACE/ID, which here is not where it
            // lives, and the number in `init.pid`: honest about it, and no harm.
            fs::remove_file(it.subject.bundle.join("config.json")).unwrap();
        }
        let claims = std::mem::take(&mut it.subject.claims);
        it.subject.init = None;
        it.subject.said = Said::Unreadable;
        let report = it.reconcile(Goal::Gone);
        it.subject.claims = claims;
        let row = if spec {
            "traces without a record"
        } else {
            "not to be checked"
        };
        assert_eq!(report.row, row);
        assert!(matches!(report.exit.status, Status::Unknown(_)));
        if spec {
            it.assert_gone(&report);
        }
    }
}

#[test]
fn what_died_inside_create_is_undone() {
    let mut it = Container::new();
    // runc was killed before it wrote its state.
    fs::remove_dir_all(it.subject.runc_dir()).unwrap();
    it.subject.said = Said::Creating;
    it.subject.init = None;
    for claim in &mut it.subject.claims {
        claim.inode = None;
    }
    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.verdict, Verdict::HalfCreated);
    assert_eq!(report.exit.status, Status::Unknown(Because::NeverRan));
    it.assert_gone(&report);
}

#[test]
fn a_recorded_exit_is_the_answer_whatever_we_kill() {
    let mut it = Container::new().start();
    let fd = match proc::open_checked(&it.init).unwrap() {
        Checked::Same(fd) => fd,
        other => panic!("{other:?}"),
    };
    pidfd::send_signal(&fd, 9).unwrap();
    assert!(fd::wait_readable(&fd, LONG).unwrap());
    let exit = Exit {
        status: Status::Exited(7),
        at: Moment { secs: 1, nanos: 2 },
    };
    it.subject.exit = Some(exit);
    it.subject.said = Said::Ended;
    let report = it.reconcile(Goal::Gone);
    assert!(
        matches!(report.verdict, Verdict::ExitNotTold | Verdict::Stragglers),
        "{report:?}"
    );
    assert_eq!((report.exit, report.source), (exit, Source::Record));
    it.assert_gone(&report);
}

#[test]
fn a_pid_that_means_a_stranger_is_not_killed() {
    let mut it = Container::new();
    let mut stranger = Command::new("sleep").arg("100").spawn().unwrap();
    let mut reused = proc::incarnation(stranger.id()).unwrap().unwrap();
    reused.start_ticks -= 1;
    reused.pidfd_inode = None;
    it.subject.init = Some(reused);
    let report = it.reconcile(Goal::Gone);
    let survived = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(survived);
    assert_eq!(report.verdict, Verdict::DiedUnseen);
    assert_eq!(report.exit.status, Status::Unknown(Because::ReaperGone));
    it.assert_gone(&report);
}

#[test]
fn a_stranger_in_the_same_cgroup_lives_and_keeps_it() {
    for private in [true, false] {
        let mut stranger = None;
        let mut it = Container::with(private, |claims| {
            stranger = Some(Container::stranger_in_the_cgroup(claims));
        })
        .start();
        it.strangers.extend(stranger);
        let report = it.reconcile(Goal::Gone);
        assert!(it.strangers[0].try_wait().unwrap().is_none(), "{report:?}");
        assert_eq!(report.facts.group, Group::Foreign);
        assert!(!it.alive());
        assert_eq!(report.exit.status, Status::Signalled(9));
        assert_eq!(report.left, []);
        for claim in &it.subject.claims {
            assert!(Path::new(&claim.path).exists());
        }
        assert!(!it.subject.runc_dir().exists());
    }
}

/// Found by the soak: runc makes itself unchangeable by a mount in its state directory,
/// and one that was killed there left what could not be removed.
#[test]
fn a_runc_that_is_still_mounted_in_its_state_is_unmounted() {
    let it = Container::new().start();
    let dir = it.subject.runc_dir();
    let copy = dir.join("runc.AbCdEf");
    fs::write(&copy, "").unwrap();
    sys_bind(Path::new("/bin/busybox"), &copy);
    let state = fs::read(dir.join("state.json")).unwrap();
    // What runc itself would remove it would not find.
    fs::write(dir.join("state.json"), &state[..state.len() / 2]).unwrap();
    let report = it.reconcile(Goal::Gone);
    let left = mountinfo::below(&mountinfo::as_shown(&dir)).unwrap();
    let _ = unmount_below(&dir, Manner::Detach, &crate::worker::Notes::nowhere());
    assert!(left.is_empty(), "{report:?}");
    it.assert_gone(&report);
}

#[test]
fn another_boots_record_signals_nobody() {
    let mut it = Container::new().start();
    let other = BootId("another".to_owned());
    it.subject.boot = Some(other.clone());
    it.subject.init.as_mut().unwrap().boot = other;
    // Its cgroup is there and populated: it may be seen from outside of its
    // pid namespace, so nothing is touched.
    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.row, "another pid namespace");
    assert!(it.alive() && report.may_live());
    assert!(it.subject.runc_dir().exists());
    assert!(!mountinfo::below(&it.subject.rootfs()).unwrap().is_empty());

    let cgroup = Cgroup::open(&it.hierarchies, &it.subject.claims).unwrap();
    cgroup.kill_until(Instant::now() + LONG).unwrap();
    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.verdict, Verdict::OtherBoot);
    assert_eq!(report.exit.status, Status::Unknown(Because::OtherBoot));
    it.assert_gone(&report);
}

#[test]
fn an_id_that_is_somebody_elses_below_the_same_root_is_left_alone() {
    let mut it = Container::new().start();
    let real = it.subject.clone();
    let bundle = it.dir.path().join("other");
    fs::create_dir_all(&bundle).unwrap();
    it.subject.bundle = bundle;
    it.subject.socket = None;
    it.subject.said = Said::Nothing;
    it.subject.init = None;
    it.subject.claims = Vec::new();
    let report = it.reconcile(Goal::Gone);
    it.subject = real;
    assert_eq!(report.verdict, Verdict::NothingLeft, "{report:?}");
    assert!(it.alive() && it.subject.runc_dir().exists());
}

#[test]
fn without_runc_everything_but_the_hooks_is_done() {
    for script in [
        None,
        Some("#!/bin/sh\nexit 1\n"),
        Some("#!/bin/sh\nexec sleep 100\n"),
    ] {
        let mut it = Container::new().start();
        let program = it.dir.path().join("not-runc");
        if let Some(script) = script {
            fs::write(&program, script).unwrap();
            Command::new("chmod")
                .arg("755")
                .arg(&program)
                .status()
                .unwrap();
        }
        it.subject.runtime.program = program.into();
        let begun = Instant::now();
        let deadline = begun + Duration::from_secs(6);
        let report = reconcile_with(
            &it.subject,
            &it.hierarchies,
            Goal::Gone,
            &it.run(),
            deadline,
        );
        assert!(begun.elapsed() < Duration::from_mins(1));
        assert!(!report.notes.is_empty());
        it.assert_gone(&report);
    }
}

#[test]
fn the_kernel_tells_the_status_of_what_its_parent_reaps_meanwhile() {
    let mut it = Container::new();
    // Init is a zombie that nobody has recorded, as when the pair was killed
    // and process 1 is about to reap.
    let mut child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
    let init = proc::incarnation(child.id()).unwrap().unwrap();
    let fd = pidfd::open(child.id()).unwrap();
    assert!(fd::wait_readable(&fd, LONG).unwrap());
    it.subject.init = Some(init);
    let reaping = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        child.wait().unwrap()
    });
    let report = it.reconcile(Goal::Gone);
    reaping.join().unwrap();
    assert_eq!(report.verdict, Verdict::DiedUnseen);
    // Linux 6.15 on; before, nobody knows.
    match report.source {
        Source::Kernel => assert_eq!(report.exit.status, Status::Exited(7)),
        Source::Record | Source::Killed | Source::Nobody => {
            assert_eq!(report.exit.status, Status::Unknown(Because::ReaperGone));
        }
    }
}

#[test]
fn what_would_not_go_is_named_in_a_tombstone_that_goes_later() {
    let it = Container::new().start();
    // A socket that is a directory cannot be unlinked.
    let socket = it.subject.socket.clone().unwrap();
    fs::remove_file(&socket).unwrap();
    fs::create_dir(&socket).unwrap();
    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.left, [Left::Socket(socket.clone())]);
    assert!(!report.may_live());
    let dir = it.run().join("tombstones");
    let file = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let stone: Tombstone = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(stone.id, it.subject.id.as_str());
    assert_eq!(stone.left, [format!("socket {}", socket.display())]);
    assert_eq!(stone.exit, Some(report.exit));
    fs::remove_dir(&socket).unwrap();
    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.left, []);
    assert!(!file.exists());
}

#[test]
fn what_descends_from_the_reaper_is_killed_and_the_spared_is_not() {
    // A shell stands for the reaper; one of its children for the shim.
    let mut reaper = Command::new("sh")
        .args(["-c", "sleep 100 & sleep 101 & sleep 102 & wait"])
        .process_group(0)
        .spawn()
        .unwrap();
    let end = Instant::now() + LONG;
    let children = loop {
        let pids = proc::descendants(reaper.id()).unwrap();
        if pids.len() == 3 {
            break pids;
        }
        assert!(Instant::now() < end);
        std::thread::yield_now();
    };
    let mut it = Container::new();
    it.subject.below = Some(crate::observe::Below {
        reaper: proc::incarnation(reaper.id()).unwrap().unwrap(),
        spare: vec![children[0]],
        loggers: vec![proc::incarnation(children[1]).unwrap().unwrap()],
    });
    let report = it.reconcile(Goal::Gone);
    let left = proc::descendants(reaper.id()).unwrap();
    for &pid in &left {
        if let Ok(fd) = pidfd::open(pid) {
            let _ = pidfd::send_signal(&fd, 9);
        }
    }
    reaper.wait().unwrap();
    assert_eq!(left, children[..2]);
    assert!(report.done.contains(&Action::KillBelow));
    it.assert_gone(&report);
}

/// All of this file, and the cgroup's, once more on a v2 host: the v2 tree
/// mounted over everything in a mount namespace of our own.
#[test]
fn all_of_it_on_a_v2_host() {
    let host = Hierarchies::read().unwrap();
    let Some(tree) = host.named("").filter(|_| host.mode == cgroup::Mode::V1) else {
        return;
    };
    let script = "mount --make-rprivate / && mount --bind \"$1\" /sys/fs/cgroup && \
        exec \"$2\" --skip on_a_v2_host enact::tests cgroup::tests";
    let out = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(&tree.mount)
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}");
    assert!(
        said.contains("test enact::tests::what_died_inside_create_is_undone ... ok"),
        "{said}"
    );
}
