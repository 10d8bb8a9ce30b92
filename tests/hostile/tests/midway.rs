//! The pair dies in the middle of something: `delete` must find what was begun, also
//! what no record could be written of any more.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context, Result, ensure};
use vigil_hostile::{FaultyRunc, Pair, Trace, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{CallError, Kit, Spec, by, until};

#[derive(Debug, Clone, Copy)]
enum Death {
    TermReaper,
    KillReaper,
    KillBoth,
    None,
}

const DEATHS: [Death; 4] = [
    Death::TermReaper,
    Death::KillReaper,
    Death::KillBoth,
    Death::None,
];

fn dies(container: &Container, pair: &Pair, death: Death) -> Result<()> {
    match death {
        Death::TermReaper => pair.signal(pair.reaper, 15)?,
        Death::KillReaper => {
            // Its shim goes on, and its call of the runtime too.
            pair.signal(pair.reaper, 9)?;
            return until("the reaper to die", by(4.0), || {
                (!alive(pair.reaper)).then_some(())
            });
        }
        Death::KillBoth => container.shim.kill_all()?,
        Death::None => return Ok(()),
    }
    pair.gone(4.0)
}

/// Asks in the background, waits until `begun` holds, lets the pair die, runs `delete`,
/// and holds that nothing is left, also of what runs no longer below anybody.
fn interrupted(kit: &Kit, fault: &str, verb: &str, death: Death) -> Result<()> {
    let container = kit.prepared(&Spec::args(&["sleep", "1000"]), Stdio::Output)?;
    let pair = Pair::of(&container.shim)?;
    let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
    let runc = FaultyRunc::new(kit.scratch.dir(), verb, fault)?;
    let mut request = container.bundle.create_request();
    request.options = Some(runc.options()).into();
    let (task, id) = (container.task().clone(), container.id.clone());
    let create = request.clone();
    let in_create = verb == "create";
    if !in_create {
        task.create(&create)?;
    }
    let asked = std::thread::spawn(move || {
        if in_create {
            task.create(&create).map(drop)
        } else {
            task.start(&id, "").map(drop)
        }
    });
    let runc_state = format!(
        "/run/containerd/runc/{}/{}/state.json",
        kit.scratch.mark(),
        container.id
    );
    until("runc to be under way", by(5.0), || {
        let done = !fault.starts_with("done") || std::path::Path::new(&runc_state).exists();
        let running = Process::marked(kit.scratch.mark())
            .iter()
            .any(|p| p.cmdline.contains("faulty-runc") && p.cmdline.contains(verb));
        (done && running).then_some(())
    })?;
    dies(&container, &pair, death)?;
    container.shim.delete()?.ok()?;
    pair.gone(1.0)?;
    let answer = asked.join().expect("the asking thread");
    ensure!(
        matches!(answer, Err(CallError::Closed | CallError::Status { .. })),
        "the interrupted request was answered {answer:?}"
    );
    before.expect_back_but(|line| line.starts_with("in the bundle"))
}

#[test]
fn in_the_middle_of_create() {
    trial(100, |kit| {
        for fault in ["hangs", "hangs-deaf", "done-then-hangs"] {
            for death in DEATHS {
                interrupted(kit, fault, "create", death)
                    .with_context(|| format!("{fault}, {death:?}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn in_the_middle_of_start() {
    trial(100, |kit| {
        for fault in ["hangs", "hangs-deaf", "done-then-hangs"] {
            for death in DEATHS {
                interrupted(kit, fault, "start", death)
                    .with_context(|| format!("{fault}, {death:?}"))?;
            }
        }
        Ok(())
    });
}
