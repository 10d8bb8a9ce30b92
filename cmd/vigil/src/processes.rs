//! Pairs by their processes: those whose bundle is gone, or does not name them any more.
//! A process counts by what it cannot choose alone: the program it runs, the host's root and
//! pid namespace, the arguments that `start` gave it, and whose child and session it is.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vigil_host::proc;
use vigil_model::{Incarnation, Namespace, TaskId};
use vigil_sys::pidfd;

use crate::place::{Found, Node};

/// How the program's name begins, whatever version follows it.
const PROGRAM: &str = "containerd-shim-vigil-";

/// A pair that was found by its processes.
#[derive(Debug)]
pub struct Loose {
    /// Which container it is for, and where the bundle is, or was.
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
struct One {
    process: Incarnation,
    pidfd: OwnedFd,
    parent: u32,
    session: u32,
    serves: bool,
    namespace: Namespace,
    id: TaskId,
    socket: Option<PathBuf>,
}

/// Every pair below this node's state directory whose bundle is gone.
pub fn loose(node: &Node) -> Result<Vec<Loose>> {
    let tasks = node.tasks();
    let removed = |cwd: &Path, meta: &fs::Metadata| meta.nlink() == 0 && cwd.starts_with(&tasks);
    let bundle = |one: &One| tasks.join(one.namespace.as_str()).join(one.id.as_str());
    pairs(removed, bundle)
}

/// The pair that works in this bundle, whatever the files there say.
pub fn of(found: &Found) -> Result<Option<Loose>> {
    let Ok(here) = fs::metadata(&found.bundle) else {
        return Ok(None);
    };
    let same = |_: &Path, cwd: &fs::Metadata| (cwd.dev(), cwd.ino()) == (here.dev(), here.ino());
    let mut pairs = pairs(same, |_| found.bundle.clone())?;
    pairs.retain(|pair| pair.found.namespace == found.namespace && pair.found.id == found.id);
    Ok(pairs.pop())
}

fn pairs(
    works_here: impl Fn(&Path, &fs::Metadata) -> bool,
    bundle: impl Fn(&One) -> PathBuf,
) -> Result<Vec<Loose>> {
    let mut ones = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let name = entry.context("cannot list /proc")?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
            && let Some(one) = look(pid, &works_here)
        {
            ones.insert(pid, one);
        }
    }
    // A worker is a child of the shim; a waiter leads a session and has no child.
    let is_reaper = |one: &One| !one.serves && one.session == one.process.pid;
    let is_shim = |one: &One| one.serves && one.session != one.process.pid;
    let is_child_of_shim = |one: &One| ones.get(&one.parent).is_some_and(|above| above.serves);
    let role = |one: &One| is_reaper(one) || is_shim(one) && !is_child_of_shim(one);
    let roles: Vec<u32> = ones
        .iter()
        .filter(|(_, one)| role(one))
        .map(|(pid, _)| *pid)
        .collect();
    let mut pairs: BTreeMap<(Namespace, TaskId, u32), Loose> = BTreeMap::new();
    for pid in roles {
        let Some(one) = ones.remove(&pid) else {
            continue;
        };
        // A shim is of its reaper's session, also when that is dead.
        let key = (one.namespace.clone(), one.id.clone(), one.session);
        let bundle = bundle(&one);
        let pair = pairs.entry(key).or_insert_with(|| Loose {
            found: Found {
                bundle,
                namespace: one.namespace,
                id: one.id,
            },
            socket: None,
            reaper: None,
            shim: None,
        });
        pair.socket = pair.socket.take().or(one.socket);
        let half = if one.serves {
            &mut pair.shim
        } else {
            &mut pair.reaper
        };
        *half = Some((one.process, one.pidfd));
    }
    Ok(pairs.into_values().collect())
}

/// A process of a pair whose working directory is one that is meant. What cannot be read is
/// gone, or not the host's.
fn look(pid: u32, works_here: impl Fn(&Path, &fs::Metadata) -> bool) -> Option<One> {
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
        || !works_here(&fs::read_link(at("cwd")).ok()?, &cwd)
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
    let serves = match *words.last()? {
        "serve" => true,
        "start" => false,
        _ => return None,
    };
    let namespace = Namespace::new(flag("-namespace")?).ok()?;
    let id = TaskId::new(flag("-id")?).ok()?;
    let socket = flag("-socket").map(PathBuf::from);
    let one = One {
        namespace,
        id,
        socket,
        parent: stat.parent,
        session: stat.session,
        serves,
        process,
        pidfd,
    };
    (pidfd::is_dead(&one.pidfd) == Ok(false)).then_some(one)
}
