//! Another program for the shim, asked for as `vigil upgrade` does: it takes
//! over, or does not do and the one before it goes on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vigil_journal::names;
use vigil_journal::takeovers::Takeovers;
use vigil_sys::{pidfd, signal};

use crate::{Pair, until};

/// A program for another shim: a script that does this with the arguments it is given.
fn script(pair: &Pair, text: &str) -> PathBuf {
    let count = fs::read_dir(pair.dir.path()).unwrap().count();
    let path = pair.path(&format!("candidate-{count}"));
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// One that serves as well as any.
fn good(pair: &Pair) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    script(pair, &format!("exec {} \"$@\"", own.display()))
}

/// Asks for a shim of that program; the story of takeovers after it.
pub fn change(pair: &Pair, program: &Path) -> Vec<String> {
    let next = pair.path(names::NEXT);
    std::os::unix::fs::symlink(program, &next).unwrap();
    pair.signal(signal::USR1);
    until("the change is over", || {
        fs::symlink_metadata(&next).is_err()
    });
    story(pair)
}

pub fn story(pair: &Pair) -> Vec<String> {
    let told = Takeovers::read(&pair.path(names::TAKEOVERS), &crate::owner()).unwrap();
    told.last.into_iter().map(|one| one.cause).collect()
}

fn kill_shim(pair: &Pair) {
    let shim = pair.shim_pid();
    pidfd::send_signal(pidfd::open(shim).unwrap(), signal::KILL).unwrap();
    until("a successor", || pair.shim_pid() != shim);
}

fn exe_of(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// A copy of this program takes over, and is what later shims are, whatever becomes of the
/// file; going back works the same way.
pub fn another_program_takes_over_and_stays() {
    let pair = Pair::serving();
    let mut client = pair.client();
    assert_eq!(client.call("echo x"), "x");
    let held = client.ask("ignore");
    let copy = pair.path("copy");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let before = pair.shim_pid();
    assert_eq!(change(&pair, &copy), ["upgrade"]);
    assert_ne!(pair.shim_pid(), before);
    assert_eq!(exe_of(pair.shim_pid()), copy);
    assert_eq!(client.call("echo y"), "y", "on the same connection");
    fs::remove_file(&copy).unwrap();
    kill_shim(&pair);
    assert_eq!(client.call("echo z"), "z");
    assert!(
        exe_of(pair.shim_pid())
            .to_string_lossy()
            .contains("copy (deleted)")
    );
    assert_eq!(story(&pair), ["upgrade", "died 9"]);
    let own = std::env::current_exe().unwrap();
    assert_eq!(change(&pair, &own).last().unwrap(), "upgrade");
    assert_eq!(exe_of(pair.shim_pid()), own);
    assert_eq!(client.call("echo back"), "back");
    assert_ne!(held, 0);
}

/// Whatever is wrong with it: the one before serves again, and it is no death that counts.
pub fn a_program_that_does_not_do_is_given_up() {
    let pair = Pair::serving();
    let mut client = pair.client();
    let empty = pair.path("empty");
    fs::write(&empty, "").unwrap();
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).unwrap();
    let plain = pair.path("plain");
    fs::write(&plain, "no program").unwrap();
    let own = exe_of(pair.shim_pid());
    for (program, says) in [
        (script(&pair, "exit 3"), "exit status 3"),
        (
            script(&pair, "echo Eno journal >&6; exit 4"),
            "exit status 4 Eno journal",
        ),
        (script(&pair, "kill -SEGV $$"), "signal 11"),
        (script(&pair, "exec sleep 600"), "did not serve in time"),
        (script(&pair, "exec cat /dev/urandom >&3"), ""),
        (empty, "ENOEXEC"),
        (plain, "EACCES"),
        (pair.dir.path().to_owned(), "EACCES"),
    ] {
        let story = change(&pair, &program);
        let [.., upgrade, refused] = &story[..] else {
            panic!("{story:?}");
        };
        assert_eq!(upgrade, "upgrade");
        assert!(
            refused.starts_with("refused ") && refused.contains(says),
            "{says}: {refused}"
        );
        assert_eq!(client.call("echo x"), "x", "{says}");
        assert_eq!(exe_of(pair.shim_pid()), own);
    }
    // Nobody counted these: four may still die.
    for _ in 0..4 {
        kill_shim(&pair);
        assert_eq!(client.call("echo x"), "x");
    }
}

/// One that serves and then crashes is given up too, before it costs the pair its life.
pub fn a_program_that_crashes_at_once_is_given_up() {
    let pair = Pair::serving();
    let mut client = pair.client();
    let own = exe_of(pair.shim_pid());
    change(&pair, &good(&pair));
    assert_eq!(client.call("echo x"), "x");
    let shim = pair.shim_pid();
    pidfd::send_signal(pidfd::open(shim).unwrap(), 6).unwrap();
    until("a successor", || pair.shim_pid() != shim);
    assert_eq!(client.call("echo y"), "y");
    assert_eq!(exe_of(pair.shim_pid()), own);
    let story = story(&pair);
    assert!(story[1].contains("served and crashed"), "{story:?}");
}

/// A shim that stands still makes room all the same, in time.
pub fn a_stopped_shim_makes_room() {
    let pair = Pair::serving();
    let mut client = pair.client();
    assert_eq!(client.call("echo x"), "x");
    let shim = pair.shim_pid();
    pidfd::send_signal(pidfd::open(shim).unwrap(), 19).unwrap();
    assert_eq!(change(&pair, &good(&pair)), ["upgrade"]);
    assert_ne!(pair.shim_pid(), shim);
    assert_eq!(client.call("echo y"), "y");
}

/// Nothing lies there, or what leads nowhere: nothing happens but that it goes.
pub fn a_link_to_nothing_is_taken_away() {
    let pair = Pair::serving();
    let shim = pair.shim_pid();
    let turn = pair.path("loop");
    std::os::unix::fs::symlink(&turn, &turn).unwrap();
    for program in [turn, pair.path("missing")] {
        assert!(change(&pair, &program).is_empty());
    }
    pair.signal(signal::USR1);
    assert_eq!(pair.client().call("echo x"), "x");
    assert_eq!(pair.shim_pid(), shim);
}
