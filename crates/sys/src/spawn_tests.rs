//! Real children: what they inherit, and what is left of them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn end(child: &Child) -> ExitStatus {
    assert!(
        fd::wait_readable(&child.pidfd, LONG).unwrap(),
        "child did not end"
    );
    ExitStatus::from_raw(pidfd::wait(&child.pidfd).unwrap().unwrap())
}

fn text(file: OwnedFd) -> String {
    let mut file = std::fs::File::from(file);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn shell(script: &str) -> Command<'_> {
    Command::new("/bin/sh").arg("-c").arg(script)
}

#[test]
fn a_program_gets_what_it_was_given_and_nothing_else() {
    let out = fd::memfd(c"out").unwrap();
    // Not close-on-exec and neighbours of ours: must not come through.
    let stray = fd::duplicate_above(&out, 40).unwrap();
    fd::set_close_on_exec(&stray, false).unwrap();
    let child = shell("echo $A-$HOME-$(pwd); ls /proc/self/fd; exit 3")
        .env("A", "b")
        .env("PATH", "/bin:/usr/bin")
        .cwd(Path::new("/proc"))
        .stdout(out.as_fd())
        .spawn()
        .unwrap();
    assert_eq!(end(&child).code(), Some(3));
    let said = text(out);
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("b--/proc"));
    // 3 is ls's own, for the directory.
    assert_eq!(lines.collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[test]
fn overlapping_numbers_do_not_destroy_a_source() {
    // Descriptors with low numbers are given to each other's numbers, in a
    // worker so that the test may arrange numbers as it likes.
    let out = fd::memfd(c"out").unwrap();
    let out_fd = out.as_fd();
    let worker = fork_worker(&[out_fd], || {
        let make = |text: &[u8], number: i32| {
            let made = fd::memfd_with(c"source", text).unwrap();
            let made = fd::duplicate_above(made, 20).unwrap();
            // SAFETY: whatever 3 to 5 are in the worker, it needs them no more.
            let raw = unsafe { libc::dup2(made.as_raw_fd(), number) };
            // SAFETY: never dropped, see forget below.
            unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) }
        };
        let out = fd::duplicate_above(out_fd, 20).unwrap();
        let parts = [make(b"three ", 3), make(b"four ", 4), make(b"five ", 5)];
        let child = shell("cat <&0 <&4; cat <&3; cat <&5; cat <&7")
            .env("PATH", "/bin:/usr/bin")
            .stdin(parts[2].as_fd())
            .stdout(out.as_fd())
            .fd(4, parts[2].as_fd())
            .fd(5, parts[0].as_fd())
            .fd(3, parts[1].as_fd())
            .fd(7, parts[1].as_fd())
            .spawn();
        std::mem::forget(parts);
        child.map_or(99, |c| end(&c).code().unwrap_or(98))
    })
    .unwrap();
    assert_eq!(end(&worker).code(), Some(0));
    // The fourth reads the same description as the second: at its end.
    assert_eq!(text(out), "five four three ");
}

#[test]
fn a_missing_program_or_directory_is_an_error_and_no_child() {
    assert_eq!(Command::new("/no/such").spawn().unwrap_err(), Errno::ENOENT);
    assert_eq!(
        Command::new("/etc/passwd").spawn().unwrap_err(),
        Errno::EACCES
    );
    let away = Command::new("/bin/true").cwd(Path::new("/no/such")).spawn();
    assert_eq!(away.unwrap_err(), Errno::ENOENT);
    assert_eq!(
        Command::new("/bin/true").arg("a\0b").spawn().unwrap_err(),
        Errno::EINVAL
    );
}

#[test]
fn signals_are_as_a_program_expects_them() {
    // std ignores SIGPIPE in us; a child must not.
    let child = shell("kill -PIPE $$; exit 1").spawn().unwrap();
    assert_eq!(end(&child).signal(), Some(libc::SIGPIPE));
    let out = fd::memfd(c"out").unwrap();
    let worker = fork_worker(&[out.as_fd()], || {
        let all = nix::sys::signal::SigSet::all();
        if all.thread_block().is_err() {
            return 97;
        }
        let child = shell("grep -E 'Sig(Blk|Ign)' /proc/self/status")
            .env("PATH", "/bin:/usr/bin")
            .stdout(out.as_fd())
            .spawn();
        child.map_or(99, |c| end(&c).code().unwrap_or(98))
    })
    .unwrap();
    assert_eq!(end(&worker).code(), Some(0));
    let said = text(out);
    assert_eq!(said.lines().count(), 2);
    assert!(
        said.lines().all(|l| l.ends_with("\t0000000000000000")),
        "{said}"
    );
}

#[test]
fn the_whole_group_is_signalled() {
    let (r, w) = fd::pipe().unwrap();
    let child = shell("sleep 600 & sleep 600 & echo; wait")
        .env("PATH", "/bin:/usr/bin")
        .stdout(w.as_fd())
        .own_group()
        .spawn()
        .unwrap();
    drop(w);
    let mut pipe = std::fs::File::from(r);
    pipe.read_exact(&mut [0]).unwrap();
    child.signal_group(libc::SIGKILL).unwrap();
    assert_eq!(end(&child).signal(), Some(libc::SIGKILL));
    // The sleepers held the pipe: its end says that they are gone.
    assert!(fd::wait_readable(&pipe, LONG).unwrap());
    assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
}

#[test]
fn huge_pages_are_given_back_to_what_we_start() {
    let seen = |command: Command<'_>| {
        let out = fd::memfd(c"out").unwrap();
        let child = command.stdout(out.as_fd()).spawn().unwrap();
        assert!(end(&child).success());
        text(out).trim().to_owned()
    };
    let ask = || Command::new("/bin/grep").args(["THP_enabled", "/proc/self/status"]);
    process::disable_huge_pages().unwrap();
    let (with, after, without) = (
        seen(ask().huge_pages()),
        process::huge_pages_disabled().unwrap(),
        seen(ask()),
    );
    process::allow_huge_pages().unwrap();
    assert_eq!(
        (with.as_str(), after, without.as_str()),
        ("THP_enabled:\t1", true, "THP_enabled:\t0")
    );
}

#[test]
fn a_worker_holds_nothing_of_ours() {
    let (r, w) = fd::pipe().unwrap();
    let out = fd::memfd(c"out").unwrap();
    let keep = out.as_fd();
    let worker = fork_worker(&[keep], move || {
        let usable = |name: &str| {
            let number = name.parse().ok()?;
            // SAFETY: takes integers.
            let flags = unsafe { libc::fcntl(number, libc::F_GETFL) };
            (flags & libc::O_PATH == 0).then_some(number.to_string())
        };
        let numbers: Vec<String> = std::fs::read_dir("/proc/self/fd")
            .map(|all| {
                all.flatten()
                    .filter_map(|e| usable(e.file_name().to_str()?))
                    .collect()
            })
            .unwrap_or_default();
        let group = nix::unistd::getpgrp() == nix::unistd::getpid();
        let line = format!("{group} {}", numbers.join(" "));
        nix::unistd::write(keep, line.as_bytes()).map_or(1, |_| 42)
    })
    .unwrap();
    drop(w);
    // Our write end is closed: only a worker that kept it could hold it open.
    assert!(fd::wait_readable(&r, LONG).unwrap());
    assert_eq!(end(&worker).code(), Some(42));
    let number = out.as_raw_fd();
    let said = text(out);
    let said: Vec<&str> = said.split(' ').collect();
    assert_eq!(said[0], "true");
    // Its stdio, what it kept, and the directory being read.
    assert_eq!(said.len(), 6, "{said:?}");
    for expected in ["0", "1", "2", &number.to_string()] {
        assert!(said[1..].contains(&expected), "{said:?}");
    }
}

#[test]
fn a_worker_that_panics_does_not_come_back() {
    // Without the hook, which takes locks that another test may hold now.
    let worker = fork_worker(&[], || std::panic::resume_unwind(Box::new(()))).unwrap();
    assert_eq!(end(&worker).code(), Some(101));
}

/// The contract of a worker was words: it "must not use any other descriptor it may have
/// captured", which were closed, so that the next file it opened had the number of one of them
/// and was written to by whoever held that.
#[test]
fn what_a_worker_captured_is_dead_and_never_another_file() {
    let (out, given_up) = (fd::memfd(c"out").unwrap(), fd::memfd(c"not kept").unwrap());
    let keep = out.as_fd();
    let worker = fork_worker(&[keep], || {
        // As many as there are gaps, so that one of them would have its number.
        let others: Vec<OwnedFd> = (0..64).filter_map(|_| fd::memfd(c"new").ok()).collect();
        let into_it = nix::unistd::write(&given_up, b"x");
        let hit = others.iter().any(|other| text_len(other) != 0);
        let dup = fd::duplicate(&given_up).map(|again| nix::unistd::write(&again, b"x"));
        let all_dead = into_it == Err(Errno::EBADF) && dup == Ok(Err(Errno::EBADF));
        i32::from(others.len() < 64 || hit || !all_dead)
    })
    .unwrap();
    assert_eq!(end(&worker).code(), Some(0));
    assert_eq!(text_len(&given_up), 0);
}

fn text_len(file: &OwnedFd) -> i64 {
    nix::sys::stat::fstat(file).map_or(-1, |stat| stat.st_size)
}

/// "For callers with one thread", said the doc, and nobody asked the kernel.
#[test]
fn several_threads_are_refused_a_worker() {
    // The main thread here is libtest's: a worker asks, whose only thread is its main one, and
    // which then has two.
    let outer = fork_worker(&[], || {
        let alone = fork_worker(&[], || 7).map(|inner| end(&inner).code());
        let (stay, stayed) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stayed.recv());
        let beside = fork_worker(&[], || 7).map(|inner| end(&inner).code());
        drop(stay);
        let _ = other.join();
        let right = alone == Ok(Some(7)) && beside == Err(Errno::EINVAL);
        i32::from(!right)
    })
    .unwrap();
    assert_eq!(end(&outer).code(), Some(0));
}

/// The process goes on as another program: its number, its children and what is kept stay.
#[test]
fn a_process_becomes_another_program_and_keeps_its_children() {
    const ALONE: &str = "VIGIL_TEST_BECOMES";
    if std::env::var_os(ALONE).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "spawn::tests::a_process_becomes_another_program_and_keeps_its_children";
        again.args(["--exact", "--nocapture", name]).env(ALONE, "1");
        let out = again.output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(said.ends_with("kept 4 closed\n"), "{said} {out:?}");
        return;
    }
    let missing = Command::new("/nothing/is/here");
    let kept = fd::memfd_with(c"kept", b"kept").unwrap();
    let lost = fd::null().unwrap();
    assert_eq!(missing.replace_us(&[kept.as_fd()]), Errno::ENOENT);
    assert_eq!(
        fork::inherited(kept.as_raw_fd().cast_unsigned()).err(),
        Some(Errno::EBADF)
    );
    let child = Command::new("/bin/sh")
        .args(["-c", "exit 4"])
        .spawn()
        .unwrap();
    // The shell starts nothing itself: it would reap what it did not start, too.
    let script = format!(
        "read -r x < /proc/self/fd/{kept}; read -r s < /proc/{child}/stat; set -- $s; \
         [ $4 = {us} ] && echo $x $(( ${{52}} / 256 )) $(test -e /proc/self/fd/{lost} || echo closed)",
        kept = kept.as_raw_fd(),
        lost = lost.as_raw_fd(),
        child = child.pid,
        us = process::pid(),
    );
    assert!(fd::wait_readable(&child.pidfd, LONG).unwrap());
    let shell = Command::new("/bin/sh").args(["-c", &script]);
    let why = shell.replace_us(&[kept.as_fd()]);
    panic!("still here: {why}");
}
