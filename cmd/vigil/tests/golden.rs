//! Every page the tool prints, word for word: help, tables, plans and errors,
//! over nodes made of files. Change them freely, but on purpose.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;

use common::{Node, OTHER_BOOT, Sleeper, dead, exit, golden};
use vigil_host::enact::{Line, Tombstone};
use vigil_journal::exits::Death;
use vigil_journal::{lock, names};
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
    bytes[200] ^= 0xff;
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
        id: "older".to_owned(),
        namespace: "default".to_owned(),
        bundle: node.path().join("gone"),
        runtime: "runc".into(),
        runtime_root: node.path().join("runc/default"),
        init: Some(dead(4712)),
        exit: None,
        claims: Vec::new(),
        private_pid_ns: Some(true),
        runc_state: None,
        socket: None,
        tries: 0,
        left: vec!["cgroup /sys/fs/cgroup/pids/x".to_owned()],
        stuck: Vec::new(),
    };
    stone.write(&run).unwrap();
}

#[test]
fn help() {
    let node = Node::new();
    let runs: [&[&str]; 5] = [
        &["--help"],
        &["ps", "--help"],
        &["show", "--help"],
        &["repair", "--help"],
        &["history", "--help"],
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

#[test]
fn living_pairs() {
    let mut node = Node::new();
    let init = Sleeper::start();
    let (reaper, shim) = (Sleeper::start(), Sleeper::start());
    let life = node.life("default").creating().created(&init.incarnation());
    let bundle = node.lived("default", "lives", &life.started());
    node.revive(&bundle, &reaper.incarnation(), &shim.incarnation());
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
    node.revive(&bundle, &reaper.incarnation(), &shim.incarnation());
    let bundle = node.lived("default", "making", &node.life("default").creating());
    node.revive(&bundle, &reaper.incarnation(), &shim.incarnation());
    let runs: [&[&str]; 5] = [
        &["ps"],
        &["show", "lives"],
        &["show", "orphan"],
        &["repair"],
        &["repair", "lives", "--write"],
    ];
    let mut page = pages(&node, &runs);
    // Pids have any width, and with them the columns.
    for (process, name) in [(&init, "INIT"), (&reaper, "REAPER"), (&shim, "SHIM")] {
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

#[test]
fn errors() {
    let node = graveyard();
    node.bundle("default", "paused");
    let missing = node.path().join("missing").display().to_string();
    let bundle = node.path().join("state/x/nope").display().to_string();
    let runs: [&[&str]; 14] = [
        &[],
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
    let mut stone = Tombstone::read(&node.run_dir().join("tombstones/default-older.json")).unwrap();
    stone.bundle = node.bundle("other", "older");
    stone.write(&node.run_dir()).unwrap();
    let starting = node.run(&["repair", "--all", "--write"]);
    let lives = node.bundle("other", "older");
    let sleeper = Sleeper::start();
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
    assert!(ran.out.contains("containerd was not heard"), "{}", ran.out);
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
