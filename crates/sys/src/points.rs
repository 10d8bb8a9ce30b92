//! Named instants at which a test may stop or kill the process that gets there,
//! so that "dies exactly here" is a case and not a matter of luck. Must never do
//! anything outside a test: compiled out of releases, inert without the switch.
//!
//! `VIGIL_POINTS` names a directory. A file there named by a point's code arms
//! it; the first process that gets there renames the file to `CODE.reached`
//! (who renames owns it: it fires once), writes its own pid into it and does
//! what the file said: `stop`, `kill`, `exit`, `panic`, `spin` or `block`. Everything
//! else is ignored. A number before it (`3 panic`) arms the point again, for one less:
//! nobody who comes next can pass it before a test has looked.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::getppid;

/// Names the directory.
const SWITCH: &str = "VIGIL_POINTS";

macro_rules! points {
    ($($(#[$doc:meta])+ $name:ident $code:literal;)+) => {
        /// An instant between two things that a crash may separate. The codes
        /// are those of the crash-point matrix; a letter after the number is a
        /// neighbour of our own. S6 has none: it is inside runc, and the shim
        /// cannot tell it from S5.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])+ $name,)+
        }

        impl Point {
            /// All of them, so that a test can count what it has covered.
            pub const ALL: &[Point] = &[$(Point::$name),+];

            /// Its name in files and reports.
            pub const fn code(self) -> &'static str {
                match self {
                    $(Point::$name => $code,)+
                }
            }
        }
    };
}

points! {
    /// `start` has the lock and has not bound the socket.
    StartBeforeBind "S1";
    /// The pair lives; the shim has not said that it is ready.
    PairNotReady "S2a";
    /// Everything is up; `start` has not printed the address.
    AddressNotPrinted "S2";
    /// The address is known; the shim has Create in hand and has done nothing.
    BeforeCreate "S3";
    /// The rootfs is mounted; runc was not called.
    RootfsMounted "S4";
    /// The clients' fifos are open, and not with the reaper yet.
    FifosOpened "S4b";
    /// `runc create` was started; how far it got is the tester's to arrange.
    RuncCreateCalled "S5";
    /// `runc create` is over; its pid file was not read.
    RuncCreateDone "S7";
    /// Init is pinned; *created* is not journaled.
    CreatedNotJournaled "S7b";
    /// *created* is journaled; nothing was answered or sent.
    CreatedNotTold "S8";
    /// `runc start` is over; *started* is not journaled.
    StartedNotJournaled "S9";
    /// A child's end was seen by the reaper; it is not recorded, and not reaped.
    DeathNotRecorded "S10a";
    /// It is recorded; the zombie is still there.
    DeathNotReaped "S10";
    /// Init's exit is journaled; nobody was told.
    ExitJournaled "S11";
    /// Init's TaskExit is next to be sent.
    ExitNotSent "S11b";
    /// containerd has taken init's TaskExit; that is not journaled.
    ExitSent "S12";
    /// Delete has closed the streams; runc was not called.
    DeleteDrained "S13";
    /// `runc delete` is over; cgroups and mounts may be there.
    RuncDeleteDone "S14";
    /// Everything is gone; *deleted* is not journaled.
    DeletedNotJournaled "S15";
    /// *deleted* is journaled; TaskDelete is not sent, Delete not answered.
    DeletedNotTold "S15b";
    /// Delete was answered; Shutdown has come and nothing was done for it.
    BeforeShutdown "S16";
    /// Shutdown has removed the socket; the reaper was not told.
    SocketRemoved "S17";
    /// `runc exec` is over; its pid file was not read.
    RuncExecDone "E1";
    /// *exec started* is journaled; nothing was answered or sent.
    ExecStartedNotTold "E2";
    /// The exec's exit is journaled; nobody was told.
    ExecExitJournaled "E3";
    /// The exec's deletion is journaled; it was not answered.
    ExecDeletedNotTold "E4";
    /// The container is frozen; *paused* is not journaled.
    PausedNotJournaled "P1";
    /// The thaw was asked of the kernel; its end was not awaited.
    ThawAsked "P2";
    /// A Kill is journaled; the signal is not sent.
    SignalNotSent "K1";
    /// The signal is sent; that is not journaled, nor answered.
    SignalSent "K2";
    /// All of an output is copied and read; its ends are with the reaper still.
    EndedNotReleased "O1";
    /// `delete` works in a process of its own, and has looked at nothing.
    DeleteBegun "D0";
    /// `delete` has the lock and has not judged anything.
    DeleteLocked "D1";
    /// `delete` has brought the container to nothing and has not recorded its end.
    DeleteNotRecorded "D2";
    /// The end is recorded; `delete` has not printed it.
    DeleteNotPrinted "D3";
}

/// What a test has this process pretend of itself, a version that it speaks or
/// reads, in the environment under this name. Nothing in a release.
pub fn pretended(name: &str) -> Option<u16> {
    if cfg!(debug_assertions) {
        std::env::var(name).ok()?.parse().ok()
    } else {
        None
    }
}

/// Says that this process is at `point`. Returns unless a test asked otherwise.
pub fn reach(point: Point) {
    if let Some(directory) = directory() {
        reach_in(directory, point);
    }
}

/// Whether a test plays a kernel that keeps nothing of a process that has ended:
/// by a file `no-exit-status` in the directory.
pub fn kernel_forgets() -> bool {
    directory().is_some_and(|directory| directory.join("no-exit-status").exists())
}

/// `None` outside a test.
fn directory() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    if !cfg!(debug_assertions) {
        return None;
    }
    let named = DIRECTORY.get_or_init(|| std::env::var_os(SWITCH).map(PathBuf::from));
    named.as_deref()
}

fn reach_in(directory: &Path, point: Point) {
    let armed = directory.join(point.code());
    let reached = armed.with_extension("reached");
    if fs::rename(&armed, &reached).is_err() {
        return;
    }
    let text = fs::read_to_string(&reached).unwrap_or_default();
    let (times, action) = text.trim().split_once(' ').unwrap_or(("1", text.trim()));
    let more = times
        .parse::<u32>()
        .map_or(0, |times| times.saturating_sub(1));
    if more > 0 {
        let _ = fs::write(&armed, format!("{more} {action}"));
    }
    // A tester who does not find the pid has lost nothing but the case.
    let _ = fs::write(&reached, std::process::id().to_string());
    match action {
        // Neither returns before it is carried out: this thread is the only one.
        "stop" => drop(raise(Signal::SIGSTOP)),
        // With the reaper, which would take a stopped shim for a stuck one and end it.
        "stop-pair" => {
            if std::env::args().next_back().as_deref() == Some("serve") {
                let _ = kill(getppid(), Signal::SIGSTOP);
            }
            let _ = raise(Signal::SIGSTOP);
        }
        "kill" => drop(raise(Signal::SIGKILL)),
        "exit" => crate::process::exit_now(1),
        "panic" => panic!("a test wants it so, at {}", point.code()),
        "spin" => loop {
            std::hint::spin_loop();
        },
        // Locked up for good, as far as anybody can see.
        "block" => loop {
            std::thread::park();
        },
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_point_fires_once_and_leaves_the_pid() {
        let dir = tempfile::tempdir().unwrap();
        let (armed, reached) = (dir.path().join("S4"), dir.path().join("S4.reached"));
        reach_in(dir.path(), Point::RootfsMounted);
        assert!(!reached.exists(), "it was not armed");
        fs::write(&armed, "note").unwrap();
        reach_in(dir.path(), Point::RuncCreateCalled);
        assert!(armed.exists(), "another point must not fire it");
        reach_in(dir.path(), Point::RootfsMounted);
        assert!(!armed.exists());
        let pid = fs::read_to_string(&reached).unwrap();
        assert_eq!(pid, std::process::id().to_string());
        fs::remove_file(&reached).unwrap();
        reach_in(dir.path(), Point::RootfsMounted);
        assert!(!reached.exists(), "it fired twice");
    }

    #[test]
    fn a_point_with_a_number_fires_so_often() {
        let dir = tempfile::tempdir().unwrap();
        let armed = dir.path().join("S4");
        fs::write(&armed, "2 note").unwrap();
        reach_in(dir.path(), Point::RootfsMounted);
        assert_eq!(fs::read_to_string(&armed).unwrap(), "1 note");
        reach_in(dir.path(), Point::RootfsMounted);
        assert!(!armed.exists());
    }

    #[test]
    fn codes_are_unique() {
        let mut codes: Vec<_> = Point::ALL.iter().map(|point| point.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Point::ALL.len());
    }
}
