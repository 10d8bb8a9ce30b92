//! Every page the tool prints, word for word: help, tables, plans and errors,
//! over nodes made of files. Change them freely, but on purpose.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use common::{Node, OTHER_BOOT, Ran, Sleeper, dead, exit, golden};
use vigil_host::enact::{CrashNote, Line, Tombstone};
use vigil_journal::exits::Death;
use vigil_journal::takeovers::Takeovers;
use vigil_journal::{lock, names};
use vigil_lab::{by, until};
use vigil_model::{Because, BootId, Status};

/// One page of several runs.
fn pages(node: &Node, runs: &[&[&str]]) -> String {
    let pages: Vec<String> = runs.iter().map(|args| node.run(args).page(args)).collect();
    pages.join("\n")
}

/// A node on which every pair is dead, in every way.
fn graveyard() -> Node {
    let node = Node::new();
    let init = dead(4711);
    let life = || node.life("default").creating();
    let ended = life().created(&init).started().acked();
    node.lived("default", "ended", &ended.ended(&init, Status::Exited(7)));
    node.lived("default", "unseen", &life().created(&init).started());
    node.lived("default", "half", &life());
    let seen = node.lived("default", "seen", &life().created(&init).started());
    let death = Death {
        way: vigil_journal::exits::Way::Waited,
        pid: init.pid,
        start_ticks: init.start_ticks,
        status: 3 << 8,
        at_secs: common::THEN,
        at_nanos: 0,
    };
    Node::exits(&seen, Some(death));
    let lost = node.lived("default", "lost", &life().created(&init).started());
    for name in [names::EXITS, names::PAIR, names::ADDRESS] {
        fs::remove_file(lost.join(name)).unwrap();
    }
    let gone = life()
        .created(&init)
        .started()
        .ended(&init, Status::Signalled(15));
    node.lived("default", "deleted", &gone.acked().deleted());
    let other = life().created(&init).started();
    node.lived_in(
        "default",
        "rebooted",
        &other,
        &BootId(OTHER_BOOT.to_owned()),
    );
    node.lived(
        "k8s.io",
        "paused",
        &life().created(&init).started().paused(),
    );
    // A hole where a record was acknowledged.
    let torn = node.lived("k8s.io", "corrupt", &life().created(&init).started());
    let journal = torn.join(names::JOURNAL);
    let mut bytes = fs::read(&journal).unwrap();
    bytes[376] ^= 0xff;
    fs::write(&journal, bytes).unwrap();
    // The journal is lost; the reaper saw the end of what runc named.
    let named = node.lived("k8s.io", "named", &life());
    fs::remove_file(named.join(names::JOURNAL)).unwrap();
    fs::write(named.join("init.pid"), "4711").unwrap();
    Node::exits(&named, Some(death));
    // All that start does before the reaper has written anything.
    drop(lock::hold(&node.bundle("k8s.io", "early").join(names::LOCK)).unwrap());
    // Another runtime's, and what nobody knows.
    fs::write(node.bundle("k8s.io", "other").join("config.json"), "{}").unwrap();
    node.bundle("k8s.io", "..data");
    node.bundle("k8s.io", "not an id");
    node
}

fn keepsakes(node: &Node) {
    let line = |id: &str, status, after, left: &[&str]| Line {
        format: vigil_host::enact::FORMAT,
        id: id.to_owned(),
        namespace: "default".to_owned(),
        found: "still running".to_owned(),
        exit: Some(exit(status, after)),
        done: vec!["KillInit".to_owned(), "RuncDelete".to_owned()],
        left: left.iter().map(|left| (*left).to_owned()).collect(),
        takeovers: 2,
    };
    let run = node.run_dir();
    line("old", Status::Exited(0), 0, &[]).append(&run).unwrap();
    let because = Status::Unknown(Because::ReaperGone);
    line("older", because, 90_000, &["cgroup /sys/fs/cgroup/pids/x"])
        .append(&run)
        .unwrap();
    let stone = Tombstone {
        format: vigil_host::enact::FORMAT,
        id: "older".to_owned(),
        namespace: "default".to_owned(),
        bundle: node.path().join("gone"),
        runtime: "runc".into(),
        runtime_root: node.path().join("runc/default"),
        init: Some(dead(4712)),
        exit: None,
        claims: Vec::new(),
        private_pid_ns: Some(true),
        life: None,
        pid_ns: None,
        runc_state: None,
        socket: None,
        tries: 0,
        left: vec!["cgroup /sys/fs/cgroup/pids/x".to_owned()],
        stuck: Vec::new(),
        holdouts: Vec::new(),
        at_work: None,
    };
    stone.write(&run).unwrap();
}

#[test]
fn help() {
    let node = Node::new();
    let runs: [&[&str]; 7] = [
        &["--help"],
        &["ps", "--help"],
        &["show", "--help"],
        &["repair", "--help"],
        &["kill", "--help"],
        &["history", "--help"],
        &["upgrade", "--help"],
    ];
    golden("help", &pages(&node, &runs));
}

#[test]
fn ps() {
    let node = graveyard();
    keepsakes(&node);
    golden("ps", &pages(&node, &[&["ps"], &["ps", "-n", "default"]]));
}

#[test]
fn ps_of_a_quiet_node() {
    let node = Node::new();
    golden("ps-quiet", &pages(&node, &[&["ps"], &["ps", "--json"]]));
}

#[test]
fn ps_as_json() {
    let node = Node::new();
    let init = dead(4711);
    let life = node.life("default").creating().created(&init).started();
    node.lived("default", "ended", &life.ended(&init, Status::Exited(7)));
    golden("ps-json", &pages(&node, &[&["ps", "--json"]]));
}

/// A living pair of this bundle.
fn paired(node: &mut Node, bundle: &Path) -> (Sleeper, Sleeper) {
    let (reaper, shim) = (Sleeper::at(bundle), Sleeper::at(bundle));
    node.revive(bundle, &reaper.incarnation(), &shim.incarnation());
    (reaper, shim)
}

#[test]
fn living_pairs() {
    let mut node = Node::new();
    let init = Sleeper::start();
    let mut pairs = Vec::new();
    let life = node.life("default").creating().created(&init.incarnation());
    let bundle = node.lived("default", "lives", &life.started());
    pairs.push(paired(&mut node, &bundle));
    let orphan = node.life("default").creating().created(&init.incarnation());
    node.lived("default", "orphan", &orphan.started());
    let init_dead = dead(4711);
    let stopped = node
        .life("default")
        .creating()
        .created(&init_dead)
        .started();
    let stopped = stopped.ended(&init_dead, Status::Exited(0));
    let bundle = node.lived("default", "stopped", &stopped);
    pairs.push(paired(&mut node, &bundle));
    let bundle = node.lived("default", "making", &node.life("default").creating());
    pairs.push(paired(&mut node, &bundle));
    let runs: [&[&str]; 5] = [
        &["ps"],
        &["show", "lives"],
        &["show", "orphan"],
        &["repair"],
        &["repair", "lives", "--write"],
    ];
    let mut page = pages(&node, &runs);
    // Pids have any width, and with them the columns.
    let mut names = vec![(&init, "INIT")];
    for (reaper, shim) in &pairs {
        names.extend([(reaper, "REAPER"), (shim, "SHIM")]);
    }
    for (process, name) in names {
        page = page.replace(&format!(" {} ", process.0.id()), &format!(" {name} "));
        page = page.replace(&format!(" {}\n", process.0.id()), &format!(" {name}\n"));
        page = page.replace(&format!(" {},", process.0.id()), &format!(" {name},"));
    }
    while page.contains("   ") {
        page = page.replace("   ", "  ");
    }
    golden("living", &page);
}

#[test]
fn show() {
    let node = graveyard();
    keepsakes(&node);
    let runs: [&[&str]; 11] = [
        &["show", "ended"],
        &["show", "seen"],
        &["show", "lost"],
        &["show", "unseen"],
        &["show", "deleted"],
        &["show", "corrupt"],
        &["show", "early"],
        &["show", "rebooted"],
        &["show", "other"],
        &["show", "old"],
        &["show", "older"],
    ];
    golden("show", &pages(&node, &runs));
}

#[test]
fn show_as_json() {
    let node = graveyard();
    keepsakes(&node);
    let runs: [&[&str]; 2] = [&["show", "ended", "--json"], &["show", "old", "--json"]];
    golden("show-json", &pages(&node, &runs));
}

/// A program of this text.
fn program(node: &Node, name: &str, text: &str) -> String {
    let path = node.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Stories told by the reaper, and what crashes have left.
#[test]
fn takeovers_and_crashes() {
    let node = Node::new();
    let init = dead(4711);
    let life = || node.life("default").creating().created(&init).started();
    let bundle = node.lived("default", "often", &life());
    node.lived("default", "never", &life());
    let broken = node.lived("default", "broken", &life());
    fs::write(broken.join(names::TAKEOVERS), "vigil-takeovers 9\n").unwrap();
    let causes = [
        "died 9",
        "died 134",
        "stuck",
        "asked",
        "upgrade",
        "refused exit status 1 no journal",
        "eaten by moths",
    ];
    let mut told = Takeovers::default();
    for (second, cause) in (0..).zip(causes) {
        told.add(cause);
        let last = told.last.back_mut().unwrap();
        (last.at_secs, last.at_nanos) = (common::THEN + second, 500_000_000);
    }
    told.write(&bundle.join(names::TAKEOVERS), &common::owner(&bundle))
        .unwrap();
    let run = node.run_dir();
    // Once the notes of earlier containers of the same id were told as this one's, where they
    // do not say whose they are, or where nothing but the journal tells which this one is.
    std::fs::remove_file(bundle.join(names::PAIR)).unwrap();
    for (id, salt, words) in [
        ("often", Some(7), Some("panicked at x.rs:1:\n\u{1b}[2Jno")),
        ("often", Some(7), None),
        ("often", Some(8), Some("of an earlier one")),
        ("often", None, Some("of one long ago")),
        ("gone", None, None),
    ] {
        let note = CrashNote {
            format: vigil_host::enact::FORMAT,
            id: id.to_owned(),
            namespace: "default".to_owned(),
            salt: salt.map(|salt| format!("{salt:016x}")),
            at: common::at(3),
            version: "0.1.0".to_owned(),
            how: "killed by signal 6".to_owned(),
            words: words.map(ToOwned::to_owned),
            records: vec!["1: creating".to_owned(), "2: created, 1 events".to_owned()],
        };
        note.append(&run).unwrap();
    }
    let runs: [&[&str]; 6] = [
        &["ps"],
        &["show", "often"],
        &["show", "often", "--json"],
        &["show", "broken"],
        &["show", "gone"],
        &["history"],
    ];
    golden("takeovers", &pages(&node, &runs));
}

/// The other side of `vigil upgrade`, played by a shell: it does what it is told when it is
/// asked, with its bundle as working directory.
fn reaper(bundle: &Path, asked: &str) -> Sleeper {
    let script = format!("trap '{asked}' USR1; : >ready; while :; do sleep 0.02; done");
    let child = Command::new("sh")
        .args(["-c", &script])
        .current_dir(bundle)
        .spawn();
    let reaper = Sleeper(child.unwrap());
    until("the reaper to listen", by(10.0), || {
        bundle.join("ready").exists().then_some(())
    })
    .unwrap();
    reaper
}

#[test]
fn upgrade() {
    let mut node = Node::new();
    let init = dead(4711);
    let good = program(
        &node,
        "good",
        "#!/bin/sh\necho \"  Version:  9.9.9\"\necho \"  Runtime:  io.containerd.vigil.v2\"\n",
    );
    let mut kept = Vec::new();
    for (id, cause, asked) in [
        ("done", Some("upgrade"), "cp story takeovers; rm next"),
        (
            "refused",
            Some("refused exit status 3 no"),
            "cp story takeovers; rm next",
        ),
        ("unwilling", None, "rm next"),
        ("dies", None, "exit"),
    ] {
        let life = node.life("default").creating().created(&init).started();
        let bundle = node.lived("default", id, &life);
        let mut told = Takeovers::default();
        if let Some(cause) = cause {
            told.add(cause);
        }
        told.write(&bundle.join("story"), &common::owner(&bundle))
            .unwrap();
        let reaper = reaper(&bundle, asked);
        node.revive(&bundle, &reaper.incarnation(), &dead(102));
        kept.push(reaper);
    }
    let life = node.life("default").creating().created(&init).started();
    node.lived("default", "lost", &life);
    let runs: [&[&str]; 4] = [
        &["upgrade", "done", "--binary", &good],
        &["upgrade", "refused", "--binary", &good, "--json"],
        &["upgrade", "lost", "--binary", &good],
        &["upgrade", "dies", "--binary", &good],
    ];
    let page = pages(&node, &runs).replace(&node.path().display().to_string(), "NODE");
    golden("upgrade", &page);
    for (id, bundle) in [("dies", "dies"), ("unwilling", "unwilling")] {
        let next = node.bundle("default", bundle).join(names::NEXT);
        assert!(fs::symlink_metadata(&next).is_err(), "{id}");
    }
    let ran = node.run(&["upgrade", "unwilling", "--binary", &good, "--deadline", "2"]);
    assert!(ran.out.contains("its reaper would not"), "{}", ran.out);
    // Somebody else's is left alone, unless nobody waits for it any more.
    let next = node.bundle("default", "done").join(names::NEXT);
    std::os::unix::fs::symlink("/elsewhere", &next).unwrap();
    let ran = node.run(&["upgrade", "done", "--binary", &good]);
    assert!(
        ran.out.contains("another upgrade of it is under way"),
        "{}",
        ran.out
    );
    assert!(fs::symlink_metadata(&next).is_ok());
    // Three in a row are enough for all the others.
    for id in ["refused-a", "refused-b", "refused-c", "refused-d"] {
        let life = node.life("other").creating().created(&init).started();
        let bundle = node.lived("other", id, &life);
        let mut told = Takeovers::default();
        told.add("refused exit status 3");
        told.write(&bundle.join("story"), &common::owner(&bundle))
            .unwrap();
        let reaper = reaper(&bundle, "cp story takeovers; rm next");
        node.revive(&bundle, &reaper.incarnation(), &dead(102));
        kept.push(reaper);
    }
    let life = node.life("other").creating().created(&init).started();
    node.lived("other", "refused-z", &life);
    fs::write(node.bundle("other", "others").join("config.json"), "{}").unwrap();
    let ran = node.run(&["upgrade", "--all", "-n", "other", "--binary", &good]);
    assert_eq!(ran.code, 3);
    assert_eq!(ran.out.matches("refused   ").count(), 3, "{}", ran.out);
    assert_eq!(ran.out.matches("not tried").count(), 1, "{}", ran.out);
    // What is dead, or another runtime's, is not tried in any case.
    assert_eq!(
        ran.out.matches("its reaper is gone").count(),
        1,
        "{}",
        ran.out
    );
    let ran = node.run(&["upgrade", "others", "--binary", &good]);
    assert!(ran.out.contains("another runtime's"), "{}", ran.out);
}

#[test]
fn errors() {
    let node = graveyard();
    node.bundle("default", "paused");
    let missing = node.path().join("missing").display().to_string();
    let bundle = node.path().join("state/x/nope").display().to_string();
    let turn = node.path().join("turn").display().to_string();
    std::os::unix::fs::symlink(&turn, &turn).unwrap();
    let empty = program(&node, "empty", "");
    let mute = program(&node, "mute", "#!/bin/sh\n");
    let plain = node.path().join("plain").display().to_string();
    fs::write(&plain, "x").unwrap();
    let state = node.path().join("state").display().to_string();
    let garbage = program(&node, "garbage", "\u{7f}ELF");
    // It went through, and the shim that served was taken down and put back.
    let others = program(&node, "others", "#!/bin/sh\necho \"  Version:  1.6.20\"\n");
    let runs: [&[&str]; 25] = [
        &[],
        &["upgrade"],
        &["upgrade", "ended", "--all"],
        &["upgrade", "nope"],
        &["upgrade", "ended", "--binary", &missing],
        &["upgrade", "ended", "--binary", &state],
        &["upgrade", "ended", "--binary", &turn],
        &["upgrade", "ended", "--binary", &plain],
        &["upgrade", "ended", "--binary", &empty],
        &["upgrade", "ended", "--binary", &mute],
        &["upgrade", "ended", "--binary", &garbage],
        &["upgrade", "ended", "--binary", &others],
        &["ps", "--state", &missing],
        &["ps", "-n", "no/namespace"],
        &["show"],
        &["show", "nope"],
        &["show", "paused"],
        &["show", "no id"],
        &["show", &bundle],
        &["repair", "--write"],
        &["repair", "nope"],
        &["repair", "ended", "--all"],
        &["repair", "--deadline", "0"],
        &["history", "nope"],
        &["history", "--run", "/dev/null"],
    ];
    let dir = node.path().display().to_string();
    golden("errors", &pages(&node, &runs).replace(&dir, "NODE"));
}

#[test]
fn repair_plans_and_changes_nothing() {
    let node = graveyard();
    keepsakes(&node);
    let before = tree(&node);
    let runs: [&[&str]; 3] = [
        &["repair"],
        &["repair", "ended"],
        &["repair", "half", "--json"],
    ];
    golden("repair-plan", &pages(&node, &runs));
    assert_eq!(tree(&node), before);
}

#[test]
fn repair_writes() {
    let node = graveyard();
    keepsakes(&node);
    let runs: [&[&str]; 4] = [
        &["repair", "ended", "--write"],
        &["repair", "--all", "--write"],
        &["repair"],
        &["ps"],
    ];
    golden("repair-write", &pages(&node, &runs));
    let shown = node.run(&["show", "ended"]);
    assert!(shown.out.contains("deleted"), "{}", shown.out);
    let told = node.run(&["history", "ended"]);
    assert!(told.out.contains("exit 7"), "{}", told.out);
}

#[test]
fn repair_kills_what_a_dead_pair_left_and_records_how_it_ended() {
    let node = Node::new();
    let mut init = Sleeper::start();
    let life = node.life("default").creating().created(&init.incarnation());
    node.lived("default", "orphan", &life.started());
    let ran = node.run(&["repair", "orphan", "--write"]);
    golden("repair-kill", &ran.page(&["repair", "orphan", "--write"]));
    assert_eq!(init.0.wait().unwrap().signal(), Some(9));
    let shown = node.run(&["show", "orphan", "--json"]);
    assert!(shown.out.contains(r#""signalled": 9"#), "{}", shown.out);
    assert_eq!(shown.code, 0);
}

#[test]
fn a_tombstone_of_an_id_in_use_is_left_alone() {
    let mut node = Node::new();
    keepsakes(&node);
    let mut stone = Tombstone::read(&node.run_dir().join("tombstones/default+older.json")).unwrap();
    stone.bundle = node.bundle("other", "older");
    stone.write(&node.run_dir()).unwrap();
    let starting = node.run(&["repair", "--all", "--write"]);
    let lives = node.bundle("other", "older");
    let sleeper = Sleeper::at(&lives);
    node.revive(&lives, &sleeper.incarnation(), &sleeper.incarnation());
    let living = node.run(&["repair", "--all", "--write"]);
    for ran in [starting, living] {
        assert_eq!(ran.code, 3, "{}", ran.out);
        assert!(
            ran.out.contains("left alone: its id is in use again"),
            "{}",
            ran.out
        );
    }
    assert!(stone.path(&node.run_dir()).exists());
}

/// A `delete` that could not end everything at once has the lock while it tries: `ps` and `show`
/// called the pair alive, whose both processes they saw dead, and `repair` had nothing to do.
#[test]
fn who_waits_for_what_a_dead_pair_left_is_told() {
    let node = Node::new();
    let init = Sleeper::start();
    let life = node.life("default").creating().created(&init.incarnation());
    let bundle = node.lived("default", "held", &life.started());
    let args = ["--no-fork", "lock", "sh", "-c", ": >has-it; exec sleep 600"];
    let mut delete = Command::new("flock");
    let delete = Sleeper(delete.args(args).current_dir(&bundle).spawn().unwrap());
    until("the lock to be taken", by(20.0), || {
        bundle.join("has-it").exists().then_some(())
    })
    .unwrap();
    let who = format!("process {} (`sleep 600`)", delete.0.id());
    let whom = format!("waits for process {} (sleep), state S", init.0.id());
    for (args, code) in [
        (&["ps"][..], 3),
        (&["ps", "--json"], 3),
        (&["show", "held"], 3),
        (&["repair"], 3),
        (&["repair", "held", "--write"], 3),
        (&["kill", "held", "--deadline", "1"], 1),
    ] {
        let Ran {
            code: ended,
            out,
            err,
        } = node.run(args);
        let said = out + &err;
        assert_eq!(ended, code, "{args:?}: {said}");
        assert!(
            said.contains(&who) && said.contains(&whom),
            "{args:?}: {said}"
        );
        assert!(!said.contains("pair is alive"), "{args:?}: {said}");
    }
    let shown = node.run(&["show", "held", "--json"]).out;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["pair"]["life"], "ending");
}

/// Its number may be anybody's by now.
#[test]
fn who_is_dead_is_not_named_to_be_ended() {
    let mut node = Node::new();
    let init = dead(4711);
    let life = node.life("default").creating().created(&init).started();
    let bundle = node.lived("default", "half", &life);
    let reaper = Sleeper::at(&bundle);
    node.revive(&bundle, &reaper.incarnation(), &dead(102));
    let shown = node.run(&["show", "half"]).out;
    let to_end = shown
        .lines()
        .find(|line| line.starts_with("to end it"))
        .unwrap();
    assert!(
        to_end.ends_with(&format!("process {}", reaper.0.id())),
        "{to_end}"
    );
}

/// `repair` knew that, and `ps` told of everybody's, with exit code 3.
#[test]
fn tombstones_are_of_a_namespace_too() {
    let node = Node::new();
    keepsakes(&node);
    for (namespace, code) in [("default", 3), ("k8s.io", 0)] {
        let ran = node.run(&["ps", "-n", namespace]);
        assert_eq!(ran.code, code, "{}", ran.out);
        assert_eq!(ran.out.contains("tombstone"), code == 3, "{}", ran.out);
    }
}

/// `delete` failed, containerd has forgotten the container, and later nothing was left of it but
/// the bundle: the id could not be used, and the tool said that all is well.
#[test]
fn a_bundle_that_containerd_has_forgotten_is_something_wrong() {
    let node = Node::new();
    let init = dead(4711);
    let life = node.life("default").creating().created(&init).started();
    let life = life.ended(&init, Status::Exited(0)).acked().deleted();
    let bundle = node.lived("default", "old", &life);
    let says = "does not remove its bundle";
    let told = |code: i32, wrong: bool| {
        for args in [
            &["ps"][..],
            &["show", "old"],
            &["repair"],
            &["repair", "old", "--write"],
        ] {
            let ran = node.run(args);
            assert_eq!(ran.code, code, "{args:?}: {}", ran.out);
            assert_eq!(ran.out.contains(says), wrong, "{args:?}: {}", ran.out);
        }
    };
    let old = std::time::SystemTime::now() - std::time::Duration::from_hours(1);
    let age = |path: &Path| fs::File::open(path).unwrap().set_modified(old).unwrap();
    // With a containerd that is down it waits for it to come back.
    age(&bundle.join(names::JOURNAL));
    age(&bundle);
    told(0, false);
    let socket = node.path().join("state/containerd.sock");
    let _containerd = std::os::unix::net::UnixListener::bind(socket).unwrap();
    told(3, true);
    // It may be about to be removed.
    fs::write(bundle.join("new"), "").unwrap();
    told(0, false);
}

#[test]
fn history() {
    let node = Node::new();
    keepsakes(&node);
    let path = node.run_dir().join("history");
    let mut text = fs::read_to_string(&path).unwrap();
    text.insert_str(0, "{\"id\":\n");
    fs::write(&path, text).unwrap();
    let runs: [&[&str]; 3] = [
        &["history"],
        &["history", "old"],
        &["history", "--last", "1", "--json"],
    ];
    golden("history", &pages(&node, &runs));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let node = graveyard();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = node.command(&["ps"]).stdout(writer).output().unwrap();
    assert_eq!(ran.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
    // And a disk that is full is one.
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let ran = node.command(&["ps"]).stdout(full).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("cannot write to stdout"));
}

#[test]
fn a_containerd_that_is_down_is_a_question_mark() {
    let node = graveyard();
    let ran = node.run(&["ps", "--ask", "-n", "default"]);
    // Once it said so of each task, which all are of one namespace.
    let said = ran.out.matches("containerd was not heard").count();
    assert_eq!(said, 1, "{}", ran.out);
    assert_eq!(ran.code, 3);
    assert!(!ran.out.contains("not asked"), "{}", ran.out);
}

/// Every file of a node with its bytes.
fn tree(node: &Node) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![node.path().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                found.push((path.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
