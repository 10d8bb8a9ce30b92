//! `delete` after somebody has already said how it ended: the Delete RPC, another
//! `delete`, or a Delete whose records were lost. It says the same once more.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::DeleteResponse;
use vigil_hostile::{exit_in_time, runc_options, trial};
use vigil_lab::Spec;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;

fn same(first: &DeleteResponse, again: &DeleteResponse) -> Result<()> {
    ensure!(
        (first.pid, first.exit_status, &first.exited_at)
            == (again.pid, again.exit_status, &again.exited_at),
        "first {first:?}, then {again:?}"
    );
    Ok(())
}

fn says(container: &Container) -> Result<DeleteResponse> {
    container.shim.delete()?.ok()
}

/// A container whose init has exited with 7 and whose Delete was answered.
fn answered(container: &Container) -> Result<DeleteResponse> {
    ensure!(exit_in_time(container, 10.0)? == 7);
    let answer = container.task().delete(&container.id, "")?;
    ensure!(
        answer.pid == container.pid && answer.exit_status == 7,
        "{answer:?}"
    );
    Ok(answer)
}

#[test]
fn after_the_rpc() {
    trial(60, |kit| {
        for alive in [true, false] {
            let container = kit.running(&Spec::sh("exit 7"))?;
            let answer = answered(&container)?;
            if !alive {
                container.shim.kill_all()?;
            }
            for time in ["first", "second"] {
                same(&answer, &says(&container)?).context(time)?;
            }
        }
        Ok(())
    });
}

/// The journal takes nothing more after the intent of Create; the shim goes on in memory.
#[test]
fn after_the_rpc_of_a_shim_whose_journal_has_failed() {
    trial(60, |kit| {
        let mut container = kit.prepared(&Spec::sh("exit 7"), Stdio::Output)?;
        let journal = container.bundle.dir.join("journal");
        let kept = kit.scratch.path("kept");
        let runc = kit.scratch.path("copying-runc");
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in *' create '*) cp '{}' '{}' ;; esac\nexec runc \"$@\"\n",
            journal.display(),
            kept.display()
        );
        fs::write(&runc, script)?;
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755))?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc_options(&runc.to_string_lossy())).into();
        container.pid = container.task().create(&request)?.pid;
        container.start()?;
        let answer = answered(&container)?;
        container.shim.kill_all()?;
        fs::write(&journal, fs::read(&kept)?)?;
        let first = says(&container)?;
        ensure!(
            (first.pid, first.exit_status) == (answer.pid, 7),
            "delete says {first:?}"
        );
        same(&first, &says(&container)?)
    });
}

#[test]
fn after_another_delete_whatever_was_lost() {
    trial(100, |kit| {
        for name in ["journal", "exits", "init.pid", "config.json"] {
            for how in ["missing", "torn", "foreign", "newer"] {
                let container = kit.running(&Spec::sleeper())?;
                container.shim.kill_all()?;
                let path = container.bundle.dir.join(name);
                match how {
                    "missing" => fs::remove_file(&path)?,
                    "torn" => {
                        let whole = fs::read(&path)?;
                        fs::write(&path, &whole[..whole.len() / 3])?;
                    }
                    "foreign" => {
                        fs::write(&path, b"\x7fELF something else entirely\n".repeat(200))?;
                    }
                    // The version stands behind the magic in both.
                    _ => {
                        let mut whole = fs::read(&path)?;
                        if whole.len() > 9 {
                            whole[8] = 99;
                        }
                        fs::write(&path, whole)?;
                    }
                }
                let what = || format!("{name} {how}");
                let first = says(&container).with_context(what)?;
                ensure!(first.exit_status == 137, "{name} {how}: {first:?}");
                same(&first, &says(&container)?).with_context(what)?;
                container.bundle.remove().with_context(what)?;
            }
        }
        Ok(())
    });
}

/// start was answered and Create never came.
#[test]
fn after_another_delete_of_nothing() {
    trial(60, |kit| {
        let container = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
        let first = says(&container)?;
        same(&first, &says(&container)?)
    });
}

/// Who holds the lock is not to be read: `pair` is torn, or a later version's.
#[test]
fn a_living_pair_that_the_bundle_does_not_name() {
    trial(60, |kit| {
        for pair in ["torn", "vigil-pair 99\n"] {
            let container = kit.running(&Spec::sleeper())?;
            let path = container.bundle.dir.join("pair");
            ensure!(
                fs::read_to_string(&path)?.starts_with("vigil-pair 2"),
                "{pair}"
            );
            fs::write(&path, pair)?;
            let first = says(&container)?;
            ensure!(
                (first.pid, first.exit_status) == (container.pid, 137),
                "{first:?}"
            );
            same(&first, &says(&container)?)?;
            container.bundle.remove()?;
        }
        Ok(())
    });
}
