//! What a process of ours sets for itself, once, while it starts. Nothing
//! here touches resource limits: the container inherits them from us, and a
//! limit of ours must not become one of its.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;

use crate::{Errno, Result, pidfd};

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> Result<libc::c_int> {
    // SAFETY: only options that take integers are passed, the unused ones zero.
    Errno::result(unsafe { libc::prctl(option, argument, 0, 0, 0) })
}

/// Makes orphans below us our children. Survives exec, is not inherited by
/// children.
pub fn set_subreaper(on: bool) -> Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(on)).map(drop)
}

/// This process is sent SIGKILL when its parent ends, before anybody is told of that
/// end. `false`: `parent` has ended already. To the kernel a parent is the thread that forked us.
pub fn die_with(parent: u32) -> Result<bool> {
    let kill = libc::c_ulong::from(nix::sys::signal::Signal::SIGKILL as u32);
    prctl(libc::PR_SET_PDEATHSIG, kill)?;
    Ok(nix::unistd::getppid().as_raw().cast_unsigned() == parent)
}

/// Sets `comm`; the kernel keeps 15 bytes.
pub fn set_name(name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads at most 16 bytes of a nul-terminated string.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }).map(drop)
}

/// Becomes leader of a new session and process group. `EPERM`: is one already.
pub fn new_session() -> Result<()> {
    nix::unistd::setsid().map(drop)
}

/// Our children that are in our session: what we, or one of them, started and
/// what made no session of its own. Not reaped yet, so the numbers are theirs.
fn children_in_session() -> Result<Vec<u32>> {
    let own = nix::unistd::getsid(None)?;
    let children = children()?;
    let is_in = |pid: &u32| {
        let pid = i32::try_from(*pid).map(nix::unistd::Pid::from_raw);
        pid.is_ok_and(|pid| nix::unistd::getsid(Some(pid)) == Ok(own))
    };
    Ok(children.into_iter().filter(is_in).collect())
}

/// Our children, started or adopted, dead or alive: those that were not reaped.
pub fn children() -> Result<Vec<u32>> {
    let children = told(std::fs::read_to_string("/proc/thread-self/children"))?;
    let pids = children.split_ascii_whitespace();
    Ok(pids.filter_map(|pid| pid.parse().ok()).collect())
}

/// SIGKILL to what we, or a child, started in our session, and to the groups
/// it leads: what nobody would be left to undo, once we are gone.
pub fn kill_errands() {
    for errand in children_in_session().unwrap_or_default() {
        kill_child_group(errand);
    }
}

/// SIGKILL to a child that was not reaped, and to the group it leads, if any.
fn kill_child_group(child: u32) {
    let Ok(child) = i32::try_from(child).map(nix::unistd::Pid::from_raw) else {
        return;
    };
    for target in [nix::unistd::Pid::from_raw(-child.as_raw()), child] {
        // ESRCH: it leads none, or has ended.
        let _ = nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGKILL);
    }
}

/// A new core scheduling cookie for our process group; inherited by children.
/// `EINVAL`, `ENODEV`: kernel or processor does not offer it.
pub fn new_core_scheduling_group() -> Result<()> {
    // SAFETY: integers and a null pointer, which this operation takes.
    let answer = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
            0,
            libc::PR_SCHED_CORE_SCOPE_PROCESS_GROUP,
            0,
        )
    };
    Errno::result(answer).map(drop)
}

/// Keeps transparent huge pages out of our small heap. Inherited over fork
/// *and* exec, so [`crate::spawn::Command`] takes it back for what it starts:
/// a container does not pay for our thrift.
pub fn disable_huge_pages() -> Result<()> {
    prctl(libc::PR_SET_THP_DISABLE, 1).map(drop)
}

/// Takes [`disable_huge_pages`] back.
pub fn allow_huge_pages() -> Result<()> {
    prctl(libc::PR_SET_THP_DISABLE, 0).map(drop)
}

/// Whether [`disable_huge_pages`] is in force.
pub fn huge_pages_disabled() -> Result<bool> {
    Ok(prctl(libc::PR_GET_THP_DISABLE, 0)? != 0)
}

/// Our pid, asked of the kernel (a fork changes it).
pub fn pid() -> u32 {
    std::process::id()
}

/// Our parent's pid; changes when it dies.
pub fn parent_pid() -> u32 {
    std::os::unix::process::parent_id()
}

/// The path of the program we run, as the kernel has it. Ends in
/// ` (deleted)` when it was replaced; then `/proc/self/exe` still executes it.
pub fn own_program() -> Result<PathBuf> {
    std::fs::read_link("/proc/self/exe")
        .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// A whole file of the kernel's, or what it answered.
fn told<T>(result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// Which boot this is: 36 characters and a newline.
pub fn boot_id() -> Result<String> {
    told(std::fs::read_to_string("/proc/sys/kernel/random/boot_id"))
}

/// The inode of our pid namespace.
pub fn pid_namespace() -> Result<u64> {
    told(std::fs::metadata("/proc/self/ns/pid")).map(|file| file.ino())
}

/// What tells a process apart from all others of this boot: its pid, its start
/// ([`start_ticks`]), our pid namespace and the inode of its pidfd.
pub type Identity = (u32, u64, u64, Option<u64>);

/// Identifies a process that is ourselves or a child not reaped yet.
pub fn identify(pid: u32, fd: impl AsFd) -> Result<Identity> {
    Ok((pid, start_ticks(pid)?, pid_namespace()?, pidfd::inode(fd)?))
}

/// When a process started (field 22 of its `stat`): clock ticks after boot. A
/// zombie tells it too. `ENOENT` or `ESRCH`: there is none.
pub fn start_ticks(pid: u32) -> Result<u64> {
    stat_field(pid, 20)?.parse().map_err(|_| Errno::EIO)
}

/// Whether a process sleeps and takes no signal: state `D` of its `stat`.
pub fn sleeps_uninterruptibly(pid: u32) -> bool {
    stat_field(pid, 1).is_ok_and(|state| state == "D")
}

/// Whether a process is dying, and may have begun to close what it had open.
pub fn is_exiting(pid: u32) -> Result<bool> {
    // `PF_EXITING` of its flags.
    let flags: u64 = stat_field(pid, 7)?.parse().map_err(|_| Errno::EIO)?;
    Ok(flags & 4 != 0)
}

/// The raw wait status of a process that is dead and not reaped yet, as its parent will get it
/// (field 52 of `stat`, Linux 3.5). `None`: it is no zombie, or another with its number, or we may
/// not know: the kernel shows 0 to who may not look, which would be taken for a clean exit.
pub fn zombie_status(pid: u32, started: u64) -> Result<Option<i32>> {
    if crate::points::kernel_forgets() || start_ticks(pid)? != started {
        return Ok(None);
    }
    let status = stat_field(pid, 50)?
        .trim_end()
        .parse()
        .map_err(|_| Errno::EIO)?;
    let dead = stat_field(pid, 1)? == "Z" && start_ticks(pid)? == started;
    Ok((dead && (status != 0 || may_look())).then_some(status))
}

/// Whether we have `CAP_SYS_PTRACE`.
fn may_look() -> bool {
    const SYS_PTRACE: u64 = 1 << 19;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    held.is_some_and(|held| held & SYS_PTRACE != 0)
}

/// A field of `stat`, counted from the one after the name, which is 0 and empty.
fn stat_field(pid: u32, place: usize) -> Result<String> {
    // Room for all 52 fields at their longest.
    let mut line = [0; 1280];
    let len = told(File::open(format!("/proc/{pid}/stat")).and_then(|mut f| f.read(&mut line)))?;
    // The name, in parentheses, may hold any byte; fields count from its end.
    let fields = line[..len]
        .rsplit(|&b| b == b')')
        .next()
        .unwrap_or_default();
    let field = fields.split(|&b| b == b' ').nth(place);
    let field = field.and_then(|text| std::str::from_utf8(text).ok());
    field.map(str::to_owned).ok_or(Errno::EIO)
}

/// SIGALRM after that time, which ends a process that does not say otherwise; it stays over an
/// exec. `None`: not any more.
pub fn end_after(time: Option<std::time::Duration>) {
    let secs = time.map_or(0, |time| time.as_secs().max(1));
    // SAFETY: takes an integer; no handler of ours is installed for its signal.
    unsafe { libc::alarm(libc::c_uint::try_from(secs).unwrap_or(libc::c_uint::MAX)) };
}

/// The session we are in.
pub fn session() -> Result<u32> {
    let session = nix::unistd::getsid(None)?;
    u32::try_from(session.as_raw()).map_err(|_| Errno::ESRCH)
}

/// Sets the file mode mask, returns the old one.
pub fn set_umask(mask: u32) -> u32 {
    nix::sys::stat::umask(Mode::from_bits_truncate(mask)).bits()
}

/// Leaves at once: no destructor, no atexit, no flush. For forked children,
/// whose copies of those belong to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; touches no memory.
    unsafe { libc::_exit(code) }
}

/// What children get as soft limit of open files; 0: what we have.
static CHILDREN_OPEN_FILES: AtomicU64 = AtomicU64::new(0);

/// Raises our soft limit of open files to the hard one; what both were. Whoever we start gets
/// what we have, unless [`children_open_files`] says otherwise.
pub fn raise_open_files() -> Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok((soft, hard))
}

/// How many files this process may open.
pub fn open_files() -> Result<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft)
}

/// Lets a worker open some files more than the process it is a copy of, whose table may be
/// full, with numbers up to `highest`. Without the right to do so it has what it has.
pub(crate) fn allow_more_files(highest: i32) {
    const MORE: u64 = 64;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = soft.max(u64::try_from(highest).unwrap_or(0) + 1) + MORE;
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted));
    }
}

/// Programs that are started from now on get this as soft limit of open files: it is theirs to
/// raise, and one that uses select(2) does not find it raised.
pub fn children_open_files(soft: u64) {
    CHILDREN_OPEN_FILES.store(soft, Ordering::Relaxed);
}

/// Has our soft limit be that of children while something is started, which takes a copy.
pub(crate) fn with_childrens_open_files<T>(start: impl FnOnce() -> T) -> T {
    let wanted = CHILDREN_OPEN_FILES.load(Ordering::Relaxed);
    let ours = getrlimit(Resource::RLIMIT_NOFILE).ok();
    let lower = ours.filter(|(soft, _)| wanted > 0 && wanted < *soft);
    if let Some((_, hard)) = lower {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
    }
    let started = start();
    if let Some((soft, hard)) = lower {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    }
    started
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn who_lives_is_not_exiting_and_a_zombie_is() {
        assert_eq!(is_exiting(pid()), Ok(false));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while is_exiting(child.id()) != Ok(true) {
            assert!(std::time::Instant::now() < end);
        }
        child.wait().unwrap();
    }

    #[test]
    fn the_name_is_set_and_cut() {
        // comm belongs to the thread; the test's own thread is the one named.
        set_name(c"a-name-longer-than-fifteen").unwrap();
        let tid = nix::unistd::gettid();
        let comm = std::fs::read_to_string(format!("/proc/self/task/{tid}/comm")).unwrap();
        assert_eq!(comm.trim_end(), "a-name-longer-t");
    }

    #[test]
    fn two_tellings_of_one_process_agree() {
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        let field = own.rsplit(')').next().unwrap().split(' ').nth(20).unwrap();
        assert_eq!(start_ticks(pid()), Ok(field.parse().unwrap()));
        assert!(start_ticks(u32::MAX).is_err());
        assert_eq!(boot_id().unwrap().trim_end().len(), 36);
        assert!(pid_namespace().unwrap() > 0);
    }

    #[test]
    fn own_program_is_this_test() {
        assert_eq!(own_program().unwrap(), std::env::current_exe().unwrap());
        assert_eq!(pid(), std::process::id());
        assert_ne!(parent_pid(), 0);
    }
}
