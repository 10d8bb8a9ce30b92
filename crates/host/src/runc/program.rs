//! Finding the program: as a shell would, so that the error can say which of
//! the possible things is wrong before anything was started.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Searched when our environment has no `PATH` (containerd started by hand
/// from an init script).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// There is none of that name.
    Missing,
    /// There is one, and it is a directory or nobody may execute it.
    NotExecutable,
}

/// The path of `name`: itself if it contains a slash, else the first
/// executable of that name in `PATH`.
pub fn find_program(name: &OsStr) -> Result<PathBuf, Unusable> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    search(name, &path)
}

fn search(name: &OsStr, path: &OsStr) -> Result<PathBuf, Unusable> {
    if name.is_empty() {
        return Err(Unusable::Missing);
    }
    if name.as_bytes().contains(&b'/') {
        return usable(Path::new(name)).map(|()| PathBuf::from(name));
    }
    let mut worst = Unusable::Missing;
    // A relative directory would be looked up below the bundle; containerd
    // does not mean that.
    for directory in std::env::split_paths(path).filter(|d| d.is_absolute()) {
        let candidate = directory.join(name);
        match usable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Unusable::NotExecutable) => worst = Unusable::NotExecutable,
            Err(Unusable::Missing) => {}
        }
    }
    Err(worst)
}

fn usable(path: &Path) -> Result<(), Unusable> {
    match std::fs::metadata(path) {
        Err(_) => Err(Unusable::Missing),
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Ok(()),
        Ok(_) => Err(Unusable::NotExecutable),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_first_executable_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (at, mode) in [(&a, 0o644), (&b, 0o755)] {
            std::fs::create_dir(at).unwrap();
            std::fs::write(at.join("x"), "").unwrap();
            std::fs::set_permissions(at.join("x"), PermissionsExt::from_mode(mode)).unwrap();
        }
        let name = OsStr::new("x");
        let both = std::env::join_paths([&a, &b]).unwrap();
        assert_eq!(search(name, &both), Ok(b.join("x")));
        assert_eq!(search(name, a.as_os_str()), Err(Unusable::NotExecutable));
        assert_eq!(search(OsStr::new("y"), &both), Err(Unusable::Missing));
        assert_eq!(search(a.as_os_str(), &both), Err(Unusable::NotExecutable));
        assert_eq!(
            search(b.join("x").as_os_str(), OsStr::new("")),
            Ok(b.join("x"))
        );
        assert_eq!(search(OsStr::new(""), &both), Err(Unusable::Missing));
    }
}
