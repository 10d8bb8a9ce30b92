//! containerd's place for events: takes all of them, says yes to each, remembers none.
//! One thread for all connections, or the memory of their threads would be counted as
//! the shims'.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result};
use protobuf::Message;
use ttrpc::proto::Response;
use vigil_lab::wire::{Frame, RESPONSE};
use vigil_sys::epoll::{Epoll, Interest};

const LISTENER: u64 = 0;

/// Listens on `path` until this process ends.
pub fn listen(path: &Path) -> Result<()> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
    std::thread::spawn(move || serve(&listener));
    Ok(())
}

fn serve(listener: &UnixListener) -> Option<()> {
    let epoll = Epoll::new().ok()?;
    epoll.add(listener.as_fd(), LISTENER, Interest::READ).ok()?;
    let mut connections: Vec<Option<UnixStream>> = Vec::new();
    loop {
        for ready in epoll.wait::<16>(None).ok()? {
            if ready.token == LISTENER {
                let (connection, _) = listener.accept().ok()?;
                connections.push(Some(connection));
                let token = connections.len() as u64;
                let connection = connections.last()?.as_ref()?;
                epoll.add(connection.as_fd(), token, Interest::READ).ok()?;
                continue;
            }
            let place = usize::try_from(ready.token - 1).ok()?;
            if let Some(connection) = connections[place].as_mut()
                && acknowledge(connection).is_none()
            {
                connections[place] = None;
            }
        }
    }
}

/// One event. A shim writes a frame at once, so reading it whole does not wait for long.
fn acknowledge(connection: &mut (impl Read + Write)) -> Option<()> {
    let frame = Frame::read(connection).ok()??;
    let answer = Frame {
        stream: frame.stream,
        kind: RESPONSE,
        payload: Response::new().write_to_bytes().ok()?,
    };
    connection.write_all(&answer.encode()).ok()
}
