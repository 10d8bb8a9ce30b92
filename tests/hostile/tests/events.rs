//! containerd's event socket goes away, comes back, or never answers. Events wait, in
//! order and with their own times; nobody else waits for them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use vigil_hostile::{Pair, exit_in_time, private_kib, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::events::{Event, EventSink, Fact};
use vigil_lab::kit::{Container, exec_spec};
use vigil_lab::{GENEROUS, Spec, by};

fn stories(sink: &EventSink) -> Vec<String> {
    sink.story()
}

fn nanos(event: &Event) -> i128 {
    event.timestamp.as_ref().map_or(0, |t| {
        i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos)
    })
}

#[test]
fn a_containerd_that_comes_back_hears_everything_in_order() {
    trial(60, |kit| {
        let address = kit.sink.address().to_owned();
        let container = kit.created(&Spec::sh("exit 7"))?;
        kit.sink.expect("create", by(5.0))?;
        kit.sink.refuse();
        container.start()?;
        ensure!(exit_in_time(&container, 5.0)? == 7);
        let exited = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        ensure!(container.task().delete(&container.id, "")?.exit_status == 7);
        // Long enough for attempts to fail, and for a wrong time to show.
        std::thread::sleep(Duration::from_millis(1200));
        let back = EventSink::listen(&address)?;
        let last = back.expect("delete", by(10.0))?;
        let mut heard = stories(&back);
        // Its acknowledgement may have been cut off: then it comes once more, and first.
        if heard.first().is_some_and(|first| first == "create") {
            heard.remove(0);
        }
        ensure!(heard == ["start", "exit", "delete"], "{heard:?}");
        let times: Vec<i128> = back.all().iter().map(nanos).collect();
        ensure!(times.is_sorted(), "{times:?}");
        let late = nanos(&last) - i128::try_from(exited.as_nanos())?;
        ensure!(
            late < 700_000_000,
            "the last event bears a time {late} ns after the exit"
        );
        let exit = back.expect("exit", by(1.0))?;
        let Fact::Exit(exit) = exit.fact else {
            unreachable!()
        };
        ensure!(
            exit.exit_status == 7 && exit.pid == container.pid,
            "{exit:?}"
        );
        let at =
            i128::from(exit.exited_at.seconds) * 1_000_000_000 + i128::from(exit.exited_at.nanos);
        ensure!(
            at <= i128::try_from(exited.as_nanos())?,
            "exited in the future"
        );
        Ok(())
    });
}

#[test]
fn hang_ups_in_between_lose_nothing_and_keep_the_order() {
    trial(60, |kit| {
        let container = kit.running(&Spec::args(&["sleep", "1000"]))?;
        let mut expected = vec!["create".to_owned(), "start".to_owned()];
        for round in 0..10 {
            kit.sink.hang_up();
            let exec = format!("e{round}");
            let task = container.task();
            task.exec(&containerd_shim_protos::api::ExecProcessRequest {
                id: container.id.clone(),
                exec_id: exec.clone(),
                spec: Some(exec_spec(&Spec::args(&["true"]))).into(),
                ..Default::default()
            })?;
            task.start(&container.id, &exec)?;
            task.wait(&container.id, &exec)?;
            task.delete(&container.id, &exec)?;
            for topic in ["exec-added", "exec-started", "exit"] {
                expected.push(format!("{topic} {exec}"));
            }
        }
        kit.sink.expect("exit e9", by(10.0))?;
        let mut heard = stories(&kit.sink);
        // One whose acknowledgement was cut off may come again, at once and the same.
        heard.dedup();
        ensure!(heard == expected, "{heard:?}");
        Ok(())
    });
}

/// A sink that takes connections and bytes and never says a word.
struct Mute {
    path: PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mute {
    fn listen(path: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&path)?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            // What comes is neither read nor answered; the socket's buffer takes it.
            while let Ok((stream, _)) = listener.accept() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                held.push(stream);
            }
        });
        Ok(Self {
            path,
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.path);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A whole life with many questions in it; no answer may take long.
fn brisk(container: &Container) -> Result<()> {
    let (task, id) = (
        container.task().patient(GENEROUS.as_secs_f64()),
        &container.id,
    );
    let bounded = |what: &str, call: &dyn Fn() -> Result<()>| -> Result<()> {
        let began = Instant::now();
        call().with_context(|| what.to_owned())?;
        let took = began.elapsed();
        ensure!(took < GENEROUS, "{what} took {took:?}");
        Ok(())
    };
    bounded("Create", &|| {
        Ok(task.create(&container.bundle.create_request()).map(drop)?)
    })?;
    bounded("Start", &|| Ok(task.start(id, "").map(drop)?))?;
    for _ in 0..20 {
        bounded("State", &|| Ok(task.state(id, "").map(drop)?))?;
        bounded("Pids", &|| Ok(task.pids(id).map(drop)?))?;
        bounded("Stats", &|| Ok(task.stats(id).map(drop)?))?;
        bounded("Connect", &|| Ok(task.connect_task(id).map(drop)?))?;
    }
    bounded("Pause", &|| Ok(task.pause(id)?))?;
    bounded("Resume", &|| Ok(task.resume(id)?))?;
    bounded("Kill", &|| Ok(task.kill(id, "", 9, false)?))?;
    bounded("Wait", &|| Ok(task.wait(id, "").map(drop)?))?;
    bounded("Delete", &|| Ok(task.delete(id, "").map(drop)?))?;
    // The flush has its second; then it is given up.
    bounded("Shutdown", &|| Ok(task.shutdown(id)?))?;
    Ok(())
}

#[test]
fn a_sink_that_never_answers_delays_nobody() {
    trial(60, |kit| {
        let path = kit.scratch.path("mute.sock");
        let sink = Mute::listen(path.clone())?;
        kit.caller.ttrpc.clone_from(&path);
        let container = kit.prepared(&Spec::args(&["sleep", "1000"]), Stdio::Output)?;
        let pair = Pair::of(&container.shim)?;
        brisk(&container)?;
        pair.gone(3.0)?;
        drop(sink);
        let deleted = container.shim.delete()?.ok()?;
        ensure!(
            deleted.exit_status == 137,
            "delete says {}",
            deleted.exit_status
        );
        Ok(())
    });
}

#[test]
fn no_sink_at_all_delays_nobody() {
    trial(60, |kit| {
        kit.caller.ttrpc = kit.scratch.path("no-such.sock");
        let container = kit.prepared(&Spec::args(&["sleep", "1000"]), Stdio::Output)?;
        brisk(&container)?;
        // Nor does an address that is none.
        kit.caller.ttrpc = "".into();
        let container = kit.prepared(&Spec::args(&["sleep", "1000"]), Stdio::Output)?;
        brisk(&container)
    });
}

#[test]
fn a_thousand_events_wait_in_little_memory() {
    trial(120, |kit| {
        let address = kit.sink.address().to_owned();
        let container = kit.running(&Spec::args(&["sleep", "1000"]))?;
        let pair = Pair::of(&container.shim)?;
        kit.sink.expect("start", by(5.0))?;
        kit.sink.refuse();
        let before = private_kib(pair.shim)?;
        let task = container.task();
        // Added and deleted, never started: one event each, and no runc.
        for round in 0..3000 {
            let exec = format!("e{round}");
            task.exec(&containerd_shim_protos::api::ExecProcessRequest {
                id: container.id.clone(),
                exec_id: exec.clone(),
                spec: Some(exec_spec(&Spec::args(&["true"]))).into(),
                ..Default::default()
            })?;
            task.delete(&container.id, &exec)?;
        }
        let began = Instant::now();
        task.state(&container.id, "")?;
        ensure!(
            began.elapsed() < GENEROUS,
            "State took {:?}",
            began.elapsed()
        );
        task.kill(&container.id, "", 9, false)?;
        ensure!(exit_in_time(&container, 5.0)? == 137);
        let kib = private_kib(pair.shim)?;
        ensure!(kib < before + 4096, "the shim held {before} KiB, now {kib}");
        // Exec events may be dropped with a count; init's exit never.
        let back = EventSink::listen(&address)?;
        back.expect("exit", by(20.0))?;
        let added = stories(&back)
            .iter()
            .filter(|s| s.starts_with("exec-added"))
            .count();
        println!("{added} of 3000 exec events were kept; {before} KiB, then {kib}");
        Ok(())
    });
}
