//! Starts that nobody has called on yet. A pair's socket has a name outside its bundle, and that
//! name (a hash) says nothing of whose it is. If the pair dies before containerd has connected to
//! it, containerd removes the bundle and asks for no `delete`: the file would be left for ever.
//! So `start` notes whose socket it makes before it makes it. The note goes with the first
//! connection, since who has connected asks for `delete` when the pair dies, or with the socket.
//! One whose bundle is gone and whose socket nobody listens on is a leftover, and goes with what
//! it names.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vigil_sys::{fd, listen};

use crate::enact::{FORMAT, Tombstone};
use crate::{Error, Result};

/// Largest note read, bytes.
const LEN_MAX: u64 = 64 << 10;
/// Longest wait for who looks at the note of the same container, which takes microseconds.
const TURN: Duration = Duration::from_millis(200);
const TURN_LOOK: Duration = Duration::from_millis(1);
/// For seeing whether anybody listens.
const CONNECT: Duration = Duration::from_millis(100);
/// A torn note older than this is a dead writer's, who had made no socket yet.
const WRITING: Duration = Duration::from_mins(1);

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    format: u16,
    namespace: String,
    id: String,
    bundle: PathBuf,
    socket: PathBuf,
}

fn dir(run: &Path) -> PathBuf {
    run.join("starts")
}

fn path_of(run: &Path, namespace: &str, id: &str) -> PathBuf {
    dir(run).join(Tombstone::name_of(namespace, id))
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { op, path, source }
}

/// Whether this is what the name leads to still.
fn is_named(file: &File, path: &Path) -> bool {
    let own = file.metadata().map(|meta| (meta.dev(), meta.ino()));
    let now = fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()));
    matches!((own, now), (Ok(own), Ok(now)) if own == now)
}

/// Notes that this container's `start` is about to make that socket. Whoever is about to remove
/// what an earlier one left has done so by then. The note's own path.
pub fn note(
    run: &Path,
    (namespace, id): (&str, &str),
    bundle: &Path,
    socket: &Path,
) -> Result<PathBuf> {
    let path = path_of(run, namespace, id);
    fs::create_dir_all(dir(run)).map_err(failed("make", &dir(run)))?;
    let note = Note {
        format: FORMAT,
        namespace: namespace.to_owned(),
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        socket: socket.to_owned(),
    };
    let text = serde_json::to_vec(&note).map_err(|source| Error::Malformed {
        path: path.clone(),
        problem: source.to_string(),
    })?;
    let end = Instant::now() + TURN;
    loop {
        let mut open = OpenOptions::new();
        open.write(true).create(true).mode(0o600);
        let file = open.custom_flags(fd::NO_LINK_NO_WAIT).open(&path);
        let mut file = file.map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) if is_named(&file, &path) => {
                let written = file.set_len(0).and_then(|()| file.write_all(&text));
                return written.map_err(failed("write", &path)).map(|()| path);
            }
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                std::thread::sleep(TURN_LOOK);
            }
            Err(TryLockError::WouldBlock) => {
                let late = std::io::Error::from(ErrorKind::TimedOut);
                return Err(failed("lock", &path)(late));
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
    }
}

/// Somebody has called, or the socket is gone.
pub fn over(run: &Path, (namespace, id): (&str, &str)) {
    // What cannot be removed is found without its socket.
    let _ = fs::remove_file(path_of(run, namespace, id));
}

/// Sockets of pairs that died before anybody called, their bundles removed; with `remove` they
/// are gone then. Takes one look at a directory that is nearly always empty.
pub fn deserted(run: &Path, remove: bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir(run)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| of_the_dead(&entry.path(), remove))
        .collect()
}

/// The socket of one note, if it is left over.
fn of_the_dead(path: &Path, remove: bool) -> Option<PathBuf> {
    let mut open = OpenOptions::new();
    open.read(true).custom_flags(fd::NO_LINK_NO_WAIT);
    let file = open.open(path).ok()?;
    let meta = file.metadata().ok().filter(fs::Metadata::is_file)?;
    // Held until the socket is gone: the next `start` of the same container waits for it.
    file.try_lock().ok()?;
    if !is_named(&file, path) {
        return None;
    }
    let mut text = Vec::new();
    (&file).take(LEN_MAX).read_to_end(&mut text).ok()?;
    let Ok(note) = serde_json::from_slice::<Note>(&text) else {
        let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
        if remove && age.is_some_and(|age| age > WRITING) {
            let _ = fs::remove_file(path);
        }
        return None;
    };
    let name = Tombstone::name_of(&note.namespace, &note.id);
    let is_own = path.file_name().and_then(|name| name.to_str()) == Some(&name);
    // While there is a bundle, whoever asks for `delete` or starts anew removes it.
    let gone = fs::symlink_metadata(&note.bundle).is_err_and(|e| e.kind() == ErrorKind::NotFound);
    if note.format > FORMAT || !is_own || !gone {
        return None;
    }
    let left = match fs::symlink_metadata(&note.socket) {
        Ok(meta) if meta.file_type().is_socket() => {
            if !listen::is_deserted(&note.socket, CONNECT) {
                return None;
            }
            Some(note.socket)
        }
        // Another's, or removed.
        Ok(_) => None,
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(_) => return None,
    };
    if remove {
        if let Some(socket) = &left
            && let Err(error) = fs::remove_file(socket)
        {
            log::warn!("cannot remove {}: {error}", socket.display());
            return left;
        }
        let _ = fs::remove_file(path);
    }
    left
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("vigil-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(dir.join("bundle")).unwrap();
            Self(dir)
        }

        fn noted(&self) -> PathBuf {
            let socket = self.0.join("socket");
            note(&self.0, ("ns", "c"), &self.0.join("bundle"), &socket).unwrap();
            socket
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Nothing is removed while there is a bundle, or somebody listens, or the name is not a
    /// socket's, and nothing that was not asked to be.
    #[test]
    fn only_what_is_left_of_the_dead_goes() {
        let dir = Dir::new("starts");
        let socket = dir.noted();
        let note = path_of(&dir.0, "ns", "c");
        let listener = listen::bind(&socket).unwrap();
        assert!(deserted(&dir.0, true).is_empty(), "it has a bundle");
        fs::remove_dir(dir.0.join("bundle")).unwrap();
        listen::listen(std::os::fd::AsFd::as_fd(&listener), 1).unwrap();
        assert!(deserted(&dir.0, true).is_empty(), "somebody listens");
        drop(listener);
        assert_eq!(deserted(&dir.0, false), [&*socket]);
        assert!(socket.exists() && note.exists(), "nobody asked for that");
        // A later `start` of that name is writing its own.
        let busy = File::open(&note).unwrap();
        busy.lock().unwrap();
        assert!(deserted(&dir.0, true).is_empty());
        drop(busy);
        assert_eq!(deserted(&dir.0, true), [&*socket]);
        assert!(!socket.exists() && !note.exists());
    }

    /// What is no note of ours names nothing that could be removed.
    #[test]
    fn what_is_torn_foreign_or_newer_names_nothing() {
        let dir = Dir::new("starts-harmed");
        let socket = dir.noted();
        drop(listen::bind(&socket).unwrap());
        fs::remove_dir(dir.0.join("bundle")).unwrap();
        let path = path_of(&dir.0, "ns", "c");
        let text = fs::read_to_string(&path).unwrap();
        let newer = text.replace("\"format\":2", "\"format\":3");
        let another = text.replace("\"c\"", "\"d\"");
        assert!(newer != text && another != text);
        for harmed in ["", &text[..text.len() / 2], &newer, &another] {
            fs::write(&path, harmed).unwrap();
            assert!(deserted(&dir.0, true).is_empty(), "{harmed}");
            assert!(socket.exists() && path.exists(), "{harmed}");
        }
        // Nor is it in anybody's way.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(deserted(&dir.0, true).is_empty());
        assert!(note(&dir.0, ("ns", "c"), &dir.0, &socket).is_err());
        fs::remove_dir(&path).unwrap();
        dir.noted();
        assert_eq!(deserted(&dir.0, true), [&*socket]);
    }

    #[test]
    fn a_note_without_its_socket_goes_and_what_has_its_name_stays() {
        let dir = Dir::new("starts-none");
        let socket = dir.noted();
        fs::remove_dir(dir.0.join("bundle")).unwrap();
        fs::write(&socket, "a stranger's").unwrap();
        assert!(deserted(&dir.0, true).is_empty());
        assert!(socket.exists() && !path_of(&dir.0, "ns", "c").exists());
        let other = Dir::new("starts-over");
        other.noted();
        over(&other.0, ("ns", "c"));
        assert!(!path_of(&other.0, "ns", "c").exists());
    }
}
