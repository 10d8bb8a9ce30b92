//! Taking a terminal's master from runc. Done after runc has exited, by which
//! time it has called and sent it: until then the listener, which is with the
//! reaper too, is all that keeps the master alive; then it is the connection,
//! which the reaper accepts for that reason, until the master itself is with it.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use vigil_host::stdio::SlotKind;
use vigil_sys::{fd, listen, scm, tty};

use super::Error;
use super::keeper::{Keeper, SlotId, Slots};
use super::ready::{self, SharedFd, Watched};

/// runc sends the terminal's name along; its longest.
const NAME_MAX: usize = 4096;

/// Who called on the listener: accepted by the keeper, who holds the connection
/// from then on; by ourselves where it does not.
pub(super) async fn caller<K: Keeper>(
    listener: &SharedFd,
    slot: SlotId,
    slots: &Slots<K>,
    wait: Duration,
) -> Result<(SharedFd, Option<SlotId>), Error> {
    let listener = ready::watch_shared(listener, Interest::READABLE).map_err(failed("watch"))?;
    let called = async {
        loop {
            let mut ready = listener.readable().await?;
            if let Some((kept, fd)) = slots.accept(slot, SlotKind::ConsoleCaller).await {
                return Ok((fd, Some(kept)));
            }
            match listen::accept(listener.as_fd()) {
                Ok(Some(fd)) => return Ok((ready::shared(fd), None)),
                Ok(None) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    };
    in_time(called, wait).await
}

/// The master, non-blocking, from the caller; what was sent stays there to be
/// read again.
pub(super) async fn master(caller: &SharedFd, wait: Duration) -> Result<OwnedFd, Error> {
    let caller = ready::watch_shared(caller, Interest::READABLE).map_err(failed("watch"))?;
    let received = async {
        loop {
            let mut ready = caller.readable().await?;
            match take(&caller) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                answer => return answer,
            }
        }
    };
    let master = in_time(received, wait).await?;
    // What is no terminal has no size.
    tty::size(&master).map_err(|e| failed("use")(e.into()))?;
    fd::set_nonblocking(&master, true).map_err(|e| failed("use")(e.into()))?;
    Ok(master)
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>, wait: Duration) -> Result<T, Error> {
    match tokio::time::timeout(wait, step).await {
        Ok(done) => done.map_err(failed("receive")),
        Err(_) => Err(Error::NoConsole {
            after_ms: wait.as_millis(),
        }),
    }
}

fn failed(op: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Console { op, source }
}

fn take(caller: &Watched) -> io::Result<OwnedFd> {
    let mut name = [0; NAME_MAX];
    let mut fds = Vec::new();
    scm::recv_copy(caller.as_fd(), &mut name, &mut fds)?;
    // More than one is not what runc does; the first is the console.
    fds.into_iter()
        .next()
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
