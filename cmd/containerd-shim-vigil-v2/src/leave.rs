//! Making a pair leave: asked first, killed through checked pidfds if it does
//! not answer. The lock says when both are gone.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use vigil_host::enact::Tombstone;
use vigil_host::proc::{self, Checked};
use vigil_host::strays;
use vigil_journal::pair::{self, Pair};
use vigil_journal::{Owner, lock, names};
use vigil_model::{BootId, Incarnation};
use vigil_protocol::Flags;
use vigil_sys::fd::{self, Watch};
use vigil_sys::{listen, pidfd, signal};

/// For a pair that was asked.
const ASKED: Duration = Duration::from_millis(500);
/// For seeing whether anybody listens.
const CONNECT: Duration = Duration::from_millis(100);
/// For the lock, all in all: a little less than another `delete` takes at most, and `delete`
/// has 5 s.
const LOCK: Duration = Duration::from_millis(3200);

/// The pair is gone, and the lock is held all the same: a `delete` is at work.
#[derive(Debug)]
pub struct AtWork(PathBuf);

impl fmt::Display for AtWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "another `delete` is at work on {}", self.0.display())
    }
}

impl std::error::Error for AtWork {}

/// Another life has what was asked for by now: whoever was asked to end this one, and was held up,
/// has nothing to do with that one.
#[derive(Debug)]
pub struct Superseded(pub PathBuf);

impl fmt::Display for Superseded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is another container's bundle by now: nothing was done to that one",
            self.0.display()
        )
    }
}

impl std::error::Error for Superseded {}

/// Asks once more whether what the names lead to is what is meant: between finding a process by
/// them and doing anything to it. What was found before the answer is what was meant.
pub type Meant<'a> = &'a dyn Fn() -> Result<()>;

/// Whether there is no lock to be had here: no file can be made, or something else has
/// its name. Nobody holds it, then, who could be asked to leave by it.
pub fn is_without_lock(error: &Error) -> bool {
    matches!(
        error.downcast_ref::<lock::LockError>(),
        Some(lock::LockError::Io { .. })
    )
}

/// Takes the lock of the bundle, making whoever holds it leave.
pub fn take_lock(bundle: &Path, owner: &Owner) -> Result<File> {
    take_lock_from(bundle, owner, None, &|| Ok(()))
}

/// As [`take_lock`]. Where the bundle does not say who holds it, whoever
/// listens on this socket and is the container's shim is asked. Nobody is whom `meant` does not
/// mean.
pub fn take_lock_from(
    bundle: &Path,
    owner: &Owner,
    listening: Option<(&Path, &Flags)>,
    meant: Meant<'_>,
) -> Result<File> {
    let path = bundle.join(names::LOCK);
    let deadline = Instant::now() + LOCK;
    let was_there = path.exists();
    match lock::hold(&path) {
        Ok(file) if was_there => return Ok(file),
        // A pair may hold the one that was removed.
        Ok(file) => return end_pair(bundle, owner, listening, meant).map(|()| file),
        Err(lock::LockError::Held { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // Torn or not there yet: nobody is signalled by guess. Who holds the lock
    // without it is a pair about to write it, or to fail. Not printed: one byte
    // on stderr would spoil the address of a `start` that succeeds.
    let (mut holders, mut unread) = ask(bundle, owner, meant)?;
    if let Some(file) = wait(&path, &holders, Instant::now() + ASKED)? {
        return Ok(file);
    }
    if unread.is_some() {
        (holders, unread) = ask(bundle, owner, meant)?;
        if let Some(file) = wait(&path, &holders, Instant::now() + ASKED)? {
            return Ok(file);
        }
    }
    if unread.is_some()
        && let Some((socket, flags)) = listening
        && let Ok(connection) = listen::connect(socket, CONNECT)
    {
        dismiss_listener(&connection, flags, meant)?;
    }
    let _ = pidfd::kill_together(&holders);
    if let Some(file) = wait(&path, &holders, deadline)? {
        return Ok(file);
    }
    if unread.is_none() && holders.iter().all(|pair| pidfd::is_dead(pair) == Ok(true)) {
        return Err(AtWork(bundle.to_owned()).into());
    }
    let held = format!(
        "{} is still held: a process of the pair does not die",
        path.display()
    );
    match unread {
        Some(error) => Err(Error::new(error).context(held)),
        None => bail!(held),
    }
}

/// Ends the pair this bundle or this socket names, without a lock to tell when it is gone.
fn end_pair(
    bundle: &Path,
    owner: &Owner,
    listening: Option<(&Path, &Flags)>,
    meant: Meant<'_>,
) -> Result<()> {
    let (pair, unread) = ask(bundle, owner, meant)?;
    for by_force in [false, true] {
        let deadline = Instant::now() + ASKED;
        if by_force {
            let _ = pidfd::kill_together(&pair);
        }
        for process in &pair {
            let left = deadline.saturating_duration_since(Instant::now());
            fd::wait_readable(process, left).context("cannot wait for the pair to leave")?;
        }
    }
    if unread.is_some()
        && let Some((socket, flags)) = listening
        && let Ok(connection) = listen::connect(socket, CONNECT)
        && let Err(error) = dismiss_listener(&connection, flags, meant)
    {
        // A stranger is none of our business.
        eprintln!("warning: {error:#}");
    }
    Ok(())
}

/// Ends the pair that this process has just made, and no other: its reaper is our child.
/// The lock, unless somebody else has it then.
pub fn end_child(bundle: &Path, reaper: u32) -> Result<Option<File>> {
    let pidfd = pidfd::open(reaper).context("cannot open our own reaper")?;
    for number in [signal::USR2, signal::KILL] {
        // Dead is what it is to be.
        let _ = pidfd::send_signal(&pidfd, number);
        if fd::wait_readable(&pidfd, ASKED).context("cannot wait for our own reaper")? {
            // Its shim leaves with it, but not in the same instant.
            return wait(&bundle.join(names::LOCK), &[], Instant::now() + ASKED);
        }
    }
    bail!("the reaper, process {reaper}, does not die")
}

/// Asks the pair of this bundle to leave; its living processes, or why they are
/// not known.
fn ask(
    bundle: &Path,
    owner: &Owner,
    meant: Meant<'_>,
) -> Result<(Vec<OwnedFd>, Option<pair::PairError>)> {
    let path = bundle.join(names::PAIR);
    let (pair, found) = match Pair::read_any(&path) {
        Ok(pair) => pair,
        Err(error) => return Ok((Vec::new(), Some(error))),
    };
    let anonymous = found.is_none();
    if let Err(source) = owner.claims(&path, found.as_ref()) {
        return Ok((Vec::new(), Some(pair::PairError::NotOurs { source })));
    }
    // Version 1 does not say whose it is, but the processes do.
    let ours = |process: &pair::Incarnation| {
        let there = open(process)?;
        let fits =
            there.is_none() || !anonymous || is_shim_of(process.pid, &owner.namespace, &owner.id)?;
        Ok::<_, Error>(there.filter(|_| fits))
    };
    let reaper = ours(&pair.reaper)?;
    let shim = pair.shim.as_ref().map(ours).transpose()?.flatten();
    meant()?;
    // The reaper ends its shim; a shim without one leaves by the same signal.
    if let Some(asked) = reaper.as_ref().or(shim.as_ref()) {
        // Gone meanwhile is what we want.
        let _ = pidfd::send_signal(asked, signal::USR2);
    }
    Ok((reaper.into_iter().chain(shim).collect(), None))
}

/// Waits for the holders to end, then for the lock.
fn wait(path: &Path, holders: &[OwnedFd], deadline: Instant) -> Result<Option<File>> {
    let mut pause = Duration::from_micros(200);
    loop {
        match lock::hold(path) {
            Ok(file) => return Ok(Some(file)),
            Err(lock::LockError::Held { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut alive: Vec<Watch<'_>> = holders
            .iter()
            .filter(|holder| !pidfd::is_dead(holder).unwrap_or(true))
            .map(Watch::reading)
            .collect();
        if alive.is_empty() {
            // The kernel lets go of a dead process's files a moment later.
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(5));
        } else {
            fd::poll(&mut alive, left).context("cannot wait for the pair to leave")?;
        }
    }
}

/// A process of the pair, as the rest of us writes it.
pub fn incarnation(recorded: &pair::Incarnation) -> Incarnation {
    Incarnation {
        pid: recorded.pid,
        start_ticks: recorded.start_ticks,
        pid_ns: recorded.pid_ns,
        boot: BootId(recorded.boot.to_string()),
        pidfd_inode: recorded.pidfd_inode,
    }
}

/// A process of the pair, if it lives.
pub fn open(recorded: &pair::Incarnation) -> Result<Option<OwnedFd>> {
    Ok(match proc::open_checked(&incarnation(recorded))? {
        // A zombie serves nobody and hears nothing.
        Checked::Same(fd) => (pidfd::is_dead(&fd) != Ok(true)).then_some(fd),
        Checked::Gone | Checked::Reused(_) | Checked::Elsewhere => None,
    })
}

/// Whether the pair that holds this bundle has processes of a container, as far as is known:
/// below one of them, or init on record, which hangs below neither if it is older than its reaper.
pub fn anyone_of(bundle: &Path, owner: &Owner) -> Result<bool> {
    let Ok(pair) = Pair::read(&bundle.join(names::PAIR), owner) else {
        return Ok(false);
    };
    let mut lives = false;
    for half in std::iter::once(&pair.reaper).chain(&pair.shim) {
        if open(half)?.is_some() {
            lives = true;
            if anyone_below(half.pid)? {
                return Ok(true);
            }
        }
    }
    if !lives {
        return Ok(false);
    }
    let init = match crate::delete::remembered(bundle, owner) {
        Ok(remembered) => remembered.task.standing.phase.live_init().cloned(),
        Err(_) => None,
    };
    Ok(match init {
        Some(init) => match proc::open_checked(&init)? {
            Checked::Same(init) => !pidfd::is_dead(&init).unwrap_or(false),
            Checked::Gone | Checked::Reused(_) | Checked::Elsewhere => false,
        },
        None => false,
    })
}

/// Ends a `delete` that is held up at this container, by its tombstone, and what it had called:
/// that works on in the session its process led.
pub fn end_delete(stone: &Tombstone) -> Result<()> {
    let (Some(process), Some(at_work)) = (stone.worked_on(), &stone.at_work) else {
        return Ok(());
    };
    let (id, worker) = (&stone.id, at_work.worker.pid);
    let _ = pidfd::send_signal(&process, signal::KILL);
    if !fd::wait_readable(&process, ASKED).unwrap_or(false) {
        bail!(
            "process {worker} is removing an earlier container {id} and does not die: \
             try again when what it waits for has passed"
        );
    }
    let end = Instant::now() + ASKED;
    let left = strays::end(&stone.runtime_root, id, Some(worker), end)?;
    if let Some(call) = left.first() {
        bail!(
            "process {call}, a call of the runtime for an earlier container {id}, does not die: \
             try again when what it waits for has passed"
        );
    }
    Ok(())
}

/// The process that listens at the other end of a connection.
pub fn listener_of(connection: &OwnedFd) -> Option<u32> {
    use std::os::fd::AsFd;
    listen::peer(connection.as_fd()).ok().map(|peer| peer.pid)
}

/// Whether nobody lives who listens there. A process that dies lets go of the lock a moment
/// before it lets go of the listener: such a one is waited for.
pub fn is_deserted(socket: &Path) -> bool {
    let until = Instant::now() + ASKED;
    loop {
        let Ok(connection) = listen::connect(socket, CONNECT) else {
            return listen::is_deserted(socket, CONNECT);
        };
        let dying = listener_of(&connection).is_none_or(|pid| {
            let stat = proc::stat(pid).ok().flatten();
            stat.is_none_or(|stat| stat.ended()) || proc::is_past_exit(pid).unwrap_or(false)
        });
        if !dying || Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether more than the pair itself and its workers descends from a reaper: a
/// container, or a runc that is about to make one.
pub fn anyone_below(reaper: u32) -> Result<bool> {
    // A shim alone is in the session of its reaper still.
    let session = proc::stat(reaper)?.map_or(reaper, |stat| stat.session);
    for pid in proc::descendants(reaper)? {
        let Some(stat) = proc::stat(pid)?.filter(|stat| !stat.ended()) else {
            continue;
        };
        // Never by its name, which a container's process chooses. One of the pair's session that is
        // past exit(2) has no program any more by which it could be known, and makes nothing.
        let leaves = || stat.session == session && proc::is_past_exit(pid).unwrap_or(false);
        if !strays::is_ours(pid, session) && !leaves() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a process was started as the shim of this container. Nobody can say it of one that
/// sleeps uninterruptibly, which is an error.
fn is_shim_of(pid: u32, namespace: &str, id: &str) -> Result<bool> {
    strays::is_pair_of(pid, namespace, id, Instant::now() + ASKED)?.ok_or_else(|| {
        anyhow!("process {pid} sleeps uninterruptibly: nobody can ask it whose shim it is")
    })
}

/// Makes the pair behind a connection leave. Its reaper called listen(2), so
/// the kernel names it as the peer; its bundle may be gone. Whoever listens there
/// and is no shim of this container is left alone, which is an error with its pid.
pub fn dismiss_listener(connection: &OwnedFd, flags: &Flags, meant: Meant<'_>) -> Result<()> {
    use std::os::fd::AsFd;
    let peer = listen::peer(connection.as_fd()).context("cannot see who listens")?;
    let Some((reaper, pidfd)) = proc::open_now(peer.pid)? else {
        return Ok(());
    };
    if !is_shim_of(reaper.pid, flags.namespace.as_str(), flags.id.as_str())? {
        bail!(
            "process {} listens on the socket and is no shim of container {}",
            reaper.pid,
            flags.id
        );
    }
    let session = proc::stat(reaper.pid)?.map_or(reaper.pid, |stat| stat.session);
    let shims: Vec<OwnedFd> = proc::descendants(reaper.pid)?
        .into_iter()
        .filter_map(|pid| proc::open_now(pid).ok().flatten())
        .filter(|(process, _)| strays::is_ours(process.pid, session))
        .map(|(_, pidfd)| pidfd)
        .collect();
    meant()?;
    let _ = pidfd::send_signal(&pidfd, signal::USR2);
    if fd::wait_readable(&pidfd, ASKED).context("cannot wait for the old reaper")? {
        return Ok(());
    }
    let all: Vec<_> = std::iter::once(&pidfd).chain(&shims).collect();
    let _ = pidfd::kill_together(&all);
    if !fd::wait_readable(&pidfd, ASKED).context("cannot wait for the old reaper")? {
        bail!("the old reaper, process {}, does not die", reaper.pid);
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Whoever has more callers than they have taken up, or could not be asked, was taken for
    /// nobody, and the socket's file removed under them.
    #[test]
    fn a_socket_is_deserted_only_if_a_call_is_refused() {
        let name = format!("vigil-deserted-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = listen::bind(&path).unwrap();
        listen::listen(listener.as_fd(), 0).unwrap();
        let callers: Vec<_> = std::iter::from_fn(|| listen::connect(&path, CONNECT).ok()).collect();
        assert!(!callers.is_empty());
        assert!(!is_deserted(&path), "it is busy");
        drop(listener);
        assert!(is_deserted(&path));
        std::fs::remove_file(&path).unwrap();
        assert!(!is_deserted(&path), "there is none");
    }
}
