//! Starting processes: programs ([`Command`], by posix_spawn, which borrows
//! our memory until the exec and so costs the same however big we are) and
//! workers ([`fork_worker`], a fork that runs one function and leaves).
//!
//! A child gets what it is told to get and nothing else: descriptors, signal
//! mask, dispositions, environment, process group. No parent-death signal is
//! set: it fires when the *thread* that started the child ends, and it would
//! kill runc half-way when the shim dies, where the next shim could have let it
//! finish.

use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{Errno, Result, fd, fork, pidfd, process};

/// A process of ours, not reaped yet.
#[derive(Debug)]
pub struct Child {
    /// Its number; ours to use as long as it is not reaped.
    pub pid: u32,
    /// Readable when it has ended; [`pidfd::wait`] reaps it.
    pub pidfd: OwnedFd,
}

impl Child {
    /// Signals every process of the group this child leads, until it is
    /// reaped: from then on its number may be another group's. `ESRCH`:
    /// it is reaped, or the group is empty.
    pub fn signal_group(&self, number: i32) -> Result<()> {
        match pidfd::send_signal_to_group(&self.pidfd, number) {
            Err(Errno::EINVAL | Errno::ENOSYS) => {}
            answer => return answer,
        }
        // Nobody but we can reap it between this and the next call.
        pidfd::send_signal(&self.pidfd, 0)?;
        let group = libc::pid_t::try_from(self.pid).map_err(|_| Errno::ESRCH)?;
        // 0 and 1 would mean our own group and everybody.
        if group <= 1 {
            return Err(Errno::ESRCH);
        }
        // SAFETY: takes two integers.
        Errno::result(unsafe { libc::kill(-group, number) }).map(drop)
    }
}

/// A program to start. Without further ado it gets `/dev/null` three times,
/// an empty environment, our working directory, and no other descriptor.
#[derive(Debug)]
pub struct Command<'fd> {
    program: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: Option<CString>,
    fds: Vec<(i32, BorrowedFd<'fd>)>,
    own_group: bool,
    own_session: bool,
    huge_pages: bool,
    bad: bool,
}

impl<'fd> Command<'fd> {
    /// `program` is a path; it is not searched for. It is also `argv[0]`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command {
            program: CString::default(),
            argv: Vec::new(),
            env: Vec::new(),
            cwd: None,
            fds: Vec::new(),
            own_group: false,
            own_session: false,
            huge_pages: false,
            bad: false,
        };
        command.program = command.text(program.as_ref());
        command.argv.push(command.program.clone());
        command
    }

    /// A nul inside cannot be passed on; it is reported at the spawn.
    fn text(&mut self, text: &OsStr) -> CString {
        CString::new(text.as_bytes()).unwrap_or_else(|_| {
            self.bad = true;
            CString::default()
        })
    }

    /// Another `argv[0]`.
    #[must_use]
    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> Self {
        self.argv[0] = self.text(name.as_ref());
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        let argument = self.text(argument.as_ref());
        self.argv.push(argument);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        arguments.into_iter().fold(self, Command::arg)
    }

    /// One more variable of its environment.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let mut pair = key.as_ref().to_os_string();
        pair.push("=");
        pair.push(value);
        let pair = self.text(&pair);
        self.env.push(pair);
        self
    }

    /// More variables.
    #[must_use]
    pub fn envs(
        self,
        pairs: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> Self {
        pairs
            .into_iter()
            .fold(self, |command, (key, value)| command.env(key, value))
    }

    /// Its working directory.
    #[must_use]
    pub fn cwd(mut self, path: &Path) -> Self {
        self.cwd = Some(self.text(path.as_os_str()));
        self
    }

    /// Its descriptor `number` is a duplicate of `source`. Also for 0, 1, 2.
    #[must_use]
    pub fn fd(mut self, number: u16, source: BorrowedFd<'fd>) -> Self {
        self.fds.retain(|(taken, _)| *taken != i32::from(number));
        self.fds.push((number.into(), source));
        self
    }

    /// Its standard input.
    #[must_use]
    pub fn stdin(self, source: BorrowedFd<'fd>) -> Self {
        self.fd(0, source)
    }

    /// Its standard output.
    #[must_use]
    pub fn stdout(self, source: BorrowedFd<'fd>) -> Self {
        self.fd(1, source)
    }

    /// Its standard error.
    #[must_use]
    pub fn stderr(self, source: BorrowedFd<'fd>) -> Self {
        self.fd(2, source)
    }

    /// It leads a process group of its own, with its pid as number.
    #[must_use]
    pub fn own_group(mut self) -> Self {
        self.own_group = true;
        self
    }

    /// It leads a session of its own, and so a process group too.
    #[must_use]
    pub fn own_session(mut self) -> Self {
        self.own_session = true;
        self
    }

    /// It may have huge pages although we gave them up
    /// ([`process::disable_huge_pages`]).
    #[must_use]
    pub fn huge_pages(mut self) -> Self {
        self.huge_pages = true;
        self
    }

    /// Starts it. The error is that of the first step that failed, exec
    /// included; then no process is left. `EINVAL` also for a nul in a text.
    pub fn spawn(&self) -> Result<Child> {
        if self.bad {
            return Err(Errno::EINVAL);
        }
        let null = fd::null()?;
        let highest = self
            .fds
            .iter()
            .map(|(number, _)| *number)
            .max()
            .unwrap_or(0)
            .max(2);
        // What has a number that something else is to get is moved out of the
        // way first, so that no order of duplicating can destroy a source.
        let mut moved: Vec<OwnedFd> = Vec::new();
        let mut plan: Vec<(i32, i32)> = Vec::with_capacity(self.fds.len() + 3);
        for number in 0..=highest {
            let source = match self.fds.iter().find(|(n, _)| *n == number) {
                Some((_, source)) => *source,
                None if number <= 2 => null.as_fd(),
                None => continue,
            };
            let raw = if source.as_raw_fd() > highest {
                source.as_raw_fd()
            } else {
                let up = fd::duplicate_above(source, highest)?;
                let raw = up.as_raw_fd();
                moved.push(up);
                raw
            };
            plan.push((number, raw));
        }

        // A descriptor's worth of room, so that having none left is found out
        // before something was started, not after.
        let room = fd::duplicate(&null)?;

        let mut actions = Actions::new()?;
        if let Some(cwd) = &self.cwd {
            actions.chdir(cwd)?;
        }
        for number in 0..=highest {
            match plan.iter().find(|(n, _)| *n == number) {
                Some((_, source)) => actions.duplicate(*source, number)?,
                None => actions.close(number)?,
            }
        }
        actions.close_from(highest + 1)?;
        let attributes = Attributes::new(self.own_group, self.own_session)?;

        let argv = pointers(&self.argv);
        let env = pointers(&self.env);
        let mut pid: libc::pid_t = 0;
        // Huge pages are a property of the address space that exec hands on;
        // the child shares ours until then, so it is set here.
        let without = self.huge_pages && process::huge_pages_disabled().unwrap_or(false);
        if without {
            process::allow_huge_pages()?;
        }
        // SAFETY: all pointers are to nul-terminated strings or null-terminated
        // arrays of such, owned by `self` or by this frame; `actions` and
        // `attributes` are initialised.
        let code = process::with_childrens_open_files(|| unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.program.as_ptr(),
                actions.0.as_ptr(),
                attributes.0.as_ptr(),
                argv.as_ptr(),
                env.as_ptr(),
            )
        });
        if without {
            // Only thrift is lost if this fails.
            let _ = process::disable_huge_pages();
        }
        check(code)?;
        drop(room);
        adopt(pid)
    }
}

impl Command<'_> {
    /// Becomes this program: the process with its number, children and locks stays, `keep` is
    /// open in it under the same numbers (for [`fork::inherited`]), everything else is closed. Returns
    /// only if that cannot be; then nothing has changed. What [`Command::fd`] and its like ask for
    /// is for a child. Ignored signals and the mask stay: see [`crate::signal::reset_for_exec`].
    #[must_use]
    pub fn replace_us(&self, keep: &[BorrowedFd<'_>]) -> Errno {
        if self.bad {
            return Errno::EINVAL;
        }
        let argv = pointers(&self.argv);
        let env = pointers(&self.env);
        let mut all = keep.iter();
        let why = match all.try_for_each(|one| fd::set_close_on_exec(one, false)) {
            Ok(()) => {
                // SAFETY: the pointers are to a nul-terminated string and to null-terminated arrays
                // of such, owned by `self` or by this frame. Returns only if it fails.
                unsafe {
                    libc::execve(
                        self.program.as_ptr(),
                        argv.as_ptr().cast(),
                        env.as_ptr().cast(),
                    )
                };
                Errno::last()
            }
            Err(errno) => errno,
        };
        for one in keep {
            // As everything here is; it could be set to the opposite.
            let _ = fd::set_close_on_exec(one, true);
        }
        why
    }
}

/// Turns the number of a child just made into a [`Child`]; race-free, as
/// nobody but us can reap it and we have not.
fn adopt(pid: libc::pid_t) -> Result<Child> {
    let number = u32::try_from(pid).map_err(|_| Errno::ESRCH)?;
    match pidfd::open(number) {
        Ok(pidfd) => Ok(Child { pid: number, pidfd }),
        Err(e) => {
            // A child that cannot be watched must not be left running. It is
            // not reaped, so the number is still its own.
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
            Err(e)
        }
    }
}

/// The array of pointers that exec wants.
fn pointers(texts: &[CString]) -> Vec<*mut libc::c_char> {
    let ended = std::iter::once(std::ptr::null_mut());
    texts
        .iter()
        .map(|t| t.as_ptr().cast_mut())
        .chain(ended)
        .collect()
}

/// posix_spawn and its kin return the error instead of setting errno.
fn check(code: libc::c_int) -> Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(code))
    }
}

struct Actions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new() -> Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: initialises what it is given.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Actions(actions))
    }

    fn chdir(&mut self, path: &CString) -> Result<()> {
        // SAFETY: initialised by `new`; glibc copies the path.
        check(unsafe {
            libc::posix_spawn_file_actions_addchdir_np(self.0.as_mut_ptr(), path.as_ptr())
        })
    }

    fn duplicate(&mut self, source: i32, number: i32) -> Result<()> {
        // SAFETY: initialised by `new`; the rest are integers.
        check(unsafe {
            libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), source, number)
        })
    }

    fn close(&mut self, number: i32) -> Result<()> {
        // SAFETY: initialised by `new`; the rest is an integer.
        check(unsafe { libc::posix_spawn_file_actions_addclose(self.0.as_mut_ptr(), number) })
    }

    fn close_from(&mut self, number: i32) -> Result<()> {
        // SAFETY: initialised by `new`; the rest is an integer.
        check(unsafe {
            libc::posix_spawn_file_actions_addclosefrom_np(self.0.as_mut_ptr(), number)
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    /// No signal blocked, every disposition the default one.
    fn new(own_group: bool, own_session: bool) -> Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises what it is given.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Attributes(attributes);
        let mut flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        if own_session {
            flags |= libc::c_int::from(libc::POSIX_SPAWN_SETSID);
        } else if own_group {
            // Group 0, the default, means one of its own.
            flags |= libc::POSIX_SPAWN_SETPGROUP;
        }
        let mut none = MaybeUninit::uninit();
        // Not sigfillset: it leaves out the two signals glibc uses itself, and
        // posix_spawn then starts the program, hence the container, with these
        // two ignored.
        let mut all: MaybeUninit<libc::sigset_t> = MaybeUninit::uninit();
        let at = attributes.0.as_mut_ptr();
        // SAFETY: `at` is initialised; the two sets are filled in before the
        // calls that read them, and any bits are a valid set.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            all.as_mut_ptr().write_bytes(0xff, 1);
            check(libc::posix_spawnattr_setsigmask(at, none.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(at, all.as_ptr()))?;
            check(libc::posix_spawnattr_setflags(
                at,
                libc::c_short::try_from(flags).unwrap_or(0),
            ))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

/// Forks a child that runs `work` and exits with what it returns. `EINVAL` in a process of
/// several threads: the child allocates, and a lock that another thread had would never open.
///
/// The child leads its own process group, has `/dev/null` for stdio, no signal
/// blocked or handled, and of our other descriptors only those in `keep`
/// (numbers unchanged): a worker that hangs for ever holds no pipe, no
/// connection and no lock. Any other that `work` has captured is dead there (`EBADF`), and
/// stays so: its number is nothing else's.
pub fn fork_worker(keep: &[BorrowedFd<'_>], work: impl FnOnce() -> i32) -> Result<Child> {
    fork::may_fork_worker()?;
    let dead = fd::dead()?;
    let room = fd::duplicate(&dead)?;
    // SAFETY: this process has one thread, so no lock is held by a thread that
    // does not exist in the child; a thread of a test (see there) may leave one, for
    // which the child then waits until it is killed. The child leaves by `exit_now`.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            // One free number for what `settle` opens.
            drop(room);
            // A panic must not unwind into the copy of the parent's frames.
            let guarded = std::panic::AssertUnwindSafe(|| match settle(keep, &dead) {
                Ok(()) => work(),
                Err(_) => 125,
            });
            process::exit_now(std::panic::catch_unwind(guarded).unwrap_or(101))
        }
        nix::unistd::ForkResult::Parent { child } => {
            // The child does the same; whoever comes first. Failing means that
            // the child has done it and is already gone.
            let _ = nix::unistd::setpgid(child, child);
            drop(room);
            adopt(child.as_raw())
        }
    }
}

/// The child's first steps after the fork.
fn settle(keep: &[BorrowedFd<'_>], dead: &OwnedFd) -> Result<()> {
    let own = nix::unistd::Pid::from_raw(0);
    nix::unistd::setpgid(own, own)?;
    // SAFETY: resets dispositions to the default, which calls nothing of ours.
    unsafe {
        for number in 1..=libc::SIGRTMAX() {
            libc::signal(number, libc::SIG_DFL);
        }
    }
    nix::sys::signal::sigprocmask(
        nix::sys::signal::SigmaskHow::SIG_SETMASK,
        Some(&nix::sys::signal::SigSet::empty()),
        None,
    )?;
    let kept: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    let null = fd::null()?;
    for number in (0..=2).filter(|number| !kept.contains(number)) {
        // SAFETY: takes two integers; nobody owns the numbers of stdio.
        Errno::result(unsafe { libc::dup2(null.as_raw_fd(), number) })?;
    }
    drop(null);
    let all = std::fs::read_dir("/proc/self/fd").map_err(|e| errno(&e))?;
    // All of them first; that of the directory is closed then.
    let open: Vec<i32> = all
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    process::allow_more_files(open.iter().max().copied().unwrap_or(0));
    let given_up = |number: &i32| *number > 2 && !kept.contains(number);
    for number in open.into_iter().filter(given_up) {
        if number != dead.as_raw_fd() && fd::is_open(number) {
            // SAFETY: takes two integers. Whatever owns the number in this copy of the process
            // goes on owning an open descriptor, of which no use can be made.
            Errno::result(unsafe { libc::dup2(dead.as_raw_fd(), number) })?;
        }
    }
    Ok(())
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
#[path = "spawn_tests.rs"]
mod tests;
