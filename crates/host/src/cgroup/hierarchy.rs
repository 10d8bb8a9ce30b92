//! Which cgroup hierarchies the host has, where they are mounted, and which
//! cgroup is our own in each. Read afresh when needed; nothing is kept. The
//! mount root is a parameter, so that a v2 tree mounted elsewhere can be
//! worked with.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Where the hierarchies of a host are.
pub const BASE: &str = "/sys/fs/cgroup";

/// How the host's hierarchies are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// v1, perhaps with an empty v2 tree beside it (hybrid): runc and
    /// containerd count both as v1.
    V1,
    /// One v2 tree.
    Unified,
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// As in `/proc/self/cgroup`, and in [`vigil_model::Claim::hierarchy`].
    pub name: String,
    /// Mount point.
    pub mount: PathBuf,
    /// The cgroup that is mounted there; `/` unless we live in a container.
    pub root: String,
    /// The cgroup of this process.
    pub own: String,
    /// The cgroup of process 1.
    pub first: String,
}

impl Hierarchy {
    /// The directory of a cgroup, `None` if it lies outside of the mount.
    pub fn dir_of(&self, cgroup: &str) -> Option<PathBuf> {
        let below = Path::new(cgroup).strip_prefix(&self.root).ok()?;
        Some(join(&self.mount, below))
    }

    /// The cgroup of a directory, as `/proc/PID/cgroup` writes it.
    pub fn cgroup_of(&self, dir: &Path) -> Option<String> {
        let below = dir.strip_prefix(&self.mount).ok()?;
        Some(
            join(Path::new(&self.root), below)
                .to_string_lossy()
                .into_owned(),
        )
    }
}

/// `Path::join` that adds no slash for an empty right side.
fn join(left: &Path, right: &Path) -> PathBuf {
    if right.as_os_str().is_empty() {
        left.to_owned()
    } else {
        left.join(right)
    }
}

/// The hierarchies of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// How they are arranged.
    pub mode: Mode,
    /// One for v2; for v1 in the order of `/proc/self/cgroup`.
    pub list: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Reads them from `/proc`.
    pub fn read() -> Result<Self> {
        Self::read_at(Path::new(BASE))
    }

    /// Reads them, with the hierarchies mounted at or below `base`.
    pub fn read_at(base: &Path) -> Result<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|source| Error::File {
                op: "read",
                path: path.into(),
                source,
            })
        };
        let own = read("/proc/self/cgroup")?;
        // Only the systemd driver asks for it, and hidepid may hide it.
        let first = read("/proc/1/cgroup").unwrap_or_default();
        Self::parse(&read("/proc/self/mountinfo")?, &own, &first, base)
    }

    /// Makes sense of `mountinfo` and of two processes' `cgroup` files.
    pub fn parse(mountinfo: &str, own: &str, first: &str, base: &Path) -> Result<Self> {
        let mounts = visible(mountinfo, base);
        let unified = mounts
            .iter()
            .find(|m| m.mount == base && m.kind == "cgroup2");
        if let Some(mount) = unified {
            return Ok(Self {
                mode: Mode::Unified,
                list: vec![Hierarchy {
                    name: String::new(),
                    mount: mount.mount.clone(),
                    root: mount.root.clone(),
                    own: path_in(own, "").unwrap_or("/").to_owned(),
                    first: path_in(first, "").unwrap_or("/").to_owned(),
                }],
            });
        }
        let mut list = Vec::new();
        for (name, path) in own.lines().filter_map(split) {
            let wanted = name.split(',').next().unwrap_or(name);
            let mount = mounts.iter().find(|m| {
                if name.is_empty() {
                    m.kind == "cgroup2"
                } else {
                    m.kind == "cgroup" && m.options.iter().any(|o| o == wanted)
                }
            });
            if let Some(mount) = mount {
                list.push(Hierarchy {
                    name: name.to_owned(),
                    mount: mount.mount.clone(),
                    root: mount.root.clone(),
                    own: path.to_owned(),
                    first: path_in(first, name).unwrap_or("/").to_owned(),
                });
            }
        }
        if list.is_empty() {
            return Err(Error::Malformed {
                path: base.to_owned(),
                problem: "no cgroup hierarchy is mounted there".to_owned(),
            });
        }
        Ok(Self {
            mode: Mode::V1,
            list,
        })
    }

    /// The hierarchy a claim names.
    pub fn named(&self, name: &str) -> Option<&Hierarchy> {
        self.list.iter().find(|h| h.name == name)
    }
}

/// One line of a `cgroup` file: controllers and path.
fn split(line: &str) -> Option<(&str, &str)> {
    let (_number, rest) = line.split_once(':')?;
    rest.split_once(':')
}

/// The path a `/proc/PID/cgroup` names in a hierarchy.
pub(super) fn path_in<'a>(cgroup_file: &'a str, name: &str) -> Option<&'a str> {
    cgroup_file
        .lines()
        .filter_map(split)
        .find(|(controllers, _)| *controllers == name)
        .map(|(_, path)| path)
}

struct Mounted {
    root: String,
    mount: PathBuf,
    kind: String,
    options: Vec<String>,
}

/// The cgroup mounts at or below `base` that nothing was mounted over.
fn visible(mountinfo: &str, base: &Path) -> Vec<Mounted> {
    let mut mounts: Vec<Mounted> = Vec::new();
    for line in mountinfo.lines() {
        // id parent major:minor ROOT MOUNT options [optional …] - TYPE source SUPER
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(3);
        let mut right = right.split(' ');
        let (Some(root), Some(mount), Some(kind), Some(options)) =
            (left.next(), left.next(), right.next(), right.nth(1))
        else {
            continue;
        };
        let mount = PathBuf::from(unescape(mount));
        if !mount.starts_with(base) {
            continue;
        }
        // What comes later lies on top.
        mounts.retain(|m| !m.mount.starts_with(&mount));
        mounts.push(Mounted {
            root: unescape(root),
            mount,
            kind: kind.to_owned(),
            options: options.split(',').map(str::to_owned).collect(),
        });
    }
    mounts.retain(|m| m.kind == "cgroup" || m.kind == "cgroup2");
    mounts
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|d| byte == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        let code = digits.map(|d| d.iter().fold(0u32, |sum, c| sum * 8 + u32::from(c - b'0')));
        if let Some(code) = code.and_then(|code| u8::try_from(code).ok()) {
            out.push(code);
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:7 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/a\\040b /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
42 31 0:39 / /elsewhere rw - cgroup cgroup rw,pids
";
    const OWN: &str =
        "9:name=systemd:/s\n4:memory:/docker/a b/me\n2:cpu,cpuacct:/c\n1:pids:/\n0::/u\n";

    #[test]
    fn a_hybrid_host_is_v1_and_mount_roots_count() {
        let h = Hierarchies::parse(HYBRID, OWN, "9:name=systemd:/init.scope\n", Path::new(BASE))
            .unwrap();
        assert_eq!(h.mode, Mode::V1);
        let names: Vec<_> = h.list.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["name=systemd", "memory", "cpu,cpuacct", ""]);
        let memory = h.named("memory").unwrap();
        assert_eq!(
            memory.dir_of(&memory.own).unwrap(),
            Path::new("/sys/fs/cgroup/memory/me")
        );
        assert_eq!(memory.dir_of("/other"), None);
        assert_eq!(
            memory
                .cgroup_of(Path::new("/sys/fs/cgroup/memory/x/y"))
                .unwrap(),
            "/docker/a b/x/y"
        );
        assert_eq!(h.named("name=systemd").unwrap().first, "/init.scope");
    }

    #[test]
    fn a_v2_tree_mounted_over_the_rest_is_a_v2_host() {
        let over = format!("{HYBRID}63 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let h = Hierarchies::parse(&over, OWN, "", Path::new(BASE)).unwrap();
        assert_eq!(h.mode, Mode::Unified);
        assert_eq!(h.list.len(), 1);
        assert_eq!(h.list[0].own, "/u");
        assert_eq!(h.list[0].mount, Path::new(BASE));
    }

    #[test]
    fn a_host_without_cgroups_is_said_to_be_one() {
        assert!(Hierarchies::parse("", OWN, "", Path::new(BASE)).is_err());
        assert!(Hierarchies::parse("gibberish - \n", "x", "", Path::new(BASE)).is_err());
    }

    #[test]
    fn this_host_has_hierarchies() {
        let h = Hierarchies::read().unwrap();
        for it in &h.list {
            assert!(it.mount.is_dir(), "{it:?}");
        }
    }
}
