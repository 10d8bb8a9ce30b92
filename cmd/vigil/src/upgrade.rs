//! `vigil upgrade`: another program takes over as the shim of containers that
//! run. The reaper of each does it, since it alone can, also with a shim that is
//! stuck; it goes back to the program before if the new one does not do. This
//! side checks what can be checked before anybody is disturbed, asks, waits for
//! the outcome, and tells it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args as ClapArgs;
use serde_json::json;
use vigil_host::chain;
use vigil_journal::names;
use vigil_journal::pair::Pair;
use vigil_journal::takeovers::Takeovers;
use vigil_relay::cause::Cause;
use vigil_sys::{pidfd, signal};

use crate::place::{self, Found, Name, Node};
use crate::program::version_of;
use crate::table::{Cell, Colour, Paint, render};
use crate::{Answer, Code, Exit, json, pair};

/// The shim's name, as containerd makes it of the runtime's.
const SHIM: &str = "containerd-shim-vigil-v2";
/// A reaper that has not begun after this time does not know how.
const BEGINS: Duration = Duration::from_secs(5);
/// A link older than this is of somebody who did not wait for the outcome.
const STALE: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// From a reaper that cannot now, since a shim starts or takes over, to the next try.
const AGAIN: Duration = Duration::from_millis(50);
/// For the answer to what was asked just before nobody waits any more.
const LAST: Duration = Duration::from_secs(1);
/// Refusals in a row, without a success before, after which no other container
/// is troubled.
const REFUSALS_MAX: usize = 3;

/// Arguments of `vigil upgrade`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Id of the container, or path of its bundle.
    container: Option<String>,
    /// Every container of the node whose pair lives.
    #[arg(long, conflicts_with = "container")]
    all: bool,
    /// The new shim; without it the `containerd-shim-vigil-v2` beside this program, else in PATH.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// containerd namespace; without it, wherever the id is.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// How long each container may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30",
          value_parser = clap::value_parser!(u16).range(1..=600))]
    deadline: u16,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: Node,
}

/// What became of one container's shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The new program serves.
    Upgraded,
    /// The new one did not do; the one before serves.
    Refused,
    /// It could not be asked, or did not answer.
    Failed,
    /// Nobody serves it.
    NoPair,
    /// It was spared what others could not do with.
    NotTried,
}

impl Outcome {
    fn words(self) -> &'static str {
        match self {
            Outcome::Upgraded => "upgraded",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::NoPair => "no pair",
            Outcome::NotTried => "not tried",
        }
    }

    fn paint(self) -> Paint {
        match self {
            Outcome::Upgraded => Paint::Good,
            Outcome::Refused | Outcome::Failed => Paint::Bad,
            Outcome::NoPair | Outcome::NotTried => Paint::Faint,
        }
    }
}

/// One container.
struct Case<'a> {
    found: &'a Found,
    from: Option<String>,
    to: Option<String>,
    outcome: Outcome,
    reason: Option<String>,
}

/// Asks one after the other.
pub fn run(args: &Args) -> Result<Answer> {
    let (found, unseen) = containers(args)?;
    let mut notes = unseen.clone();
    if args.all {
        let only = args.namespace.as_deref().map(place::namespace);
        let nothing = found.is_empty();
        notes.extend(args.node.abroad(only.transpose()?.as_ref(), nothing)?);
    }
    let program = Program::find(args.binary.as_deref())?;
    let mut cases: Vec<Case<'_>> = Vec::new();
    for found in &found {
        let tried = cases.iter().filter(|case| case.outcome != Outcome::NoPair);
        let refused = tried
            .clone()
            .filter(|case| case.outcome == Outcome::Refused);
        let vain = refused.count() >= REFUSALS_MAX
            && tried.clone().all(|case| case.outcome != Outcome::Upgraded);
        let case = if vain {
            if let Err((Outcome::NoPair, why)) = living(found) {
                Case::of(found, Outcome::NoPair, Some(why))
            } else {
                let reason = format!("{REFUSALS_MAX} others could not do with it");
                Case::of(found, Outcome::NotTried, Some(reason))
            }
        } else {
            upgrade(found, &program, Duration::from_secs(args.deadline.into()))
        };
        cases.push(case);
    }
    let text = if args.json {
        json::text(&json!({
            "binary": program.path.display().to_string(),
            "version": program.version,
            "containers": cases.iter().map(Case::json).collect::<Vec<_>>(),
            "notes": notes,
        }))
    } else {
        let text = people(&cases, &program, Colour::of_stdout());
        notes
            .iter()
            .fold(text, |text, note| format!("{text}note: {note}\n"))
    };
    // One that is gone is no failure of all the others'.
    let fine = |case: &Case<'_>| match case.outcome {
        Outcome::Upgraded => true,
        Outcome::NoPair => args.all,
        Outcome::Refused | Outcome::Failed | Outcome::NotTried => false,
    };
    let code = if cases.iter().all(fine) && unseen.is_empty() {
        Code::Done
    } else {
        Code::Wrong
    };
    Ok(Answer { text, code })
}

/// Those that are meant, and what could not be looked at.
fn containers(args: &Args) -> Result<(Vec<Found>, Vec<String>)> {
    let Some(container) = &args.container else {
        if !args.all {
            return Err(anyhow!("upgrade needs a container, or --all").context(Exit(Code::Usage)));
        }
        let only = args.namespace.as_deref().map(place::namespace);
        let bundles = args.node.bundles(only.transpose()?.as_ref())?;
        return Ok((bundles.ours, bundles.notes));
    };
    let name = Name {
        container: container.clone(),
        namespace: args.namespace.clone(),
    };
    let Some(found) = args.node.find(&name)? else {
        let (state, instead) = (args.node.state.display(), args.node.instead(&name)?);
        return Err(anyhow!("no bundle below {state}{instead}")
            .context(container.clone())
            .context(Exit(Code::Nothing)));
    };
    Ok((vec![found], Vec::new()))
}

/// The new shim.
struct Program {
    path: PathBuf,
    /// Device and inode, by which a reaper must see the same.
    file: (u64, u64),
    version: String,
}

impl Program {
    /// The one given, or the one beside this program, or in PATH. It must be a
    /// program that says its version: nobody is disturbed for another.
    fn find(given: Option<&Path>) -> Result<Self> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => beside().or_else(in_path).with_context(|| {
                format!("no {SHIM} beside this program or in PATH; --binary names one")
            })?,
        };
        let cannot = || format!("cannot use {}", path.display());
        let path = fs::canonicalize(&path).with_context(cannot)?;
        let meta = fs::metadata(&path).with_context(cannot)?;
        if !meta.is_file() {
            bail!("{}: it is no file", cannot());
        }
        if meta.permissions().mode() & 0o111 == 0 {
            bail!("{}: it is not executable", cannot());
        }
        // Read here, so that no reaper waits for a disk when it starts it.
        let read = File::open(&path).and_then(|mut f| std::io::copy(&mut f, &mut std::io::sink()));
        if read.with_context(cannot)? == 0 {
            bail!("{}: it is empty", cannot());
        }
        let version = version_of(&path).map_err(|why| anyhow!("{}: {why}", cannot()))?;
        Ok(Self {
            file: (meta.dev(), meta.ino()),
            path,
            version,
        })
    }
}

fn beside() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(SHIM);
    path.is_file().then_some(path)
}

fn in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut all = std::env::split_paths(&path).map(|dir| dir.join(SHIM));
    all.find(|path| path.is_absolute() && path.is_file())
}

impl<'a> Case<'a> {
    fn of(found: &'a Found, outcome: Outcome, reason: Option<String>) -> Self {
        Self {
            found,
            from: None,
            to: None,
            outcome,
            reason,
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "namespace": self.found.namespace.as_str(),
            "id": self.found.id.as_str(),
            "from": self.from,
            "to": self.to,
            "outcome": self.outcome.words(),
            "reason": self.reason,
        })
    }

    fn row(&self) -> Vec<Cell> {
        let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".to_owned());
        vec![
            Cell::of(self.found.namespace.as_str()),
            Cell::of(self.found.id.as_str()),
            Cell::of(shown(&self.from)),
            Cell::of(shown(&self.to)),
            Cell(self.outcome.words().to_owned(), self.outcome.paint()),
            Cell::of(self.reason.as_deref().unwrap_or("-")),
        ]
    }
}

fn people(cases: &[Case<'_>], program: &Program, colour: Colour) -> String {
    let titles = ["NAMESPACE", "ID", "FROM", "TO", "OUTCOME", "REASON"];
    let rows: Vec<Vec<Cell>> = cases.iter().map(Case::row).collect();
    let (path, version) = (program.path.display(), &program.version);
    format!(
        "binary {path}, version {version}\n{}",
        render(&titles, &rows, colour)
    )
}

/// The living reaper of a pair, its incarnation checked.
struct Living {
    reaper: u32,
    pidfd: OwnedFd,
}

fn living(found: &Found) -> Result<Living, (Outcome, String)> {
    if place::is_ours(&found.bundle).is_ok_and(|ours| !ours) {
        let why = "no file of Vigil's is in its bundle: another runtime's";
        return Err((Outcome::NoPair, why.to_owned()));
    }
    let halves = pair::Halves::read(found).map_err(|error| (Outcome::NoPair, chain(&error)))?;
    if let Some(original) = pair::copy_of(found, Some(&halves.pair), None) {
        let why = format!("a copy: its container's bundle is {}", original.display());
        return Err((Outcome::NoPair, why));
    }
    let reaper = &halves.pair.reaper;
    match halves.open(found, reaper) {
        Ok(Some(pidfd)) => Ok(Living {
            reaper: reaper.pid,
            pidfd,
        }),
        Ok(None) => Err((Outcome::NoPair, "its reaper is gone".to_owned())),
        Err(error) => Err((Outcome::Failed, chain(&error))),
    }
}

/// The version of the shim that serves now.
fn serving(found: &Found) -> Option<String> {
    let shim = Pair::read(&found.bundle.join(names::PAIR), &found.owner())
        .ok()?
        .shim?;
    pair::version(&shim).ok()
}

fn upgrade<'a>(found: &'a Found, program: &Program, patience: Duration) -> Case<'a> {
    let living = match living(found) {
        Ok(living) => living,
        Err((outcome, why)) => return Case::of(found, outcome, Some(why)),
    };
    let from = serving(found);
    let end = Instant::now() + patience;
    let told = loop {
        match ask(found, &living, program, end) {
            Ok(None) if Instant::now() < end => std::thread::sleep(AGAIN),
            Ok(None) => {
                break Err(anyhow!(
                    "its reaper would not in {} s: no shim came to serve, or the pair is leaving",
                    patience.as_secs()
                ));
            }
            Ok(Some(told)) => break Ok(told),
            Err(error) => break Err(error),
        }
    };
    let (outcome, reason) = told.unwrap_or_else(|e| (Outcome::Failed, Some(format!("{e:#}"))));
    Case {
        found,
        from,
        to: serving(found),
        outcome,
        reason,
    }
}

/// Asks once, and waits for the outcome until `end`. `None`: a shim is starting or taking over
/// just now, or the pair is leaving, and its reaper would not.
fn ask(
    found: &Found,
    living: &Living,
    program: &Program,
    end: Instant,
) -> Result<Option<(Outcome, Option<String>)>> {
    let bundle = &found.bundle;
    // In a mount namespace of its own it may be another file, or none.
    let root = PathBuf::from(format!("/proc/{}/root", living.reaper));
    let seen = root.join(program.path.strip_prefix("/").unwrap_or(&program.path));
    let seen = fs::metadata(&seen).map(|meta| (meta.dev(), meta.ino()));
    if seen.ok() != Some(program.file) {
        bail!("its reaper does not see that file by that name");
    }
    let owner = found.owner();
    let told = |bundle: &Path| Takeovers::read(&bundle.join(names::TAKEOVERS), &owner);
    let before = told(bundle)?.count;
    let next = bundle.join(names::NEXT);
    put(&program.path, &next)?;
    let over = || fs::symlink_metadata(&next).is_err();
    let sent = pidfd::send_signal(&living.pidfd, signal::USR1);
    let asked = sent.context("cannot signal its reaper").and_then(|()| {
        let began = Instant::now();
        let end = end.max(began + LAST);
        while !over() {
            if pidfd::is_dead(&living.pidfd) != Ok(false) {
                bail!("its reaper died meanwhile");
            }
            let waited = began.elapsed();
            let begun = || told(bundle).is_ok_and(|told| told.count > before);
            if waited > BEGINS && !begun() {
                bail!(
                    "its reaper has not begun: it may be of a version that cannot, \
                     or its shim cannot be ended"
                );
            }
            if Instant::now() > end {
                bail!(
                    "no outcome within {} s; `vigil show` tells it later",
                    waited.as_secs()
                );
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    });
    if let Err(error) = asked {
        // Nobody takes it up later than anybody waits for it.
        let _ = fs::remove_file(&next);
        return Err(error);
    }
    let told = told(bundle)?;
    let new = usize::try_from(told.count.saturating_sub(before)).unwrap_or(usize::MAX);
    let causes = told.last.iter().rev().take(new);
    // The newest that is of this: others may have died since.
    for cause in causes.map(|one| Cause::parse(&one.cause)) {
        match cause {
            Cause::Refused(why) => return Ok(Some((Outcome::Refused, Some(why)))),
            Cause::Upgrade => return Ok(Some((Outcome::Upgraded, None))),
            Cause::Died(_)
            | Cause::Stuck
            | Cause::Asked
            | Cause::Heir
            | Cause::Looping(..)
            | Cause::Other(_) => {}
        }
    }
    Ok(None)
}

/// Puts the link there that names the new program, unless somebody else's is there.
fn put(program: &Path, next: &Path) -> Result<()> {
    let cannot = || format!("cannot make {}", next.display());
    match symlink(program, next) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made.with_context(cannot),
    }
    let age = fs::symlink_metadata(next)
        .and_then(|meta| meta.modified())
        .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    if age.is_ok_and(|age| age < STALE) {
        bail!("another upgrade of it is under way");
    }
    let _ = fs::remove_file(next);
    symlink(program, next).with_context(cannot)
}
