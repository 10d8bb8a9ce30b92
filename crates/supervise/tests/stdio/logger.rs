//! `binary://` loggers: started with what the contract lists, waited for until
//! ready, ended when the container is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use vigil_host::stdio::SlotKind;
use vigil_model::Stdio;
use vigil_supervise::stdio::Error;

use crate::support::*;

/// Makes a logger of a script; its directory is `$2`.
fn logger(place: &Place, scheme: &str, script: &str) -> Stdio {
    let path = place.path("logger");
    fs::write(
        &path,
        format!("#!/bin/busybox sh\nPATH=/bin\ncd $2\n{script}\n"),
    )
    .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let dir = place.dir.path().display();
    let stdout = format!("{scheme}://{}?dir={dir}", path.display());
    Stdio {
        stderr: stdout.clone(),
        stdout,
        ..Stdio::default()
    }
}

const COPYING: &str = "printf r >&5; exec 5>&-; busybox cat <&4 >err & busybox cat <&3 >out; wait";

#[test]
fn takes_both_outputs_straight_from_the_container() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&logger(&place, "binary-v2", COPYING)).await;
        let kinds = [
            SlotKind::LoggerStdout,
            SlotKind::LoggerStderr,
            SlotKind::Logger,
        ];
        assert_eq!(place.keeper.kinds(), kinds);
        let mut process = Process::spawn(sh("seq 1 300000; echo oh >&2"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        let begun = Instant::now();
        streams.close_all(Duration::from_mins(1)).await;
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it ends by itself"
        );
        assert!(fs::read(place.path("out")).unwrap() == numbers(300_000));
        assert_eq!(fs::read(place.path("err")).unwrap(), b"oh\n");
        assert!(place.keeper.kinds().is_empty());
    });
}

#[test]
fn with_a_terminal_it_is_fed_by_us() {
    run(async {
        let place = Place::new();
        let stdio = Stdio {
            terminal: true,
            ..logger(&place, "binary", COPYING)
        };
        let (_fds, mut streams) = place.open(&stdio).await;
        let socket = streams.console_socket().unwrap();
        let (master, slave) = vigil_sys::tty::open_pair().unwrap();
        let caller = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let lent = std::os::fd::AsFd::as_fd(&master);
        vigil_sys::scm::send(std::os::fd::AsFd::as_fd(&caller), b"x", &[lent]).unwrap();
        drop(master);
        let fds = vigil_host::stdio::ChildFds {
            stdin: slave.try_clone().unwrap(),
            stdout: slave.try_clone().unwrap(),
            stderr: slave,
        };
        let mut process = Process::spawn(sh("stty -opost; seq 1 60000"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        streams.close_all(Duration::from_secs(5)).await;
        assert!(fs::read(place.path("out")).unwrap() == numbers(60_000));
    });
}

#[test]
fn one_that_dies_does_not_block_the_container() {
    run(async {
        let place = Place::new();
        let script = "printf r >&5; exit 1";
        let (fds, mut streams) = place.open(&logger(&place, "binary", script)).await;
        let mut process = Process::spawn(sh("seq 1 300000"), fds);
        streams.started().await.unwrap();
        assert!(
            process.ended().await.success(),
            "neither SIGPIPE nor blocked"
        );
        streams.process_gone().await;
        streams.close_all(Duration::ZERO).await;
        assert!(place.keeper.kinds().is_empty());
    });
}

#[test]
fn one_that_ends_without_a_byte_fails_v2_only() {
    run(async {
        for (scheme, fails) in [("binary", false), ("binary-v2", true)] {
            let place = Place::new();
            match place.try_open(&logger(&place, scheme, "exit 0")).await {
                Ok((_, streams)) => {
                    assert!(!fails);
                    streams.close_all(Duration::ZERO).await;
                }
                Err(Error::LoggerFailed { program }) => {
                    assert!(fails);
                    assert_eq!(program, place.path("logger"));
                }
                Err(other) => panic!("{other}"),
            }
            assert!(place.keeper.kinds().is_empty());
        }
    });
}

#[test]
fn one_that_is_missing_is_named_and_leaves_nothing() {
    run(async {
        let place = Place::new();
        let stdio = Stdio {
            stdout: "binary:///no/such/logger".into(),
            ..Stdio::default()
        };
        let error = place.try_open(&stdio).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/logger"), "{error}");
        assert!(place.keeper.kinds().is_empty());
    });
}

#[test]
fn one_that_stays_gets_sigterm() {
    run(async {
        let place = Place::new();
        let script = "trap 'echo term > end; exit 0' TERM; printf r >&5; exec 5>&-; \
                      while :; do sleep 0.02; done";
        let (fds, mut streams) = place.open(&logger(&place, "binary", script)).await;
        let mut process = Process::spawn(sh("echo hi"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        let exited = Instant::now();
        streams.process_gone().await;
        let told = exited.elapsed();
        assert!(told < Duration::from_secs(10), "told after {told:?}");
        streams.close_all(Duration::from_millis(100)).await;
        assert_eq!(fs::read(place.path("end")).unwrap(), b"term\n");
    });
}
