//! The same through a real containerd, Debian's and a containerd 2, with `ctr` as the client.
//!
//! Fewer and broader than the direct suite: what is proven here is that containerd and
//! the shim understand each other, ends and restarts included.

use std::io::{Read, Write};
use std::process::Stdio as Pipe;
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use vigil_lab::suite::{Trial, shims};
use vigil_lab::{Place, ShimBinary, Version, by, until};

type Run = fn(&mut Place) -> Result<()>;

/// Name and function.
pub const TABLE: &[(&str, Run)] = &[
    ("run_rm_exit_status", run_rm_exit_status),
    ("run_detached_exec_kill_rm", run_detached_exec_kill_rm),
    ("terminal", terminal),
    ("events_in_order", events_in_order),
    (
        "restart_with_running_container",
        restart_with_running_container,
    ),
    (
        "exit_while_containerd_is_down",
        exit_while_containerd_is_down,
    ),
    ("killed_shim_leaves_nothing", killed_shim_leaves_nothing),
    ("pause_and_resume", pause_and_resume),
    ("metrics", metrics),
];

/// Every behaviour × (Go under both, ours under both).
#[must_use]
pub fn trials() -> Vec<Trial> {
    let there = shims();
    let has = |name: &str| there.iter().find(|s| s.name == name).cloned();
    let mut pairs: Vec<(String, Version, ShimBinary)> = Vec::new();
    for (whose, version, number, name) in [
        ("go", Version::Debian, "1", "go-1"),
        ("go", Version::V2, "2", "go-2"),
        ("vigil", Version::Debian, "1", "vigil"),
        ("vigil", Version::V2, "2", "vigil"),
    ] {
        if let (true, Some(shim)) = (version.installed(), has(name)) {
            pairs.push((format!("{whose}@{number}"), version, shim));
        }
    }
    let mut trials = Vec::new();
    for (pair, version, shim) in pairs {
        for &(name, run) in TABLE {
            let shim = shim.clone();
            let run = move || {
                let mut place = Place::start(version, &shim)?;
                let result = run(&mut place)
                    .and_then(|()| place.containerd.expect_clean().context("after it"));
                result.with_context(|| place.containerd.log_tail())
            };
            trials.push(Trial {
                shim: pair.clone(),
                name: name.to_owned(),
                alone: false,
                run: Box::new(run),
            });
        }
    }
    trials
}

fn run_rm_exit_status(place: &mut Place) -> Result<()> {
    for (script, status) in [("exit 7", 7), ("true", 0), ("kill -9 $$; exit 3", 3)] {
        let ran = place.run(&["--rm"], "c", &["sh", "-c", script])?;
        ensure!(
            ran.status.code() == Some(status),
            "{script}: {} {}",
            ran.status,
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    Ok(())
}

fn run_detached_exec_kill_rm(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    place.expect_status("c", "RUNNING")?;
    let exec = place.containerd.try_ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "e1",
        "c",
        "sh",
        "-c",
        "echo from exec; exit 4",
    ])?;
    ensure!(
        exec.status.code() == Some(4),
        "{}: {}",
        exec.status,
        String::from_utf8_lossy(&exec.stderr)
    );
    ensure!(
        String::from_utf8_lossy(&exec.stdout).contains("from exec"),
        "{exec:?}"
    );
    let missing =
        place
            .containerd
            .try_ctr(&["tasks", "exec", "--exec-id", "e2", "c", "/no/such/program"])?;
    ensure!(
        !missing.status.success()
            && String::from_utf8_lossy(&missing.stderr).contains("/no/such/program"),
        "{missing:?}"
    );
    let ps = place.containerd.ctr(&["tasks", "ps", "c"])?;
    ensure!(ps.lines().count() == 2, "{ps}");
    place.end("c")
}

/// Runs `ctr … -t` under script(1), answering `input` when `prompt` has appeared.
fn on_terminal(
    place: &Place,
    args: &[&str],
    prompt: &str,
    input: &str,
) -> Result<(Option<i32>, String)> {
    let command = place.containerd.ctr_command(args);
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push_str(" '");
        line.push_str(&arg.to_string_lossy());
        line.push('\'');
    }
    let mut script = std::process::Command::new("script");
    script
        .args(["-qefc", &line, "/dev/null"])
        .stdin(Pipe::piped())
        .stdout(Pipe::piped())
        .stderr(Pipe::null());
    let mut child = script.spawn().context("script(1)")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let (sender, pieces) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::new();
    let mut answered = false;
    let status = until("script to end", by(20.0), || {
        while let Ok(piece) = pieces.try_recv() {
            seen.extend(piece);
        }
        if !answered && String::from_utf8_lossy(&seen).contains(prompt) {
            answered = stdin.write_all(input.as_bytes()).is_ok();
        }
        child.try_wait().ok().flatten()
    });
    if status.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    while let Ok(piece) = pieces.recv_timeout(std::time::Duration::from_millis(200)) {
        seen.extend(piece);
    }
    let text = String::from_utf8_lossy(&seen).into_owned();
    Ok((status.with_context(|| text.clone())?.code(), text))
}

fn terminal(place: &mut Place) -> Result<()> {
    let script = "tty; echo ready; read word; echo \"<$word>\"; exit 5";
    let args = place.run_args(&["--rm", "-t"], "c", &["sh", "-c", script]);
    let (status, text) = on_terminal(place, &args, "ready", "hello\n")?;
    ensure!(
        text.contains("/dev/pts/") && text.contains("<hello>"),
        "{text:?}"
    );
    ensure!(status == Some(5), "{status:?}: {text:?}");
    Ok(())
}

fn events_in_order(place: &mut Place) -> Result<()> {
    let mut listener = place.containerd.ctr_command(&["events"]);
    let path = place.containerd.scratch.path("events");
    listener
        .stdout(std::fs::File::create(&path)?)
        .stderr(Pipe::null());
    let mut listener = listener.spawn()?;
    let text = || std::fs::read_to_string(&path).unwrap_or_default();
    // An event of our own making shows that the listener listens.
    let ready = until("ctr events to listen", by(10.0), || {
        let _ = place
            .containerd
            .ctr(&["namespaces", "label", place.containerd.namespace(), "x=y"]);
        text().contains("/namespaces/update").then_some(())
    });
    let ran = ready.and_then(|()| place.run(&["--rm"], "c", &["sh", "-c", "exit 7"]));
    let heard = until("the delete event", by(10.0), || {
        text().contains("/tasks/delete").then_some(())
    });
    let _ = listener.kill();
    let _ = listener.wait();
    ensure!(ran?.status.code() == Some(7));
    heard.with_context(text)?;
    let story: Vec<String> = text()
        .split_whitespace()
        .filter_map(|w| w.strip_prefix("/tasks/"))
        .map(str::to_owned)
        .collect();
    ensure!(story == ["create", "start", "exit", "delete"], "{story:?}");
    Ok(())
}

fn restart_with_running_container(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    place.detached("d", &["sleep", "1000"])?;
    let table = |place: &Place| -> Result<Vec<String>> {
        let mut lines: Vec<String> = place
            .containerd
            .ctr(&["tasks", "ls"])?
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        Ok(lines)
    };
    let before = table(place)?;
    for signal in [15, 9] {
        place.containerd.stop(signal)?;
        place.containerd.launch()?;
        let after = table(place)?;
        ensure!(after == before, "before {before:?}, after {after:?}");
    }
    place.end("c")?;
    place.end("d")
}

fn exit_while_containerd_is_down(place: &mut Place) -> Result<()> {
    let release = place.containerd.scratch.path("release");
    let mount = format!(
        "type=bind,src={},dst=/tmp,options=rbind:rw",
        place.containerd.scratch.dir().display()
    );
    // It ends when the file appears, so that it surely ends while nobody listens.
    let script = "while [ ! -e /tmp/release ]; do sleep 0.02; done; exit 9";
    place.containerd.ctr(&place.run_args(
        &["-d", "--mount", &mount],
        "c",
        &["sh", "-c", script],
    ))?;
    let pid = place.pid("c")?;
    place.containerd.stop(9)?;
    std::fs::write(&release, "")?;
    until("the container to end", by(5.0), || {
        (!vigil_lab::process::alive(pid)).then_some(())
    })?;
    place.containerd.launch()?;
    ensure!(
        place.containerd.task_status("c")?.as_deref() == Some("STOPPED"),
        "{}",
        place.containerd.ctr(&["tasks", "ls"])?
    );
    let removed = place.containerd.try_ctr(&["tasks", "rm", "c"])?;
    let words = String::from_utf8_lossy(&removed.stderr).into_owned();
    ensure!(words.contains("exit code 9"), "ctr tasks rm said {words:?}");
    place.containerd.ctr(&["containers", "rm", "c"]).map(drop)
}

fn killed_shim_leaves_nothing(place: &mut Place) -> Result<()> {
    place.detached("c", &["sh", "-c", "sleep 1000 & sleep 1000"])?;
    place.expect_status("c", "RUNNING")?;
    ensure!(place.kill_shims("c")? > 0, "no shim");
    until("the task to disappear", by(10.0), || {
        place
            .containerd
            .task_status("c")
            .ok()?
            .is_none()
            .then_some(())
    })?;
    place.containerd.ctr(&["containers", "rm", "c"])?;
    let socket = place.containerd.shim_socket("c");
    // 1.6 forgets the task while the shim's `delete` is still at work.
    let gone = until("the socket to be removed", by(5.0), || {
        (!socket.exists()).then_some(())
    });
    let _ = std::fs::remove_file(&socket);
    ensure!(gone.is_ok(), "{} is left", socket.display());
    Ok(())
}

fn pause_and_resume(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    place.containerd.ctr(&["tasks", "pause", "c"])?;
    place.expect_status("c", "PAUSED")?;
    place.containerd.ctr(&["tasks", "resume", "c"])?;
    place.expect_status("c", "RUNNING")?;
    place.end("c")
}

fn metrics(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    let table = place.containerd.ctr(&["tasks", "metrics", "c"])?;
    ensure!(
        table.contains("memory") && table.contains("pids"),
        "{table}"
    );
    place.end("c")
}
