//! Processes by descriptor: the only way Vigil signals or waits for one. A
//! pidfd cannot come to mean another process, so a number read from a file is
//! turned into one, its incarnation checked, and the number forgotten.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::{Errno, Result, points};

/// `PID_FS_MAGIC` (Linux 6.9); not in libc.
const PIDFS: i64 = 0x5049_4446;

/// A descriptor of process `pid`, close-on-exec. `ESRCH`: there is none; the number may be
/// a thread's by now, for which the kernel has another word (`ENOENT`, before 6.15 `EINVAL`).
pub fn open(pid: u32) -> Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
    // SAFETY: takes two integers; with flags 0 it waits for nothing.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = Errno::result(raw).map_err(|errno| match errno {
        // The flags are none, so it is the number that is not valid.
        Errno::ENOENT | Errno::EINVAL => Errno::ESRCH,
        other => other,
    })?;
    let raw = i32::try_from(raw).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn signal(fd: impl AsFd, number: i32, flags: libc::c_uint) -> Result<()> {
    // SAFETY: the siginfo pointer may be null, the kernel then fills it in as
    // for kill(2).
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_fd().as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            flags,
        )
    };
    Errno::result(answer).map(drop)
}

/// The process's number in our pid namespace; `None` if it is dead and reaped,
/// or has none there.
pub fn pid(fd: impl AsFd) -> Result<Option<u32>> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path)
        .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    let number = line.ok_or(Errno::EBADF)?.trim();
    // 0 and -1 are nobody's.
    Ok(number.parse().ok().filter(|pid| *pid != 0))
}

/// Sends a signal; 0 only asks. `ESRCH`: it is dead and reaped.
pub fn send_signal(fd: impl AsFd, number: i32) -> Result<()> {
    signal(fd, number, 0)
}

/// SIGKILLs processes that would each act on another's death, parents first in `all`: none runs
/// again once one is dead. All are stopped before, and children die before their parents, since
/// the kernel lets a stopped process run on whose group loses its last tie to its session
/// (setpgid(2), orphaned groups). Those that are dead already are no error.
pub fn kill_together<F: AsFd>(all: &[F]) -> Result<()> {
    let told = |fd: &F, number| match send_signal(fd, number) {
        Err(Errno::ESRCH) => Ok(()),
        sent => sent,
    };
    let stopped = all.iter().try_for_each(|fd| told(fd, libc::SIGSTOP));
    let killed = all.iter().rev().map(|fd| told(fd, libc::SIGKILL));
    // Each is killed, whatever became of the others.
    killed.fold(stopped, Result::and)
}

/// Sends a signal to the process group that carries this process's number,
/// also after the leader was reaped: the group keeps the number taken.
/// `ESRCH`: the group is empty. `EINVAL`: kernel before 6.9.
pub fn send_signal_to_group(fd: impl AsFd, number: i32) -> Result<()> {
    signal(fd, number, libc::PIDFD_SIGNAL_PROCESS_GROUP)
}

/// The number that identifies the process until the next boot; `None` on a
/// kernel without pidfs (before 6.9), where all pidfds share one inode.
pub fn inode(fd: impl AsFd) -> Result<Option<u64>> {
    let on = nix::sys::statfs::fstatfs(fd.as_fd())?;
    if on.filesystem_type() != nix::sys::statfs::FsType(PIDFS) {
        return Ok(None);
    }
    Ok(Some(nix::sys::stat::fstat(fd.as_fd())?.st_ino))
}

/// The raw wait status of a process that is dead *and reaped by whoever its
/// parent was*, from the kernel's own memory (Linux 6.15). `None`: not
/// offered, or not (yet) known. Encoded as for wait(2).
pub fn exit_status(fd: impl AsFd) -> Result<Option<i32>> {
    if points::kernel_forgets() {
        return Ok(None);
    }
    // SAFETY: all fields are plain integers, for which zero is a value.
    let mut answer: libc::pidfd_info = unsafe { std::mem::zeroed() };
    answer.mask = u64::from(libc::PIDFD_INFO_EXIT);
    // SAFETY: the request number carries the size of the structure, and the
    // kernel writes no more than that.
    let code = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            libc::PIDFD_GET_INFO,
            &raw mut answer,
        )
    };
    match Errno::result(code) {
        Ok(_) if answer.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0 => Ok(Some(answer.exit_code)),
        // ENOTTY, EINVAL: an older kernel. ESRCH: reaped, and nothing kept.
        Ok(_) | Err(Errno::ENOTTY | Errno::EINVAL | Errno::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reaps a child of ours if it is dead: its raw wait status, or `None` while
/// it runs. `ECHILD`: not our child, or reaped before.
pub fn wait(fd: impl AsFd) -> Result<Option<i32>> {
    wait_id(fd, libc::WEXITED | libc::WNOHANG)
}

/// As [`wait`], but leaves the child to be reaped later.
pub fn peek(fd: impl AsFd) -> Result<Option<i32>> {
    wait_id(fd, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

fn wait_id(fd: impl AsFd, options: libc::c_int) -> Result<Option<i32>> {
    loop {
        // SAFETY: siginfo_t is plain memory, for which zero is a value.
        let mut seen: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `seen` is valid for writing; the rest are integers.
        let answer = unsafe {
            libc::waitid(
                libc::P_PIDFD,
                fd.as_fd().as_raw_fd().cast_unsigned(),
                &raw mut seen,
                options,
            )
        };
        match Errno::result(answer) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
            Ok(_) => {
                // SAFETY: waitid succeeded, so it has filled these members
                // (with zeroes if there was nothing to report).
                let (pid, status) = unsafe { (seen.si_pid(), seen.si_status()) };
                return Ok((pid != 0).then(|| raw_status(seen.si_code, status)));
            }
        }
    }
}

/// What wait(2) would have said, from what waitid(2) says.
fn raw_status(code: i32, status: i32) -> i32 {
    match code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => (status & 0x7f) | 0x80,
        _ => status & 0x7f,
    }
}

/// Whether the process has ended; true for a zombie.
pub fn is_dead(fd: impl AsFd) -> Result<bool> {
    crate::fd::wait_readable(fd, Duration::ZERO)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_child_is_reaped_once_and_its_status_kept() {
        for (script, expected) in [
            ("exit 7", ExitStatus::from_raw(7 << 8)),
            ("kill -9 $$", ExitStatus::from_raw(9)),
        ] {
            #[expect(clippy::zombie_processes, reason = "reaped below, through the pidfd")]
            let child = Command::new("/bin/sh")
                .args(["-c", script])
                .spawn()
                .unwrap();
            let fd = open(child.id()).unwrap();
            assert!(crate::fd::wait_readable(&fd, LONG).unwrap());
            assert!(is_dead(&fd).unwrap());
            assert_eq!(exit_status(&fd).unwrap(), None, "not reaped yet");
            assert_eq!(peek(&fd).unwrap().map(ExitStatus::from_raw), Some(expected));
            assert_eq!(wait(&fd).unwrap().map(ExitStatus::from_raw), Some(expected));
            assert_eq!(wait(&fd), Err(Errno::ECHILD));
            assert_eq!(send_signal(&fd, 0), Err(Errno::ESRCH));
            // Offered by the kernels we test on (6.15 and later), else None.
            if let Some(kept) = exit_status(&fd).unwrap() {
                assert_eq!(ExitStatus::from_raw(kept), expected);
            }
        }
    }

    /// A reaper that sees its shim die starts another, however quickly it is killed itself.
    #[test]
    fn of_those_that_die_together_none_sees_the_other_die() {
        use std::io::{BufRead as _, BufReader, Read as _};
        let script = "for i in {1..60}; do sleep 60 <&- >/dev/null & echo $!; done; echo; wait -n; echo seen";
        for _ in 0..10 {
            let mut elder = Command::new("/bin/bash")
                .args(["-c", script])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut words = BufReader::new(elder.stdout.take().unwrap());
            let mut all = vec![open(elder.id()).unwrap()];
            let mut line = String::new();
            while words.read_line(&mut line).unwrap() > 1 {
                all.push(open(line.trim().parse().unwrap()).unwrap());
                line.clear();
            }
            kill_together(&all).unwrap();
            for process in &all {
                assert!(crate::fd::wait_readable(process, LONG).unwrap());
            }
            elder.wait().unwrap();
            let mut rest = String::new();
            words.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "");
            // Those that are dead are no reason to fail.
            kill_together(&all).unwrap();
        }
    }

    #[test]
    fn a_running_child_has_no_status_and_one_inode() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let fd = open(child.id()).unwrap();
        let again = open(child.id()).unwrap();
        assert!(!is_dead(&fd).unwrap());
        assert_eq!(wait(&fd), Ok(None));
        assert_eq!(inode(&fd).unwrap(), inode(&again).unwrap());
        if let Some(ours) = inode(&fd).unwrap() {
            assert_ne!(
                Some(ours),
                inode(open(std::process::id()).unwrap()).unwrap()
            );
        }
        send_signal(&fd, libc::SIGKILL).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn no_process_no_descriptor() {
        assert_eq!(open(u32::MAX).unwrap_err(), Errno::ESRCH);
        // Above the kernel's limit of 2^22.
        assert_eq!(open(1 << 23).unwrap_err(), Errno::ESRCH);
        assert_eq!(open(0).unwrap_err(), Errno::ESRCH);
    }

    /// A process ended and the number went to a thread before anybody opened it: on a busy
    /// machine this made a Kill fail with "cannot open a pidfd of process N: ENOENT".
    #[test]
    fn a_number_that_is_now_a_threads_is_no_process() {
        let opened = std::thread::spawn(|| {
            let own = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
            open(own).map(drop)
        });
        assert_eq!(opened.join().unwrap(), Err(Errno::ESRCH));
    }
}
