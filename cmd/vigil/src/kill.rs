//! `vigil kill`: ends a container that cannot be asked any more. Both of its pair are killed,
//! by descriptors of the very processes that are recorded, at once: whoever outlives the other
//! makes two again. Then what `delete` does is done, by containerd or here.

use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args as ClapArgs;
use serde_json::json;
use vigil_host::enact::{RUN, Report, Tombstone};
use vigil_host::proc::{self, Checked};
use vigil_journal::names;
use vigil_reconcile::Goal;
use vigil_sys::{fd, pidfd};

use crate::place::{Found, Name, Node};
use crate::recorded::Recorded;
use crate::table::{Colour, Paint};
use crate::{Answer, Code, Exit, json, pair, processes, program, repair, words};

/// How often the pair is read again: a reaper that dies in the middle of a takeover may have
/// started a shim that was not named yet, which becomes the reaper.
const LOOKS: usize = 20;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// For a containerd that saw the pair die to run its `delete`, which is told what it ends.
const FIRST: Duration = Duration::from_secs(2);
/// For it to remove the bundle after that.
const REMOVED: Duration = Duration::from_secs(1);
/// Longest hold of the lock: a `delete` waits a little longer for it, and then fails.
const SLICE: Duration = Duration::from_secs(2);
/// Between two of those: who waits for the lock tries more often.
const PAUSE: Duration = Duration::from_millis(300);
/// For a `delete` that is run here; it has a deadline of its own.
const WAITER: Duration = Duration::from_secs(6);

/// Arguments of `vigil kill`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    name: Name,
    /// How long it may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    deadline: u16,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: Node,
}

/// What became of it.
#[derive(Debug)]
struct Ended {
    found: Found,
    /// Processes of the pair that were killed, in order.
    killed: Vec<u32>,
    /// What was done here; `None`: somebody else, containerd's `delete`, has done it.
    report: Option<Report>,
    /// What that has left, and waits for.
    left: Vec<String>,
    /// Whether the bundle stays although containerd's `delete` was at it: then it is forgotten.
    blocks: bool,
}

/// Kills.
pub fn run(args: &Args) -> Result<Answer> {
    let until = Instant::now() + Duration::from_secs(u64::from(args.deadline));
    let ended = match args.node.find(&args.name)? {
        Some(found) => bundled(&args.node, found, until)?,
        None => unbundled(args, until)?,
    };
    let unfinished = |report: &Report| !report.left.is_empty() || report.may_live();
    let unfinished = ended.report.as_ref().is_some_and(unfinished);
    let code = if unfinished || !ended.left.is_empty() || ended.blocks {
        Code::Wrong
    } else {
        Code::Done
    };
    let text = if args.json {
        json::text(&value(&ended))
    } else {
        people(&ended)
    };
    Ok(Answer { text, code })
}

/// One whose bundle names the pair.
fn bundled(node: &Node, found: Found, until: Instant) -> Result<Ended> {
    let meant = Meant::of(&found);
    if !crate::place::is_ours(&found.bundle)? {
        bail!(
            "no file of Vigil's is in {}: another runtime's",
            found.bundle.display()
        );
    }
    let recorded = Recorded::read(&found.bundle, &found.owner());
    if let Some(original) = pair::copy_of(&found, recorded.pair.as_ref(), recorded.task.as_ref()) {
        return Err(repair::copied(&found, &original));
    }
    let caller = Caller::of(&recorded);
    let killed = end_pair(&found, &meant, until)?;
    let (report, came) = finish(node, &found, &meant, until, caller.connected)?;
    if report
        .as_ref()
        .is_some_and(|report| !report.left.is_empty())
    {
        caller.leave_waiter(node, &found);
    }
    let left = match report {
        Some(_) => Vec::new(),
        None => entombed(node, &found),
    };
    let stays = found.bundle.exists() && meant.is(&found);
    Ok(Ended {
        blocks: stays && came && left.is_empty(),
        found,
        killed,
        report,
        left,
    })
}

/// What is left of it, as its tombstone has it.
fn entombed(node: &Node, found: &Found) -> Vec<String> {
    let all = Tombstone::all(&node.kept.run).unwrap_or_default();
    let is = |stone: &Tombstone| {
        stone.id == found.id.as_str() && stone.namespace == found.namespace.as_str()
    };
    let stone = all.into_iter().flatten().find(is);
    stone.map_or_else(Vec::new, |stone| stone.left)
}

/// Who called the pair, as far as it is to be known before it is killed.
struct Caller {
    /// Somebody has a connection to it: containerd, which then sees it die.
    connected: bool,
    /// The shim's program, and the `-address` that it was called with.
    called: Option<(PathBuf, String)>,
}

impl Caller {
    fn of(recorded: &Recorded) -> Self {
        let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let path = recorded.socket.as_deref().and_then(Path::to_str);
        // Num RefCount Protocol Flags Type St Inode Path; 03: connected.
        let is_connected = |line: &str| {
            let mut words = line.split_whitespace().skip(5);
            words.next() == Some("03") && words.nth(1) == path
        };
        let halves = recorded.pair.iter();
        let mut halves = halves.flat_map(|pair| std::iter::once(&pair.reaper).chain(&pair.shim));
        let called = halves.find_map(|half| {
            let at = |what: &str| format!("/proc/{}/{what}", half.pid);
            let Ok(Checked::Same(_)) = proc::open_checked(&pair::incarnation(half)) else {
                return None;
            };
            let line = fs::read(at("cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0);
            words.find(|word| *word == b"-address")?;
            let address = String::from_utf8(words.next()?.to_vec()).ok()?;
            Some((fs::read_link(at("exe")).ok()?, address))
        });
        Self {
            connected: path.is_some() && table.lines().any(is_connected),
            called,
        }
    }

    /// What is left waits for something. `delete` leaves a process that finishes it then.
    fn leave_waiter(&self, node: &Node, found: &Found) {
        // It knows of no other place for what outlives a container.
        let usual = node.kept.run == Path::new(RUN);
        if let Some((program, address)) = self.called.as_ref().filter(|_| usual) {
            let mut delete = Command::new(program);
            delete.args(["-namespace", found.namespace.as_str()]);
            delete.args(["-id", found.id.as_str(), "-address", address, "-bundle"]);
            delete.arg(&found.bundle).arg("delete");
            delete.current_dir(&found.bundle);
            // Whether or not it can: what is left is said, and the next sweeper takes it up.
            let _ = program::ask(&mut delete, WAITER);
        }
    }
}

/// Which container of its names is meant. containerd cleans up beside us, and may use them again.
struct Meant {
    /// The bundle, whatever becomes of its name.
    dir: Option<File>,
    /// Which life, if its files say it.
    salt: u64,
}

impl Meant {
    fn of(found: &Found) -> Self {
        Self {
            dir: File::open(&found.bundle).ok(),
            salt: found.owner().salt,
        }
    }

    /// Whether what was found by the names before this was asked is of that container.
    fn is(&self, found: &Found) -> bool {
        let file = |meta: Metadata| (meta.dev(), meta.ino());
        let then = self.dir.as_ref().and_then(|dir| dir.metadata().ok());
        let now = fs::metadata(&found.bundle).ok();
        let same_place = then.map(file) == now.map(file);
        let salt = found.owner().salt;
        (same_place || !found.bundle.exists()) && (salt == self.salt || salt == 0 || self.salt == 0)
    }
}

/// Kills both, until no other comes; whom it killed.
fn end_pair(found: &Found, meant: &Meant, until: Instant) -> Result<Vec<u32>> {
    let mut killed = Vec::new();
    for look in 0..LOOKS {
        // Gone with its bundle, if containerd was quicker.
        let recorded = match pair::Halves::read(found) {
            Ok(recorded) => recorded,
            Err(_) if !found.bundle.exists() => break,
            Err(_) if look > 0 => break,
            Err(error) => {
                // Who works in the bundle is its pair, whatever lies there.
                if let Some(pair) = processes::of(found)? {
                    if !meant.is(found) {
                        return Ok(killed);
                    }
                    let halves = || pair.reaper.iter().chain(&pair.shim);
                    end(&halves().map(|(_, pidfd)| pidfd).collect::<Vec<_>>(), until)?;
                    killed.extend(halves().map(|(process, _)| process.pid));
                    break;
                }
                // Without a pair on record nobody is signalled by guess.
                let held = vigil_journal::lock::is_held(&found.bundle.join(names::LOCK));
                if matches!(held, Ok(false)) {
                    break;
                }
                return Err(error).context("it is not known which processes its pair is");
            }
        };
        let mut halves = Vec::new();
        for half in std::iter::once(&recorded.pair.reaper).chain(&recorded.pair.shim) {
            if let Some(process) = recorded.open(found, half)? {
                halves.push((half.pid, process));
            }
        }
        if halves.is_empty() {
            break;
        }
        if !meant.is(found) {
            return Ok(killed);
        }
        end(
            &halves
                .iter()
                .map(|(_, process)| process)
                .collect::<Vec<_>>(),
            until,
        )?;
        killed.extend(halves.iter().map(|(pid, _)| *pid));
    }
    Ok(killed)
}

/// What `delete` does; `None`: it was done by somebody else, and whether that was seen. A containerd that saw the pair die
/// runs `delete` itself and believes what that says: it comes first, and what is done here leaves
/// it time to come in between.
fn finish(
    node: &Node,
    found: &Found,
    meant: &Meant,
    until: Instant,
    connected: bool,
) -> Result<(Option<Report>, bool)> {
    let patience = if connected { FIRST } else { Duration::ZERO };
    let mut first = Instant::now() + patience;
    let mut came = false;
    let mut before: Option<Report> = None;
    loop {
        if !found.bundle.exists() || !meant.is(found) {
            return Ok((before, came));
        }
        let held = vigil_journal::lock::is_held(&found.bundle.join(names::LOCK));
        let now = Instant::now();
        if matches!(held, Ok(true)) && now < until {
            (came, first) = (true, now + REMOVED);
            std::thread::sleep(LOOK);
            continue;
        }
        if now < first.min(until) {
            std::thread::sleep(LOOK);
            continue;
        }
        // It could not finish, has said so, and left a waiter.
        if came && before.is_none() && !entombed(node, found).is_empty() {
            return Ok((None, came));
        }
        let slice = until.min(now + SLICE);
        match repair::act(node, found, Goal::Gone, slice, before.is_some()) {
            Ok(report) => {
                let report = match before {
                    Some(before) => both(before, report),
                    None => report,
                };
                let more = Instant::now() >= slice && slice < until;
                if report.left.is_empty() || !more {
                    return Ok((Some(report), connected && came));
                }
                before = Some(report);
                std::thread::sleep(PAUSE);
            }
            // containerd's `delete` came in between, and has the lock or has done it.
            Err(_) if !found.bundle.exists() => return Ok((before, came)),
            Err(_) if Instant::now() < until => std::thread::sleep(LOOK),
            Err(error) => return Err(error),
        }
    }
}

/// Of two tries what was done in both, and what is left after the second. How it ended is what
/// the first saw: the second has it on record.
fn both(mut first: Report, second: Report) -> Report {
    for action in second.done {
        if !first.done.contains(&action) {
            first.done.push(action);
        }
    }
    (first.left, first.notes) = (second.left, second.notes);
    first
}

/// One that only its processes tell of.
fn unbundled(args: &Args, until: Instant) -> Result<Ended> {
    let namespace = args.name.namespace()?;
    let mut pairs: Vec<_> = processes::loose(&args.node)?
        .into_iter()
        .filter(|pair| pair.found.id.as_str() == args.name.container)
        .filter(|pair| {
            namespace
                .as_ref()
                .is_none_or(|n| *n == pair.found.namespace)
        })
        .collect();
    if pairs.len() > 1 {
        return Err(anyhow!("say which with --namespace")
            .context(format!("{} is in several namespaces", args.name.container))
            .context(Exit(Code::Usage)));
    }
    let Some(pair) = pairs.pop() else {
        return Err(anyhow!(
            "no bundle below {} and no pair without one{}",
            args.node.state.display(),
            args.node.instead(&args.name)?
        )
        .context(args.name.container.clone())
        .context(Exit(Code::Nothing)));
    };
    let halves = pair.reaper.iter().chain(&pair.shim);
    let killed = halves.map(|(process, _)| process.pid).collect();
    let report = repair::end_loose(&args.node, &pair, until)?;
    Ok(Ended {
        found: pair.found,
        killed,
        report: Some(report),
        left: Vec::new(),
        blocks: false,
    })
}

/// SIGKILL to the halves of a pair, the reaper first among them, and their end.
pub fn end(halves: &[&OwnedFd], until: Instant) -> Result<()> {
    pidfd::kill_together(halves).context("cannot kill a process of the pair")?;
    for half in halves {
        let left = until.saturating_duration_since(Instant::now());
        if !fd::wait_readable(half, left).context("cannot wait for a process of the pair")? {
            bail!("a process of the pair does not die; try again when what it waits for has passed")
        }
    }
    Ok(())
}

fn value(ended: &Ended) -> serde_json::Value {
    let report = ended.report.as_ref();
    json!({
        "namespace": ended.found.namespace,
        "id": ended.found.id,
        "killed": ended.killed,
        "done": report.map(|report| report.done.iter().map(|a| words::action(*a)).collect::<Vec<_>>()),
        "left": report.map_or_else(
            || ended.left.clone(),
            |report| report.left.iter().map(ToString::to_string).collect(),
        ),
        "bundle_stays": ended.blocks,
        "exit": report.map(|report| json::exit(report.exit)),
    })
}

fn people(ended: &Ended) -> String {
    let mut text = String::new();
    let killed: Vec<String> = ended.killed.iter().map(ToString::to_string).collect();
    let killed = if killed.is_empty() {
        "its pair was dead".to_owned()
    } else {
        format!("killed {}", killed.join(", "))
    };
    let (namespace, id) = (&ended.found.namespace, &ended.found.id);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{namespace}/{id}: {killed}");
    match &ended.report {
        Some(report) => repair::told(&mut text, report, Colour::of_stdout()),
        None if ended.left.is_empty() => text.push_str("  containerd has deleted it\n"),
        None => text.push_str("  containerd's `delete` was at it, and a waiter goes on\n"),
    }
    let mut bad = |line: String| {
        let _ = writeln!(text, "  {}", Colour::of_stdout().paint(&line, Paint::Bad));
    };
    for left in &ended.left {
        bad(format!("left: {left}"));
    }
    if ended.blocks {
        let bundle = ended.found.bundle.display();
        bad(format!(
            "left: {bundle}, which containerd's `delete` was at and which is not removed: if containerd \
             has forgotten the container, none of this id can be made until it is"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use vigil_host::proc;
    use vigil_journal::pair::{Incarnation, Pair};
    use vigil_journal::{BootId, Owner};
    use vigil_model::{Namespace, TaskId};

    use super::*;

    struct Life(Child);

    impl Life {
        /// A pair, and the bundle that names it.
        fn begin(found: &Found, salt: u64) -> Result<Self> {
            fs::create_dir_all(&found.bundle)?;
            fs::write(found.bundle.join(names::LOCK), "")?;
            let mut reaper = Command::new("sleep");
            let reaper = reaper.arg("100").current_dir(&found.bundle).spawn()?;
            let it = proc::incarnation(reaper.id())?.context("no process")?;
            let pair = Pair {
                reaper: Incarnation {
                    pid: it.pid,
                    start_ticks: it.start_ticks,
                    pid_ns: it.pid_ns,
                    boot: BootId::parse(&it.boot.0)?,
                    pidfd_inode: it.pidfd_inode,
                },
                shim: None,
                session: None,
            };
            let owner = Owner::with_salt(found.namespace.as_str(), found.id.as_str(), salt);
            pair.write(&found.bundle.join(names::PAIR), &owner)?;
            Ok(Self(reaper))
        }

        fn lives(&mut self) -> Result<bool> {
            Ok(self.0.try_wait()?.is_none())
        }
    }

    impl Drop for Life {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The tool waits for one half of the pair, containerd cleans up meanwhile, and the id is used
    /// again: the next look found the next pair by the same names, and killed it.
    #[test]
    fn the_next_container_of_the_id_is_not_killed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let found = Found {
            namespace: Namespace::new("n")?,
            id: TaskId::new("c")?,
            bundle: dir.path().join("n/c"),
            moved_from: None,
        };
        let until = Instant::now() + Duration::from_secs(20);
        let mut first = Life::begin(&found, 7)?;
        let meant = Meant::of(&found);
        fs::rename(&found.bundle, dir.path().join("n/.c"))?;
        let mut next = Life::begin(&found, 8)?;
        let killed = end_pair(&found, &meant, until)?;
        assert!(killed.is_empty() && next.lives()? && first.lives()?);
        let pid = next.0.id();
        assert_eq!(end_pair(&found, &Meant::of(&found), until)?, [pid]);
        assert!(first.lives()?);
        Ok(())
    }
}
