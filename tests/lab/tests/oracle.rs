//! The judge is judged: each kind of residue is made by hand, must be found by its mark,
//! and must be gone after the scratch that owns it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::process::{Command, Stdio};

use vigil_lab::poll::sharp;
use vigil_lab::shim::{Form, parse_reply, run};
use vigil_lab::{FifoReader, Residue, Scratch, by, process, until};

fn count(mark: &str, kind: &str) -> usize {
    Residue::marked(mark)
        .lines()
        .filter(|line| line.starts_with(kind))
        .count()
}

#[test]
fn every_kind_of_residue_is_found_and_removed() {
    let scratch = Scratch::new().unwrap();
    let mark = scratch.mark().to_owned();
    assert_eq!(
        Residue::marked(&mark),
        Residue::default(),
        "a new mark is on the machine already"
    );

    // A cgroup with a process in it, in the freezer hierarchy or the one there is.
    let v1 = std::path::Path::new("/sys/fs/cgroup/freezer");
    let group = if v1.exists() {
        v1
    } else {
        v1.parent().unwrap()
    }
    .join(&mark)
    .join("c1");
    fs::create_dir_all(&group).unwrap();
    let mut sleeper = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    fs::write(group.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    let frozen = group.join("freezer.state");
    if frozen.exists() {
        fs::write(&frozen, "FROZEN").unwrap();
    }
    // A mount, a listening socket, runc's state.
    let point = scratch.path("point");
    fs::create_dir(&point).unwrap();
    nix::mount::mount(
        Some("lab"),
        &point,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    let listener = std::os::unix::net::UnixListener::bind(scratch.path("s.sock")).unwrap();
    let runc = std::path::Path::new("/run/containerd/runc").join(&mark);
    fs::create_dir_all(runc.join("c1")).unwrap();

    for kind in [
        "process ",
        "cgroup ",
        "mount ",
        "listening socket ",
        "file ",
    ] {
        assert!(
            count(&mark, kind) > 0,
            "no {kind}in {:?}",
            Residue::marked(&mark)
        );
    }
    assert!(Residue::expect_none(&mark, sharp(0.1), |_| false).is_err());

    drop(listener);
    drop(scratch);
    sleeper.wait().unwrap();
    assert_eq!(Residue::marked(&mark), Residue::default());
    assert!(!group.exists() && !runc.exists());
}

#[test]
fn the_dead_leave_nothing_for_long() {
    // A scratch whose maker was killed: no process has pid 1 << 30.
    let mark = format!("vl{}x0xbeef", 1 << 30);
    let dir = std::env::temp_dir().join(&mark);
    fs::create_dir_all(dir.join("deep")).unwrap();
    let living = Scratch::new().unwrap();
    vigil_lab::scratch::sweep();
    assert!(!dir.exists(), "{} is left", dir.display());
    assert!(
        living.dir().exists(),
        "a living test's scratch was swept away"
    );
}

#[test]
fn output_is_read_to_its_end_or_the_deadline() {
    // `start` must not count as done while somebody holds its output (contract §1.3).
    let mut quick = Command::new("sh");
    let ran = run(
        quick.args(["-c", "echo out; echo err >&2"]),
        &[],
        true,
        by(5.0),
    )
    .unwrap();
    assert_eq!(ran.stdout, b"out\nerr\n");
    let mut held = Command::new("sh");
    let error = run(
        held.args(["-c", "sleep 3 & echo out"]),
        &[],
        true,
        sharp(0.3),
    )
    .unwrap_err();
    assert!(error.to_string().contains("not at its end"), "{error:#}");
}

#[test]
fn replies_are_told_apart() {
    assert_eq!(
        parse_reply(b"unix:///run/x \n").unwrap(),
        ("unix:///run/x".into(), 2, Form::Plain)
    );
    let json = br#"{"version":3,"address":"unix:///run/x","protocol":"ttrpc"}"#;
    assert_eq!(
        parse_reply(json).unwrap(),
        ("unix:///run/x".into(), 3, Form::Json)
    );
    let protobuf = b"\x08\x02\x12\x0dunix:///run/x\x1a\x05ttrpc";
    assert_eq!(
        parse_reply(protobuf).unwrap(),
        ("unix:///run/x".into(), 2, Form::Protobuf)
    );
    assert!(parse_reply(b"").is_err() && parse_reply(b"level=warning\nunix:///run/x").is_err());
}

#[test]
fn a_reader_knows_unopened_from_ended() {
    let scratch = Scratch::new().unwrap();
    let path = scratch.path("fifo");
    process::mkfifo(&path).unwrap();
    let reader = FifoReader::open(&path).unwrap();
    assert!(
        reader.to_end(sharp(0.2)).is_err(),
        "ended before it was opened"
    );
    fs::write(&path, vec![b'x'; 300_000]).unwrap();
    assert_eq!(reader.to_end(by(5.0)).unwrap().0.len(), 300_000);
}

#[test]
fn a_wait_ends_and_says_for_what() {
    let error = until("the moon", sharp(0.05), || None::<()>).unwrap_err();
    assert!(error.to_string().contains("the moon"));
}
