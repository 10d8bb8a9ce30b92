//! The socket runc sends a terminal's master through. A private directory
//! holds it and goes with it, whatever happened in between; the name must fit
//! into a socket address, which a long `$XDG_RUNTIME_DIR` would not leave room
//! for.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// `sun_path` without its terminating nul.
const ADDRESS_MAX: usize = 107;
const ATTEMPTS: u32 = 16;

/// The private directory of a console socket. Dropping it removes it.
#[derive(Debug)]
pub struct ConsolePath {
    dir: PathBuf,
    socket: PathBuf,
}

impl ConsolePath {
    /// For `--console-socket`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Takes over what an earlier shim made, by the address its listener
    /// still has. `None` if that is not one of ours.
    pub fn of(listener: &UnixListener) -> Option<ConsolePath> {
        let address = listener.local_addr().ok()?;
        let socket = address.as_pathname()?;
        let dir = socket.parent()?;
        let ours =
            socket.file_name()? == "pty.sock" && dir.file_name()?.to_str()?.starts_with("pty");
        ours.then(|| ConsolePath {
            dir: dir.to_owned(),
            socket: socket.to_owned(),
        })
    }
}

impl Drop for ConsolePath {
    fn drop(&mut self) {
        for gone in [
            std::fs::remove_file(&self.socket),
            std::fs::remove_dir(&self.dir),
        ] {
            if let Err(e) = gone
                && e.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!(
                    "cannot remove console socket {}: {e}",
                    self.socket.display()
                );
            }
        }
    }
}

/// A listener, non-blocking, in a new directory of mode 0700 below
/// `$XDG_RUNTIME_DIR` or `/tmp`.
pub(super) fn listen() -> Result<(OwnedFd, ConsolePath)> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    listen_below(runtime.as_deref().filter(|dir| dir.is_absolute()))
}

fn listen_below(runtime: Option<&Path>) -> Result<(OwnedFd, ConsolePath)> {
    let path = runtime
        .map(make_dir)
        .filter(Result::is_ok)
        .unwrap_or_else(|| make_dir(Path::new("/tmp")))?;
    let failed = |source| Error::File {
        op: "listen on",
        path: path.socket.clone(),
        source,
    };
    let listener = UnixListener::bind(&path.socket).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((listener.into(), path))
}

fn make_dir(below: &Path) -> Result<ConsolePath> {
    let mut attempt = 0;
    loop {
        let number = RandomState::new().build_hasher().finish();
        let dir = below.join(format!("pty{number:016x}"));
        let socket = dir.join("pty.sock");
        if socket.as_os_str().len() > ADDRESS_MAX {
            let source = std::io::ErrorKind::InvalidFilename.into();
            return Err(Error::File {
                op: "listen on",
                path: socket,
                source,
            });
        }
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(ConsolePath { dir, socket }),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => {
                attempt += 1;
            }
            Err(source) => {
                return Err(Error::File {
                    op: "create",
                    path: dir,
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn private_reachable_and_gone_with_its_path() {
        let base = tempfile::tempdir().unwrap();
        let (listener, path) = listen_below(Some(base.path())).unwrap();
        let dir = path.socket().parent().unwrap().to_owned();
        assert!(dir.starts_with(base.path()));
        assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        UnixStream::connect(path.socket()).unwrap();
        let again = ConsolePath::of(&listener.into()).unwrap();
        assert_eq!(again.socket(), path.socket());
        drop(path);
        assert!(!dir.exists());
        drop(again);
    }

    #[test]
    fn a_directory_that_will_not_do_is_replaced_by_tmp() {
        let base = tempfile::tempdir().unwrap();
        let long = base.path().join("x".repeat(100));
        std::fs::create_dir(&long).unwrap();
        for unfit in [long.as_path(), &base.path().join("missing")] {
            let (_listener, path) = listen_below(Some(unfit)).unwrap();
            assert!(path.socket().starts_with("/tmp"));
        }
        assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
    }
}
