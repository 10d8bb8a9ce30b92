//! A pair whose shim is killed while numbers flow through it: the kill, and the count
//! that tells whether one of them is missing, doubled or torn.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::{Kit, Shim, Spec, by, until};

use crate::{FaultyRunc, Pair};

const KILL: i32 = 9;
/// Enough to keep a stream busy for seconds, and little enough to be kept.
const LINES_MAX: usize = 8_000_000;

/// Kills the shim; the pair with its successor.
pub fn succeeded(shim: &Shim, pair: &Pair) -> Result<Pair> {
    pair.signal(pair.shim, KILL)?;
    successor(shim, pair)
}

/// Waits until another shim serves; the pair with it.
pub fn successor(shim: &Shim, pair: &Pair) -> Result<Pair> {
    until("a successor", by(20.0), || {
        let next = Pair::of(shim).ok()?;
        (next.shim != pair.shim && next.reaper == pair.reaper).then_some(next)
    })
}

/// Whole lines (a terminal may end them with a carriage return too), each one more than
/// the one before, from 1; how many.
pub fn counts(bytes: &[u8]) -> Result<usize> {
    let text = String::from_utf8_lossy(bytes);
    let whole = text.rsplit_once('\n').context("no line")?.0;
    for (at, line) in whole.lines().enumerate() {
        let around = || whole.lines().skip(at.saturating_sub(2)).take(5);
        ensure!(
            line.trim_end_matches('\r').parse() == Ok(at + 1),
            "line {} of {} is not that number: {:?}",
            at + 1,
            whole.lines().count(),
            around().collect::<Vec<_>>()
        );
    }
    Ok(whole.lines().count())
}

/// Writes numbers, a line each, as fast as they are taken.
#[derive(Debug)]
pub struct Feeder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Feeder {
    /// Into this fifo, from 1 on; waits for its reader.
    #[must_use]
    pub fn into(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut fifo = fs::OpenOptions::new().write(true).open(path)?;
            let mut last = 0;
            while !told.load(Ordering::Relaxed) && last < LINES_MAX {
                let mut text = Vec::with_capacity(8000);
                for n in last + 1..=last + 1000 {
                    writeln!(text, "{n}")?;
                }
                fifo.write_all(&text)?;
                last += 1000;
            }
            Ok(last)
        });
        Self { stop, thread }
    }

    /// Closes the fifo; the last number.
    pub fn stop(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let last = self.thread.join();
        last.map_err(|_| anyhow::anyhow!("the feeder panicked"))?
    }
}

/// Some milliseconds that nobody can foresee.
pub fn a_while(most: u64) {
    let now = std::time::SystemTime::now();
    let nanos = now.duration_since(std::time::UNIX_EPOCH);
    let nanos = nanos.map_or(0, |d| u64::from(d.subsec_nanos()));
    std::thread::sleep(Duration::from_micros(nanos % (most * 1000)));
}

/// Crash points a test arms, for the shims of one kit.
#[derive(Debug)]
pub struct Armed(PathBuf);

impl Armed {
    /// For every shim that is started from now on.
    pub fn of(kit: &mut Kit) -> Result<Self> {
        let dir = kit.scratch.path("points");
        fs::create_dir(&dir)?;
        let value = dir.to_str().context("a path that is not UTF-8")?;
        kit.caller.env.push(("VIGIL_POINTS".into(), value.into()));
        Ok(Self(dir))
    }

    /// Who gets to that point next does this (see `vigil_sys::points`).
    pub fn arm(&self, code: &str, action: &str) -> Result<()> {
        let _ = fs::remove_file(self.0.join(code).with_extension("reached"));
        // Whole at once: who gets there must not find half of it.
        let side = self.0.join("side");
        fs::write(&side, action)?;
        Ok(fs::rename(side, self.0.join(code))?)
    }

    /// Whether all have got there that it was armed for.
    #[must_use]
    pub fn spent(&self, code: &str) -> bool {
        !self.0.join(code).exists()
    }

    /// Whether somebody got there and knows what to do: it has written its pid.
    #[must_use]
    pub fn reached(&self, code: &str) -> bool {
        self.who(code).is_some()
    }

    /// Who got there.
    #[must_use]
    pub fn who(&self, code: &str) -> Option<i32> {
        let said = fs::read_to_string(self.0.join(code).with_extension("reached"));
        said.ok()?.parse().ok()
    }
}

/// A `binary://` logger of this shell script, which finds the outputs in 3 and 4; its
/// directory is `$2`, and it has said that it is ready.
pub fn logger(kit: &Kit, script: &str) -> Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let path = kit.scratch.path("logger");
    fs::write(
        &path,
        format!("#!/bin/sh\nPATH=/bin:/usr/bin\ncd $2\nexec 5>&-\n{script}\n"),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let dir = kit.scratch.dir().display();
    Ok(format!("binary://{}?dir={dir}", path.display()))
}

/// A started container whose outputs go where `uri` says, and its pair.
pub fn running_into(kit: &Kit, spec: &Spec, uri: &str) -> Result<(Container, Pair)> {
    let container = kit.prepared(spec, Stdio::Empty)?;
    let mut request = container.bundle.create_request();
    uri.clone_into(&mut request.stdout);
    uri.clone_into(&mut request.stderr);
    container.task().create(&request)?;
    container.start()?;
    let pair = Pair::of(&container.shim)?;
    Ok((container, pair))
}

/// A life in which the runtime stands still at `verb` until `strike` has hit the pair: what
/// was under way is finished as if nothing had been.
pub fn finished_though(
    kit: &Kit,
    verb: &str,
    strike: impl FnOnce(&Pair) -> Result<()> + Send + 'static,
) -> Result<()> {
    let go = kit.scratch.path("go");
    let runc = FaultyRunc::new(kit.scratch.dir(), verb, "waits-then-done")?;
    let container = kit.prepared(
        &Spec::sh("trap 'exit 3' TERM; while :; do sleep 0.05; done"),
        Stdio::Output,
    )?;
    let mut request = container.bundle.create_request();
    request.options = Some(runc.options()).into();
    let pair = Pair::of(&container.shim)?;
    let task = container.task().patient(30.0);
    let id = container.id.clone();
    // Whatever comes at `verb` meets the death there.
    let killer = {
        let went = runc.path().with_extension("waits");
        std::thread::spawn(move || -> Result<()> {
            until("runc to wait", by(20.0), || went.exists().then_some(()))?;
            strike(&pair)?;
            Ok(fs::write(&go, "")?)
        })
    };
    let log = || container.bundle.log_text();
    let made = task.create(&request);
    let made = made.with_context(|| format!("create; {}", log()))?;
    let started = task.start(&id, "");
    let started = started.with_context(|| format!("start; {}", log()))?;
    ensure!(made.pid == started);
    let exec = kit.exec(&container, "x", &Spec::sh("exit 4"))?;
    task.start(&id, "x")
        .with_context(|| format!("exec; {}", log()))?;
    ensure!(task.wait(&id, "x")?.exit_status == 4, "exec");
    drop(exec);
    task.delete(&id, "x")?;
    std::thread::sleep(Duration::from_millis(200));
    task.kill(&id, "", 15, false)?;
    ensure!(task.wait(&id, "")?.exit_status == 3, "init");
    let deleted = task.delete(&id, "");
    let deleted = deleted.with_context(|| format!("delete; {}", log()))?;
    ensure!(
        deleted.exit_status == 3 && deleted.pid == started,
        "{deleted:?}"
    );
    killer.join().map_err(|_| anyhow::anyhow!("it panicked"))?
}
