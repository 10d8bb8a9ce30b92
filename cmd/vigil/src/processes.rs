//! Pairs by their processes: those whose bundle is gone, was moved away, or does not name them
//! any more. A process counts by what it cannot choose alone: the program it runs, the host's
//! root and pid namespace, the arguments that `start` gave it, and whose child and session it
//! is. Which container it is for, its arguments say, and never the name of a directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vigil_host::proc;
use vigil_model::{Incarnation, Namespace, TaskId};
use vigil_sys::pidfd;

use crate::place::{Found, Node, TASKS};

/// How the program's name begins, whatever version follows it.
const PROGRAM: &str = "containerd-shim-vigil-";

/// The variable that tells a shim where its bundle was at `start`.
const BUNDLE: &str = "VIGIL_BUNDLE=";

/// Between two looks at one whose bundle is not in its place: containerd moves a bundle away
/// for a moment before it removes it.
const SETTLE: Duration = Duration::from_millis(100);

/// A pair that was found by its processes.
#[derive(Debug)]
pub struct Loose {
    /// Which container it is for, and where the bundle is, was, or is by now.
    pub found: Found,
    /// Where it listens: the shim was told so by its arguments.
    pub socket: Option<PathBuf>,
    /// The reaper, unless the shim is alone.
    pub reaper: Option<(Incarnation, OwnedFd)>,
    /// The shim, unless there is none at the moment.
    pub shim: Option<(Incarnation, OwnedFd)>,
}

impl Loose {
    /// For people.
    pub fn words(&self) -> String {
        let half = |half: &Option<(Incarnation, OwnedFd)>| {
            half.as_ref()
                .map_or_else(|| "-".to_owned(), |(process, _)| process.pid.to_string())
        };
        format!(
            "its bundle is gone and its pair lives: reaper {}, shim {}",
            half(&self.reaper),
            half(&self.shim)
        )
    }

    /// For programs.
    pub fn value(&self) -> Value {
        let pid = |half: &Option<(Incarnation, OwnedFd)>| half.as_ref().map(|(one, _)| one.pid);
        json!({
            "namespace": self.found.namespace,
            "id": self.found.id,
            "bundle": self.found.bundle,
            "reaper": pid(&self.reaper),
            "shim": pid(&self.shim),
        })
    }
}

/// An error if this user may not see what programs run: a pair without a bundle would be
/// missed, and nothing be said of it.
pub fn may_be_seen() -> Result<()> {
    let own = fs::metadata("/proc/self").context("cannot look at /proc/self")?;
    // The first process is root's; where even root may not see it, the pairs are seen all the same.
    match fs::read_link("/proc/1/exe") {
        Err(e) if own.uid() != 0 && e.kind() == ErrorKind::PermissionDenied => Err(e).context(
            "cannot see which programs run, so a pair without a bundle would be missed; root can",
        ),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// One process that may be of a pair.
#[derive(Debug)]
struct One {
    /// Where it works by now, and whether that is in no directory any more.
    cwd: PathBuf,
    removed: bool,
    inode: (u64, u64),
    /// Where its bundle was, if it says so.
    bundle: Option<PathBuf>,
    process: Incarnation,
    pidfd: OwnedFd,
    parent: u32,
    session: u32,
    /// It leads that.
    leads: bool,
    serves: bool,
    /// It was a shim, and is the reaper.
    reaps: bool,
    namespace: Namespace,
    id: TaskId,
    socket: Option<PathBuf>,
}

impl One {
    /// Where its bundle is to be, if that is below this directory.
    fn home(&self, tasks: &Path) -> Option<PathBuf> {
        let said = self.bundle.as_ref().filter(|at| at.starts_with(tasks));
        // A reaper, or a pair of an earlier version: as long as it works there.
        let named = || tasks.join(self.namespace.as_str()).join(self.id.as_str());
        said.cloned()
            .or_else(|| self.cwd.starts_with(tasks).then(named))
    }
}

/// Every pair below this node's state directory whose bundle is gone.
pub fn loose(node: &Node) -> Result<Vec<Loose>> {
    let mut all = astray(node)?;
    all.retain(|pair| pair.found.moved_from.is_none());
    Ok(all)
}

/// Every container of this node whose pair lives and whose bundle somebody has moved away, with
/// where it is by now.
pub fn moved(node: &Node) -> Result<Vec<Found>> {
    let mut all: Vec<Found> = astray(node)?.into_iter().map(|pair| pair.found).collect();
    all.retain(|found| found.moved_from.is_some());
    Ok(all)
}

/// Those whose bundle is not in its place, and not for a moment.
fn astray(node: &Node) -> Result<Vec<Loose>> {
    let before = astray_now(node)?;
    if before.is_empty() {
        return Ok(before);
    }
    std::thread::sleep(SETTLE);
    let mut now = astray_now(node)?;
    now.retain(|pair| before.iter().any(|one| one.found == pair.found));
    Ok(now)
}

fn astray_now(node: &Node) -> Result<Vec<Loose>> {
    let tasks = node.tasks();
    // As the kernel shows a working directory.
    let tasks = fs::canonicalize(&tasks).unwrap_or(tasks);
    let is_astray = |one: &One| {
        one.home(&tasks).is_some_and(|home| {
            // One that something is mounted over has its name still.
            one.removed
                || one.cwd != home
                    && match fs::metadata(&home) {
                        Ok(there) => (there.dev(), there.ino()) != one.inode,
                        Err(error) => error.kind() == ErrorKind::NotFound,
                    }
        })
    };
    let found = |ones: &[One]| {
        let home = ones.iter().find_map(|one| one.home(&tasks))?;
        // The same for both: it is one directory.
        let one = ones.first()?;
        Some(Found {
            namespace: one.namespace.clone(),
            id: one.id.clone(),
            bundle: if one.removed {
                home.clone()
            } else {
                one.cwd.clone()
            },
            moved_from: (!one.removed).then_some(home),
        })
    };
    pairs(is_astray, found)
}

/// A container whose pair lives and whose bundle is below another state directory.
#[derive(Debug)]
pub struct Abroad {
    /// containerd namespace.
    pub namespace: Namespace,
    /// Id of the container.
    pub id: TaskId,
    /// That state directory.
    pub state: PathBuf,
}

/// Every one of those: another containerd's, which its state directory has to be named for.
pub fn abroad(node: &Node) -> Result<Vec<Abroad>> {
    let tasks = node.tasks();
    let tasks = fs::canonicalize(&tasks).unwrap_or(tasks);
    let is_abroad = |one: &One| one.home(&tasks).is_none();
    let bundle = |ones: &[One]| {
        let said = ones.iter().find_map(|one| one.bundle.clone());
        let one = ones.first()?;
        Some(Found {
            namespace: one.namespace.clone(),
            id: one.id.clone(),
            bundle: said.unwrap_or_else(|| one.cwd.clone()),
            moved_from: None,
        })
    };
    let pairs = pairs(is_abroad, bundle)?.into_iter();
    let mut all: Vec<Abroad> = pairs
        .filter_map(|pair| {
            let mut above = pair.found.bundle.ancestors();
            let tasks = above.find(|above| above.file_name() == Some(OsStr::new(TASKS)))?;
            Some(Abroad {
                state: tasks.parent()?.to_owned(),
                namespace: pair.found.namespace,
                id: pair.found.id,
            })
        })
        .collect();
    all.sort_by(|a, b| (&a.state, &a.namespace, &a.id).cmp(&(&b.state, &b.namespace, &b.id)));
    Ok(all)
}

/// The pair that works in this bundle, whatever the files there say.
pub fn of(found: &Found) -> Result<Option<Loose>> {
    let Ok(here) = fs::metadata(&found.bundle) else {
        return Ok(None);
    };
    let same = |one: &One| one.inode == (here.dev(), here.ino());
    let mut pairs = pairs(same, |_| Some(found.clone()))?;
    pairs.retain(|pair| pair.found.namespace == found.namespace && pair.found.id == found.id);
    Ok(pairs.pop())
}

/// The pairs of whom one of the two is meant.
fn pairs(
    meant: impl Fn(&One) -> bool,
    found: impl Fn(&[One]) -> Option<Found>,
) -> Result<Vec<Loose>> {
    let mut ones = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let name = entry.context("cannot list /proc")?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
            && let Some(one) = look(pid)
        {
            ones.insert(pid, one);
        }
    }
    // A worker is a child of the shim; a waiter leads a session and has no child.
    let is_reaper = |one: &One| !one.serves && (one.leads || one.reaps);
    let is_shim = |one: &One| one.serves && !one.leads;
    let is_child_of_shim = |one: &One| ones.get(&one.parent).is_some_and(|above| above.serves);
    let role = |one: &One| is_reaper(one) || is_shim(one) && !is_child_of_shim(one);
    let roles: Vec<u32> = ones
        .iter()
        .filter(|(_, one)| role(one))
        .map(|(pid, _)| *pid)
        .collect();
    let mut halves: BTreeMap<(Namespace, TaskId, u32), Vec<One>> = BTreeMap::new();
    for pid in roles {
        if let Some(one) = ones.remove(&pid) {
            // A shim is of its reaper's session, also when that is dead.
            let key = (one.namespace.clone(), one.id.clone(), one.session);
            halves.entry(key).or_default().push(one);
        }
    }
    let mut pairs = Vec::new();
    for (_, halves) in halves {
        let Some(found) = found(&halves).filter(|_| halves.iter().any(&meant)) else {
            continue;
        };
        let mut pair = Loose {
            found,
            socket: None,
            reaper: None,
            shim: None,
        };
        for one in halves {
            pair.socket = pair.socket.take().or(one.socket);
            let half = if one.serves {
                &mut pair.shim
            } else {
                &mut pair.reaper
            };
            *half = Some((one.process, one.pidfd));
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// A process of a pair. What cannot be read is gone, or not the host's.
fn look(pid: u32) -> Option<One> {
    let at = |what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
    let program = fs::read_link(at("exe")).ok()?;
    if !program.file_name()?.to_str()?.starts_with(PROGRAM) {
        return None;
    }
    let (process, pidfd) = proc::open_now(pid).ok()??;
    let stat = proc::stat(pid).ok()??;
    let cwd = fs::metadata(at("cwd")).ok()?;
    let same = |what: &str, ours: &str| {
        let (theirs, ours) = (fs::metadata(at(what)).ok()?, fs::metadata(ours).ok()?);
        Some((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
    };
    let theirs = fs::metadata(at("")).ok()?;
    if stat.ended()
        || theirs.uid() != 0
        || !same("root", "/")?
        || !same("ns/pid", "/proc/self/ns/pid")?
    {
        return None;
    }
    let line = fs::read(at("cmdline")).ok()?;
    let line = String::from_utf8(line).ok()?;
    let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
    let flag = |name: &str| {
        let mut two = words.windows(2);
        two.find(|two| two[0] == name).map(|two| two[1])
    };
    flag("-address")?;
    let reaps = words.last() == Some(&"reap");
    let serves = match *words.last()? {
        "serve" => true,
        "start" | "reap" => false,
        _ => return None,
    };
    let namespace = Namespace::new(flag("-namespace")?).ok()?;
    let id = TaskId::new(flag("-id")?).ok()?;
    let socket = flag("-socket").map(PathBuf::from);
    let told = fs::read(at("environ")).unwrap_or_default();
    let mut told = told.split(|byte| *byte == 0);
    let bundle = told.find_map(|one| one.strip_prefix(BUNDLE.as_bytes()));
    let one = One {
        cwd: fs::read_link(at("cwd")).ok()?,
        removed: cwd.nlink() == 0,
        inode: (cwd.dev(), cwd.ino()),
        bundle: bundle.map(|path| PathBuf::from(OsStr::from_bytes(path))),
        namespace,
        id,
        socket,
        parent: stat.parent,
        session: stat.session,
        serves,
        reaps,
        leads: stat.session == pid,
        process,
        pidfd,
    };
    (pidfd::is_dead(&one.pidfd) == Ok(false)).then_some(one)
}
