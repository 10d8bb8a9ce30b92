//! Starting an exec: streams, `runc exec`, and its process found.

use std::path::PathBuf;
use std::time::Duration;

use vigil_host::proc::{self, Checked};
use vigil_host::runc::{Call, Invocation, process_document};
use vigil_host::stdio::Owner as StdioOwner;
use vigil_model::{ExecId, Incarnation, Plan, Refusal, Stdio};
use vigil_sys::pidfd;
use vigil_sys::points::{self, Point};

use super::create::given;
use super::{Tools, identify, runc, runtime, without};
use crate::kept::Kept;
use crate::stdio::{Asked, Streams};

/// An exec that was started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Incarnation,
    pub(crate) pin: usize,
    pub(crate) streams: Streams<Kept>,
}

/// The streams it was asked to have, and its spec, if it can be had.
pub(crate) type Spec = (Stdio, Result<String, Refusal>);

/// Starts it, or leaves nothing of it.
pub(crate) async fn start(
    tools: Tools,
    plan: Box<Plan>,
    exec: ExecId,
    (asked, spec): Spec,
    streams: Streams<Kept>,
    init: Option<Incarnation>,
) -> Result<Started, Refusal> {
    let place = &tools.place;
    let stdio = Asked {
        stdio: &asked,
        task: &place.id,
        namespace: &place.namespace,
        owner: StdioOwner::from(&plan.create.options),
    };
    let document = spec.and_then(|spec| {
        process_document(spec.as_bytes(), asked.terminal).map_err(|error| super::refusal(&error))
    });
    let document = match document {
        Ok(document) => document,
        Err(refusal) => {
            streams.close_all(Duration::ZERO).await;
            return Err(refusal);
        }
    };
    let (child, mut streams) = streams
        .open_anew(&stdio)
        .await
        .map_err(|error| super::refusal(&error))?;
    let pid_file = pid_file(&tools, &exec);
    let since = tools.exits.ring_seq();
    let running = {
        let runtime = runtime(&plan);
        let call = Call::Exec {
            id: place.id.as_str(),
            process: &document,
            pid_file: &pid_file,
            console_socket: streams.console_socket(),
        };
        Invocation::new(&runtime, call)
            .streams(given(&child))
            .spawn()
    };
    drop(child);
    let (outcome, copying) = match running {
        Ok(running) => {
            let unwanted = without::unwanted(init, running.pid());
            runc::finish_copying(running, &tools.deadlines, &mut streams, unwanted).await
        }
        Err(failure) => (Err(failure), Ok(())),
    };
    points::reach(Point::RuncExecDone);
    let pid = identify::pid_in(&pid_file);
    let outcome = match outcome {
        Ok(()) => match pid {
            Ok(pid) => {
                let identified = identify::identify(&tools, &plan.claims, pid, since).await;
                if identified.is_err() {
                    // It runs, and nobody could ever be told of its end.
                    kill_below_reaper(&tools, pid);
                }
                identified
            }
            Err(refusal) => Err(refusal),
        },
        Err(failure) => {
            // It may have been killed after it had started the process.
            if let Ok(pid) = pid
                && let Ok(found) = identify::identify(&tools, &plan.claims, pid, since).await
            {
                discard(&tools, &found.process, Some(found.pin)).await;
            }
            Err(runc::refusal(&failure))
        }
    };
    let found = match outcome {
        Ok(found) => found,
        Err(refusal) => {
            streams.close_all(Duration::ZERO).await;
            return Err(refusal);
        }
    };
    if let Err(error) = copying {
        let refusal = super::refusal(&error);
        discard(&tools, &found.process, Some(found.pin)).await;
        streams.close_all(Duration::ZERO).await;
        return Err(refusal);
    }
    Ok(Started {
        process: found.process,
        pin: found.pin,
        streams,
    })
}

/// Where runc writes the pid of an exec. It stays until the exec is recorded:
/// a later shim finds the process by it.
pub(crate) fn pid_file(tools: &Tools, exec: &ExecId) -> PathBuf {
    // Not `<exec>.pid`: an exec may be called "init".
    tools.place.bundle.join(format!("exec-{exec}.pid"))
}

/// Kills a process that could not be pinned, if it is a child of our reaper.
fn kill_below_reaper(tools: &Tools, pid: u32) {
    // Opened first, looked at afterwards: what is seen is what is held.
    let Ok(Some((_, pidfd))) = proc::open_now(pid) else {
        return;
    };
    let parent = proc::stat(pid).ok().flatten().map(|stat| stat.parent);
    if parent == Some(tools.place.reaper)
        && let Err(errno) = pidfd::send_signal(&pidfd, 9)
    {
        log::warn!("process {pid} not killed: {errno}");
    }
}

/// Kills a process nobody will ever ask for.
pub(crate) async fn discard(tools: &Tools, process: &Incarnation, pin: Option<usize>) {
    match proc::open_checked(process) {
        Ok(Checked::Same(fd)) => {
            if let Err(errno) = pidfd::send_signal(&fd, 9) {
                log::warn!("process {} not killed: {errno}", process.pid);
            }
        }
        Ok(_) => {}
        Err(error) => log::warn!("process {} not found: {error}", process.pid),
    }
    if let Some(pin) = pin
        && let Err(error) = tools.control.unregister(pin).await
    {
        log::warn!("pin of process {} not given back: {error}", process.pid);
    }
}
