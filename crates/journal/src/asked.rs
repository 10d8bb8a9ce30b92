//! The file of an exec: what it was asked to be, as long as it is not deleted.
//!
//! Owned by the shim. A spec may be as long as a message, and hold what nobody
//! should find later; the journal is short and forgets slowly. So both the spec
//! and the names of the streams are kept beside it, in one file for each exec,
//! and the journal has but the file's sum, by which the file is known. Once the
//! exec runs its spec is cut off; with the exec the file goes. The bytes of both
//! parts are not interpreted here.

use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::file::{NO_LINK, NO_WAIT};
use crate::pair::number;

const TITLE: &str = "vigil-exec";
const VERSION: u16 = 1;
/// A link or a fifo of that name is not ours.
const PLAIN: i32 = NO_LINK | NO_WAIT;
/// Longest head: three names of at most 76 bytes, and numbers.
const HEAD_BYTES_MAX: usize = 1 << 10;
/// Longest part. A message has 4 MiB.
const PART_BYTES_MAX: usize = 8 << 20;

/// Whose file it is.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    /// The container's namespace.
    pub namespace: &'a str,
    /// The container.
    pub id: &'a str,
    /// The exec.
    pub exec: &'a str,
}

/// Why a file of an exec is not used, or not there.
#[derive(Debug, thiserror::Error)]
pub enum AskedError {
    /// The kernel's answer.
    #[error("{path}: cannot {op} the file of an exec")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another's, of another version, cut, or changed.
    #[error("{path}: this is not the file of exec {exec} that the journal names: {why}")]
    NotIt {
        /// The file.
        path: PathBuf,
        /// Of whom it should be.
        exec: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl AskedError {
    /// Whether the file system was full.
    pub fn full(&self) -> bool {
        let AskedError::Io { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// The bytes of a file, and what the journal keeps of it.
#[derive(Debug)]
pub struct Asked {
    bytes: Vec<u8>,
    /// The sum of its head, which has the sums of both parts.
    pub sum: u32,
}

/// Where a part lies.
struct Part {
    at: usize,
    len: usize,
    sum: u32,
}

struct Head {
    stdio: Part,
    spec: Part,
}

/// Name of the file of this exec in a bundle. No two execs share one, and none
/// is that of an exec's pid.
pub fn name(exec: &str) -> String {
    format!("exec-{exec}.asked")
}

/// The exec whose file has this name.
pub fn exec_of(name: &str) -> Option<&str> {
    name.strip_prefix("exec-")?.strip_suffix(".asked")
}

impl Asked {
    /// The file that keeps these.
    pub fn new(whose: Whose<'_>, stdio: &[u8], spec: &[u8]) -> Self {
        let Whose {
            namespace,
            id,
            exec,
        } = whose;
        // Writing to a String cannot fail.
        let mut head = format!("{TITLE} {VERSION}\nowner {namespace} {id}\nexec {exec}\n");
        for (name, part) in [("stdio", stdio), ("spec", spec)] {
            let sum = crate::crc32c::crc32c(part);
            let _ = writeln!(head, "{name} {} {sum:08x}", part.len());
        }
        let sum = crate::crc32c::crc32c(head.as_bytes());
        let _ = writeln!(head, "sum {sum:08x}");
        let mut bytes = Vec::with_capacity(head.len() + stdio.len() + spec.len());
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(stdio);
        bytes.extend_from_slice(spec);
        Self { bytes, sum }
    }

    /// Makes the file, in place of one that nobody knows of. What cannot be
    /// written whole is not there.
    pub fn write(&self, path: &Path) -> Result<(), AskedError> {
        let failed = |op, source| AskedError::Io {
            path: path.to_owned(),
            op,
            source,
        };
        remove(path)?;
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(path).map_err(|error| failed("make", error))?;
        file.write_all(&self.bytes).map_err(|error| {
            // A leftover is one that nobody knows of.
            let _ = std::fs::remove_file(path);
            failed("write", error)
        })
    }
}

/// Reads the file with this sum: the streams, and the spec.
pub fn read(path: &Path, whose: Whose<'_>, sum: u32) -> Result<(Vec<u8>, Vec<u8>), AskedError> {
    let (file, head) = open(path, whose, sum)?;
    let stdio = part(&file, path, whose, &head.stdio)?;
    let spec = part(&file, path, whose, &head.spec)?;
    Ok((stdio, spec))
}

/// Reads the streams alone: they are there also when the spec is not any more.
pub fn read_stdio(path: &Path, whose: Whose<'_>, sum: u32) -> Result<Vec<u8>, AskedError> {
    let (file, head) = open(path, whose, sum)?;
    part(&file, path, whose, &head.stdio)
}

/// Cuts the spec off, which nobody needs any more.
pub fn forget_spec(path: &Path, whose: Whose<'_>, sum: u32) -> Result<(), AskedError> {
    let (_, head) = open(path, whose, sum)?;
    let cut = || {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).custom_flags(PLAIN).open(path)?;
        file.set_len(head.spec.at as u64)
    };
    cut().map_err(|source| AskedError::Io {
        path: path.to_owned(),
        op: "shorten",
        source,
    })
}

/// Removes the file; it is well if there is none.
pub fn remove(path: &Path) -> Result<(), AskedError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| AskedError::Io {
            path: path.to_owned(),
            op: "remove",
            source,
        }),
    }
}

fn not_it(path: &Path, whose: Whose<'_>, why: &'static str) -> AskedError {
    AskedError::NotIt {
        path: path.to_owned(),
        exec: whose.exec.to_owned(),
        why,
    }
}

fn open(path: &Path, whose: Whose<'_>, sum: u32) -> Result<(std::fs::File, Head), AskedError> {
    let failed = |op, source| AskedError::Io {
        path: path.to_owned(),
        op,
        source,
    };
    let mut options = std::fs::OpenOptions::new();
    let opened = options.read(true).custom_flags(PLAIN).open(path);
    let file = opened.map_err(|error| failed("open", error))?;
    let kind = file.metadata().map_err(|error| failed("look at", error))?;
    if !kind.is_file() {
        return Err(not_it(path, whose, "it is no file"));
    }
    let mut bytes = Vec::new();
    let read = (&file).take(HEAD_BYTES_MAX as u64).read_to_end(&mut bytes);
    read.map_err(|error| failed("read", error))?;
    let head = head(&bytes, whose, sum).map_err(|why| not_it(path, whose, why))?;
    Ok((file, head))
}

/// Takes exactly what [`Asked::new`] gives.
fn head(bytes: &[u8], whose: Whose<'_>, wanted: u32) -> Result<Head, &'static str> {
    let cut = "it has no whole head";
    let mut rest = bytes;
    let mut line = || {
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(cut)?;
        let (line, more) = rest.split_at(end);
        rest = &more[1..];
        std::str::from_utf8(line).map_err(|_| cut)
    };
    let title = line()?
        .strip_prefix(TITLE)
        .and_then(|t| t.strip_prefix(' '));
    match title.and_then(number::<u16>) {
        Some(VERSION) => {}
        Some(0) | None => return Err("it is of another kind"),
        Some(_) => return Err("it is of a later version"),
    }
    let (owner, exec) = (line()?, line()?);
    let (stdio, spec) = (line()?, line()?);
    let said = line()?;
    let at = bytes.len() - rest.len();
    let covered = bytes.get(..at - said.len() - 1).ok_or(cut)?;
    let sum = crate::crc32c::crc32c(covered);
    if said != format!("sum {sum:08x}") {
        return Err("its head is damaged");
    }
    if owner != format!("owner {} {}", whose.namespace, whose.id)
        || exec != format!("exec {}", whose.exec)
    {
        return Err("it is another's");
    }
    if sum != wanted {
        return Err("it is of another time");
    }
    let stdio = lies("stdio ", stdio, at).ok_or("its head is damaged")?;
    let spec = lies("spec ", spec, at + stdio.len).ok_or("its head is damaged")?;
    Ok(Head { stdio, spec })
}

fn lies(name: &str, line: &str, at: usize) -> Option<Part> {
    let (len, sum) = line.strip_prefix(name)?.split_once(' ')?;
    let len = number(len).filter(|len| *len <= PART_BYTES_MAX)?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    Some(Part { at, len, sum })
}

fn part(
    file: &std::fs::File,
    path: &Path,
    whose: Whose<'_>,
    part: &Part,
) -> Result<Vec<u8>, AskedError> {
    let mut bytes = vec![0; part.len];
    file.read_exact_at(&mut bytes, part.at as u64)
        .map_err(|_| not_it(path, whose, "a part of it is missing"))?;
    if crate::crc32c::crc32c(&bytes) != part.sum {
        return Err(not_it(path, whose, "a part of it is damaged"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOSE: Whose<'_> = Whose {
        namespace: "k8s.io",
        id: "c1",
        exec: "e1",
    };
    const STDIO: &[u8] = b"{\"stdout\":\"/o\"}";
    const SPEC: &[u8] = b"{\"args\":[\"secret\"]}";

    fn made() -> (tempfile::TempDir, PathBuf, Asked) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name("e1"));
        let asked = Asked::new(WHOSE, STDIO, SPEC);
        asked.write(&path).unwrap();
        (dir, path, asked)
    }

    #[test]
    fn both_parts_come_back_and_the_spec_goes_when_it_is_forgotten() {
        let (_dir, path, asked) = made();
        let both = read(&path, WHOSE, asked.sum).unwrap();
        assert_eq!(both, (STDIO.to_vec(), SPEC.to_vec()));
        forget_spec(&path, WHOSE, asked.sum).unwrap();
        forget_spec(&path, WHOSE, asked.sum).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(6).any(|some| some == b"secret"));
        assert_eq!(read_stdio(&path, WHOSE, asked.sum).unwrap(), STDIO);
        read(&path, WHOSE, asked.sum).unwrap_err();
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn one_cut_flipped_of_another_or_of_another_time_is_not_used() {
        let (_dir, path, asked) = made();
        let good = std::fs::read(&path).unwrap();
        for len in 0..good.len() {
            std::fs::write(&path, &good[..len]).unwrap();
            read(&path, WHOSE, asked.sum).unwrap_err();
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            read(&path, WHOSE, asked.sum).unwrap_err();
        }
        std::fs::write(&path, &good).unwrap();
        read(&path, WHOSE, asked.sum).unwrap();
        for other in [
            Whose { id: "c2", ..WHOSE },
            Whose {
                exec: "e2",
                ..WHOSE
            },
            Whose {
                namespace: "moby",
                ..WHOSE
            },
        ] {
            read(&path, other, asked.sum).unwrap_err();
        }
        read(&path, WHOSE, asked.sum + 1).unwrap_err();
        let later = String::from_utf8(good).unwrap().replacen(" 1\n", " 2\n", 1);
        std::fs::write(&path, later).unwrap();
        let error = read(&path, WHOSE, asked.sum).unwrap_err().to_string();
        assert!(error.contains("later version"), "{error}");
    }

    #[test]
    fn a_link_or_a_fifo_of_that_name_is_not_followed() {
        let (dir, path, asked) = made();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        read(&path, WHOSE, asked.sum).unwrap_err();
        // Writing puts a file there, and leaves alone what the link leads to.
        Asked::new(WHOSE, b"", b"").write(&path).unwrap();
        read(&elsewhere, WHOSE, asked.sum).unwrap();
        std::fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        read(&path, WHOSE, asked.sum).unwrap_err();
    }

    #[test]
    fn a_name_says_of_which_exec_it_is() {
        assert_eq!(exec_of(&name("a.asked")), Some("a.asked"));
        assert_eq!(exec_of("exec-a.pid"), None);
    }
}
