//! Runtime calls that outlived the pair that made them: a runc that hung while
//! its shim and reaper were killed belongs to nobody, and no record names it.
//! Each call carries its container in its environment, and is known by that;
//! so does what it forked and has not handed over to the user's program yet.
//! Read-only but for [`end`], which kills through pidfds and nothing else.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vigil_model::Incarnation;
use vigil_sys::{fd, pidfd, signal};

use crate::enact::Left;
use crate::proc::{self, Checked};
use crate::worker::Worker;
use crate::{Error, Result};

/// The variable; its value is the container's directory below runc's root,
/// which names root, namespace and id.
pub(crate) const VARIABLE: &str = "VIGIL_CALL_FOR";

/// What runc (1.0 on) gives to its `runc init` in place of its own environment:
/// the same directory. crun forks without an exec and keeps ours.
const RUNC_INIT: &str = "_LIBCONTAINER_STATEDIR";

/// For those who cannot be asked whose they are: nearly all can in a moment, and who
/// sleeps on a stalled device, as our own workers may, shall not cost more.
const MUTE: Duration = Duration::from_millis(250);

/// How a worker's name begins.
const WORKER: &str = "vigil-";
/// What a call for container `id` carries.
pub(crate) fn mark(root: &Path, id: &str) -> OsString {
    root.join(id).into_os_string()
}

/// Ends every call for this container that is still under way, and every worker
/// of its shim: one that mounts would mount what nobody looks for any more. Gives
/// back the pids of those that did not die by `deadline`.
///
/// `session` is that of the pair (its reaper's pid): calls are looked for in
/// it alone. An environment is read through the memory of its process, which
/// somebody who sleeps on a stalled device may hold for ever, so strangers are
/// not asked. `None`, when no pair is on record, asks everybody.
///
/// Only for when both of the pair are gone: a living shim's calls are its own.
pub fn end(root: &Path, id: &str, session: Option<u32>, deadline: Instant) -> Result<Vec<u32>> {
    let mut wanted = format!("{VARIABLE}=").into_bytes();
    wanted.extend(mark(root, id).into_vec());
    let mut left = Vec::new();
    let patience = deadline.min(Instant::now() + MUTE);
    // Again until none is found: one may fork while it is looked for.
    let mute = || session.is_some_and(|session| is_mute(session).unwrap_or(false));
    loop {
        // Before and after: one that wakes up in between was not asked, and one
        // that falls asleep neither.
        let before = mute();
        let found = find(|pid| {
            carries(pid, &wanted, session) || session.is_some_and(|of| is_worker(pid, of, id))
        })?;
        if found.is_empty() && Instant::now() < patience && (before || mute()) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        if found.is_empty() || Instant::now() >= deadline {
            left.extend(found.into_iter().map(|(pid, _)| pid));
            if let Some(session) = session {
                left.extend(end_asleep(session, wanted, id)?);
            }
            left.sort_unstable();
            left.dedup();
            return Ok(left);
        }
        for (_, call) in &found {
            // ESRCH: it has just ended by itself.
            let _ = pidfd::send_signal(call, signal::KILL);
        }
        for (_, call) in &found {
            let patience = deadline.saturating_duration_since(Instant::now());
            let patience = patience.min(Duration::from_millis(200));
            // What is not dead then is found again.
            let _ = fd::wait_readable(call, patience);
        }
    }
}

/// Children of a process, in its session, that sleep uninterruptibly.
pub fn asleep_below(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let children = children.split_ascii_whitespace();
    let Ok(Some(own)) = proc::stat(parent) else {
        return Vec::new();
    };
    let asleep = |pid: &u32| {
        let stat = proc::stat(*pid).ok().flatten();
        stat.is_some_and(|stat| stat.state == 'D' && stat.session == own.session)
    };
    children
        .filter_map(|pid| pid.parse().ok())
        .filter(asleep)
        .collect()
}

/// What is said of one that does not die.
pub fn left(pid: u32) -> Left {
    let doing = "a call of the runtime that does not die".to_owned();
    Left::Worker { pid, doing }
}

/// Kills those of the session that sleep uninterruptibly and are of this container, so that
/// they come to nothing more than what they are at; gives back who lives on until then. To be
/// told whose they are may take as long as their sleep: so a worker asks. Whom it could not ask
/// is among them too, and is not killed.
fn end_asleep(session: u32, wanted: Vec<u8>, id: &str) -> Result<Vec<u32>> {
    let mut left = Vec::new();
    let mut asleep = Vec::new();
    for pid in pids()? {
        let Ok(Some(stat)) = proc::stat(pid) else {
            continue;
        };
        if stat.session != session {
            continue;
        }
        if stat.state == 'D' {
            asleep.push((pid, stat.start_ticks));
        } else if stat.ended() && pidfd::open(pid).is_ok_and(|fd| pidfd::is_dead(&fd) == Ok(false))
        {
            // It has been killed, and one of its threads sleeps.
            left.push(pid);
        }
    }
    if asleep.is_empty() {
        return Ok(left);
    }
    let (id, these) = (id.to_owned(), asleep.clone());
    let worker = Worker::start_noting("asleep", move |words| {
        for (pid, start) in these {
            let ours = has_line(pid, &wanted)
                || arguments(pid).is_some_and(|words| is_of_shim(&words, &id));
            words.tell(&(pid, start, ours));
        }
        Ok(())
    })?;
    // Whatever it came to, what it told is true.
    let _ = worker.wait(MUTE)?;
    let told: Vec<(u32, u64, bool)> = worker.told();
    for (pid, start) in asleep {
        let ours = told.iter().find(|one| (one.0, one.1) == (pid, start));
        let Some((process, _)) = proc::open_now(pid)? else {
            continue;
        };
        let Checked::Same(fd) = proc::open_checked(&process)? else {
            continue;
        };
        if process.start_ticks != start || ours.is_some_and(|(_, _, ours)| !ours) {
            continue;
        }
        if ours.is_some() {
            // ESRCH: it has just ended by itself.
            let _ = pidfd::send_signal(&fd, signal::KILL);
        }
        if pidfd::is_dead(&fd) == Ok(false) {
            left.push(pid);
        }
    }
    Ok(left)
}

/// Something a shim that died had started and that is not the container's.
#[derive(Debug)]
pub struct Errand {
    /// Which process.
    pub process: Incarnation,
    /// It.
    pub pidfd: OwnedFd,
    /// One of our workers; otherwise a call of the runtime.
    pub worker: bool,
    /// Its arguments, one a line. `None` as long as nobody can tell what it is: it
    /// sleeps uninterruptibly, or has not become the runtime yet that it is to be.
    pub arguments: Option<String>,
}

/// The errands left to a reaper whose shim died: its children in its own
/// session. What the runtime made for the container has a session of its own.
/// A reaper that is not the first has none of those that the dead one had inherited: they hang
/// below somebody of another session, and are found by their own, which is that of no container.
pub fn errands(reaper: u32) -> Result<Vec<Errand>> {
    let us = std::process::id();
    let path = PathBuf::from(format!("/proc/{reaper}/task/{reaper}/children"));
    let children = std::fs::read_to_string(&path).map_err(|source| Error::File {
        op: "read",
        path,
        source,
    })?;
    let children = children.split_ascii_whitespace();
    let mut pids: Vec<u32> = children.filter_map(|pid| pid.parse().ok()).collect();
    let session = proc::stat(reaper)?.map_or(reaper, |stat| stat.session);
    if session != reaper {
        pids.extend(orphans(session, reaper)?);
    }
    let mut found = Vec::new();
    for pid in pids {
        if pid == us {
            continue;
        }
        let Some((process, pidfd)) = proc::open_now(pid)? else {
            continue;
        };
        let Some(stat) = proc::stat(pid)? else {
            continue;
        };
        if stat.session != session || stat.ended() {
            continue;
        }
        // A name alone is anybody's to choose: a hook's, which is in this session too.
        let ours = is_ours(pid, session);
        let named = stat.comm.starts_with(WORKER);
        // Forked by the shim and not executed yet, it is what the shim is.
        let asked = if stat.state == 'D' || ours && !named {
            Vec::new()
        } else {
            std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
        };
        let arguments = String::from_utf8_lossy(&asked).replace('\0', "\n");
        found.push(Errand {
            process,
            pidfd,
            worker: ours && named,
            // Empty for a moment of being executed.
            arguments: (!arguments.is_empty()).then_some(arguments),
        });
    }
    Ok(found)
}

/// Those of a session whose parent is of another: the reaper that had them has died.
fn orphans(session: u32, reaper: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for pid in self::pids()? {
        let Ok(Some(stat)) = proc::stat(pid) else {
            continue;
        };
        if stat.session != session || pid == reaper || stat.parent == reaper {
            continue;
        }
        let above = proc::stat(stat.parent)?.map(|above| above.session);
        if above != Some(session) {
            found.push(pid);
        }
    }
    Ok(found)
}

impl Errand {
    /// SIGKILL to it and to the group it leads.
    pub fn kill(&self) {
        // Before 6.9 a group cannot be named by a pidfd; the process then is.
        let group = pidfd::send_signal_to_group(&self.pidfd, signal::KILL);
        if group.is_err() {
            // ESRCH: it has ended.
            let _ = pidfd::send_signal(&self.pidfd, signal::KILL);
        }
    }
}

/// Whether somebody of this session lives and cannot be asked: it sleeps uninterruptibly
/// (a runc that makes a cgroup does, for moments), or its first thread has died before
/// the others (of one that was killed in that sleep). It may be a call, and still make
/// what nobody would look for any more.
fn is_mute(session: u32) -> Result<bool> {
    for pid in pids()? {
        let mute = matches!(
            proc::stat(pid),
            Ok(Some(stat)) if stat.session == session && (stat.state == 'D' || stat.ended())
        );
        // Whose every thread is dead is dead, whoever reaps it.
        if mute && pidfd::open(pid).is_ok_and(|fd| !pidfd::is_dead(&fd).unwrap_or(true)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Who there is.
fn pids() -> Result<Vec<u32>> {
    let dir = Path::new("/proc");
    let failed = |source| Error::File {
        op: "list",
        path: dir.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(found)
}

/// Living processes of which this is true, each pinned first and read afterwards, so
/// that the pidfd is of the process that was read.
fn find(wanted: impl Fn(u32) -> bool) -> Result<Vec<(u32, OwnedFd)>> {
    let us = std::process::id();
    let mut found = Vec::new();
    for pid in pids()? {
        if pid == us || !wanted(pid) {
            continue;
        }
        let Some((process, _)) = proc::open_now(pid)? else {
            continue;
        };
        if let Checked::Same(call) = proc::open_checked(&process)?
            && wanted(pid)
            && !pidfd::is_dead(&call).unwrap_or(true)
        {
            found.push((pid, call));
        }
    }
    Ok(found)
}

/// The start, in ticks, of this process if a runtime made it for the container
/// with this state directory, and it is not the user's program yet. May wait
/// for the memory of a process that sleeps: only in a worker.
pub(crate) fn made_for(pid: u32, dir: &Path) -> Option<u64> {
    let start = |pid| {
        let stat = proc::stat(pid).ok().flatten()?;
        (!stat.ended()).then_some(stat.start_ticks)
    };
    let before = start(pid)?;
    let lines = [VARIABLE, RUNC_INIT].map(|name| {
        let mut line = format!("{name}=").into_bytes();
        line.extend(dir.as_os_str().as_bytes());
        line
    });
    let marked = lines.iter().any(|line| has_line(pid, line));
    // Read between two looks at the same one.
    (marked && start(pid) == Some(before)).then_some(before)
}

fn has_line(pid: u32, wanted: &[u8]) -> bool {
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|text| text.split(|byte| *byte == 0).any(|line| line == wanted))
}

/// What is told of this process, if it is of the session and can be asked for more. One
/// that sleeps uninterruptibly is not: the answer may never come.
fn awake(pid: u32, session: Option<u32>) -> Option<proc::Stat> {
    let stat = proc::stat(pid).ok().flatten()?;
    let here = session.is_none_or(|session| stat.session == session);
    (here && stat.state != 'D' && !stat.ended()).then_some(stat)
}

/// Whether this process is of the session and has the line in its environment.
fn carries(pid: u32, wanted: &[u8], session: Option<u32>) -> bool {
    awake(pid, session).is_some() && has_line(pid, wanted)
}

/// Whether a process of a pair's session is the pair itself or a fork of it: by the program it
/// runs, or by the arguments `start` gave. Nobody of a container is in that session, and what
/// a runtime starts there is another program.
pub fn is_ours(pid: u32, session: u32) -> bool {
    let Some(stat) = proc::stat(pid).ok().flatten() else {
        return false;
    };
    if stat.session != session {
        return false;
    }
    // Before any of its arguments are asked for: one that sleeps may never answer.
    if proc::runs_the_same(pid, session) || proc::runs_the_same(pid, std::process::id()) {
        return true;
    }
    awake(pid, Some(session)).is_some()
        && arguments(pid).is_some_and(|words| serves(&words) && words.len() > 2)
}

/// Whether a process was started as the reaper or shim of this container, by its own arguments:
/// for a file that names a process and does not say whose it is. They are in its memory, which
/// one that sleeps uninterruptibly may hold for ever: `None` if it does so until then.
pub fn is_pair_of(
    pid: u32,
    namespace: &str,
    id: &str,
    until: Instant,
) -> crate::Result<Option<bool>> {
    while proc::stat(pid)?.is_some_and(|stat| stat.state == 'D') {
        if Instant::now() >= until {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Some(arguments(pid).is_some_and(|words| {
        let has = |flag: &[u8], value: &str| {
            let mut pairs = words.windows(2);
            pairs.any(|two| two[0] == flag && two[1] == value.as_bytes())
        };
        has(b"-namespace", namespace) && has(b"-id", id)
    })))
}

/// Whether this is a worker of the shim of this container, or what its shim had forked
/// a moment ago: of the pair's session, with the shim's arguments.
fn is_worker(pid: u32, session: u32, id: &str) -> bool {
    if awake(pid, Some(session)).is_none() {
        return false;
    }
    arguments(pid).is_some_and(|words| is_of_shim(&words, id))
}

/// Whether these are the arguments of the shim of this container.
fn is_of_shim(words: &[Vec<u8>], id: &str) -> bool {
    let named = |two: &[Vec<u8>]| two[0] == b"-id" && two[1] == id.as_bytes();
    serves(words) && words.windows(2).any(named)
}

/// What a shim is told to do, at the end of its arguments.
fn serves(words: &[Vec<u8>]) -> bool {
    words
        .last()
        .is_some_and(|last| last == b"serve" || last == b"reap")
}

fn arguments(pid: u32) -> Option<Vec<Vec<u8>>> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    Some(line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn call(root: &Path, id: &str) -> Child {
        Command::new("sh")
            // Deaf, and with a child as deaf.
            .args(["-c", "trap '' TERM; sleep 60 & wait"])
            .env(VARIABLE, mark(root, id))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// A freezer of v1: who is frozen there sleeps uninterruptibly.
    struct Freezer(std::path::PathBuf);

    impl Freezer {
        fn new() -> Option<Self> {
            let name = format!("vigil-test-stray-{}", std::process::id());
            let dir = Path::new("/sys/fs/cgroup/freezer").join(name);
            std::fs::create_dir(&dir).ok()?;
            Some(Self(dir))
        }

        fn write(&self, file: &str, text: &str) {
            std::fs::write(self.0.join(file), text).unwrap();
        }
    }

    impl Drop for Freezer {
        fn drop(&mut self) {
            let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
            let end = Instant::now() + Duration::from_secs(5);
            while std::fs::remove_dir(&self.0).is_err() && Instant::now() < end {
                std::thread::yield_now();
            }
        }
    }

    /// Found by the soak: a runc that made a cgroup while the pair was killed was not seen,
    /// and the cgroup came after `delete` had looked for it.
    #[test]
    fn a_call_that_sleeps_for_a_moment_is_waited_for() {
        // Elsewhere nobody can be put to sleep like this.
        let Some(freezer) = Freezer::new() else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let mut call = Command::new("sleep")
            .arg("60")
            .env(VARIABLE, mark(dir.path(), "c1"))
            .spawn()
            .unwrap();
        let own = proc::stat(std::process::id()).unwrap().unwrap().session;
        freezer.write("cgroup.procs", &call.id().to_string());
        freezer.write("freezer.state", "FROZEN");
        let end_by = Instant::now() + Duration::from_secs(20);
        while proc::stat(call.id()).unwrap().unwrap().state != 'D' && Instant::now() < end_by {
            std::thread::yield_now();
        }
        let left = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                freezer.write("freezer.state", "THAWED");
            });
            end(dir.path(), "c1", Some(own), end_by).unwrap()
        });
        let ended = call.try_wait().unwrap().is_some();
        let _ = call.kill();
        let _ = call.wait();
        assert!(ended && left.is_empty(), "{left:?}");
    }

    /// Found by the soak: a worker that was about to mount when both of the pair were killed
    /// did so after `delete` had looked.
    #[test]
    fn workers_of_the_shim_end_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        // An id of its own: the other tests here look in the same session. A script: its
        // name is the process', whatever /bin/sh is.
        let worker = |name: &str, id: &str, word: &str| {
            let path = dir.path().join(name);
            if !path.exists() {
                std::fs::write(&path, "#!/bin/sh\nread never\n").unwrap();
                let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(&path, runs).unwrap();
            }
            let end = Instant::now() + Duration::from_secs(20);
            let child = loop {
                let spawned = Command::new(&path)
                    .args(["-id", id, word])
                    .stdin(Stdio::piped())
                    .spawn();
                match spawned {
                    // Another test has just forked, and holds it open for writing.
                    Err(error)
                        if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                            && Instant::now() < end => {}
                    spawned => break spawned.unwrap(),
                }
            };
            let named = || {
                let stat = proc::stat(child.id()).unwrap().unwrap();
                name.starts_with(&stat.comm)
            };
            while !named() && Instant::now() < end {
                std::thread::yield_now();
            }
            child
        };
        let mut ours = [
            worker("vigil-mount", "w1", "serve"),
            worker("containerd-shim-vigil-v2", "w1", "serve"),
        ];
        // By its name alone nobody is ours: a hook may choose it.
        let mut others = [
            worker("vigil-mount", "w11", "serve"),
            worker("vigil-mount", "w1", "hook"),
            worker("containerd-shim-vigil-v2", "w1", "hook"),
        ];
        let own = proc::stat(std::process::id()).unwrap().unwrap().session;
        let alive = |child: &mut Child| child.try_wait().unwrap().is_none();
        end(dir.path(), "w1", Some(own + 1), Instant::now()).unwrap();
        assert!(ours.iter_mut().all(alive), "killed outside the session");
        let left = end(
            dir.path(),
            "w1",
            Some(own),
            Instant::now() + Duration::from_secs(20),
        );
        assert!(left.unwrap().is_empty());
        assert!(!ours.iter_mut().any(alive), "a worker lives");
        assert!(others.iter_mut().all(alive), "a stranger was killed");
        for child in &mut others {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    #[test]
    fn calls_for_this_container_end_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("ns"), dir.path().join("other"));
        let mut ours = [call(&root, "c1"), call(&root, "c1")];
        let mut others = [call(&root, "c11"), call(&other, "c1"), call(&root, "c")];
        // `end` waits for deaths; a zombie of this test is one.
        let own = proc::stat(std::process::id()).unwrap().unwrap().session;
        let none = end(&root, "c1", Some(own + 1), Instant::now()).unwrap();
        assert!(none.is_empty(), "looked outside the session");
        let alive = |child: &mut Child| child.try_wait().unwrap().is_none();
        assert!(ours.iter_mut().all(alive), "killed outside the session");
        let left = end(
            &root,
            "c1",
            Some(own),
            Instant::now() + Duration::from_secs(5),
        )
        .unwrap();
        assert!(left.is_empty(), "{left:?}");
        for child in &mut ours {
            assert!(!child.wait().unwrap().success());
        }
        let alive = others.iter_mut().all(|o| o.try_wait().unwrap().is_none());
        for (child, (root, id)) in
            others
                .iter_mut()
                .zip([(&root, "c11"), (&other, "c1"), (&root, "c")])
        {
            end(root, id, None, Instant::now() + Duration::from_secs(5)).unwrap();
            child.wait().unwrap();
        }
        assert!(alive, "a stranger's call was killed");
    }
}
