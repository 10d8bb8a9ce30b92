//! F05: containerd is away, or deaf, when the container ends. Afterwards it knows the
//! true status, has the whole output, and can remove the task.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Stdio as Pipe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::events::ForwardRequest;
use ttrpc::proto::{Request, Response, Status};
use vigil_lab::bundle::Stdio;
use vigil_lab::process::{Process, signal_if};
use vigil_lab::wire::{Frame, RESPONSE};
use vigil_lab::{Kit, Place, Shim, Spec, by, until};

use crate::cases;
use crate::world::times;

cases! {
    Kit    All f05_sink_that_refuses "A sink that answers with an error four times, six times, in between: every event comes, in order";
    Daemon All f05_output_and_code_while_down "10 KB and an exit while containerd is down: output whole, code right, removable";
    Daemon All f05_down_for_long "The same, and containerd comes back after half a minute";
    Daemon All f05_killed_after_the_exit "containerd is killed after the exit and before the removal: STOPPED then, removable";
    Daemon All f05_restart_between_kill_and_wait "containerd is restarted between a kill and the exit: the exit is known";
    Daemon All f05_stopped_containerd "containerd is SIGSTOPped over start, execs and exit: SIGCONT, and every event comes, in order";
}

/// A sink that answers the given Forwards, by number, with Unavailable, and remembers what
/// the others brought, raw.
struct Moody {
    path: PathBuf,
    taken: Arc<Mutex<Vec<Vec<u8>>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Moody {
    fn listen(path: PathBuf, refused: &'static [usize]) -> Result<Self> {
        let listener = UnixListener::bind(&path)?;
        let taken = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&taken), Arc::clone(&over));
        let count = Arc::new(AtomicUsize::new(0));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (shared, count) = (Arc::clone(&shared), Arc::clone(&count));
                std::thread::spawn(move || answer(stream, &shared, &count, refused));
            }
        });
        Ok(Self {
            path,
            taken,
            over,
            thread: Some(thread),
        })
    }

    /// Topics of what was taken, in the order of arrival.
    fn topics(&self) -> Vec<String> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = |bytes: &Vec<u8>| {
            let request = ForwardRequest::parse_from_bytes(bytes).ok()?;
            let topic = request.envelope.into_option()?.topic;
            Some(topic.trim_start_matches("/tasks/").to_owned())
        };
        taken.iter().filter_map(topic).collect()
    }
}

impl Drop for Moody {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // One connection more, so that it looks.
        let _ = UnixStream::connect(&self.path);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = fs::remove_file(&self.path);
    }
}

fn answer(
    mut stream: UnixStream,
    taken: &Mutex<Vec<Vec<u8>>>,
    count: &AtomicUsize,
    refused: &[usize],
) {
    while let Ok(Some(frame)) = Frame::read(&mut stream) {
        let mut response = Response::new();
        if refused.contains(&count.fetch_add(1, Ordering::Relaxed)) {
            let status = Status {
                code: ttrpc::Code::UNAVAILABLE.into(),
                message: "not now".into(),
                ..Default::default()
            };
            response.status = Some(status).into();
        } else if let Ok(request) = Request::parse_from_bytes(&frame.payload) {
            let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.push(request.payload);
        }
        let Ok(payload) = response.write_to_bytes() else {
            return;
        };
        let frame = Frame {
            kind: RESPONSE,
            payload,
            ..frame
        };
        if stream.write_all(&frame.encode()).is_err() {
            return;
        }
    }
}

fn f05_sink_that_refuses(kit: &Kit) -> Result<()> {
    // Four times the first, six times the third.
    let sink = Moody::listen(
        kit.scratch.path("moody.sock"),
        &[0, 1, 2, 3, 6, 7, 8, 9, 10, 11],
    )?;
    let mut caller = kit.caller.clone();
    caller.ttrpc.clone_from(&sink.path);
    let bundle = kit.bundle(&Spec::sh("exit 4"), Stdio::Empty)?;
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    shim.task.create(&bundle.create_request())?;
    shim.task.start(&bundle.id, "")?;
    let waited = shim.task.wait(&bundle.id, "")?;
    ensure!(waited.exit_status == 4, "{waited:?}");
    shim.task.delete(&bundle.id, "")?;
    let all = ["create", "start", "exit", "delete"];
    let come = until("all events", by(60.0), || {
        (sink.topics().len() >= all.len()).then_some(())
    });
    let topics = sink.topics();
    come.with_context(|| format!("{topics:?}"))?;
    ensure!(topics == all, "{topics:?}");
    Ok(())
}

/// Runs a container that waits for a file, prints 10 KB and ends with 4.
fn talker(place: &Place) -> Result<()> {
    let script =
        "while ! [ -e /tmp/go ]; do sleep 0.05; done; head -c 10240 /dev/zero | tr '\\0' x; exit 4";
    place.detached("c", &["sh", "-c", script])?;
    place.expect_status("c", "RUNNING")
}

fn go(init: i32) -> Result<()> {
    fs::write(format!("/proc/{init}/root/tmp/go"), "").context("making /tmp/go")
}

fn gone(init: i32) -> Result<()> {
    until("init to end", by(10.0), || {
        (!vigil_lab::process::alive(init)).then_some(())
    })
}

/// Attaches to what has ended: its output and its code.
fn heard(place: &Place) -> Result<()> {
    place.expect_status("c", "STOPPED")?;
    let ran = place.containerd.try_ctr(&["tasks", "attach", "c"])?;
    ensure!(
        ran.status.code() == Some(4) && ran.stdout.len() == 10240,
        "attach: {}, {} bytes; {}",
        ran.status,
        ran.stdout.len(),
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(())
}

/// Who attaches to a task that has ended removes it; the container is left.
fn forgotten(place: &Place) -> Result<()> {
    ensure!(
        place.containerd.task_status("c")?.is_none(),
        "attach did not remove it"
    );
    place.containerd.ctr(&["containers", "rm", "c"]).map(drop)
}

fn while_down(place: &mut Place, seconds: u64) -> Result<()> {
    talker(place)?;
    let init = place.pid("c")?;
    place.containerd.stop(9)?;
    go(init)?;
    gone(init)?;
    std::thread::sleep(Duration::from_secs(seconds));
    place.containerd.launch()?;
    heard(place)?;
    forgotten(place)
}

fn f05_output_and_code_while_down(place: &mut Place) -> Result<()> {
    while_down(place, 1)
}

fn f05_down_for_long(place: &mut Place) -> Result<()> {
    while_down(place, u64::try_from(times(25, 90))?)
}

fn f05_killed_after_the_exit(place: &mut Place) -> Result<()> {
    place.detached("c", &["sh", "-c", "exit 4"])?;
    place.expect_status("c", "STOPPED")?;
    place.containerd.stop(9)?;
    place.containerd.launch()?;
    place.expect_status("c", "STOPPED")?;
    let ran = place.containerd.try_ctr(&["tasks", "attach", "c"])?;
    ensure!(ran.status.code() == Some(4), "attach: {}", ran.status);
    forgotten(place)
}

fn f05_restart_between_kill_and_wait(place: &mut Place) -> Result<()> {
    let script = "trap 'sleep 1; exit 21' TERM; while :; do sleep 0.05; done";
    place.detached("c", &["sh", "-c", script])?;
    place.expect_status("c", "RUNNING")?;
    // Until its trap is set.
    std::thread::sleep(Duration::from_millis(300));
    place
        .containerd
        .ctr(&["tasks", "kill", "-s", "SIGTERM", "c"])?;
    place.containerd.stop(9)?;
    place.containerd.launch()?;
    place.expect_status("c", "STOPPED")?;
    let ran = place.containerd.try_ctr(&["tasks", "attach", "c"])?;
    ensure!(ran.status.code() == Some(21), "attach: {}", ran.status);
    forgotten(place)
}

/// `ctr events`, into a file.
struct Listener(Child, PathBuf);

impl Listener {
    fn start(place: &Place) -> Result<Self> {
        let path = place.containerd.scratch.path("events");
        let child = place
            .containerd
            .ctr_command(&["events"])
            .stdin(Pipe::null())
            .stdout(fs::File::create(&path)?)
            .stderr(Pipe::null())
            .spawn()?;
        Ok(Self(child, path))
    }

    /// Topics so far, without their `/tasks/`; one that came again with the same bytes and
    /// the same time is the one whose acknowledgement was cut off.
    fn topics(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.1).unwrap_or_default();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.dedup();
        lines
            .into_iter()
            .filter_map(|line| line.split_whitespace().find(|w| w.starts_with("/tasks/")))
            .map(|topic| topic.trim_start_matches("/tasks/").to_owned())
            .collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn f05_stopped_containerd(place: &mut Place) -> Result<()> {
    let listener = Listener::start(place)?;
    // Only what comes after it listens is heard.
    until("the listener to hear", by(10.0), || {
        place
            .containerd
            .ctr(&[
                "containers",
                "create",
                vigil_lab::containerd::IMAGE,
                "probe",
            ])
            .ok();
        let _ = place.containerd.ctr(&["containers", "rm", "probe"]);
        let heard = fs::read_to_string(&listener.1).unwrap_or_default();
        heard.contains("probe").then_some(())
    })?;
    talker(place)?;
    let init = place.pid("c")?;
    let config = place.containerd.scratch.path("config.toml");
    let line = format!("containerd -c {}", config.display());
    let daemon = Process::marked(place.containerd.namespace())
        .into_iter()
        .find(|p| p.cmdline.ends_with(&line))
        .context("no containerd")?;
    let signal = |number| signal_if(daemon.pid, number, |now| now.cmdline == daemon.cmdline);
    ensure!(signal(19), "no containerd to stop");
    let ended = go(init).and_then(|()| gone(init));
    std::thread::sleep(Duration::from_secs(8));
    signal(18);
    ended?;
    heard(place)?;
    forgotten(place)?;
    until("all events", by(15.0), || {
        listener
            .topics()
            .contains(&"delete".to_owned())
            .then_some(())
    })?;
    let topics = listener.topics();
    ensure!(
        topics == ["create", "start", "exit", "delete"],
        "{topics:?}"
    );
    Ok(())
}
