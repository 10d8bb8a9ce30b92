//! Exit records that somebody meddles with while their pair lives: the pair does not depend on
//! the file, and makes it anew.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vigil_hostile::harm::HARMS;
use vigil_hostile::{Pair, trial};
use vigil_lab::{Spec, process::alive};

const KILL: i32 = 9;

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
        let bystander = kit.running(&Spec::sleeper())?;
        let theirs = bystander.bundle.dir.join("exits");
        for harm in HARMS {
            let told = || format!("{harm:?}");
            let container = kit.running(&Spec::sh("trap 'exit 7' TERM; sleep 99 & wait"))?;
            let (task, id) = (container.task(), &container.id);
            let pair = Pair::of(&container.shim)?;
            let path = container.bundle.dir.join("exits");
            harm.to("exits", &path, &theirs).with_context(told)?;
            let _exec = kit.exec(&container, "e1", &Spec::sh("exit 3"))?;
            task.start(id, "e1").with_context(told)?;
            let status = task.wait(id, "e1").with_context(told)?.exit_status;
            ensure!(status == 3, "{}: exec {status}", told());
            harm.to("exits", &path, &theirs).with_context(told)?;
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
            ensure!(
                alive(i32::try_from(bystander.pid)?),
                "{}: a stranger died",
                told()
            );
        }
        Ok(())
    });
}
