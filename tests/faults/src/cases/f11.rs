//! F11: nobody tells the runtime to shut down. It goes by itself when nobody needs it, and
//! only then.

use anyhow::{Context, Result, ensure};
use vigil_lab::bundle::Stdio;
use vigil_lab::process::alive;
use vigil_lab::{CallError, Kit, Shim, Spec, by, until};

use crate::cases;
use crate::rest::another_connection;
use crate::world::{nothing_left, running_under, scripted};

cases! {
    Kit Ours f11_client_gone_after_delete "The client deletes and is gone without Shutdown: the pair leaves, with its socket";
    Kit Ours f11_shutdown_too_early "Shutdown while the task exists does nothing; after Delete, without another, the pair leaves";
    Kit Ours f11_stays_with_a_task "Nobody connected for long, but there is a task, running or stopped: the pair stays";
    Kit All  f11_shutdown_after_a_failed_delete "Delete fails once, Shutdown, Delete again, Shutdown: gone";
    Kit All  f11_shutdown_twice "Shutdown, and again by another client: an answer or a hang-up, and gone";
}

/// A shim that leaves when nobody has needed it for 1.5 s; not the kit's, whose connection
/// would keep it.
fn hasty(kit: &Kit, spec: &Spec) -> Result<(vigil_lab::Bundle, Shim)> {
    let bundle = kit.bundle(spec, Stdio::Empty)?;
    let mut caller = kit.caller.clone();
    caller.env.push(("VIGIL_IDLE_MS".into(), "1500".into()));
    let shim = Shim::start(&caller, &bundle)?;
    shim.task.create(&bundle.create_request())?;
    shim.task.start(&bundle.id, "")?;
    Ok((bundle, shim))
}

fn leaves(kit: &Kit, shim: Shim) -> Result<()> {
    let pids: Vec<i32> = shim.processes().iter().map(|p| p.pid).collect();
    let (socket, id) = (shim.reply.socket.clone(), shim.id.clone());
    drop(shim);
    until("the pair to leave by itself", by(10.0), || {
        pids.iter().all(|pid| !alive(*pid)).then_some(())
    })?;
    ensure!(!socket.exists(), "{} is left", socket.display());
    nothing_left(kit, &id)
}

fn f11_client_gone_after_delete(kit: &Kit) -> Result<()> {
    let (_, shim) = hasty(kit, &Spec::sh("exit 3"))?;
    ensure!(shim.task.wait(&shim.id, "")?.exit_status == 3);
    shim.task.delete(&shim.id, "")?;
    leaves(kit, shim)
}

fn f11_shutdown_too_early(kit: &Kit) -> Result<()> {
    let (_, shim) = hasty(kit, &Spec::sleeper())?;
    shim.task.shutdown(&shim.id)?;
    shim.task
        .state(&shim.id, "")
        .context("State after a Shutdown that must do nothing")?;
    shim.task.kill(&shim.id, "", 9, true)?;
    shim.task.wait(&shim.id, "")?;
    shim.task.delete(&shim.id, "")?;
    leaves(kit, shim)
}

fn f11_stays_with_a_task(kit: &Kit) -> Result<()> {
    for script in ["exec sleep 1000", "exit 5"] {
        let (bundle, shim) = hasty(kit, &Spec::sh(script))?;
        let (pids, reply) = (shim.processes(), shim.reply.clone());
        let caller = shim.caller.clone();
        drop(shim);
        // Three times what it takes to leave.
        std::thread::sleep(std::time::Duration::from_millis(4500));
        for process in &pids {
            ensure!(alive(process.pid), "it left its task: {script}");
        }
        let task = vigil_lab::Task::connect(&reply.socket, vigil_lab::task::V2)?;
        let _ = task.kill(&bundle.id, "", 9, true);
        let waited = task.wait(&bundle.id, "")?;
        ensure!([137, 5].contains(&waited.exit_status), "{waited:?}");
        task.delete(&bundle.id, "")?;
        task.shutdown(&bundle.id)?;
        caller.delete(&bundle.id, &bundle.dir)?.ok()?;
        nothing_left(kit, &bundle.id)?;
    }
    Ok(())
}

fn f11_shutdown_after_a_failed_delete(kit: &Kit) -> Result<()> {
    let body = "[ \"$verb\" = delete ] && [ ! -e $dir/failed ] && { : >$dir/failed; echo no >&2; exit 1; }";
    let (_, options) = scripted(kit, "fails-once", body)?;
    let container = running_under(kit, &Spec::sh("exit 4"), &options)?;
    ensure!(container.exit_status()? == 4);
    let (task, id) = (container.task(), &container.id);
    let first = task.delete(id, "");
    let _ = task.shutdown(id);
    let again = match first {
        Ok(first) => first,
        Err(CallError::Status { .. }) => another_connection(&container)?
            .delete(id, "")
            .context("Delete, again")?,
        Err(error) => return Err(error).context("Delete"),
    };
    ensure!(again.exit_status == 4, "{again:?}");
    let _ = task.shutdown(id);
    until("the runtime to leave", by(10.0), || {
        container.shim.processes().is_empty().then_some(())
    })?;
    container.shim.delete()?.ok()?;
    nothing_left(kit, id)
}

fn f11_shutdown_twice(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sh("exit 4"))?;
    container.exit_status()?;
    container.task().delete(&container.id, "")?;
    let second = another_connection(&container)?;
    let both = std::thread::scope(|scope| {
        let other = scope.spawn(|| second.shutdown(&container.id));
        let one = container.task().shutdown(&container.id);
        let other = other.join();
        other.map(|other| [one, other])
    });
    let both = both.map_err(|_| anyhow::anyhow!("it panicked"))?;
    // Whichever comes second may also be told that it comes too late.
    ensure!(both.iter().any(Result::is_ok), "{both:?}");
    for answer in both {
        match answer {
            Ok(()) | Err(CallError::Status { .. } | CallError::Closed) => {}
            Err(error) => return Err(error).context("one Shutdown of two"),
        }
    }
    until("the runtime to leave", by(10.0), || {
        container.shim.processes().is_empty().then_some(())
    })
}
