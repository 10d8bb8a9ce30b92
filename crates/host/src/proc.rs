//! Processes as `/proc` shows them: which incarnation a pid is, what it is
//! doing, who descends from whom. Signals go only through a pidfd opened and
//! checked here. Reads `stat`, `status`, `wchan`, `cgroup` and `ns`, never
//! `cmdline`, which hangs on a process that sleeps uninterruptibly.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use vigil_sys::fd::{NO_LINK_NO_WAIT, NO_WAIT};

use vigil_model::{BootId, Incarnation};
use vigil_sys::{Errno, pidfd};

use crate::rootfs::mountinfo;
use crate::{Error, Result};

/// The part of `/proc/PID/stat` that is needed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The command's name, 15 bytes at most, made printable.
    pub comm: String,
    /// `R`, `S`, `D`, `Z` … as in proc(5).
    pub state: char,
    /// Its parent's pid.
    pub parent: u32,
    /// Number of its process group.
    pub group: u32,
    /// Pid of its session's leader, alive or not; 0 while it is being reaped.
    pub session: u32,
    /// Clock ticks after boot at which it started.
    pub start_ticks: u64,
}

impl Stat {
    /// Whether it has ended and only waits to be reaped.
    pub fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Reads one line of `stat`. The name stands in parentheses and may hold any
/// byte, a parenthesis too, so the fields count from the last `)`.
pub fn parse_stat(line: &[u8]) -> Option<Stat> {
    let open = line.iter().position(|&b| b == b'(')?;
    let close = line.iter().rposition(|&b| b == b')')?;
    let comm = String::from_utf8_lossy(line.get(open + 1..close)?)
        .escape_debug()
        .to_string();
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    // Field 3 comes first; 22 is the start time.
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // A process being reaped just now is of no group and session any more: -1.
    let group = fields.next()?.parse::<i64>().ok()?;
    let session = fields.next()?.parse::<i64>().ok()?;
    let start_ticks = fields.nth(15)?.parse().ok()?;
    Some(Stat {
        comm,
        state,
        parent,
        group: u32::try_from(group).unwrap_or(0),
        session: u32::try_from(session).unwrap_or(0),
        start_ticks,
    })
}

/// Whether an error of a file below `/proc/PID` means that there is no such
/// process (any more).
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

fn of_pid(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// A file below `/proc/PID`, or `None` if the process is gone.
fn read(pid: u32, name: &str) -> Result<Option<Vec<u8>>> {
    let path = of_pid(pid, name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(source) => Err(Error::File {
            op: "read",
            path,
            source,
        }),
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has looked what a process is doing.
    pub(crate) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What a process is doing; `None` if there is none of this number.
pub fn stat(pid: u32) -> Result<Option<Stat>> {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
    let Some(line) = read(pid, "stat")? else {
        return Ok(None);
    };
    parse_stat(&line).map(Some).ok_or_else(|| Error::Malformed {
        path: of_pid(pid, "stat"),
        problem: "not a line of stat".to_owned(),
    })
}

/// The raw wait status of a process that is dead and not yet reaped, as its
/// parent will get it; `None` if it is no zombie, or we may not know: the
/// kernel shows 0 to who may not look, and 0 would be taken for a clean exit.
pub fn zombie_status(process: &Incarnation) -> Result<Option<i32>> {
    match vigil_sys::process::zombie_status(process.pid, process.start_ticks) {
        Ok(status) => Ok(status),
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(source) => Err(Error::Kernel {
            op: "read the end of",
            what: format!("process {}", process.pid),
            source,
        }),
    }
}

/// Whether a process is past the point of exit(2) from which nothing turns it back: its
/// status is decided, though it may not be dead for long (an init waits until the others of
/// its pid namespace are reaped). A leader whose threads live on is not.
pub fn is_past_exit(pid: u32) -> Result<bool> {
    const PF_EXITING: u64 = 0x4;
    let Some(line) = read(pid, "stat")? else {
        return Ok(false);
    };
    let text = String::from_utf8_lossy(&line);
    // After the name: field 9 is the flags, 20 the number of threads.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_ascii_whitespace()
        .collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let exiting = field(9).is_some_and(|flags| flags & PF_EXITING != 0);
    Ok(exiting && field(20).is_some_and(|threads| threads <= 1))
}

/// The kernel function a process waits in; empty if it runs or the kernel does
/// not say.
pub fn wchan(pid: u32) -> Result<Option<String>> {
    Ok(read(pid, "wchan")?.map(|bytes| {
        let text = String::from_utf8_lossy(&bytes);
        if text == "0" {
            String::new()
        } else {
            text.into_owned()
        }
    }))
}

/// The process a thread belongs to.
pub fn process_of_thread(tid: u32) -> Result<Option<u32>> {
    let Some(bytes) = read(tid, "status")? else {
        return Ok(None);
    };
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))
        .and_then(|number| number.trim().parse().ok()))
}

/// `/proc/PID/cgroup`.
pub fn cgroup(pid: u32) -> Result<Option<String>> {
    Ok(read(pid, "cgroup")?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The id of this boot.
pub fn boot_id() -> Result<BootId> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|source| Error::File {
        op: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(BootId(text.trim_end().to_owned()))
}

/// Inode of the pid namespace our pids belong to.
pub fn pid_namespace() -> Result<u64> {
    let path = Path::new("/proc/self/ns/pid");
    fs::metadata(path)
        .map(|meta| meta.ino())
        .map_err(|source| Error::File {
            op: "look at",
            path: path.to_owned(),
            source,
        })
}

/// Whether two processes run the same file, whatever its name is by now. Neither is asked.
pub fn runs_the_same(pid: u32, other: u32) -> bool {
    let program = |pid: u32| {
        let meta = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    program(pid).is_some_and(|its| program(other) == Some(its))
}

/// The name of a shim or monitor that looks after containers, if this process is one: known by
/// the file it runs, since a container's process may call itself what it likes, if that is one of
/// this host's root and not of a root of its own. No file system is asked, only the kernel's
/// tables: one that a container lives in may never answer.
pub fn looks_after(pid: u32) -> Option<String> {
    let program = fs::read_link(of_pid(pid, "exe")).ok()?;
    let program = program.file_name()?.to_string_lossy().into_owned();
    let known = program.starts_with("containerd-shim") || program == "conmon";
    (known && shares_our_root(pid)).then_some(program)
}

/// Whether a process has the root that we have.
fn shares_our_root(pid: u32) -> bool {
    let us = std::process::id();
    let link = |pid: u32, name: &str| fs::read_link(of_pid(pid, name)).ok();
    let mounts = link(pid, "ns/mnt");
    if mounts.is_some() && mounts == link(us, "ns/mnt") {
        let root = link(pid, "root");
        return root.is_some() && root == link(us, "root");
    }
    // A copy of our mounts: a service's own, for example.
    let root = mountinfo::root_of(pid);
    root.is_some() && root == mountinfo::root_of(us)
}

/// Whether this process is the first of a pid namespace below ours: who becomes an orphan there
/// becomes its child.
pub fn is_first(pid: u32) -> bool {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let Ok(status) = read_bounded(&path, 1 << 20) else {
        return false;
    };
    let mut lines = status.split(|byte| *byte == b'\n');
    let numbers = lines.find_map(|line| line.strip_prefix(b"NSpid:"));
    let numbers = numbers.and_then(|numbers| std::str::from_utf8(numbers).ok());
    let numbers: Vec<&str> = numbers.unwrap_or_default().split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

/// Opens a pidfd; `None` if there is no such process.
fn open(pid: u32) -> Result<Option<OwnedFd>> {
    match pidfd::open(pid) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ESRCH) => Ok(None),
        Err(source) => Err(Error::Kernel {
            op: "open a pidfd of process",
            what: pid.to_string(),
            source,
        }),
    }
}

/// Which process this pid is now, with a pidfd of it; `None` if there is none.
/// A zombie still is one.
pub fn open_now(pid: u32) -> Result<Option<(Incarnation, OwnedFd)>> {
    let Some(fd) = open(pid)? else {
        return Ok(None);
    };
    let Some(stat) = stat(pid)? else {
        return Ok(None);
    };
    let pidfd_inode = pidfd::inode(&fd).map_err(|source| Error::Kernel {
        op: "identify the pidfd of process",
        what: pid.to_string(),
        source,
    })?;
    // Descriptor first, then the file: if the number changed hands between
    // the two, the process of the descriptor has been reaped since.
    match pidfd::send_signal(&fd, 0) {
        Ok(()) | Err(Errno::EPERM) => {}
        Err(Errno::ESRCH) => return Ok(None),
        Err(source) => {
            return Err(Error::Kernel {
                op: "ask for process",
                what: pid.to_string(),
                source,
            });
        }
    }
    Ok(Some((
        Incarnation {
            pid,
            start_ticks: stat.start_ticks,
            pid_ns: pid_namespace()?,
            boot: boot_id()?,
            pidfd_inode,
        },
        fd,
    )))
}

/// Which process this pid is now; `None` if there is none.
pub fn incarnation(pid: u32) -> Result<Option<Incarnation>> {
    Ok(open_now(pid)?.map(|(incarnation, _)| incarnation))
}

/// What became of a recorded incarnation.
#[derive(Debug)]
pub enum Checked {
    /// The very process, running or a zombie.
    Same(OwnedFd),
    /// No process has its number.
    Gone,
    /// Its number means another process now.
    Reused(Incarnation),
    /// It belongs to another boot or another pid namespace; its number was not
    /// looked at.
    Elsewhere,
}

/// Opens a pidfd of a recorded process, and of no other one.
pub fn open_checked(recorded: &Incarnation) -> Result<Checked> {
    if recorded.boot != boot_id()? || recorded.pid_ns != pid_namespace()? {
        return Ok(Checked::Elsewhere);
    }
    Ok(match open_now(recorded.pid)? {
        None => Checked::Gone,
        Some((now, fd)) if now.same(recorded) => Checked::Same(fd),
        Some((now, _)) => Checked::Reused(now),
    })
}

/// A process that will not end, told so that a person can act on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdout {
    /// Its pid.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its state letter.
    pub state: char,
    /// The kernel function it waits in, empty if not known.
    pub wchan: String,
}

impl std::fmt::Display for Holdout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Holdout {
            pid,
            comm,
            state,
            wchan,
        } = self;
        write!(f, "process {pid} ({comm}), state {state}")?;
        if wchan.is_empty() {
            Ok(())
        } else {
            write!(f, ", in {wchan}")
        }
    }
}

/// Describes a process that is still there; `None` if it has ended.
pub fn holdout(pid: u32) -> Result<Option<Holdout>> {
    let Some(stat) = stat(pid)? else {
        return Ok(None);
    };
    if stat.ended() {
        return Ok(None);
    }
    Ok(Some(Holdout {
        pid,
        comm: stat.comm,
        state: stat.state,
        wchan: wchan(pid).ok().flatten().unwrap_or_default(),
    }))
}

/// Whether a process is a child of `ancestor`, or a child's child and so on.
/// `false` if there is no such process.
pub fn descends(pid: u32, ancestor: u32) -> Result<bool> {
    // Deeper than any chain between a reaper and a container's process.
    const GENERATIONS: usize = 64;
    let mut pid = pid;
    for _ in 0..GENERATIONS {
        match stat(pid)? {
            Some(stat) if stat.parent == ancestor => return Ok(true),
            Some(stat) if stat.parent > 1 => pid = stat.parent,
            Some(_) | None => break,
        }
    }
    Ok(false)
}

/// Everything that descends from a process, nearest first; zombies left out.
/// One pass over `/proc`: a process that forks meanwhile may be missed, so
/// whoever kills by descent looks again until nothing is found.
pub fn descendants(ancestor: u32) -> Result<Vec<u32>> {
    let dir = Path::new("/proc");
    let failed = |source| Error::File {
        op: "list",
        path: dir.to_owned(),
        source,
    };
    let mut children: BTreeMap<u32, Vec<(u32, bool)>> = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(stat) = stat(pid)? {
            let ended = stat.ended();
            children.entry(stat.parent).or_default().push((pid, ended));
        }
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([ancestor]);
    let mut next = vec![ancestor];
    while let Some(parent) = next.pop() {
        for &(pid, ended) in children.get(&parent).into_iter().flatten() {
            if seen.insert(pid) {
                next.push(pid);
                if !ended {
                    found.push(pid);
                }
            }
        }
    }
    Ok(found)
}

/// Reads a whole small file, refusing to read more than `max` bytes of it.
pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    read_opened(path, max, NO_WAIT)
}

/// A text of a line or so that Vigil, containerd or runc keeps in a bundle: whole, of at most a
/// page, neither through a link nor waiting for a fifo's writer.
pub fn read_line(path: &Path) -> Result<String> {
    read_own(path, 4096).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// As [`read_bounded`], of a file of Vigil's own: those are no links.
pub(crate) fn read_own(path: &Path, max: u64) -> Result<Vec<u8>> {
    read_opened(path, max, NO_LINK_NO_WAIT)
}

fn read_opened(path: &Path, max: u64, flags: i32) -> Result<Vec<u8>> {
    let failed = |op| {
        move |source| Error::File {
            op,
            path: path.to_owned(),
            source,
        }
    };
    let irregular = || Error::Malformed {
        path: path.to_owned(),
        problem: "not a regular file".to_owned(),
    };
    // Opening a fifo would wait for its writer; what was opened is looked at, since another
    // may have its name by now.
    let opened = fs::File::options()
        .read(true)
        .custom_flags(flags)
        .open(path);
    let file = opened.map_err(|source| match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() && !there.is_dir() && flags != NO_WAIT => irregular(),
        Ok(_) | Err(_) => failed("look at")(source),
    })?;
    let meta = file.metadata().map_err(failed("look at"))?;
    if !meta.is_file() {
        return Err(irregular());
    }
    let mut bytes = Vec::new();
    if meta.len() <= max {
        file.take(max + 1)
            .read_to_end(&mut bytes)
            .map_err(failed("read"))?;
        // It may have grown since.
        if bytes.len() as u64 <= max {
            return Ok(bytes);
        }
    }
    Err(Error::TooLarge {
        path: path.to_owned(),
        max,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            Self(Command::new("sleep").arg("60").spawn().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// An exec that ended while it was looked at failed with "not a line of stat".
    #[test]
    fn a_process_being_reaped_has_no_session() {
        let line = b"17336 (sh) X 0 -1 -1 0 -1 4194308 0 0 0 0 0 0 0 0 20 0 0 0 777 0 0 0\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.session, stat.start_ticks, stat.state), (0, 777, 'X'));
    }

    #[test]
    fn the_name_may_hold_anything() {
        let line = b"7 (a) R 1 (b\xff) S 3 7 7 0 -1 1 2 3 4 5 6 7 8 9 20 0 1 0 4711 6 7\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start_ticks), ('S', 3, 4711));
        for bad in [&b""[..], b"7 sh S 3", b"7 (sh) S", b")(", b"7 (sh) S x"] {
            assert_eq!(parse_stat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_process_is_recognised_and_a_stranger_is_not() {
        let child = Sleeper::new();
        let now = incarnation(child.0.id()).unwrap().unwrap();
        assert!(matches!(open_checked(&now).unwrap(), Checked::Same(_)));
        let mut other = now.clone();
        other.start_ticks -= 1;
        assert!(matches!(open_checked(&other).unwrap(), Checked::Reused(_)));
        let mut other = now.clone();
        other.boot = BootId("another".to_owned());
        assert!(matches!(open_checked(&other).unwrap(), Checked::Elsewhere));
        let mut other = now;
        other.pid_ns += 1;
        assert!(matches!(open_checked(&other).unwrap(), Checked::Elsewhere));
    }

    #[test]
    fn a_zombie_is_the_same_process_until_it_is_reaped() {
        let mut child = Sleeper::new();
        let pid = child.0.id();
        let now = incarnation(pid).unwrap().unwrap();
        child.0.kill().unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while !stat(pid).unwrap().unwrap().ended() {
            assert!(Instant::now() < end, "it does not die");
            std::thread::yield_now();
        }
        assert!(matches!(open_checked(&now).unwrap(), Checked::Same(_)));
        assert_eq!(holdout(pid).unwrap(), None);
        child.0.wait().unwrap();
        assert!(matches!(
            open_checked(&now).unwrap(),
            Checked::Gone | Checked::Reused(_)
        ));
    }

    #[test]
    fn descent_is_seen_through_generations() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(shell.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        let found = descendants(std::process::id()).unwrap();
        let below_shell = descendants(shell.id()).unwrap();
        let me = std::process::id();
        let told = [
            descends(grandchild, me).unwrap(),
            descends(grandchild, shell.id()).unwrap(),
            descends(shell.id(), grandchild).unwrap(),
            descends(me, me).unwrap(),
        ];
        let fd = pidfd::open(grandchild).unwrap();
        pidfd::send_signal(&fd, 9).unwrap();
        shell.wait().unwrap();
        assert!(found.contains(&shell.id()) && found.contains(&grandchild));
        assert_eq!(below_shell, [grandchild]);
        assert_eq!(told, [true, true, false, false]);
        assert!(!descends(grandchild, me).unwrap(), "it is gone");
    }

    #[test]
    fn who_has_called_exit_is_exiting_and_nobody_else() {
        assert!(!is_past_exit(std::process::id()).unwrap());
        let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // A zombie is past that point too; nobody reaps it but we.
        while !is_past_exit(child.id()).unwrap() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_a_zombie_is_told_and_of_nobody_else() {
        let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let us = incarnation(std::process::id()).unwrap().unwrap();
        assert_eq!(zombie_status(&us).unwrap(), None);
        loop {
            let process = incarnation(child.id()).unwrap().unwrap();
            let told = zombie_status(&process).unwrap();
            if told.is_some() {
                assert_eq!(told, Some(3 << 8));
                let other = Incarnation {
                    start_ticks: process.start_ticks + 1,
                    ..process
                };
                assert_eq!(zombie_status(&other).unwrap(), None);
                break;
            }
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
