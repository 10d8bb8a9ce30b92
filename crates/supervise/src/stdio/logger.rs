//! A running `binary://` logger: waiting until it is ready, noticing that it
//! died, ending it. The container writes straight into its pipes, so a dead
//! logger would block the container once they are full; then they are emptied
//! into nothing, and counted.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::Instant;
use vigil_sys::{fd, pidfd};

use super::Error;
use super::copy::{Attempt, Mover, Sink};
use super::keeper::{Keeper, SlotId, Slots};
use super::output::{Life, Patience, Stage, reached};
use super::ready::{First, SharedFd, Watched, first, watch_shared};

/// Longest wait for its ready byte; the Go shim waits for ever.
const READY_WAIT: Duration = Duration::from_secs(30);
/// From SIGTERM to SIGKILL, containerd's figure.
const TERM_WAIT: Duration = Duration::from_secs(12);
const KILL_WAIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// Waits for the ready byte, or for an end of file, which only `binary-v2`
/// holds against it.
pub(super) async fn ready(heard: &SharedFd, must_say: bool, program: &Path) -> Result<(), Error> {
    let failed = |source| Error::Watch {
        what: "the logger's ready pipe",
        source,
    };
    let heard = watch_shared(heard, Interest::READABLE).map_err(failed)?;
    let byte = async {
        loop {
            let mut readable = heard.readable().await?;
            match (&**heard.get_ref()).read(&mut [0]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => readable.clear_ready(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                answer => return answer,
            }
        }
    };
    match tokio::time::timeout(READY_WAIT, byte).await {
        Ok(Ok(0)) if must_say => Err(Error::LoggerFailed {
            program: program.to_owned(),
        }),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(source)) => Err(failed(source)),
        Err(_) => Err(Error::LoggerNotReady {
            program: program.to_owned(),
            after_s: READY_WAIT.as_secs(),
        }),
    }
}

/// Ends it: on its own account within `own`, then by SIGTERM, then by SIGKILL.
pub(super) async fn end(logger: &Watched, own: Duration) {
    if died_within(logger, own).await {
        return;
    }
    // ESRCH: it has just died.
    let _ = pidfd::send_signal(logger, SIGTERM);
    if died_within(logger, TERM_WAIT).await {
        return;
    }
    log::warn!("logger does not end {TERM_WAIT:?} after SIGTERM: killed");
    let _ = pidfd::send_signal(logger, SIGKILL);
    if !died_within(logger, KILL_WAIT).await {
        log::warn!("logger does not die {KILL_WAIT:?} after SIGKILL; left to the reaper");
    }
}

async fn died_within(logger: &Watched, wait: Duration) -> bool {
    let died = tokio::time::timeout(wait, logger.readable()).await.is_ok();
    if died {
        // ECHILD: not our child but an earlier shim's; the reaper's affair.
        let _ = pidfd::wait(logger);
    }
    died
}

pub(super) struct Listening<K> {
    /// `None` if it is known to have died.
    pub(super) logger: Option<Arc<Watched>>,
    /// Reading ends of what the container writes, and their slots.
    pub(super) pipes: Vec<(SharedFd, SlotId)>,
    pub(super) slots: Arc<Slots<K>>,
    pub(super) life: watch::Receiver<Life>,
    pub(super) stage: watch::Sender<Stage>,
    pub(super) patience: Patience,
}

impl<K: Keeper> Listening<K> {
    /// Runs until the process is gone and the logger has read what it wrote.
    pub(super) async fn run(mut self) {
        let died = match &self.logger {
            Some(logger) => {
                let gone = reached(&mut self.life, Life::Gone);
                matches!(first(gone, logger.readable()).await, First::Other(_))
            }
            None => true,
        };
        if died {
            if let Some(logger) = &self.logger {
                let _ = pidfd::wait(&**logger);
            }
            log::warn!("logger died before its container: output is dropped from now on");
            self.drop_output().await;
        }
        reached(&mut self.life, Life::Gone).await;
        let enough = Instant::now() + self.patience.read;
        while *self.life.borrow() < Life::Closing && self.unread() && Instant::now() < enough {
            tokio::time::sleep(LOOK).await;
        }
        self.stage.send_replace(Stage::DONE);
        let slots: Vec<SlotId> = self.pipes.iter().map(|(_, slot)| *slot).collect();
        self.slots.ended(&slots).await;
    }

    fn unread(&self) -> bool {
        self.pipes
            .iter()
            .any(|(pipe, _)| fd::readable_bytes(pipe).unwrap_or(0) > 0)
    }

    /// Empties the pipes until nobody writes any more or the process is gone.
    async fn drop_output(&mut self) {
        let mut movers = Vec::new();
        for (pipe, _) in &self.pipes {
            // Nobody reads from this description any more but us.
            let copy = fd::set_nonblocking(pipe, true)
                .map_err(io::Error::from)
                .and_then(|()| watch_shared(pipe, Interest::READABLE));
            match copy {
                Ok(source) => movers.push(Mover::new(Arc::new(source), Sink::Nowhere)),
                Err(e) => log::warn!("output of a dead logger is not emptied: {e}"),
            }
        }
        let mut movers = movers.into_iter();
        let (one, other) = (movers.next(), movers.next());
        let mut life = self.life.clone();
        let dropped = async {
            let mut tasks = (Box::pin(empty(one)), Box::pin(empty(other)));
            match first(&mut tasks.0, &mut tasks.1).await {
                First::One(()) => tasks.1.await,
                First::Other(()) => tasks.0.await,
            }
        };
        first(reached(&mut life, Life::Gone), dropped).await;
    }
}

async fn empty(mover: Option<Mover>) {
    let Some(mut mover) = mover else { return };
    while !matches!(mover.step(true).await, Attempt::Ended | Attempt::Broken(_)) {}
    log::warn!("logger dead: {} bytes of output dropped", mover.dropped);
}
