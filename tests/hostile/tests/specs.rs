//! What execs are asked to be: as long as a message may be, as many as a client leaves
//! behind, and gone from the disk with the exec; over the death of the shim too.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{ExecProcessRequest, Status};
use vigil_hostile::{Pair, succeeded, trial};
use vigil_lab::kit::{Container, exec_spec};
use vigil_lab::task::any;
use vigil_lab::{Kit, Spec, by};

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// An environment of so many bytes, as a namespace with thousands of Services makes them,
/// and the stack its program needs to begin at all.
fn large(script: &str, bytes: usize) -> Vec<u8> {
    let mut process = Spec::sh(script).process();
    let one = 1000;
    let env = (0..bytes / one).map(|n| format!("V{n:06}={}", "x".repeat(one - 12)));
    process["env"] = std::iter::once("PATH=/bin".to_owned()).chain(env).collect();
    process["rlimits"] =
        serde_json::json!([{"type": "RLIMIT_STACK", "hard": 64 << 20, "soft": 64 << 20}]);
    process.to_string().into_bytes()
}

fn ask(container: &Container, exec: &str, spec: Vec<u8>) -> Result<()> {
    let request = ExecProcessRequest {
        id: container.id.clone(),
        exec_id: exec.into(),
        spec: Some(any(PROCESS, spec)).into(),
        ..ExecProcessRequest::default()
    };
    let task = container.task().patient(30.0);
    task.exec(&request)
        .with_context(|| format!("Exec of {exec}"))?;
    Ok(())
}

fn runs(container: &Container, exec: &str, status: u32) -> Result<()> {
    let task = container.task().patient(30.0);
    task.start(&container.id, exec)
        .with_context(|| format!("Start of {exec}"))?;
    let exit = task.wait(&container.id, exec)?;
    ensure!(exit.exit_status == status, "{exec}: {exit:?}");
    task.delete(&container.id, exec)?;
    Ok(())
}

/// An exec in a pod whose environment is large was refused: of all specs together 512 KiB
/// were allowed, although one message may have 4 MiB.
#[test]
fn an_exec_as_long_as_a_message_runs_whichever_shim_starts_it() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let script = r#"[ "${#V000000}" = 988 ] && [ -n "$V003879" ] && exit 4"#;
        let spec = large(script, 3_880_000);
        ensure!((3_750_000..3_950_000).contains(&spec.len()));
        ask(&container, "e1", spec.clone())?;
        ask(&container, "e2", spec.clone())?;
        runs(&container, "e1", 4)?;
        succeeded(&container.shim, &Pair::of(&container.shim)?)?;
        runs(&container, "e2", 4)?;
        // Many, one after the other: none leaves anything.
        for _ in 0..5 {
            ask(&container, "e3", spec.clone())?;
            container.task().delete(&container.id, "e3")?;
        }
        let left = files(&container.bundle.dir, b"V000001=")?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

/// A thousand were too many; Go's shim does not count.
#[test]
fn fifteen_hundred_execs_that_nobody_deleted_are_kept_over_a_takeover() {
    const MANY: usize = 1500;
    trial(240, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let name = |n: usize| format!("{n:064}");
        let spec = Spec::sh("exit 4").process().to_string().into_bytes();
        for n in 0..MANY {
            ask(&container, &name(n), spec.clone())?;
        }
        let named = kit.exec(&container, "named", &Spec::sh("echo hello; exit 4"))?;
        let task = container.task().patient(30.0);
        let before = task.state(&container.id, "named")?;
        ensure!(!before.stdout.is_empty());
        succeeded(&container.shim, &Pair::of(&container.shim)?)?;
        ensure!(task.state(&container.id, "named")? == before);
        for n in [0, MANY - 1] {
            let state = task.state(&container.id, &name(n))?;
            ensure!(state.status.value() == Status::CREATED as i32, "{state:?}");
            runs(&container, &name(n), 4)?;
        }
        runs(&container, "named", 4)?;
        named.stdout.expect("hello", by(5.0))?;
        Ok(())
    });
}

/// The files of the bundle, and of what is below it, that hold these bytes; not those of
/// the container's own file system.
fn files(dir: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() && !path.ends_with("rootfs") {
            found.extend(files(&path, bytes)?);
        } else if kind.is_file() {
            let held = fs::read(&path)?;
            if held.windows(bytes.len()).any(|some| some == bytes) {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    Ok(found)
}

fn secret(kit: &Kit, container: &Container, exec: &str, program: &str) -> Result<()> {
    let spec = Spec::args(&[program, "-c", "exit 4", "s3cret-argument"]);
    kit.exec(container, exec, &spec).map(drop)
}

/// The arguments of an exec were found in the journal long after it was deleted.
#[test]
fn arguments_are_gone_from_the_disk_with_their_exec() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let task = container.task().patient(30.0);
        let found = || files(&container.bundle.dir, b"s3cret");
        secret(kit, &container, "ran", "/bin/sh")?;
        secret(kit, &container, "failed", "/no/such/program")?;
        secret(kit, &container, "never", "/bin/sh")?;
        ensure!(
            found()?.len() == 3,
            "a test that finds none: {:?}",
            found()?
        );
        task.start(&container.id, "ran")?;
        ensure!(task.wait(&container.id, "ran")?.exit_status == 4);
        ensure!(task.start(&container.id, "failed").is_err());
        // What was started is not needed any more; what was not survives the shim.
        ensure!(found()?.len() == 1, "{:?}", found()?);
        succeeded(&container.shim, &Pair::of(&container.shim)?)?;
        ensure!(found()?.len() == 1, "{:?}", found()?);
        for exec in ["ran", "failed", "never"] {
            task.delete(&container.id, exec)?;
        }
        ensure!(found()?.is_empty(), "{:?}", found()?);
        let left = fs::read_dir(&container.bundle.dir)?;
        let left: Vec<_> = left
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("exec-"))
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

/// A file that was changed, or is another's, starts nothing; the container runs on.
#[test]
fn an_exec_whose_file_was_changed_is_not_started() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let spec = exec_spec(&Spec::sh("exit 4")).value;
        let file = |exec: &str| container.bundle.dir.join(format!("exec-{exec}.asked"));
        for exec in ["flipped", "cut", "missing", "another"] {
            ask(&container, exec, spec.clone())?;
        }
        let mut bytes = fs::read(file("flipped"))?;
        *bytes.last_mut().context("empty")? ^= 1;
        fs::write(file("flipped"), &bytes)?;
        fs::write(file("cut"), &bytes[..bytes.len() / 2])?;
        fs::copy(file("missing"), file("another"))?;
        fs::remove_file(file("missing"))?;
        let task = container.task();
        for exec in ["flipped", "cut", "missing", "another"] {
            let refused = task.start(&container.id, exec);
            let says = format!("{refused:?}");
            ensure!(
                refused.is_err() && says.contains(".asked"),
                "{exec}: {says}"
            );
            task.delete(&container.id, exec)?;
        }
        ask(&container, "e1", spec)?;
        runs(&container, "e1", 4)
    });
}

/// A pair that a program of version 1 began was upgraded, an exec was asked for, and the new
/// program failed in its trial: the one before found no `stdio` in the journal, could not read
/// it any more, and the pair left its container.
#[test]
fn a_journal_of_version_1_goes_on_as_its_own_program_reads_it() {
    trial(60, |kit| {
        kit.caller
            .env
            .push(("VIGIL_PRETEND_WRITES".into(), "1".into()));
        let container = kit.running(&Spec::sleeper())?;
        ask(&container, "done", large("exit 6", 1000))?;
        runs(&container, "done", 6)?;
        ask(&container, "later", large("exit 7", 2_000))?;
        let journal = fs::read(container.bundle.dir.join("journal"))?;
        let journal = String::from_utf8_lossy(&journal);
        // In a record, or in the snapshot that the journal was cut down to.
        let mut plans = 0;
        for (at, _) in journal.match_indices("\"later\"") {
            let mut read =
                serde_json::Deserializer::from_str(journal[at..].trim_start_matches(|c| c != '{'))
                    .into_iter::<serde_json::Value>();
            let Some(Ok(plan)) = read.next() else {
                continue;
            };
            if plan.get("file").is_some() || plan.get("spec").is_some() {
                // That program wants both.
                ensure!(plan["stdio"].is_object(), "{plan}");
                ensure!(
                    plan["spec"]
                        .as_str()
                        .is_some_and(|s| s.contains("PATH=/bin"))
                );
                plans += 1;
            }
        }
        ensure!(plans > 0, "no plan in the journal");
        // Whoever takes over starts it from there.
        let pair = Pair::of(&container.shim)?;
        succeeded(&container.shim, &pair)?;
        runs(&container, "later", 7)
    });
}
