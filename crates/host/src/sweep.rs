//! The sweeper: goes on with what tombstones name, once it can go. Whoever has
//! something to do with containers anyway starts one; nobody waits for it. One
//! at a time on a host, a few stones each, each in a worker with a deadline;
//! one that did not go waits longer every time. It touches only what the stone
//! names, by path and inode: the id may be in use again.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use vigil_reconcile::Goal;

use crate::enact::{Left, Report, Stuck, Tombstone, put_off, reconcile};
use crate::observe::{observe, said};
use crate::worker::{Outcome, Worker};
use crate::{Error, Result};
use crate::{proc, strays};

/// Stones one sweeper takes up.
const STONES: usize = 8;
/// For one stone.
const EACH: Duration = Duration::from_millis(2500);
/// What its worker gets beyond that before it is killed.
const BEYOND: Duration = Duration::from_millis(500);
/// For calls of the runtime that a dead `delete` did not end.
const CALLS: Duration = Duration::from_millis(500);
/// For all of them.
const ALL: Duration = Duration::from_secs(10);
/// The longest a stone waits for the next try.
const PAUSE_MAX: Duration = Duration::from_mins(5);
/// A side file older than this is a dead writer's.
const WRITING: Duration = Duration::from_mins(1);

/// What became of a stone.
#[derive(Debug)]
pub enum Swept {
    /// Nothing of the container is left; the stone is gone.
    Done,
    /// Something is, still.
    Left(Vec<String>),
    /// It was not touched, and why.
    Alone(String),
}

/// Whether there is a stone to be taken up now, of another container than
/// `own`. A look at one directory.
pub fn due(run: &Path, own: Option<(&str, &str)>) -> bool {
    let own = own.map(|(namespace, id)| Tombstone::name_of(namespace, id));
    let now = SystemTime::now();
    stones(run).is_ok_and(|stones| {
        stones.iter().any(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            is_due(path, now) && own.as_deref() != name
        })
    })
}

/// Starts a sweeper that nobody waits for, if there is anything for it to do.
/// It inherits none of our descriptors and outlives us. For a process with one
/// thread that is about to end.
pub fn start(run: &Path, own: Option<(&str, &str)>, bundles: &impl Bundles) -> Result<bool> {
    if !due(run, own) {
        return Ok(false);
    }
    let worker = Worker::start("sweeper", || {
        sweep(run, bundles).map(drop).map_err(|error| said(&error))
    })?;
    // Whoever reaps orphans here reaps it.
    let _ = worker;
    Ok(true)
}

/// How to go on where a stone's bundle is there still, for who can read it.
pub trait Bundles {
    /// Whether it is the bundle of the stone's own life. A look and no more.
    fn is_of(&self, stone: &Tombstone) -> bool;
    /// Does what `delete` does, if its pair is dead; whether nothing is left.
    fn finish(&self, stone: &Tombstone) -> bool;
}

/// Leaves every bundle alone.
impl Bundles for () {
    fn is_of(&self, _: &Tombstone) -> bool {
        false
    }

    fn finish(&self, _: &Tombstone) -> bool {
        false
    }
}

/// Takes up the stones whose time has come. `None`: another sweeper is at it.
pub fn sweep(run: &Path, bundles: &impl Bundles) -> Result<Option<Vec<(PathBuf, Swept)>>> {
    let Some(_only) = only(run)? else {
        return Ok(None);
    };
    let end = Instant::now() + ALL;
    clear_sides(run);
    let now = SystemTime::now();
    let mut due = stones(run)?;
    due.retain(|path| is_due(path, now));
    // Who has waited longest comes first: one that never goes starves nobody.
    due.sort_by_key(|path| {
        fs::symlink_metadata(path)
            .and_then(|meta| meta.modified())
            .ok()
    });
    let mut swept = Vec::new();
    for path in due.into_iter().take(STONES) {
        if Instant::now() + EACH > end {
            break;
        }
        let became = match Tombstone::read(&path) {
            // Whoever put it up does it, and takes it away: not to be touched, nor counted.
            Ok(stone) if stone.worked_on().is_some() => continue,
            Ok(stone) => {
                let became = one(run, &stone, bundles);
                if !matches!(became, Swept::Done) {
                    count(run, &path, &stone);
                }
                became
            }
            Err(error) => Swept::Alone(said(&error)),
        };
        if !matches!(became, Swept::Done) {
            wait_longer(&path);
        }
        swept.push((path, became));
    }
    Ok(Some(swept))
}

/// The right to sweep, until it is dropped; `None` if somebody else has it, or
/// there is nothing to sweep.
pub fn only(run: &Path) -> Result<Option<File>> {
    let dir = run.join("tombstones");
    let failed = |op| {
        let path = dir.clone();
        move |source| Error::File { op, path, source }
    };
    let file = match File::open(&dir) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open")(e)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(failed("lock")(e)),
    }
}

fn stones(run: &Path) -> Result<Vec<PathBuf>> {
    Tombstone::paths(run)
}

/// A stone's time of modification says when it is to be taken up; one further
/// off than any pause is from before the clock was set back. What is no file is no stone, and
/// has no such time: a link's is another's, and to open a fifo may last for ever.
fn is_due(path: &Path, now: SystemTime) -> bool {
    let there = fs::symlink_metadata(path).ok();
    let at = there
        .filter(fs::Metadata::is_file)
        .ok_or(ErrorKind::InvalidInput.into())
        .and_then(|meta| meta.modified());
    at.is_ok_and(|at| at <= now || at > now + PAUSE_MAX)
}

/// Counts a try that did not even get to writing a new stone.
fn count(run: &Path, path: &Path, before: &Tombstone) {
    if let Ok(mut stone) = Tombstone::read(path)
        && stone == *before
    {
        stone.tries = stone.tries.saturating_add(1);
        let _ = stone.write(run);
    }
}

/// Longer with every try; at first not at all.
fn wait_longer(path: &Path) {
    let tries = Tombstone::read(path).map_or(u32::MAX, |stone| stone.tries);
    let doubled = 1_u64.checked_shl(tries.saturating_sub(2)).unwrap_or(0);
    let pause = match tries {
        0..=2 => Duration::ZERO,
        3..=16 => Duration::from_millis(500).saturating_mul(u32::try_from(doubled).unwrap_or(1)),
        _ => PAUSE_MAX,
    };
    // Refused, it is taken up again at once: no harm but work.
    let _ = put_off(path, pause.min(PAUSE_MAX));
}

/// Files of writers that died between writing and renaming.
fn clear_sides(run: &Path) {
    let Ok(entries) = fs::read_dir(run.join("tombstones")) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let old = fs::symlink_metadata(&path)
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > WRITING));
        if old && path.extension().is_some_and(|e| e == "new") {
            let _ = fs::remove_file(&path);
        }
    }
}

/// One stone, in a worker: what it names may sleep for ever.
fn one(run: &Path, stone: &Tombstone, bundles: &impl Bundles) -> Swept {
    if let Some(stuck) = stone.stuck.iter().find(|stuck| stuck.stands()) {
        return Swept::Alone(format!(
            "worker {} sleeps on: {}",
            stuck.worker.pid, stuck.doing
        ));
    }
    // Then containerd has forgotten it, has not asked `delete` yet, or it is another life's.
    let there = fs::symlink_metadata(&stone.bundle).is_ok();
    let at = stone.bundle.display();
    if there && !bundles.is_of(stone) {
        return Swept::Alone(format!("{at} is there"));
    }
    let worker = Worker::start_noting("sweep", |notes| {
        if there {
            return if bundles.finish(stone) {
                Ok(())
            } else {
                Err(format!(
                    "{at} is there, and its pair or something else of it"
                ))
            };
        }
        let report = take_up(run, stone, Instant::now() + EACH).map_err(|e| said(&e))?;
        for left in &report.left {
            notes.say(&left.to_string());
        }
        if report.left.is_empty() && !report.may_live() {
            Ok(())
        } else {
            Err(report.row.to_owned())
        }
    });
    let worker = match worker {
        Ok(worker) => worker,
        Err(error) => return Swept::Alone(said(&error)),
    };
    let outcome = worker.wait(EACH + BEYOND);
    let mut left = worker.notes();
    match outcome {
        Ok(Outcome::Done) => return Swept::Done,
        Ok(Outcome::Failed(why)) => {
            if left.is_empty() {
                left.push(why);
            }
        }
        Ok(Outcome::Overdue {
            pid,
            doing,
            left: sleeps,
        }) => {
            if sleeps {
                let _ = entomb(run, stone, pid, &doing);
            }
            left.push(format!("overdue: {doing}"));
        }
        Err(error) => left.push(said(&error)),
    }
    Swept::Left(left)
}

/// Goes on with a stone; what is left then is in a new one.
pub fn take_up(run: &Path, stone: &Tombstone, deadline: Instant) -> Result<Report> {
    let mut subject = stone.named()?;
    subject.left = calls_over(stone)?;
    let seen = observe(&subject);
    Ok(reconcile(&subject, seen, Goal::Gone, run, deadline))
}

/// Ends the calls of the runtime that the pair left, as the `delete` that died would have. No new
/// session has that number while somebody is in the old one, so where its leader lives there
/// is nobody.
fn calls_over(stone: &Tombstone) -> Result<Vec<Left>> {
    let session = stone.at_work.as_ref().and_then(|at_work| at_work.calls);
    let Some(session) = session else {
        return Ok(Vec::new());
    };
    if proc::stat(session)?.is_some_and(|leader| !leader.ended()) {
        return Ok(Vec::new());
    }
    let deadline = Instant::now() + CALLS;
    let left = strays::end(&stone.runtime_root, &stone.id, Some(session), deadline)?;
    Ok(left.into_iter().map(strays::left).collect())
}

/// The sweeper's own worker sleeps now: the stone stands as long as it does.
fn entomb(run: &Path, stone: &Tombstone, worker: u32, doing: &str) -> Result<()> {
    let Some(worker) = proc::incarnation(worker)? else {
        return Ok(());
    };
    let mut stone = stone.clone();
    stone.tries = stone.tries.saturating_add(1);
    stone.stuck.push(Stuck {
        worker,
        doing: doing.to_owned(),
    });
    stone.write(run).map(drop)
}
