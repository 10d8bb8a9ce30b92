//! What is opened for each form of streams, on real fifos and files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fifo::make(&path, 0o700).unwrap();
        path
    }
}

fn plan(stdin: Option<PathBuf>, stdout: Option<PathBuf>, stderr: Option<PathBuf>) -> Plan {
    Plan {
        terminal: false,
        stdin,
        output: Output::Paths { stdout, stderr },
    }
}

fn kinds(opened: &Opened) -> Vec<SlotKind> {
    opened.ends.iter().map(|(kind, _)| *kind).collect()
}

fn write(fd: &OwnedFd, bytes: &[u8]) {
    File::from(fd.try_clone().unwrap())
        .write_all(bytes)
        .unwrap();
}

#[test]
fn fifos_are_opened_without_a_peer_and_pipes_belong_to_the_owner() {
    let place = Place::new();
    let plan = plan(
        Some(place.fifo("in")),
        Some(place.fifo("out")),
        Some(place.fifo("err")),
    );
    let begun = Instant::now();
    let opened = open(
        &plan,
        Owner {
            uid: 1234,
            gid: 4321,
        },
    )
    .unwrap();
    assert!(begun.elapsed() < Duration::from_mins(1));
    assert_eq!(
        kinds(&opened),
        [
            SlotKind::StdinReader,
            SlotKind::StdinWriter,
            SlotKind::StdinPipe,
            SlotKind::StdoutPipe,
            SlotKind::StdoutSink,
            SlotKind::StderrPipe,
            SlotKind::StderrSink
        ]
    );
    let child = [
        &opened.child.stdin,
        &opened.child.stdout,
        &opened.child.stderr,
    ];
    for end in child {
        let seen = File::from(end.try_clone().unwrap()).metadata().unwrap();
        assert_eq!((seen.uid(), seen.gid()), (1234, 4321));
    }
    // The process's ends block, as a program expects: a write larger than the
    // pipe would return short or EAGAIN otherwise.
    let mut held: std::collections::BTreeMap<_, _> = opened.ends.into_iter().collect();
    let pipe = held.remove(&SlotKind::StdoutPipe).unwrap();
    let writer = opened.child.stdout;
    let thread = std::thread::spawn(move || write(&writer, &vec![7; 200_000]));
    fd::set_nonblocking(&pipe, false).unwrap();
    let mut all = Vec::new();
    File::from(pipe).read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 200_000);
    thread.join().unwrap();
}

#[test]
fn what_is_empty_is_dev_null_both_ways() {
    let place = Place::new();
    let opened = open(&plan(None, Some(place.fifo("out")), None), Owner::default()).unwrap();
    assert_eq!(kinds(&opened), [SlotKind::StdoutPipe, SlotKind::StdoutSink]);
    write(&opened.child.stderr, b"discarded");
    let mut input = File::from(opened.child.stdin);
    assert_eq!(input.read(&mut [0; 8]).unwrap(), 0);
    let nothing = open(&plan(None, None, None), Owner::default()).unwrap();
    assert!(nothing.ends.is_empty());
    write(&nothing.child.stdout, b"discarded");
}

#[test]
fn a_file_is_given_to_the_process_itself_and_appended_to() {
    let place = Place::new();
    let log = place.path("deep/er/log");
    let to_file = Plan {
        terminal: false,
        stdin: None,
        output: Output::File(log.clone()),
    };
    for round in ["1", "2"] {
        let opened = open(&to_file, Owner::default()).unwrap();
        assert!(opened.ends.is_empty());
        write(&opened.child.stdout, format!("o{round}").as_bytes());
        write(&opened.child.stderr, format!("e{round}").as_bytes());
    }
    assert_eq!(fs::read(&log).unwrap(), b"o1e1o2e2");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    let dir = log.parent().unwrap().metadata().unwrap();
    assert_eq!(dir.permissions().mode() & 0o777, 0o755);
    // A bare path to a file that exists, for both outputs.
    let opened = open(
        &plan(None, Some(log.clone()), Some(log.clone())),
        Owner::default(),
    );
    let opened = opened.unwrap();
    assert!(opened.ends.is_empty());
    write(&opened.child.stdout, b"o3");
    write(&opened.child.stderr, b"e3");
    assert_eq!(fs::read(&log).unwrap(), b"o1e1o2e2o3e3");
}

#[test]
fn what_is_missing_or_unfit_is_named() {
    let place = Place::new();
    let missing = place.path("missing");
    let dir = place.path("dir");
    fs::create_dir(&dir).unwrap();
    for (path, asked) in [
        (&missing, plan(Some(missing.clone()), None, None)),
        (&missing, plan(None, Some(missing.clone()), None)),
        (&missing, plan(None, None, Some(missing.clone()))),
        (&dir, plan(None, Some(dir.clone()), None)),
        (&dir, plan(Some(dir.clone()), None, None)),
    ] {
        let error = open(&asked, Owner::default()).unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
    assert!(!missing.exists());
}

#[test]
fn a_terminal_gets_a_socket_that_goes_with_what_was_opened() {
    let place = Place::new();
    let mut asked = plan(Some(place.fifo("in")), Some(place.fifo("out")), None);
    asked.terminal = true;
    let opened = open(&asked, Owner::default()).unwrap();
    assert_eq!(
        kinds(&opened),
        [
            SlotKind::StdinReader,
            SlotKind::StdinWriter,
            SlotKind::ConsoleListener,
            SlotKind::StdoutSink
        ]
    );
    let dir = opened
        .console
        .as_ref()
        .unwrap()
        .socket()
        .parent()
        .unwrap()
        .to_owned();
    assert!(dir.exists());
    drop(opened);
    assert!(!dir.exists());
    // Also when something after it fails.
    asked.output = Output::Paths {
        stdout: Some(place.path("missing")),
        stderr: None,
    };
    open(&asked, Owner::default()).unwrap_err();
}

#[test]
fn codes_are_distinct_and_come_back() {
    for kind in SlotKind::ALL {
        assert_eq!(SlotKind::from_code(kind.code()), Some(kind));
    }
    let codes: std::collections::BTreeSet<u8> = SlotKind::ALL.map(SlotKind::code).into();
    assert_eq!(codes.len(), SlotKind::ALL.len());
    assert_eq!(SlotKind::from_code(0), None);
}

#[test]
fn a_logger_gets_three_pipes_two_variables_and_its_arguments() {
    let place = Place::new();
    let script = place.path("logger");
    let seen = place.path("seen");
    fs::write(
        &script,
        "#!/bin/sh\n/bin/busybox env > $2.env; echo \"$@\" > $2.args\n\
         printf r >&5; exec 5>&-; /bin/busybox cat <&3 > $2.out; /bin/busybox cat <&4 > $2.err\n",
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let logger = LoggerPlan {
        program: script,
        args: vec!["k".into(), seen.clone().into()],
        must_say_ready: false,
    };
    let asked = Plan {
        terminal: false,
        stdin: None,
        output: Output::Logger(logger),
    };
    let opened = open(&asked, Owner::default()).unwrap();
    assert_eq!(
        kinds(&opened),
        [
            SlotKind::LoggerStdout,
            SlotKind::LoggerStderr,
            SlotKind::LoggerReady
        ]
    );
    let child = opened
        .logger
        .unwrap()
        .start(
            &vigil_model::TaskId::new("t1").unwrap(),
            &vigil_model::Namespace::new("n1").unwrap(),
            opened.ends[0].1.as_fd(),
            opened.ends[1].1.as_fd(),
        )
        .unwrap();
    assert!(fd::wait_readable(&opened.ends[2].1, Duration::from_secs(10)).unwrap());
    let mut said = [0; 2];
    let mut ready = File::from(opened.ends[2].1.try_clone().unwrap());
    assert_eq!(ready.read(&mut said).unwrap(), 1);
    write(&opened.child.stdout, b"to out");
    write(&opened.child.stderr, b"to err");
    drop(opened.child);
    assert!(fd::wait_readable(&child.pidfd, Duration::from_secs(10)).unwrap());
    assert_eq!(vigil_sys::pidfd::wait(&child.pidfd), Ok(Some(0)));
    let text = |end: &str| fs::read_to_string(format!("{}.{end}", seen.display())).unwrap();
    let mut env: Vec<String> = text("env").lines().map(str::to_owned).collect();
    // What the shell itself adds.
    env.retain(|line| {
        !["PWD=", "SHLVL=", "_=", "OLDPWD="]
            .iter()
            .any(|p| line.starts_with(p))
    });
    env.sort();
    assert_eq!(env, ["CONTAINER_ID=t1", "CONTAINER_NAMESPACE=n1"]);
    assert_eq!(text("args").trim(), format!("k {}", seen.display()));
    assert_eq!(
        (text("out").as_str(), text("err").as_str()),
        ("to out", "to err")
    );
}
