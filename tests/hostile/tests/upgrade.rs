//! Another program for the shim of a running container, asked for by the operator's tool:
//! it takes over, or does not do and the one before it goes on; nobody notices either way.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vigil_hostile::{Armed, Pair, shim, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::poll::sharp;
use vigil_lab::process::alive;
use vigil_lab::{Kit, Spec, by, until};

/// Runs the tool that lies beside the shim; its exit code, stdout and stderr.
fn vigil(kit: &Kit, args: &[&str]) -> Result<(i32, String)> {
    let tool = kit.binary.path.with_file_name("vigil");
    let state = kit.scratch.path("by-state");
    let tasks = state.join("io.containerd.runtime.v2.task");
    if !tasks.exists() {
        fs::create_dir_all(&state)?;
        symlink(kit.scratch.path("state"), &tasks)?;
    }
    let out = Command::new(&tool)
        .args(args)
        .env("VIGIL_CONTAINERD_STATE", &state)
        .env_remove("CONTAINERD_NAMESPACE")
        .output()
        .with_context(|| format!("{}: cargo build -p vigil", tool.display()))?;
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((out.status.code().unwrap_or(-1), text.concat()))
}

/// Upgrades one container; what the tool says of it.
fn upgrade(kit: &Kit, container: &Container, binary: &Path) -> Result<Value> {
    let binary = binary.to_string_lossy();
    let (_, out) = vigil(
        kit,
        &["upgrade", &container.id, "--json", "--binary", &binary],
    )?;
    let told: Value = serde_json::from_str(&out).with_context(|| out.clone())?;
    Ok(told["containers"][0].clone())
}

fn program(kit: &Kit, name: &str, text: &str) -> Result<PathBuf> {
    let path = kit.scratch.path(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A script that says a version, and otherwise does this; `$SHIM` is the real one.
fn scripted(kit: &Kit, name: &str, script: &str) -> Result<PathBuf> {
    let real = kit.binary.path.display();
    let says =
        "[ \"$1\" = -v ] && exec printf 'Version: 6.6.6\\nRuntime: io.containerd.vigil.v2\\n'";
    program(
        kit,
        name,
        &format!("#!/bin/sh\nSHIM={real}\n{says}\n{script}\n"),
    )
}

/// What the shim says of itself.
fn own_version(kit: &Kit) -> Result<String> {
    let out = Command::new(&kit.binary.path).arg("-v").output()?;
    let out = String::from_utf8(out.stdout)?;
    let version = out
        .lines()
        .find_map(|line| line.trim().strip_prefix("Version:"));
    Ok(version.context("no version")?.trim().to_owned())
}

/// Another build of the shim, as far as anybody can tell: it says another version.
fn another(kit: &Kit) -> Result<(PathBuf, String)> {
    let own = own_version(kit)?;
    let other: String = own.replace(|c: char| c.is_ascii_digit(), "9");
    let mut bytes = fs::read(&kit.binary.path)?;
    let (said, says) = (format!("Version:  {own}"), format!("Version:  {other}"));
    let at = bytes.windows(said.len()).position(|w| w == said.as_bytes());
    let at = at.context("the version is nowhere in the program")?;
    bytes[at..at + says.len()].copy_from_slice(says.as_bytes());
    let path = kit.scratch.path("containerd-shim-vigil-v2");
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((path, other))
}

fn counting(kit: &Kit) -> Result<Container> {
    let script = "i=0; while :; do i=$((i+1)); echo $i; done";
    let container = kit.prepared(&Spec::sh(script), Stdio::Output)?;
    container
        .task()
        .create(&container.bundle.create_request())?;
    container.start()?;
    Ok(container)
}

/// Whole lines, each one more than the one before.
fn counts(bytes: &[u8]) -> Result<usize> {
    let text = String::from_utf8_lossy(bytes);
    let whole = text.rsplit_once('\n').context("no line")?.0;
    for (at, line) in whole.lines().enumerate() {
        ensure!(line.parse() == Ok(at + 1), "line {} is {line:?}", at + 1);
    }
    Ok(whole.lines().count())
}

/// Ends it; nothing of its output is lost.
fn ended_whole(container: &Container) -> Result<()> {
    container.task().kill(&container.id, "", 9, false)?;
    let (bytes, _) = container.out()?.to_end(by(20.0))?;
    counts(&bytes)?;
    Ok(())
}

fn more_output(container: &Container) -> Result<()> {
    let before = container.out()?.so_far().len();
    until("more output", by(20.0), || {
        (container.out().ok()?.so_far().len() > before + 10_000).then_some(())
    })
}

/// Waits until a process runs this program; it has no other number for that.
fn becomes(pid: i32, program: &Path) -> Result<()> {
    until("it to run the program", by(20.0), || {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (exe == program).then_some(())
    })
    .with_context(|| format!("{pid} is to be {}", program.display()))
}

/// There and back again, while it writes, is waited for and is asked all the time.
#[test]
fn nobody_notices_an_upgrade_nor_the_way_back() {
    trial(120, |kit| {
        let (other, other_version) = another(kit)?;
        let own_version = own_version(kit)?;
        let container = counting(kit)?;
        let (task, id) = (container.task(), container.id.clone());
        let reaper = Pair::of(&container.shim)?.reaper;
        let waiting = {
            let (task, id) = (task.patient(90.0), id.clone());
            std::thread::spawn(move || task.wait(&id, ""))
        };
        let (over, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let asking = {
            let (task, id) = (task.patient(20.0), id.clone());
            let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
            std::thread::spawn(move || -> Result<()> {
                while !over.load(Ordering::Relaxed) {
                    ensure!(task.state(&id, "")?.status.value() == 2, "not RUNNING");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let own = fs::canonicalize(&kit.binary.path)?;
        for round in 0..6 {
            let ((to, says), (_, said)) = if round % 2 == 0 {
                ((&other, &other_version), (&own, &own_version))
            } else {
                ((&own, &own_version), (&other, &other_version))
            };
            let told = upgrade(kit, &container, to)?;
            ensure!(told["outcome"] == "upgraded", "{told}");
            ensure!(
                told["from"] == said.as_str() && told["to"] == says.as_str(),
                "{told}"
            );
            let pair = Pair::of(&container.shim)?;
            ensure!(pair.reaper == reaper, "another reaper");
            let exe = fs::read_link(format!("/proc/{}/exe", pair.shim))?;
            let story = fs::read_to_string(container.bundle.dir.join("takeovers"))?;
            ensure!(exe == *to, "round {round}: {exe:?}; {told}; {story}");
            becomes(pair.reaper, to).context("the reaper")?;
            more_output(&container)?;
            let before = asked.load(Ordering::Relaxed);
            let more = until("more answers", by(20.0), || {
                (asked.load(Ordering::Relaxed) > before + 10).then_some(())
            });
            if more.is_err() && asking.is_finished() {
                asking
                    .join()
                    .unwrap()
                    .with_context(|| format!("round {round}"))?;
                more?;
                return Ok(());
            }
            more.with_context(|| format!("round {round}"))?;
        }
        // The new one is what comes after a death, though its file is gone.
        upgrade(kit, &container, &other)?;
        fs::remove_file(&other)?;
        let pair = Pair::of(&container.shim)?;
        pair.signal(pair.shim, 9)?;
        until("a successor", by(20.0), || {
            Pair::of(&container.shim)
                .ok()
                .filter(|next| next.shim != pair.shim)
        })?;
        let (_, shown) = vigil(kit, &["show", &id])?;
        for words in [
            format!("reaper {other_version}, shim {other_version}"),
            "  upgrade\n".to_owned(),
            "  died: signal 9\n".to_owned(),
            "killed by signal 9".to_owned(),
        ] {
            ensure!(shown.contains(&words), "{words:?} is not in {shown}");
        }
        let (_, listed) = vigil(kit, &["ps"])?;
        ensure!(listed.contains("8, died: signal 9, "), "{listed}");
        over.store(true, Ordering::Relaxed);
        asking.join().unwrap()?;
        task.kill(&id, "", 9, false)?;
        ensure!(waiting.join().unwrap()?.exit_status == 137);
        let (bytes, _) = container.out()?.to_end(by(20.0))?;
        ensure!(counts(&bytes)? > 1000);
        Ok(())
    });
}

/// However a program fails, the one before serves again and the reason is told; none of it
/// counts among the deaths.
#[test]
fn a_program_that_does_not_do_is_refused() {
    trial(180, |kit| {
        let container = counting(kit)?;
        let (task, id) = (container.task().patient(30.0), &container.id);
        let own = fs::canonicalize(&kit.binary.path)?;
        for (name, script, reason) in [
            ("exits", "exit 3", "exit status 3"),
            ("crashes", "kill -SEGV $$", "killed by signal 11"),
            ("hangs", "exec sleep 1000", "did not serve in time"),
            (
                "garbage",
                "head -c 100000 /dev/urandom >&6; exec cat /dev/urandom >&3",
                "",
            ),
            (
                "says-why",
                "echo 'Eit is Sunday' >&6; exit 1",
                "it is Sunday",
            ),
            (
                "old-journal",
                "export VIGIL_PRETEND_JOURNAL=0; exec $SHIM \"$@\"",
                "journal of version 2",
            ),
            (
                "new-control",
                "export VIGIL_PRETEND_NEEDS=900; exec $SHIM \"$@\"",
                "900 is needed",
            ),
            (
                "no-control",
                "export VIGIL_PRETEND_CONTROL=0; exec $SHIM \"$@\"",
                "version not spoken by the reaper",
            ),
        ] {
            let told = upgrade(kit, &container, &scripted(kit, name, script)?)?;
            ensure!(told["outcome"] == "refused", "{name}: {told}");
            let why = told["reason"].as_str().unwrap_or_default();
            ensure!(why.contains(reason), "{name}: {why}");
            ensure!(
                task.state(id, "")?.status.value() == 2,
                "{name}: not RUNNING"
            );
            let pair = Pair::of(&container.shim)?;
            ensure!(
                fs::read_link(format!("/proc/{}/exe", pair.shim))? == own,
                "{name}"
            );
            more_output(&container)?;
        }
        // What no kernel would start, and the tool would not ask for, a reaper can be asked for.
        let not_run = program(kit, "not-run", "#!/bin/sh\n[ \"$1\" = -v ] || exit\n")?;
        let good = scripted(kit, "good", "exec $SHIM \"$@\"")?;
        for (text, reason) in [("", "ENOEXEC"), ("\u{7f}ELF\u{2}\u{1}\u{1}", "ENOEXEC")] {
            fs::write(&not_run, text)?;
            let refused = ask_directly(&container, &not_run)?;
            ensure!(refused.contains(reason), "{refused}");
        }
        let refused = ask_directly(&container, kit.scratch.dir())?;
        ensure!(refused.contains("EACCES"), "{refused}");
        for _ in 0..3 {
            let pair = Pair::of(&container.shim)?;
            pair.signal(pair.shim, 9)?;
            until("the shim to die", by(10.0), || {
                (!alive(pair.shim)).then_some(())
            })?;
            ensure!(task.state(id, "")?.status.value() == 2, "not RUNNING");
        }
        ensure!(upgrade(kit, &container, &good)?["outcome"] == "upgraded");
        task.kill(id, "", 9, false)?;
        let (bytes, _) = container.out()?.to_end(by(20.0))?;
        counts(&bytes)?;
        Ok(())
    });
}

/// The shim of the new program serves, the reaper does not come up in it: it does not understand
/// what it was left, dies or hangs. Nobody notices, and there are two afterwards.
#[test]
fn a_reaper_that_does_not_come_up_costs_nothing() {
    trial(180, |kit| {
        let own = fs::canonicalize(&kit.binary.path)?;
        let mut bytes = fs::read(&own)?;
        let said = b"VIGILES\n";
        let places: Vec<usize> = bytes
            .windows(said.len())
            .enumerate()
            .filter(|(_, w)| w == said)
            .map(|(at, _)| at)
            .collect();
        for at in &places {
            bytes[*at] = b'v';
        }
        ensure!(!places.is_empty(), "nowhere in the program");
        let deaf = kit.scratch.path("deaf");
        fs::write(&deaf, bytes)?;
        fs::set_permissions(&deaf, fs::Permissions::from_mode(0o755))?;
        let last = "for last; do :; done; [ \"$last\" = reap ] &&";
        let dies = scripted(
            kit,
            "dies",
            &format!("{last} kill -SEGV $$; exec $SHIM \"$@\""),
        )?;
        let hangs = scripted(
            kit,
            "hangs",
            &format!("{last} exec sleep 1000; exec $SHIM \"$@\""),
        )?;
        for (program, stays) in [(&deaf, true), (&dies, false), (&hangs, false)] {
            let container = counting(kit)?;
            let (task, id) = (container.task().patient(30.0), &container.id);
            let before = Pair::of(&container.shim)?;
            let waiting = {
                let (task, id) = (task.patient(90.0), id.clone());
                std::thread::spawn(move || task.wait(&id, ""))
            };
            let told = upgrade(kit, &container, program)?;
            ensure!(told["outcome"] == "upgraded", "{told}");
            let state = task.state(id, "").with_context(|| {
                let log = container.bundle.log_text();
                format!(
                    "{}: {:?}: {log}",
                    program.display(),
                    container.shim.processes()
                )
            })?;
            ensure!(state.status.value() == 2, "not RUNNING");
            more_output(&container)?;
            let pair = until("two", by(30.0), || {
                let pair = Pair::of(&container.shim).ok()?;
                (stays || pair.reaper != before.reaper).then_some(pair)
            })?;
            if stays {
                ensure!(pair.reaper == before.reaper, "{pair:?}");
                becomes(pair.reaper, &own)?;
                becomes(pair.shim, program)?;
            }
            // Either may die.
            pair.signal(pair.reaper, 9)?;
            ensure!(task.state(id, "")?.status.value() == 2, "not RUNNING");
            task.kill(id, "", 9, false)?;
            ensure!(waiting.join().unwrap()?.exit_status == 137);
            let (bytes, _) = container.out()?.to_end(by(20.0))?;
            counts(&bytes)?;
            task.delete(id, "")?;
            task.shutdown(id)?;
        }
        Ok(())
    });
}

/// The way back to a version whose program cannot become a reaper: its shim serves, and the reaper
/// stays what it is. It became nothing, and the shim was alone for good.
#[test]
fn the_reaper_stays_where_the_other_program_cannot_be_one() {
    trial(90, |kit| {
        let own = fs::canonicalize(&kit.binary.path)?;
        let script = "for last; do :; done; [ \"$last\" = reap ] && exit 1\n\
                      export VIGIL_PRETEND_CONTROL=4; exec $SHIM \"$@\"";
        let older = scripted(kit, "older", script)?;
        let container = counting(kit)?;
        let before = Pair::of(&container.shim)?;
        let told = upgrade(kit, &container, &older)?;
        ensure!(told["outcome"] == "upgraded", "{told}");
        let pair = Pair::of(&container.shim)?;
        ensure!(pair.shim != before.shim, "{pair:?}");
        pair.signal(pair.shim, 9)?;
        ensure!(container.task().state(&container.id, "")?.status.value() == 2);
        let pair = Pair::of(&container.shim)?;
        ensure!(pair.reaper == before.reaper, "{pair:?}, before {before:?}");
        becomes(pair.reaper, &own)?;
        more_output(&container)?;
        ended_whole(&container)
    });
}

/// The reaper is of the new program already when its shim crashes within the minute: both are what
/// they were before.
#[test]
fn what_crashes_within_a_minute_takes_the_reaper_back_with_it() {
    trial(90, |kit| {
        let own = fs::canonicalize(&kit.binary.path)?;
        let (other, _) = another(kit)?;
        let container = counting(kit)?;
        let told = upgrade(kit, &container, &other)?;
        ensure!(told["outcome"] == "upgraded", "{told}");
        let pair = Pair::of(&container.shim)?;
        becomes(pair.reaper, &other)?;
        pair.signal(pair.shim, 11)?;
        ensure!(container.task().state(&container.id, "")?.status.value() == 2);
        becomes(pair.reaper, &own)?;
        let pair = Pair::of(&container.shim)?;
        becomes(pair.shim, &own)?;
        more_output(&container)?;
        ended_whole(&container)
    });
}

/// As the tool does, without its looking first; the last line of the reaper's story.
fn ask_directly(container: &Container, program: &Path) -> Result<String> {
    let next = container.bundle.dir.join("next");
    symlink(program, &next)?;
    let pair = Pair::of(&container.shim)?;
    pair.signal(pair.reaper, 10)?;
    until("the outcome", by(20.0), || {
        fs::symlink_metadata(&next).is_err().then_some(())
    })?;
    let told = fs::read_to_string(container.bundle.dir.join("takeovers"))?;
    let mut lines = told.lines().rev().skip(1);
    Ok(lines.next().context("no story")?.to_owned())
}

/// A shim of an older version serves under a newer reaper, and gives way again.
#[test]
fn an_older_shim_serves_too() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sh("sleep 1000"))?;
        let script = "export VIGIL_PRETEND_CONTROL=1; exec $SHIM \"$@\"";
        let older = scripted(kit, "older", script)?;
        ensure!(upgrade(kit, &container, &older)?["outcome"] == "upgraded");
        ensure!(container.task().state(&container.id, "")?.status.value() == 2);
        let told = upgrade(kit, &container, &kit.binary.path)?;
        ensure!(told["outcome"] == "upgraded", "{told}");
        Ok(())
    });
}

#[test]
fn a_stuck_shim_is_replaced_by_another_program() {
    trial(60, |kit| {
        let (other, version) = another(kit)?;
        let container = counting(kit)?;
        let pair = Pair::of(&container.shim)?;
        pair.signal(pair.shim, 19)?;
        let told = upgrade(kit, &container, &other)?;
        ensure!(
            told["outcome"] == "upgraded" && told["to"] == version.as_str(),
            "{told}"
        );
        ensure!(!alive(pair.shim), "the stuck one is still there");
        ensure!(container.task().state(&container.id, "")?.status.value() == 2);
        more_output(&container)?;
        ended_whole(&container)
    });
}

/// A reaper takes no other program while a shim is taking over. Whoever asks then (as the
/// operator whose shim is stuck, and is being replaced anyway) is not sent away for it.
#[test]
fn an_upgrade_waits_for_who_takes_over() {
    trial(90, |kit| {
        let armed = Armed::of(kit)?;
        let (other, version) = another(kit)?;
        let container = counting(kit)?;
        let pair = Pair::of(&container.shim)?;
        armed.arm("S2a", "block")?;
        pair.signal(pair.shim, 9)?;
        let next = until("the next one to get stuck", by(20.0), || armed.who("S2a"))?;
        let stuck = Pair { shim: next, ..pair };
        let (kit, container, other) = (&*kit, &container, &other);
        let told = std::thread::scope(|scope| {
            let asking = scope.spawn(move || upgrade(kit, container, other));
            let early = until("an answer", sharp(1.0), || {
                asking.is_finished().then_some(())
            });
            stuck.signal(next, 9)?;
            let told = asking.join().unwrap()?;
            ensure!(early.is_err(), "it was sent away: {told}");
            Ok(told)
        })?;
        ensure!(
            told["outcome"] == "upgraded" && told["to"] == version.as_str(),
            "{told}"
        );
        more_output(container)
    });
}

/// One that cannot does not keep the others from it.
#[test]
fn all_but_one_of_ten_are_upgraded() {
    trial(180, |kit| {
        let script = "case $PWD in */c4) exit 3;; esac; exec $SHIM \"$@\"";
        let program = scripted(kit, "picky", script)?;
        let containers = (0..10).map(|_| kit.running(&Spec::sh("sleep 1000")));
        let containers = containers.collect::<Result<Vec<_>>>()?;
        let binary = program.to_string_lossy();
        let (code, out) = vigil(kit, &["upgrade", "--all", "--binary", &binary])?;
        ensure!(code == 3, "{code}: {out}");
        ensure!(out.matches("  upgraded  ").count() == 9, "{out}");
        let line = out
            .lines()
            .find(|line| line.contains("refused"))
            .context(out.clone())?;
        ensure!(
            line.contains(" c4 ") && line.contains("exit status 3"),
            "{out}"
        );
        for container in &containers {
            ensure!(container.task().state(&container.id, "")?.status.value() == 2);
            let (_, shown) = vigil(kit, &["show", &container.id])?;
            let refused = shown.contains("upgrade refused: exit status 3");
            ensure!(refused == (container.id == "c4"), "{shown}");
        }
        Ok(())
    });
}

/// What a shim says when it panics reaches whoever looks, and its container runs on.
#[test]
fn a_panic_leaves_a_note() {
    trial(60, |kit| {
        let armed = Armed::of(kit)?;
        armed.arm("S8", "panic")?;
        let container = kit.running(&Spec::sh("sleep 1000"))?;
        ensure!(armed.reached("S8"), "is this a release build?");
        let (_, shown) = vigil(kit, &["show", &container.id])?;
        for words in [
            "  died: signal 6\n",
            ": killed by signal 6\n",
            "said        panicked at ",
            "a test wants it so, at S8",
            ": created, 1 events\n",
        ] {
            ensure!(shown.contains(words), "{words:?} is not in {shown}");
        }
        let panic = container.bundle.dir.join("panic");
        ensure!(!panic.exists(), "its last words were left there");
        let (_, told) = vigil(kit, &["history"])?;
        let hint = format!(
            "{}/{} left a note of a crash",
            kit.scratch.mark(),
            container.id
        );
        ensure!(told.contains(&hint), "{told}");
        Ok(())
    });
}

/// Both die: then `delete` writes the note.
#[test]
fn the_last_of_all_crashes_is_noted_by_delete() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sh("sleep 1000"))?;
        container.shim.kill_all()?;
        container.shim.delete()?.ok()?;
        let notes = fs::read_to_string("/run/vigil/crashes")?;
        let note = notes.lines().find(|line| line.contains(kit.scratch.mark()));
        let note: Value = serde_json::from_str(note.context("no note")?)?;
        ensure!(
            note["how"]
                .as_str()
                .is_some_and(|how| how.contains("the reaper")),
            "{note}"
        );
        Ok(())
    });
}

/// What the tests above go by: the tool is built, and beside the shim.
#[test]
fn the_tool_is_there() {
    let tool = shim().unwrap().path.with_file_name("vigil");
    assert!(tool.is_file(), "{}: cargo build -p vigil", tool.display());
}
