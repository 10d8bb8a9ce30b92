//! The mount table as the kernel tells it. Reading it touches no file system,
//! so it answers while a mount in it is stalled.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// One line of `/proc/self/mountinfo`, as far as it is needed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Of the mount; reused after it is gone.
    pub id: u64,
    /// The mount it sits on.
    pub parent: u64,
    /// Which directory of which device.
    pub what: Mounted,
    /// Where.
    pub path: PathBuf,
    /// File system type.
    pub kind: String,
    /// Device, file, server or just a word.
    pub source: String,
}

/// A directory of a file system, by which a mount is compared with another of the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// `MAJOR:MINOR`.
    pub device: String,
    /// The directory, from the top of the file system.
    pub dir: PathBuf,
}

/// What is mounted as the root of a process; `None` if its root is no mount, or it cannot be seen.
pub fn root_of(pid: u32) -> Option<Mounted> {
    let text = std::fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
    topmost(select(&text, Path::new("/")), Path::new("/"))
}

/// What is mounted there, on top of whatever else is.
pub fn mounted_at(path: &Path) -> Result<Option<Mounted>> {
    Ok(topmost(below(path)?, path))
}

fn topmost(mounts: Vec<MountPoint>, path: &Path) -> Option<Mounted> {
    let mut there = mounts.into_iter().filter(|mount| mount.path == path);
    there.next().map(|mount| mount.what)
}

/// The mounts at `path` and below, those on top of others first: in this
/// order each can be unmounted. `path` must be without symlinks.
pub fn below(path: &Path) -> Result<Vec<MountPoint>> {
    let file = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(file).map_err(|source| Error::File {
        op: "read",
        path: file.to_owned(),
        source,
    })?;
    Ok(select(&text, path))
}

fn select(table: &[u8], path: &Path) -> Vec<MountPoint> {
    let mut found: Vec<MountPoint> = table
        .split(|b| *b == b'\n')
        .filter_map(line)
        .filter(|m| m.path.starts_with(path))
        .collect();
    let parents: HashMap<u64, u64> = found.iter().map(|m| (m.id, m.parent)).collect();
    let depth = |id: u64| {
        let mut at = id;
        let mut steps = 0;
        // A table read while it changes could show a circle.
        while let Some(parent) = parents.get(&at).filter(|_| steps <= parents.len()) {
            at = *parent;
            steps += 1;
        }
        steps
    };
    found.sort_by_cached_key(|m| std::cmp::Reverse(depth(m.id)));
    found
}

/// A line that does not have the form is skipped: there is nothing one could
/// do with it, and it must not hide the others.
fn line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|b| *b == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = String::from_utf8_lossy(fields.next()?).into_owned();
    let dir = PathBuf::from(unescape(fields.next()?));
    let path = unescape(fields.next()?);
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = unescape(rest.next().unwrap_or_default())
        .to_string_lossy()
        .into_owned();
    Some(MountPoint {
        id,
        parent,
        what: Mounted { device, dir },
        path: PathBuf::from(path),
        kind,
        source,
    })
}

/// Undoes `\040` and its kin.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let byte = octal.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        out.push(byte.unwrap_or(field[at]));
        at += if byte.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(out)
}

/// The path as the mount table would show it: symlinks of the directory it
/// lies in followed, its own name not, so that nothing mounted there is asked.
pub fn as_shown(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return path.to_owned();
    };
    match std::fs::canonicalize(parent) {
        Ok(parent) => parent.join(OsString::from_vec(name.as_bytes().to_vec())),
        // Not there: then nothing is mounted below it either.
        Err(_) => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:30 / /b/rootfs rw - overlay overlay rw,lowerdir=/a
33 31 0:33 / /b/rootfs/x/y rw shared:4 master:2 - tmpfs tmpfs rw
31 30 0:31 / /b/rootfs/x rw - tmpfs tmpfs rw
32 30 0:32 / /b/rootfs rw - fuse.sshfs me@there:/my\\040dir rw
34 22 0:34 / /b/rootfs2 rw - tmpfs tmpfs rw
garbage
35 x 0:34 / /b/rootfs rw - tmpfs tmpfs rw
36 22 0:35 / /b/with\\040space\\134 rw - tmpfs
";

    #[test]
    fn what_sits_on_others_comes_first() {
        let ids: Vec<u64> = select(TABLE, Path::new("/b/rootfs"))
            .iter()
            .map(|m| m.id)
            .collect();
        let place = |id| ids.iter().position(|i| *i == id);
        assert_eq!(ids.len(), 4, "{ids:?}");
        assert!(place(33) < place(31) && place(31) < place(30) && place(32) < place(30));
    }

    #[test]
    fn escapes_are_undone() {
        let found = select(TABLE, Path::new("/b/with space\\"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, Path::new("/b/with space\\"));
        let fuse = &select(TABLE, Path::new("/b/rootfs"));
        assert!(
            fuse.iter()
                .any(|m| m.source == "me@there:/my dir" && m.kind == "fuse.sshfs")
        );
        assert_eq!(unescape(b"a\\04"), "a\\04");
        assert_eq!(unescape(b"\\999"), "\\999");
    }

    #[test]
    fn a_circle_ends() {
        let table = b"1 2 0:1 / /b r - t s\n2 1 0:1 / /b r - t s\n";
        assert_eq!(select(table, Path::new("/b")).len(), 2);
    }
}
