//! Deaths of the shim, in any number: none costs a container. Killed from outside it is
//! followed at once; one that crashes again and again is followed ever later, and whoever
//! asks meanwhile is told so in time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use vigil_hostile::{Pair, a_while, succeeded, trial, vigil, vigil_apart};
use vigil_lab::process::{alive, signal_if};
use vigil_lab::{CallError, Spec, by, until};

const UNAVAILABLE: i32 = 14;
const RUNNING: i32 = 2;
const ABRT: i32 = 6;

/// Five kills in a minute once ended the pair, and containerd the container: here are thirty,
/// while execs are made and State is asked, and every one of them is answered.
#[test]
fn thirty_kills_in_a_row_cost_nothing() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let over = AtomicBool::new(false);
        let (made, asked) = std::thread::scope(|scope| -> Result<(usize, usize)> {
            let asking = scope.spawn(|| -> Result<usize> {
                let (task, mut asked) = (container.task().patient(60.0), 0);
                while !over.load(Ordering::Relaxed) {
                    let state = task.state(&container.id, "").context("State")?;
                    ensure!(state.status.value() == RUNNING, "{state:?}");
                    asked += 1;
                }
                Ok(asked)
            });
            let making = scope.spawn(|| -> Result<usize> {
                let (task, mut made) = (container.task().patient(60.0), 0);
                while !over.load(Ordering::Relaxed) {
                    let exec = format!("e{made}");
                    let _streams = kit.exec(&container, &exec, &Spec::sh("exit 4"))?;
                    task.start(&container.id, &exec).context("Start")?;
                    let ended = task.wait(&container.id, &exec).context("Wait")?;
                    ensure!(ended.exit_status == 4, "{ended:?}");
                    task.delete(&container.id, &exec).context("Delete")?;
                    made += 1;
                }
                Ok(made)
            });
            let killed = (|| {
                let mut pair = Pair::of(&container.shim)?;
                for _ in 0..30 {
                    a_while(100);
                    pair = succeeded(&container.shim, &pair)?;
                }
                Ok(())
            })();
            over.store(true, Ordering::Relaxed);
            let (made, asked) = (making.join().unwrap()?, asking.join().unwrap()?);
            killed.map(|()| (made, asked))
        })?;
        println!("{made} execs, {asked} States");
        ensure!(
            alive(i32::try_from(container.pid)?),
            "the container is gone"
        );
        Ok(())
    });
}

/// A shim that aborts whenever it is started: the container runs on, whoever asks is told in
/// time what is the matter, who waits for its end goes on waiting, the operator sees it, and
/// another program serves at once.
#[test]
fn one_that_crashes_again_and_again_is_told_of_and_mended() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let (task, id) = (container.task().patient(100.0), container.id.clone());
        let waiting = {
            let (task, id) = (task.clone(), id.clone());
            std::thread::spawn(move || task.wait(&id, ""))
        };
        let pair = Pair::of(&container.shim)?;
        let shows = |word: &str| vigil(kit, &["ps"]).is_ok_and(|(_, said)| said.contains(word));
        // The eighth is followed by a pause of eight seconds.
        until("the eighth crash", by(60.0), || {
            for other in container.shim.processes() {
                if other.pid != pair.reaper {
                    signal_if(other.pid, ABRT, |p| p.cmdline.contains("serve"));
                }
            }
            shows("crash-looping, 8").then_some(())
        })?;
        let (code, said) = vigil(kit, &["ps"])?;
        ensure!(
            code == 3 && said.contains("its shim crashes again and again"),
            "{code}: {said}"
        );
        let brief = container.task().patient(1.0);
        for answer in [
            brief.state(&id, "").map(drop),
            brief.kill(&id, "", 9, false),
        ] {
            let Err(CallError::Status { code, message }) = &answer else {
                bail!("{answer:?}");
            };
            ensure!(*code == UNAVAILABLE, "{answer:?}");
            ensure!(
                message.contains("crashes again and again (8 times, the last: killed by signal 6"),
                "{message}"
            );
        }
        ensure!(alive(i32::try_from(container.pid)?) && !waiting.is_finished());
        let binary = kit.binary.path.to_string_lossy().into_owned();
        let (code, said) = vigil(kit, &["upgrade", &id, "--binary", &binary])?;
        ensure!(code == 0 && said.contains("upgraded"), "{code}: {said}");
        ensure!(task.state(&id, "")?.status.value() == RUNNING);
        ensure!(Pair::of(&container.shim)?.reaper == pair.reaper);
        ensure!(!shows("crashes again"), "mended, and not seen to be");
        task.kill(&id, "", 9, false)?;
        ensure!(waiting.join().unwrap()?.exit_status == 137);
        let notes = std::fs::read("/run/vigil/crashes")?;
        let notes = String::from_utf8_lossy(&notes);
        ensure!(notes.contains(&id), "no note of a crash");
        Ok(())
    });
}

/// A shim that ends by itself before it serves was killed by its reaper while it did, and the
/// death was booked as one from outside: no pause between a hundred of them, no reason, and
/// nobody saw it. Here each successor cannot read the journal.
#[test]
fn one_that_fails_by_itself_before_it_serves_is_followed_ever_later() {
    trial(120, |kit| {
        let old = ("VIGIL_PRETEND_JOURNAL".into(), "0".into());
        kit.caller.env.push(old);
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        pair.signal(pair.shim, 9)?;
        until("five of them", by(60.0), || {
            let (_, said) = vigil(kit, &["ps"]).ok()?;
            said.contains("crash-looping").then_some(())
        })?;
        let task = container.task().patient(1.0);
        let answer = task.state(&container.id, "").map(drop);
        let Err(CallError::Status { code, message }) = &answer else {
            bail!("{answer:?}");
        };
        ensure!(*code == UNAVAILABLE, "{answer:?}");
        ensure!(
            message.contains("exit status 1") && message.contains("journal of version 2"),
            "{message}"
        );
        ensure!(
            alive(i32::try_from(container.pid)?),
            "the container is gone"
        );
        // Another program mends it.
        let able = kit.scratch.path("able");
        let real = kit.binary.path.display();
        let says =
            "[ \"$1\" = -v ] && exec printf 'Version: 6.6.6\\nRuntime: io.containerd.vigil.v2\\n'";
        let script =
            format!("#!/bin/sh\n{says}\nunset VIGIL_PRETEND_JOURNAL\nexec {real} \"$@\"\n");
        std::fs::write(&able, script)?;
        std::fs::set_permissions(&able, std::fs::Permissions::from_mode(0o755))?;
        let able = able.to_string_lossy().into_owned();
        let (code, said) = vigil(kit, &["upgrade", &container.id, "--binary", &able])?;
        ensure!(code == 0 && said.contains("upgraded"), "{code}: {said}");
        let state = container.task().patient(30.0).state(&container.id, "")?;
        ensure!(state.status.value() == RUNNING, "{state:?}");
        Ok(())
    });
}

/// Whose reaper is stopped is served by nobody, and by nobody replaced. The tool called such a
/// container running and well.
#[test]
fn the_tool_says_that_a_pair_is_stopped() {
    const STOP: i32 = 19;
    const CONT: i32 = 18;
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        let says = |code: i32, stopped: bool| {
            for args in [["ps"].as_slice(), &["show", &container.id]] {
                let (ended, said) = vigil_apart(kit, args)?;
                ensure!(ended == code, "{args:?}: {ended}: {said}");
                ensure!(said.contains("pair stopped") == stopped, "{args:?}: {said}");
            }
            anyhow::Ok(())
        };
        for halves in [vec![pair.reaper], vec![pair.reaper, pair.shim]] {
            says(0, false)?;
            for pid in &halves {
                pair.signal(*pid, STOP)?;
                until("it to be stopped", by(20.0), || {
                    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                    let (_, after) = stat.rsplit_once(") ")?;
                    after.starts_with('T').then_some(())
                })?;
            }
            says(3, true)?;
            for pid in &halves {
                pair.signal(*pid, CONT)?;
            }
            let state = container.task().state(&container.id, "")?.status.value();
            ensure!(state == RUNNING, "the state is {state}");
        }
        says(0, false)
    });
}
