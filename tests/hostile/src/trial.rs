//! One test: a kit, a deadline, and nothing left at its end.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vigil_lab::kit::Container;
use vigil_lab::{CallError, FifoReader, Kit, ShimBinary, by, process};

/// The shim under test; a failure if there is none, since nothing would be tested.
pub fn shim() -> Result<ShimBinary> {
    let shim = ShimBinary::vigil();
    shim.context("no shim is built: cargo build -p containerd-shim-vigil-v2")
}

/// Runs `test` with a kit of its own for at most `seconds`, ends what it has started as
/// containerd would, and fails if anything is left.
pub fn trial(seconds: u64, test: impl FnOnce(&mut Kit) -> Result<()> + Send + 'static) {
    let outcome = shim().and_then(|shim| {
        let mut kit = Kit::new(&shim)?;
        let mark = kit.scratch.mark().to_owned();
        trial_under(seconds, &mark, move || {
            test(&mut kit)?;
            kit.finish().context("after it")
        })
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

/// Runs `test`, which takes at most `seconds` on a machine that is not busy, for thrice as
/// long; what bears `mark` is killed if it takes longer.
pub fn trial_under(
    seconds: u64,
    mark: &str,
    test: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let seconds = seconds * 3;
    let (sender, done) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(test());
    });
    let outcome = match done.recv_timeout(Duration::from_secs(seconds)) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Disconnected) => bail!("it panicked"),
        Err(RecvTimeoutError::Timeout) => {
            // Everything it waits for bears the mark; without it, it comes back.
            let _ = process::kill_marked(mark, by(5.0));
            let late = done.recv_timeout(Duration::from_secs(20));
            bail!("not done after {seconds} s; then: {late:?}");
        }
    };
    let _ = thread.join();
    outcome
}

/// Holds that a request was answered with `code` and words that contain each of `says`.
pub fn refused<T: std::fmt::Debug>(
    answer: Result<T, CallError>,
    code: i32,
    says: &[&str],
) -> Result<()> {
    match answer {
        Err(CallError::Status { code: got, message }) => {
            ensure!(got == code, "code {got}, not {code}: {message}");
            for part in says {
                ensure!(
                    message.contains(part),
                    "{part:?} is not named in: {message}"
                );
            }
            ensure!(message.len() < 4096, "{} bytes of message", message.len());
            Ok(())
        }
        other => bail!("answered {other:?} instead of code {code} naming {says:?}"),
    }
}

/// Exit status of init, which must come within `seconds`.
pub fn exit_in_time(container: &Container, seconds: f64) -> Result<u32> {
    let task = container.task().patient(seconds);
    Ok(task.wait(&container.id, "").context("Wait")?.exit_status)
}

/// Holds that the shim, after whatever it has refused, makes the container after all:
/// Create, Start, its exit with `status` and its words, Delete.
pub fn as_ever(kit: &Kit, container: &mut Container, status: u32, words: &str) -> Result<()> {
    // Two readers of one fifo would share its bytes.
    (container.stdout, container.stderr) = (None, None);
    let container = &*container;
    let stdout = Arc::new(FifoReader::open(container.bundle.stdio[1].as_ref())?);
    kit.keep(Arc::clone(&stdout))?;
    if !container.bundle.stdio[2].is_empty() {
        kit.keep(Arc::new(FifoReader::open(
            container.bundle.stdio[2].as_ref(),
        )?))?;
    }
    let (task, id) = (container.task(), &container.id);
    let made = task.create(&container.bundle.create_request());
    made.with_context(|| format!("Create, again; log: {}", container.bundle.log_text()))?;
    task.start(id, "").context("Start")?;
    let got = exit_in_time(container, 10.0)?;
    ensure!(got == status, "exit status {got}, not {status}");
    stdout.expect(words, by(5.0))?;
    let deleted = task.delete(id, "").context("Delete")?;
    ensure!(
        deleted.exit_status == status,
        "Delete says {}",
        deleted.exit_status
    );
    Ok(())
}
