//! Every file that Vigil keeps, damaged or another's: nobody else is hurt, and the truth is told.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vigil_hostile::{Pair, trial};
use vigil_lab::kit::{Container, repository};
use vigil_lab::process::alive;
use vigil_lab::{Kit, Spec, by, until};

const KILL: i32 = 9;

/// The files of a bundle that are looked at; `lock` is empty in health.
const FILES: [&str; 4] = ["journal", "exits", "pair", "takeovers"];

/// What is done to one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Missing,
    Empty,
    /// Cut to so many 64ths.
    Cut(u64),
    /// Bits flipped, by this seed.
    Flipped(u64),
    /// The bystander's.
    Foreign,
    /// Of version 1, of another container.
    Older,
    Newer,
    Fifo,
    Link,
}

/// Every kind, a few of those that have a number.
fn harms() -> Vec<Harm> {
    let mut all = vec![
        Harm::Missing,
        Harm::Empty,
        Harm::Foreign,
        Harm::Older,
        Harm::Newer,
        Harm::Fifo,
        Harm::Link,
    ];
    all.extend([1, 2, 7, 32].map(Harm::Cut));
    all.extend([3, 5, 8].map(Harm::Flipped));
    all
}

/// Numbers that are the same in each run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

impl Harm {
    fn to(self, path: &Path, bystander: &Path) -> Result<()> {
        let name = path.file_name().context("no name")?;
        let old = fs::read(path).unwrap_or_default();
        match self {
            Harm::Missing => drop(fs::remove_file(path)),
            Harm::Empty => fs::write(path, "")?,
            Harm::Cut(part) => {
                let length = old.len() as u64 * part / 64;
                fs::write(path, &old[..usize::try_from(length)?])?;
            }
            Harm::Flipped(mut seed) => {
                let mut bytes = old;
                // Where something is written, not in the zeros behind it.
                let used = bytes.iter().rposition(|b| *b != 0).unwrap_or(0) as u64 + 1;
                for _ in 0..16 {
                    let at = usize::try_from(random(&mut seed) % used)?;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (random(&mut seed) % 8);
                    }
                }
                fs::write(path, bytes)?;
            }
            Harm::Foreign => {
                let theirs = fs::read(bystander.join(name)).unwrap_or_default();
                fs::write(path, theirs)?;
            }
            Harm::Older => {
                let fixtures = repository().join("tests/journals/v1");
                let name = name.to_str().filter(|name| *name != "journal");
                fs::write(path, fs::read(fixtures.join(name.unwrap_or("clean")))?)?;
            }
            Harm::Newer => {
                let mut bytes = old;
                if bytes.starts_with(b"VIGIL") {
                    bytes[8] = 99;
                } else {
                    bytes = String::from_utf8_lossy(&bytes)
                        .replacen(" 2\n", " 99\n", 1)
                        .into_bytes();
                }
                fs::write(path, bytes)?;
            }
            Harm::Fifo => {
                let _ = fs::remove_file(path);
                let made = Command::new("mkfifo").arg(path).status()?;
                ensure!(made.success(), "mkfifo: {made}");
            }
            Harm::Link => {
                let _ = fs::remove_file(path);
                std::os::unix::fs::symlink(bystander.join(name), path)?;
            }
        }
        Ok(())
    }
}

/// Somebody who has nothing to do with it, and what its files say.
struct Bystander {
    container: Container,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Bystander {
    fn new(kit: &Kit) -> Result<Self> {
        let container = kit.running(&Spec::sleeper())?;
        // One that has been taken over has every file.
        let pair = Pair::of(&container.shim)?;
        vigil_hostile::succeeded(&container.shim, &pair)?;
        let dir = container.bundle.dir.clone();
        let files = FILES.map(|name| (name, fs::read(dir.join(name)).unwrap_or_default()));
        Ok(Self {
            container,
            files: files.into(),
        })
    }

    fn unhurt(&self) -> Result<()> {
        let task = self.container.task();
        let state = task.state(&self.container.id, "")?.status.value();
        ensure!(state == 2, "the bystander's state is {state}");
        ensure!(alive(i32::try_from(self.container.pid)?), "its init died");
        for (name, before) in &self.files {
            let now = fs::read(self.container.bundle.dir.join(name)).unwrap_or_default();
            // Its journal goes on when its State is asked.
            let same = *name == "journal" || now == *before;
            ensure!(same, "the bystander's {name} was written to");
        }
        Ok(())
    }
}

/// Both of a pair die, one of the files is another's or damaged, and `delete` comes: another
/// container's journal once had it kill the other container.
#[test]
fn delete_hurts_nobody_else_whatever_lies_in_the_bundle() {
    trial(280, |kit| {
        let bystander = Bystander::new(kit)?;
        for name in FILES {
            for harm in harms() {
                let told = format!("{name} {harm:?}");
                let container = kit.running(&Spec::sleeper())?;
                let pair = Pair::of(&container.shim)?;
                pair.signal(pair.reaper, KILL)?;
                pair.signal(pair.shim, KILL)?;
                pair.gone(10.0).context(told.clone())?;
                harm.to(
                    &container.bundle.dir.join(name),
                    &bystander.container.bundle.dir,
                )?;
                let deleted = container.shim.delete()?;
                let says = String::from_utf8_lossy(&deleted.ran.stderr).into_owned();
                deleted.ok().context(told.clone())?;
                let init = i32::try_from(container.pid)?;
                until("init to be dead", by(10.0), || (!alive(init)).then_some(()))
                    .with_context(|| format!("{told}: {says}"))?;
                bystander.unhurt().with_context(|| told.clone())?;
                if harm == Harm::Foreign && name == "journal" {
                    let whose = &bystander.container.id;
                    ensure!(says.contains(&format!("/{whose}, and")), "{told}: {says}");
                }
            }
        }
        Ok(())
    });
}

/// Whether the exit records in the file have a registered process that exited so.
fn tells_of_status(path: &Path, code: u64) -> Result<bool> {
    ensure!(fs::symlink_metadata(path)?.is_file(), "no plain file");
    let bytes = fs::read(path)?;
    ensure!(bytes.len() == 40_960, "{} bytes", bytes.len());
    // FORMAT.md: four words a slot, the first of which is state, turn and status.
    let words = bytes[32 * 8..4096 * 8].as_chunks::<8>().0.iter().step_by(4);
    let mut words = words.map(|word| u64::from_ne_bytes(*word));
    Ok(words.any(|word| word >> 56 == 2 && word & 0xffff_ffff == code << 8))
}

/// Nobody dies but the container, and its exit records are not what they were: they were the
/// reaper's own memory, so cutting them killed it and cost the container, what was written over
/// them was believed, and what was removed never came back.
#[test]
fn exit_records_are_only_a_copy_of_what_a_living_pair_knows() {
    trial(100, |kit| {
        let bystander = Bystander::new(kit)?;
        let theirs = bystander.container.bundle.dir.clone();
        for harm in harms() {
            let told = || format!("{harm:?}");
            let container = kit.running(&Spec::sh("trap 'exit 7' TERM; sleep 99 & wait"))?;
            let (task, id) = (container.task(), &container.id);
            let pair = Pair::of(&container.shim)?;
            let path = container.bundle.dir.join("exits");
            harm.to(&path, &theirs).with_context(told)?;
            let _exec = kit.exec(&container, "e1", &Spec::sh("exit 3"))?;
            task.start(id, "e1").with_context(told)?;
            let status = task.wait(id, "e1").with_context(told)?.exit_status;
            ensure!(status == 3, "{}: exec {status}", told());
            harm.to(&path, &theirs).with_context(told)?;
            task.kill(id, "", 15, false).with_context(told)?;
            let status = container.exit_status().with_context(told)?;
            ensure!(status == 7, "{}: status {status}", told());
            ensure!(
                Pair::of(&container.shim)? == pair,
                "{}: another pair",
                told()
            );
            let kept = tells_of_status(&path, 7).with_context(told)?;
            ensure!(kept, "{}: not written anew", told());
            // And when nobody is left but the file.
            pair.signal(pair.reaper, KILL)?;
            pair.signal(pair.shim, KILL)?;
            pair.gone(10.0).with_context(told)?;
            let deleted = container.shim.delete()?.ok().with_context(told)?;
            ensure!(deleted.exit_status == 7, "{}: {deleted:?}", told());
            bystander.unhurt().with_context(told)?;
        }
        Ok(())
    });
}

/// The shim dies, and one of the files is another's, damaged or gone: the pair lived on without
/// a shim or left, and a journal cut in half said CREATED of a running task. Now the journal is
/// written anew from the reaper's memory, and the exit records are handed down by the reaper.
#[test]
fn a_living_pair_goes_on_whatever_becomes_of_its_files() {
    trial(280, |kit| {
        let bystander = Bystander::new(kit)?;
        let theirs = bystander.container.bundle.dir.clone();
        for name in FILES {
            for harm in harms() {
                let told = || format!("{name} {harm:?}");
                let container = kit.running(&Spec::sh("trap 'exit 7' TERM; sleep 99 & wait"))?;
                let (task, id) = (container.task(), &container.id);
                let pair = Pair::of(&container.shim)?;
                let path = container.bundle.dir.join(name);
                harm.to(&path, &theirs).with_context(told)?;
                pair.signal(pair.shim, KILL)?;
                vigil_hostile::successor(&container.shim, &pair).with_context(told)?;
                let state = task.state(id, "")?.status.value();
                ensure!(state == 2, "{}: state {state}", told());
                let exec = kit.exec(&container, "e1", &Spec::sh("exit 3"));
                drop(exec.with_context(told)?);
                task.kill(id, "", 15, false).with_context(told)?;
                let status = container.exit_status().with_context(told)?;
                ensure!(status == 7, "{}: status {status}", told());
                if name == "journal" {
                    let kept = fs::symlink_metadata(&path)?;
                    ensure!(kept.is_file(), "{}: not written anew", told());
                }
                if name == "exits" {
                    let kept = tells_of_status(&path, 7).with_context(told)?;
                    ensure!(kept, "{}: not written anew", told());
                }
                let deleted = task.delete(id, "").with_context(told)?;
                ensure!(deleted.exit_status == 7, "{}: {deleted:?}", told());
                bystander.unhurt().with_context(told)?;
            }
        }
        Ok(())
    });
}

/// Somebody removes `lock` and `pair` under a living pair, and the id is started again: the pair
/// stays, and no second one is made beside it.
#[test]
fn a_pair_that_its_bundle_does_not_name_keeps_its_place() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        for name in ["lock", "pair"] {
            fs::remove_file(container.bundle.dir.join(name))?;
            let ran = kit.caller.run_start(&container.id, &container.bundle.dir)?;
            ensure!(!ran.status.success(), "another pair was made");
            ensure!(Pair::of(&container.shim)? == pair, "another pair");
            let state = container.task().state(&container.id, "")?.status.value();
            ensure!(state == 2, "state {state}");
        }
        Ok(())
    });
}
