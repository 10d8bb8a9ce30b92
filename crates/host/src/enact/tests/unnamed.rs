//! Containers whose init nobody has written down, or not legibly; and execs in
//! a cgroup that is shared.

use super::*;

/// In a cgroup with a stranger; cut short before init was recorded.
fn cut_short(private: bool) -> Container {
    let mut stranger = None;
    let mut it = Container::with(private, |claims| {
        stranger = Some(Container::stranger_in_the_cgroup(claims));
    });
    it.strangers.extend(stranger);
    it.subject.said = Said::Creating;
    it.subject.init = None;
    it
}

fn tear(it: &Container) {
    let state = it.subject.runc_dir().join("state.json");
    let text = fs::read(&state).unwrap();
    fs::write(&state, &text[..text.len() / 2]).unwrap();
}

fn strangers_live(it: &mut Container) -> bool {
    let mut all = it.strangers.iter_mut();
    all.all(|stranger| stranger.try_wait().unwrap().is_none())
}

#[test]
fn an_init_without_runcs_state_is_found_in_a_shared_cgroup() {
    for private in [true, false] {
        for torn in [true, false] {
            let mut it = cut_short(private);
            if torn {
                tear(&it);
            } else {
                fs::remove_dir_all(it.subject.runc_dir()).unwrap();
            }
            let report = it.reconcile(Goal::Gone);
            assert!(!it.alive(), "{report:?}");
            assert!(strangers_live(&mut it));
            assert_eq!(report.verdict, Verdict::HalfCreated);
            assert_eq!(report.pid, it.init.pid);
            assert_eq!(report.left, []);
            assert!(!it.subject.runc_dir().exists());
        }
    }
}

#[test]
fn an_init_that_cannot_be_read_is_not_called_dead() {
    let mut it = cut_short(true).start();
    // runc start returns a moment before init becomes the user's program.
    let end = Instant::now() + LONG;
    while proc::stat(it.init.pid)
        .unwrap()
        .unwrap()
        .comm
        .starts_with("runc")
    {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    tear(&it);
    for said in [Said::Creating, Said::HalfMade, Said::Unreadable] {
        it.subject.said = said;
        let report = it.reconcile(Goal::Gone);
        assert_eq!(report.facts.init, vigil_reconcile::Init::Unknown);
        assert!(report.may_live() && it.alive(), "{report:?}");
        assert!(it.subject.runc_dir().exists(), "nothing names it any more");
    }
    // Seen before, and recorded as gone: its end needs no second proof.
    it.subject.said = Said::Gone;
    it.subject.init = Some(it.init.clone());
    pidfd::send_signal(pidfd::open(it.init.pid).unwrap(), 9).unwrap();
    let end = Instant::now() + LONG;
    while it.alive() {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    let report = it.reconcile(Goal::Gone);
    assert!(!report.may_live(), "{report:?}");
    assert!(!it.subject.runc_dir().exists());
}

#[test]
fn a_cgroup_of_its_own_is_proof_enough_for_a_torn_state() {
    for killed in [true, false] {
        let mut it = Container::new().start();
        tear(&it);
        it.subject.said = Said::Creating;
        it.subject.init = None;
        if killed {
            let cgroup = Cgroup::open(&it.hierarchies, &it.subject.claims).unwrap();
            cgroup.kill_until(Instant::now() + LONG).unwrap();
        }
        let report = it.reconcile(Goal::Gone);
        it.assert_gone(&report);
    }
}

/// Nothing is known of where it lives: not even that it does not.
#[test]
fn a_torn_state_and_a_guessed_cgroup_prove_nothing() {
    let mut it = Container::new().start();
    tear(&it);
    fs::remove_file(it.subject.bundle.join("config.json")).unwrap();
    let claims = std::mem::take(&mut it.subject.claims);
    it.subject.said = Said::Unreadable;
    it.subject.init = None;
    let report = it.reconcile(Goal::Gone);
    it.subject.claims = claims;
    assert!(report.may_live() && it.alive(), "{report:?}");
    assert!(it.subject.runc_dir().exists());
}

#[test]
fn recorded_execs_go_with_a_container_that_shares_its_cgroup() {
    let mut it = cut_short(false).start();
    it.subject.said = Said::Live;
    it.subject.init = Some(it.init.clone());
    let pid_file = it.dir.path().join("exec.pid");
    let status = Command::new("runc")
        .arg("--root")
        .arg(&it.subject.runtime.root)
        .args(["exec", "-d", "--pid-file"])
        .arg(&pid_file)
        .arg(it.subject.id.as_str())
        .args(["/bin/busybox", "sleep", "100"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let pid: u32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let exec = proc::incarnation(pid).unwrap().unwrap();
    let mut reused = proc::incarnation(it.strangers[0].id()).unwrap().unwrap();
    reused.start_ticks -= 1;
    reused.pidfd_inode = None;
    it.subject.execs = vec![exec.clone(), reused];
    let report = it.reconcile(Goal::Gone);
    assert!(report.done.contains(&Action::KillBelow), "{report:?}");
    assert!(!it.alive() && strangers_live(&mut it) && !report.may_live());
    match proc::open_checked(&exec).unwrap() {
        Checked::Same(fd) => assert!(pidfd::is_dead(&fd).unwrap(), "the exec lives on"),
        Checked::Gone | Checked::Reused(_) | Checked::Elsewhere => {}
    }
}
