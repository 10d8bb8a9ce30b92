//! Where runc will put the container, in each hierarchy, and what stands there
//! before it does. Follows runc's own rules for `cgroupsPath`, found by reading
//! its documentation and by experiment with 1.1.5. Creates nothing.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vigil_model::{Before, Claim, Driver, TaskId};

use super::hierarchy::{Hierarchies, Hierarchy, Mode};
use super::{oom, tree};
use crate::{Error, Result};

/// Where the container goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Who makes the directories.
    pub driver: Driver,
    /// Nobody said so: the systemd driver follows from the form of the path.
    /// Worth a warning.
    pub inferred: bool,
    /// Directory by hierarchy name.
    pub dirs: Vec<(String, PathBuf)>,
}

/// Whether systemd runs this host (`sd_booted(3)`).
pub fn systemd_host() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether a path has the form only the systemd driver understands.
fn has_systemd_form(path: &str) -> bool {
    let parts: Vec<_> = path.split(':').collect();
    match parts[..] {
        [slice, prefix, name] => {
            slice.strip_suffix(".slice").is_some()
                && !slice.contains('/')
                && !prefix.is_empty()
                && !name.is_empty()
        }
        _ => false,
    }
}

/// Resolves `linux.cgroupsPath` as runc does.
///
/// `systemd_cgroup` is the option of that name, `None` if nothing said so;
/// then the systemd driver is taken if the path has its form and
/// `on_systemd`. nerdctl and CRI 1.6 lose the option under a runtime name
/// that is not runc's.
pub fn place(
    hierarchies: &Hierarchies,
    id: &TaskId,
    cgroups_path: &str,
    systemd_cgroup: Option<bool>,
    on_systemd: bool,
) -> Result<Placement> {
    let (driver, inferred) = match systemd_cgroup {
        Some(true) => (Driver::Systemd, false),
        None if on_systemd && has_systemd_form(cgroups_path) => (Driver::Systemd, true),
        Some(false) | None => (Driver::Cgroupfs, false),
    };
    let below = match driver {
        Driver::Systemd => Below::Root(systemd_unit(id, cgroups_path)?),
        Driver::Cgroupfs if cgroups_path.is_empty() => Below::Own(PathBuf::from(id.as_str())),
        Driver::Cgroupfs if cgroups_path.starts_with('/') => Below::Root(clean(cgroups_path)),
        Driver::Cgroupfs => Below::Own(clean(cgroups_path)),
    };
    let dirs = hierarchies
        .list
        .iter()
        .filter_map(|h| Some((h.name.clone(), dir(hierarchies.mode, h, driver, &below)?)))
        .collect();
    Ok(Placement {
        driver,
        inferred,
        dirs,
    })
}

enum Below {
    /// From the hierarchy's root.
    Root(PathBuf),
    /// From the cgroup runc runs in, which is ours.
    Own(PathBuf),
}

fn dir(mode: Mode, hierarchy: &Hierarchy, driver: Driver, below: &Below) -> Option<PathBuf> {
    Some(match (below, mode, driver) {
        (Below::Root(path), Mode::V1, Driver::Systemd) => {
            // Process 1 may live below the root (systemd in a container), and
            // since systemd 226 in a scope of its own there.
            let first = hierarchy.first.trim_end_matches("/init.scope");
            let first = if first.is_empty() { "/" } else { first };
            let top = hierarchy
                .dir_of(first)
                .unwrap_or_else(|| hierarchy.mount.clone());
            top.join(path)
        }
        (Below::Root(path), Mode::V1 | Mode::Unified, _) => hierarchy.mount.join(path),
        // The v2 tree of a hybrid host is joined at its root, wherever runc
        // itself is in it.
        (Below::Own(path), Mode::V1, _) if hierarchy.name.is_empty() => hierarchy.mount.join(path),
        (Below::Own(path), Mode::V1, _) => hierarchy.dir_of(&hierarchy.own)?.join(path),
        // A v2 cgroup with processes cannot hand controllers down, hence
        // beside runc's own, not below it.
        (Below::Own(path), Mode::Unified, _) => {
            let beside = Path::new(&hierarchy.own).parent().unwrap_or(Path::new("/"));
            let beside = beside.strip_prefix("/").unwrap_or(beside);
            hierarchy.mount.join(beside).join(path)
        }
    })
}

/// The path without `.` and `..`, never leading upwards, without the leading
/// slash.
fn clean(path: &str) -> PathBuf {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.iter().collect()
}

fn malformed(path: &str, problem: &str) -> Error {
    Error::Malformed {
        path: PathBuf::from(path),
        problem: format!("cgroupsPath: {problem}"),
    }
}

/// `slice:prefix:name` as a path below the root.
fn systemd_unit(id: &TaskId, path: &str) -> Result<PathBuf> {
    let parts: Vec<_> = if path.is_empty() {
        vec!["", "runc", id.as_str()]
    } else {
        path.split(':').collect()
    };
    let [slice, prefix, name] = parts[..] else {
        return Err(malformed(path, "not of the form slice:prefix:name"));
    };
    if prefix.contains('/') || name.contains('/') || name.is_empty() {
        return Err(malformed(path, "not the name of a unit"));
    }
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let unit = if name.strip_suffix(".slice").is_some() {
        name.to_owned()
    } else {
        format!("{prefix}-{name}.scope")
    };
    Ok(expand_slice(path, slice)?.join(unit))
}

/// `a-b.slice` lies in `a.slice`; `-.slice` is the root (systemd.slice(5)).
fn expand_slice(path: &str, slice: &str) -> Result<PathBuf> {
    let Some(name) = slice.strip_suffix(".slice") else {
        return Err(malformed(path, "its first part is not a slice"));
    };
    if name == "-" {
        return Ok(PathBuf::new());
    }
    if name.is_empty() || name.contains('/') || name.split('-').any(str::is_empty) {
        return Err(malformed(path, "its slice has an empty or nested name"));
    }
    let mut out = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        prefix.push_str(part);
        out.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Ok(out)
}

/// Looks at what stands where the container will go. Called before `runc
/// create`; the answer is recorded before runc runs.
pub fn claims(hierarchies: &Hierarchies, placement: &Placement) -> Vec<Claim> {
    placement
        .dirs
        .iter()
        .map(|(name, dir)| Claim {
            hierarchy: name.clone(),
            path: dir.to_string_lossy().into_owned(),
            before: hierarchies
                .named(name)
                .map_or(Before::Unknown, |h| before(h, dir)),
            inode: None,
        })
        .collect()
}

fn before(hierarchy: &Hierarchy, dir: &Path) -> Before {
    let inode = match fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_dir() => meta.ino(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Before::Absent,
        Ok(_) | Err(_) => return Before::Unknown,
    };
    // Never ours, even if no process can be seen in them: the root, and
    // whatever holds ourselves.
    let holds_us = hierarchy
        .dir_of(&hierarchy.own)
        .is_some_and(|own| own.starts_with(dir));
    if holds_us || hierarchy.mount.starts_with(dir) {
        return Before::Existed {
            inode,
            populated: true,
            ooms: fs::File::open(dir).map_or(0, |dir| oom::counted(&dir)),
        };
    }
    let Ok(dir) = fs::File::open(dir) else {
        return Before::Unknown;
    };
    match tree::populated(&dir) {
        Ok(populated) => Before::Existed {
            inode,
            populated,
            ooms: oom::counted(&dir),
        },
        Err(_) => Before::Unknown,
    }
}

/// Whether a cgroup carries a container's id as its name, as containerd and
/// systemd's driver have it: `ID`, or `PREFIX-ID.scope`.
pub fn named_for(dir: &Path, id: &str) -> bool {
    let Some(name) = dir.file_name().map(|name| name.to_string_lossy()) else {
        return false;
    };
    let unit = name.strip_suffix(".scope");
    let prefix = unit.and_then(|unit| unit.strip_suffix(id));
    name == id || prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn hierarchy(name: &str, own: &str) -> Hierarchy {
        Hierarchy {
            name: name.to_owned(),
            mount: Path::new("/cg").join(name),
            root: "/".to_owned(),
            own: own.to_owned(),
            first: "/init.scope".to_owned(),
        }
    }

    fn v1() -> Hierarchies {
        Hierarchies {
            mode: Mode::V1,
            list: vec![hierarchy("pids", "/p"), hierarchy("memory", "/"), {
                let mut unified = hierarchy("", "/u/v");
                unified.mount = "/cg/unified".into();
                unified
            }],
        }
    }

    fn v2() -> Hierarchies {
        let mut only = hierarchy("", "/u/v");
        only.mount = "/cg".into();
        Hierarchies {
            mode: Mode::Unified,
            list: vec![only],
        }
    }

    fn dirs(h: &Hierarchies, path: &str, systemd: Option<bool>) -> Vec<String> {
        let id = TaskId::new("id").unwrap();
        place(h, &id, path, systemd, true)
            .unwrap()
            .dirs
            .into_iter()
            .map(|(_, d)| d.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn cgroupfs_paths_resolve_as_runc_resolves_them() {
        for (path, on_v1, on_v2) in [
            (
                "",
                ["/cg/pids/p/id", "/cg/memory/id", "/cg/unified/id"],
                "/cg/u/id",
            ),
            (
                "/a/b",
                ["/cg/pids/a/b", "/cg/memory/a/b", "/cg/unified/a/b"],
                "/cg/a/b",
            ),
            (
                "a/b",
                ["/cg/pids/p/a/b", "/cg/memory/a/b", "/cg/unified/a/b"],
                "/cg/u/a/b",
            ),
            (
                "../../x",
                ["/cg/pids/p/x", "/cg/memory/x", "/cg/unified/x"],
                "/cg/u/x",
            ),
            (
                "/../x/./y/",
                ["/cg/pids/x/y", "/cg/memory/x/y", "/cg/unified/x/y"],
                "/cg/x/y",
            ),
            (
                "a-b.slice:pre:nm",
                [
                    "/cg/pids/p/a-b.slice:pre:nm",
                    "/cg/memory/a-b.slice:pre:nm",
                    "/cg/unified/a-b.slice:pre:nm",
                ],
                "/cg/u/a-b.slice:pre:nm",
            ),
        ] {
            assert_eq!(dirs(&v1(), path, Some(false)), on_v1, "{path}");
            assert_eq!(dirs(&v2(), path, Some(false)), [on_v2], "{path}");
        }
    }

    #[test]
    fn slices_expand_to_nested_directories() {
        for (path, on_v2) in [
            ("", "/cg/system.slice/runc-id.scope"),
            (
                "a-b-c.slice:cri:x",
                "/cg/a.slice/a-b.slice/a-b-c.slice/cri-x.scope",
            ),
            ("-.slice:cri:x", "/cg/cri-x.scope"),
            (":cri:x", "/cg/system.slice/cri-x.scope"),
            ("a.slice:cri:own.slice", "/cg/a.slice/own.slice"),
        ] {
            assert_eq!(dirs(&v2(), path, Some(true)), [on_v2], "{path}");
        }
        assert_eq!(
            dirs(&v1(), "a.slice:cri:x", Some(true))[1],
            "/cg/memory/a.slice/cri-x.scope"
        );
        let id = TaskId::new("id").unwrap();
        for bad in [
            "/a/b",
            "a:b",
            "a:b:c",
            "a--b.slice:c:d",
            "x/y.slice:c:d",
            ".slice:c:d",
            "a.slice:b:",
        ] {
            assert!(place(&v2(), &id, bad, Some(true), true).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_systemd_driver_follows_from_the_form_only_where_nothing_was_said() {
        let id = TaskId::new("id").unwrap();
        for (path, said, systemd, driver, inferred) in [
            ("a.slice:cri:x", None, true, Driver::Systemd, true),
            ("a.slice:cri:x", None, false, Driver::Cgroupfs, false),
            ("a.slice:cri:x", Some(false), true, Driver::Cgroupfs, false),
            ("a.slice:cri:x", Some(true), false, Driver::Systemd, false),
            ("/a/x", None, true, Driver::Cgroupfs, false),
            ("a:cri:x", None, true, Driver::Cgroupfs, false),
            ("", None, true, Driver::Cgroupfs, false),
        ] {
            let it = place(&v2(), &id, path, said, systemd).unwrap();
            assert_eq!(
                (it.driver, it.inferred),
                (driver, inferred),
                "{path} {said:?}"
            );
        }
    }
}
