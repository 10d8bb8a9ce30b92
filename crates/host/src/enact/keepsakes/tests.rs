//! What is kept, and what lies in its way, on a real file system.

#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;

#[test]
fn the_history_is_bounded_and_its_lines_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let line = Line {
        format: FORMAT,
        id: "x".to_owned(),
        namespace: "n".to_owned(),
        found: "y".repeat(100_000),
        exit: None,
        done: Vec::new(),
        left: Vec::new(),
        takeovers: 0,
    };
    for _ in 0..30 {
        line.append(dir.path()).unwrap();
    }
    let mut size = 0;
    for name in ["history", "history.old"] {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        size += text.len() as u64;
        for one in text.lines() {
            assert_eq!(serde_json::from_str::<Line>(one).unwrap(), line);
        }
    }
    assert!(size <= HISTORY_LEN_MAX + 200_000, "{size}");
    let all = Line::all(dir.path());
    assert_eq!(all.len() as u64, size / 100_000);
    assert!(all.iter().all(|one| *one.as_ref().unwrap() == line));
}

#[test]
fn a_torn_line_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Line::all(dir.path()).is_empty());
    let line = r#"{"id":"x","namespace":"n","found":"f","exit":null,"done":[],"left":[]}"#;
    let text = format!("{line}\n{{\"id\":\n{line}\n");
    fs::write(dir.path().join("history"), text).unwrap();
    let all = Line::all(dir.path());
    assert!(matches!(
        &all[..],
        [Ok(_), Err(Error::Malformed { .. }), Ok(_)]
    ));
}

#[test]
fn a_tombstone_is_a_record_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Tombstone::all(dir.path()).unwrap().is_empty());
    let stone = Tombstone {
        format: FORMAT,
        id: "x".to_owned(),
        namespace: "n".to_owned(),
        bundle: PathBuf::from("/b/n/x"),
        runtime: PathBuf::from("/bin/runc"),
        runtime_root: PathBuf::from("/r/n"),
        init: None,
        exit: None,
        claims: Vec::new(),
        private_pid_ns: None,
        life: None,
        pid_ns: None,
        runc_state: None,
        socket: None,
        tries: 0,
        left: vec!["socket /s".to_owned()],
        stuck: Vec::new(),
        holdouts: Vec::new(),
        at_work: None,
    };
    let path = stone.write(dir.path()).unwrap();
    fs::write(path.with_file_name("n+y.json"), "{").unwrap();
    fs::write(path.with_extension("7.new"), "{").unwrap();
    let all = Tombstone::all(dir.path()).unwrap();
    assert!(matches!(&all[..], [Ok(one), Err(Error::Malformed { .. })] if *one == stone));
    let subject = stone.subject().unwrap();
    assert_eq!(subject.runc_dir(), Path::new("/r/n/x"));
    assert_eq!(subject.said, Said::Unreadable);
    let foreign = Tombstone {
        id: "../x".to_owned(),
        ..stone
    };
    assert!(matches!(foreign.subject(), Err(Error::Malformed { .. })));
}

#[test]
fn a_note_is_a_page_and_there_are_not_too_many() {
    let dir = tempfile::tempdir().unwrap();
    assert!(CrashNote::all(dir.path()).is_empty());
    let long = "\u{1}".repeat(10_000);
    let mut note = CrashNote {
        format: FORMAT,
        id: "x".repeat(76),
        namespace: "y".repeat(76),
        salt: Some("f".repeat(16)),
        at: Moment { secs: 7, nanos: 8 },
        version: "0.1.0".to_owned(),
        how: "z".repeat(10_000),
        words: Some("ü".repeat(10_000)),
        records: vec!["r".repeat(10_000); 100],
    };
    for _ in 0..300 {
        note.append(dir.path()).unwrap();
    }
    for name in ["crashes", "crashes.old"] {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(
            text.len() as u64 <= CRASHES_LEN_MAX / 2 + 4096,
            "{}",
            text.len()
        );
        assert!(text.lines().all(|line| line.len() < 4096));
    }
    let all = CrashNote::all(dir.path());
    assert!((32..=128).contains(&all.len()), "{}", all.len());
    assert!(all[0].as_ref().unwrap().how.starts_with("zzz"));
    note.words = Some(long);
    note.append(dir.path()).unwrap();
}

/// `a-b` and `c` once gave the same file as `a` and `b-c`: one stone took the other's
/// place, and what it named was left for ever.
#[test]
fn two_containers_never_share_a_stone() {
    let dir = tempfile::tempdir().unwrap();
    let stone = |namespace: &str, id: &str| {
        let text = format!(
            r#"{{"id":"{id}","namespace":"{namespace}","bundle":"/b","runtime":"/r",
            "runtime_root":"/r","init":null,"exit":null,"claims":[],"left":[]}}"#
        );
        serde_json::from_str::<Tombstone>(&text).unwrap()
    };
    let (one, two) = (stone("a-b", "c"), stone("a", "b-c"));
    // As an earlier version has put it up.
    let old = dir.path().join("tombstones/a-b-c.json");
    one.write(dir.path()).unwrap();
    fs::rename(one.path(dir.path()), &old).unwrap();
    two.write(dir.path()).unwrap();
    let all: Vec<_> = Tombstone::all(dir.path()).unwrap();
    let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(all.len(), 2);
    two.remove(dir.path()).unwrap();
    assert!(old.exists(), "the other's stone under its old name");
    // The new name takes the old one's place, and both go with the stone.
    one.write(dir.path()).unwrap();
    assert!(!old.exists() && one.path(dir.path()).exists());
    one.remove(dir.path()).unwrap();
    assert!(Tombstone::all(dir.path()).unwrap().is_empty());
}

/// Somebody who was stopped in the middle of reading the history held up every `delete`
/// of the node.
#[test]
fn nobody_waits_for_ever_for_a_turn() {
    let dir = tempfile::tempdir().unwrap();
    let stopped = File::open(dir.path()).unwrap();
    stopped.lock().unwrap();
    let (done, over) = std::sync::mpsc::channel();
    let run = dir.path().to_owned();
    std::thread::spawn(move || {
        let lines = Lines("held", 1 << 20);
        let added = lines
            .append(&run, &serde_json::json!({"a": 1}))
            .map_err(|error| error.to_string());
        let all = lines.all::<serde_json::Value>(&run);
        let all = all.into_iter().flatten().count();
        done.send((added, all)).unwrap();
    });
    let told = over.recv_timeout(Duration::from_secs(30));
    assert_eq!(told, Ok((Ok(()), 1)));
}

/// Two writers that both saw the history full both moved it away, the second one the
/// empty file over the half that was to be kept.
#[test]
fn of_many_writers_no_line_is_lost_before_the_promised_half() {
    const WRITERS: usize = 8;
    const EACH: usize = 150;
    let dir = tempfile::tempdir().unwrap();
    let gate = std::sync::Barrier::new(WRITERS);
    // Some 90 lines to the half: the roll-over comes every few rounds.
    let lines = Lines("crowd", 128 << 10);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (gate, dir) = (&gate, dir.path());
            scope.spawn(move || {
                gate.wait();
                for number in 0..EACH {
                    let text = "x".repeat(700);
                    lines.append(dir, &(writer, number, text)).unwrap();
                    let size = |name: &str| {
                        let all = fs::metadata(dir.join(name));
                        all.map_or(0, |meta| meta.len())
                    };
                    // Whoever looks at any moment after the first roll-over.
                    if size("crowd.old") > 0 {
                        assert!(size("crowd.old") > (64 << 10), "less than half is kept");
                    }
                }
            });
        }
    });
    let mut newest = [0; WRITERS];
    let mut kept = [0; WRITERS];
    for name in ["crowd.old", "crowd"] {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        for line in text.lines() {
            let read: (usize, usize, String) = serde_json::from_str(line).unwrap();
            assert!(kept[read.0] == 0 || read.1 == newest[read.0] + 1, "a gap");
            newest[read.0] = read.1;
            kept[read.0] += 1;
        }
    }
    assert!(
        newest
            .iter()
            .zip(kept)
            .all(|(n, k)| k == 0 || *n == EACH - 1)
    );
    assert!(kept.iter().sum::<usize>() >= 90);
}

#[test]
fn what_a_later_version_keeps_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{{\"format\":{},\"new\":1}}\n", FORMAT + 1);
    for name in ["history", "crashes"] {
        fs::write(dir.path().join(name), &text).unwrap();
    }
    let says = |error: Error| error.to_string();
    let line = Line::all(dir.path()).remove(0).map_err(says);
    let note = CrashNote::all(dir.path()).remove(0).map_err(says);
    for said in [line.unwrap_err(), note.unwrap_err()] {
        assert!(said.contains("formats up to"), "{said}");
    }
}

/// A fifo held the reader for ever, and a link led it elsewhere; then either of them, or a
/// directory, was in the way of every line that came after.
#[test]
fn what_is_no_file_is_neither_waited_for_nor_followed_nor_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    let elsewhere = run.join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    let line = r#"{"id":"x","namespace":"n","found":"f","exit":null,"done":[],"left":[]}"#;
    let line: Line = serde_json::from_str(line).unwrap();
    let harms: [fn(&Path, &Path); 3] = [
        |path, to| std::os::unix::fs::symlink(to, path).unwrap(),
        |path, _| vigil_sys::fifo::make(path, 0o600).unwrap(),
        |path, _| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("inside"), "").unwrap();
        },
    ];
    for harm in harms {
        for name in ["history", "history.old", "crashes"] {
            harm(&run.join(name), &elsewhere);
        }
        assert!(Line::all(run).iter().all(Result::is_err));
        assert_eq!((Line::all(run).len(), CrashNote::all(run).len()), (2, 1));
        // A line is kept, and is not hidden by what the older ones are.
        line.append(run).unwrap();
        let all = Line::all(run);
        assert_eq!((all.len(), all[1].as_ref().unwrap()), (2, &line));
        // When there are many, what is in the way of the older ones makes way.
        fs::write(run.join("history"), vec![b'\n'; 1 << 20]).unwrap();
        line.append(run).unwrap();
        assert_eq!(Line::all(run).len(), 1);
        assert!(fs::read(&elsewhere).unwrap().is_empty());
        for name in ["history", "history.old", "crashes"] {
            let _ = fs::remove_file(run.join(name));
            let _ = fs::remove_dir_all(run.join(name));
        }
    }
    assert!(run.join("history.bad/inside").exists());
}

/// It stood there for ever: nobody could put a stone in its place, nor take it away.
#[test]
fn a_directory_by_a_stones_name_makes_way() {
    let dir = tempfile::tempdir().unwrap();
    let stone = r#"{"id":"x","namespace":"n","bundle":"/b","runtime":"r","runtime_root":"/r",
        "init":null,"exit":null,"claims":[],"left":["it"]}"#;
    let stone: Tombstone = serde_json::from_str(stone).unwrap();
    for _ in 0..2 {
        fs::create_dir_all(stone.path(dir.path())).unwrap();
        stone.write(dir.path()).unwrap();
        assert_eq!(Tombstone::all(dir.path()).unwrap().len(), 1);
        stone.remove(dir.path()).unwrap();
        fs::create_dir_all(stone.path(dir.path())).unwrap();
        stone.remove(dir.path()).unwrap();
        assert!(Tombstone::all(dir.path()).unwrap().is_empty());
    }
}
