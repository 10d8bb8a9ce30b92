//! poststop hooks: at least once for each container that was created, and at
//! most once unless `runc delete` was killed inside, whatever the runtime does.

use super::*;

/// A running container whose poststop hook adds a line to a file.
fn hooked(private: bool, shared: bool) -> Container {
    let mut stranger = None;
    let prepare = |claims: &[Claim]| {
        stranger = shared.then(|| Container::stranger_in_the_cgroup(claims));
    };
    let mut it = Container::of(private, prepare, |dir| {
        let file = dir.join("stopped");
        format!(
            r#""hooks": {{"poststop": [{{"path": "/bin/sh",
                "args": ["sh", "-c", "cat >> $FILE; echo >> $FILE"],
                "env": ["FILE={}"]}}]}},"#,
            file.display()
        )
    })
    .start();
    it.strangers.extend(stranger);
    it
}

fn hooks_run(it: &Container) -> Vec<String> {
    let text = fs::read_to_string(it.dir.path().join("stopped")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A runtime that does this and may then be runc.
fn runtime(it: &Container, script: &str) -> std::ffi::OsString {
    let program = it.dir.path().join("scripted");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    let status = Command::new("chmod").arg("755").arg(&program).status();
    assert!(status.unwrap().success());
    program.into()
}

#[test]
fn a_runc_delete_that_fails_once_is_tried_again() {
    let mut it = hooked(true, false);
    let once = it.dir.path().join("once");
    let script = format!(
        "mkdir {} 2> /dev/null && exit 1; exec runc \"$@\"",
        once.display()
    );
    it.subject.runtime.program = runtime(&it, &script);
    let report = it.reconcile(Goal::Gone);
    it.assert_gone(&report);
    assert_eq!(hooks_run(&it).len(), 1, "{report:?}");
    assert!(once.exists());
}

#[test]
fn a_runc_delete_that_fails_leaves_the_hooks_to_a_later_one() {
    let mut it = hooked(true, false);
    for script in ["exit 1", "exec sleep 100"] {
        it.subject.runtime.program = runtime(&it, script);
        let begun = Instant::now();
        let report = reconcile_with(
            &it.subject,
            &it.hierarchies,
            Goal::Gone,
            &it.run(),
            begun + Duration::from_secs(5),
        );
        assert!(begun.elapsed() < Duration::from_mins(1));
        assert!(!report.may_live() && !it.alive(), "{report:?}");
        assert_eq!(report.left, [Left::RuncState(it.subject.runc_dir())]);
        assert!(it.subject.runc_dir().join("state.json").exists());
        assert_eq!(hooks_run(&it), [] as [&str; 0]);
        let stones = Tombstone::all(&it.run()).unwrap();
        assert_eq!(stones.len(), 1);
    }
    // The bundle may be gone by then.
    let stone = Tombstone::all(&it.run()).unwrap().remove(0).unwrap();
    it.subject = Subject {
        socket: it.subject.socket.clone(),
        ..stone.subject().unwrap()
    };
    fs::remove_file(it.subject.bundle.join("config.json")).unwrap();
    it.subject.runtime.program = "runc".into();
    let report = it.reconcile(Goal::Gone);
    it.assert_gone(&report);
    assert_eq!(hooks_run(&it).len(), 1);
}

#[test]
fn hooks_that_runc_cannot_run_any_more_are_run_all_the_same() {
    let it = hooked(true, false);
    let state = it.subject.runc_dir().join("state.json");
    let text = fs::read(&state).unwrap();
    fs::write(&state, &text[..text.len() / 2]).unwrap();
    let report = it.reconcile(Goal::Gone);
    it.assert_gone(&report);
    let told = hooks_run(&it);
    assert_eq!(told.len(), 1, "{report:?}");
    let told: serde_json::Value = serde_json::from_str(&told[0]).unwrap();
    assert_eq!(told["id"], it.subject.id.as_str());
    assert_eq!(told["status"], "stopped");
    assert_eq!(told["bundle"], it.subject.bundle.to_str().unwrap());
}

/// The shim answered Delete in time, and left runc's state to a tombstone.
#[test]
fn a_delete_that_was_answered_without_its_hooks_owes_them() {
    let mut it = hooked(true, false);
    it.subject.runtime.program = runtime(&it, "exit 1");
    let report = it.reconcile(Goal::Gone);
    assert_eq!(report.left, [Left::RuncState(it.subject.runc_dir())]);
    let mut task = vigil_model::Task::default();
    task.standing.phase = vigil_model::Phase::Deleted {
        pid: it.init.pid,
        exit: report.exit,
    };
    it.subject.recall(&task, it.init.boot.clone(), true);
    it.subject.runtime.program = "runc".into();
    let again = it.reconcile(Goal::Gone);
    assert_eq!((again.exit, again.pid), (report.exit, it.init.pid));
    it.assert_gone(&again);
    assert_eq!(hooks_run(&it).len(), 1, "{again:?}");
}

/// runc 1.1 writes its state only after the createRuntime hooks.
#[test]
fn hooks_of_a_create_that_was_cut_short_are_run() {
    let mut it = hooked(true, false);
    fs::remove_file(it.subject.runc_dir().join("state.json")).unwrap();
    it.subject.said = Said::Creating;
    it.subject.init = None;
    let report = it.reconcile(Goal::Gone);
    it.assert_gone(&report);
    assert_eq!(hooks_run(&it).len(), 1, "{report:?}");
    it.reconcile(Goal::Gone);
    assert_eq!(hooks_run(&it).len(), 1, "twice");
}

#[test]
fn where_runc_would_kill_strangers_its_hooks_are_run_without_it() {
    let mut it = hooked(false, true);
    let report = it.reconcile(Goal::Gone);
    assert!(it.strangers[0].try_wait().unwrap().is_none(), "{report:?}");
    assert_eq!(report.left, []);
    assert!(!it.subject.runc_dir().exists() && !it.alive());
    assert_eq!(hooks_run(&it).len(), 1);
    it.reconcile(Goal::Gone);
    assert_eq!(hooks_run(&it).len(), 1);
}

/// Found by the simulator: the cgroups could not be looked at, so nobody saw
/// that one of them was shared.
#[test]
fn what_could_not_be_looked_at_is_taken_for_shared() {
    let mut it = hooked(false, true);
    let seen = observe_with(&it.subject, None);
    assert_eq!(seen.facts.group, Group::Unknown);
    let end = Instant::now() + Duration::from_mins(1);
    let report = super::reconcile(&it.subject, seen, Goal::Gone, &it.run(), end);
    assert!(it.strangers[0].try_wait().unwrap().is_none(), "{report:?}");
    assert!(it.subject.runc_dir().exists() && hooks_run(&it).is_empty());
    it.reconcile(Goal::Gone);
    assert_eq!(hooks_run(&it).len(), 1);
}

#[test]
fn a_hook_that_does_not_end_is_ended() {
    let mut it = hooked(false, true);
    let file = it.subject.bundle.join("config.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("cat >> $FILE", "sleep 100; cat >> $FILE"),
    )
    .unwrap();
    let begun = Instant::now();
    let report = reconcile_with(
        &it.subject,
        &it.hierarchies,
        Goal::Gone,
        &it.run(),
        begun + Duration::from_secs(5),
    );
    assert!(begun.elapsed() < Duration::from_mins(1));
    assert!(!it.alive() && it.strangers[0].try_wait().unwrap().is_none());
    assert!(report.notes.iter().any(|note| note.contains("overdue")));
}
