//! Work in a process of its own: it goes on when whoever waits for its outcome is killed.
//! containerd kills a `delete` after 5 s; half a removal would be left to nobody then.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use vigil_sys::fork::{self, Fork};
use vigil_sys::{fd, pidfd, process};

/// containerd kills us after 5 s. The work has a shorter deadline of its own, and is late only if
/// something holds it up that no deadline helps against.
const ANSWER: Duration = Duration::from_millis(4500);

/// Whoever waits for the outcome, as the work sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asker(Option<u32>);

impl Asker {
    /// Whether nobody waits any more.
    pub fn is_gone(self) -> bool {
        self.0.is_some_and(|pid| process::parent_pid() != pid)
    }
}

/// What became of the work.
#[derive(Debug)]
pub enum Outcome {
    /// It is over.
    Over(Result<()>),
    /// Its process was killed.
    Killed(i32),
    /// It is not over in time, and goes on.
    Late(u32),
}

/// What the work says, kept in memory: a pipe would fail when its reader is killed, and our own
/// streams would hold up whoever reads them to their end.
struct Said {
    out: File,
    err: File,
    why: File,
}

impl Said {
    fn new() -> vigil_sys::Result<Self> {
        Ok(Self {
            out: fd::memfd(c"stdout")?.into(),
            err: fd::memfd(c"stderr")?.into(),
            why: fd::memfd(c"failure")?.into(),
        })
    }
}

/// Does `work` in a process of its own session that has none of our streams, and waits for it:
/// what it printed is printed, what it failed with is returned. Where no process can be made it
/// is done here.
pub fn run(mut work: impl FnMut(Asker) -> Result<()>) -> Outcome {
    let until = Instant::now() + ANSWER;
    let parent = process::pid();
    let Ok(mut said) = Said::new() else {
        return Outcome::Over(work(Asker(None)));
    };
    match fork::fork() {
        Ok(Fork::Child) => {
            let code = match begin(&said) {
                Ok(()) => end(&mut said.why, work(Asker(Some(parent)))),
                Err(error) => end(&mut said.why, Err(error)),
            };
            process::exit_now(code)
        }
        Ok(Fork::Parent { child }) => follow(child, said, until)
            .unwrap_or_else(|error| Outcome::Over(Err(error.context("delete's own process")))),
        Err(_) => Outcome::Over(work(Asker(None))),
    }
}

/// The first steps of the process.
fn begin(said: &Said) -> Result<()> {
    process::new_session().context("no session of its own")?;
    fork::stdio(&said.out, &said.err).context("cannot let go of the streams")?;
    fork::close_inherited().context("cannot close what was inherited")
}

/// Its exit code; a failure goes to the one who waits.
fn end(why: &mut File, done: Result<()>) -> i32 {
    match done {
        Ok(()) => 0,
        Err(error) => {
            let _ = write!(why, "{}", vigil_supervise::chain(error.as_ref()));
            1
        }
    }
}

/// Waits for it, and says what it said.
fn follow(child: u32, said: Said, until: Instant) -> Result<Outcome> {
    let process = pidfd::open(child).context("cannot be waited for")?;
    let wait = until.saturating_duration_since(Instant::now());
    if !fd::wait_readable(&process, wait).context("cannot be waited for")? {
        return Ok(Outcome::Late(child));
    }
    let status = pidfd::wait(process.as_fd()).context("cannot be waited for")?;
    let [out, err, why] = [said.out, said.err, said.why].map(text);
    // Nobody may read it, and the answer counts more.
    let _ = std::io::stderr().write_all(&err?);
    let raw = status.unwrap_or(0);
    if raw & 0x7f != 0 {
        return Ok(Outcome::Killed(raw & 0x7f));
    }
    if raw != 0 {
        let why = why?;
        let why = String::from_utf8_lossy(&why);
        return Ok(Outcome::Over(Err(match why.as_ref() {
            "" => anyhow!("its process failed and does not say why"),
            why => anyhow!("{why}"),
        })));
    }
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(&out?).and_then(|()| stdout.flush());
    if let Err(error) = written {
        bail!("cannot write the answer to stdout: {error}");
    }
    Ok(Outcome::Over(Ok(())))
}

fn text(mut file: File) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut text))
        .context("what it said cannot be read")?;
    Ok(text)
}
