//! Taking a terminal's master from runc. Done after runc has exited, by which
//! time it has called and sent it: until then the listener, which is with the
//! reaper too, is all that keeps the master alive.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use vigil_sys::{fd, scm, tty};

use super::Error;

/// runc sends the terminal's name along; its longest.
const NAME_MAX: usize = 4096;

/// The master, non-blocking, from whoever called on `listener`.
pub(super) async fn accept(listener: net::UnixListener, wait: Duration) -> Result<OwnedFd, Error> {
    let master = match tokio::time::timeout(wait, receive(listener)).await {
        Ok(master) => master.map_err(|source| Error::Console {
            op: "receive",
            source,
        })?,
        Err(_) => {
            return Err(Error::NoConsole {
                after_ms: wait.as_millis(),
            });
        }
    };
    let failed = |op| {
        move |e: vigil_sys::Errno| Error::Console {
            op,
            source: e.into(),
        }
    };
    // What is no terminal has no size.
    tty::size(&master).map_err(failed("use"))?;
    fd::set_nonblocking(&master, true).map_err(failed("use"))?;
    Ok(master)
}

async fn receive(listener: net::UnixListener) -> io::Result<OwnedFd> {
    let listener = UnixListener::from_std(listener)?;
    let (caller, _) = listener.accept().await?;
    loop {
        caller.readable().await?;
        match caller.try_io(Interest::READABLE, || take(&caller)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            answer => return answer,
        }
    }
}

fn take(caller: &UnixStream) -> io::Result<OwnedFd> {
    let mut name = [0; NAME_MAX];
    let mut fds = Vec::new();
    scm::recv(caller.as_fd(), &mut name, &mut fds)?;
    // More than one is not what runc does; the first is the console.
    fds.into_iter()
        .next()
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
