//! What the fstab-style options of a mount mean. Pure: reads no path. The
//! meaning is that of containerd's own mount package, because containerd's
//! snapshotters write for it.

use std::fmt::Write;

use vigil_model::Mount;
use vigil_sys::mount::Flags;

use crate::{Error, Result};

/// Options sorted by who understands them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// For mount(2), without the propagation.
    pub flags: Flags,
    /// Propagation, to be set by a call of its own; empty when none asked.
    pub propagation: Flags,
    /// For the file system.
    pub data: Vec<String>,
    /// The source is a file for a loop device.
    pub on_loop: bool,
    /// That loop device bypasses the page cache.
    pub direct_io: bool,
    /// Lines for `uid_map` and `gid_map` of the mount's id mapping.
    pub ids: Option<(String, String)>,
}

/// Flags that change a propagation; the kernel takes them alone.
fn propagation_types() -> Flags {
    Flags::MS_SHARED | Flags::MS_PRIVATE | Flags::MS_SLAVE | Flags::MS_UNBINDABLE
}

/// (set, flag) of an option word; `None`: for the file system.
fn word(option: &str) -> Option<(bool, Flags)> {
    Some(match option {
        "async" => (false, Flags::MS_SYNCHRONOUS),
        "atime" => (false, Flags::MS_NOATIME),
        "bind" => (true, Flags::MS_BIND),
        "defaults" => (true, Flags::empty()),
        "dev" => (false, Flags::MS_NODEV),
        "diratime" => (false, Flags::MS_NODIRATIME),
        "dirsync" => (true, Flags::MS_DIRSYNC),
        "exec" => (false, Flags::MS_NOEXEC),
        "mand" => (true, Flags::MS_MANDLOCK),
        "noatime" => (true, Flags::MS_NOATIME),
        "nodev" => (true, Flags::MS_NODEV),
        "nodiratime" => (true, Flags::MS_NODIRATIME),
        "noexec" => (true, Flags::MS_NOEXEC),
        "nomand" => (false, Flags::MS_MANDLOCK),
        "norelatime" => (false, Flags::MS_RELATIME),
        "nostrictatime" => (false, Flags::MS_STRICTATIME),
        "nosuid" => (true, Flags::MS_NOSUID),
        "private" => (true, Flags::MS_PRIVATE),
        "rbind" => (true, Flags::MS_BIND | Flags::MS_REC),
        "relatime" => (true, Flags::MS_RELATIME),
        "remount" => (true, Flags::MS_REMOUNT),
        "ro" => (true, Flags::MS_RDONLY),
        "rprivate" => (true, Flags::MS_PRIVATE | Flags::MS_REC),
        "rshared" => (true, Flags::MS_SHARED | Flags::MS_REC),
        "rslave" => (true, Flags::MS_SLAVE | Flags::MS_REC),
        "runbindable" => (true, Flags::MS_UNBINDABLE | Flags::MS_REC),
        "rw" => (false, Flags::MS_RDONLY),
        "shared" => (true, Flags::MS_SHARED),
        "slave" => (true, Flags::MS_SLAVE),
        "strictatime" => (true, Flags::MS_STRICTATIME),
        "suid" => (false, Flags::MS_NOSUID),
        "sync" => (true, Flags::MS_SYNCHRONOUS),
        "unbindable" => (true, Flags::MS_UNBINDABLE),
        _ => return None,
    })
}

/// An error about this mount.
pub(super) fn bad(mount: &Mount, problem: impl Into<String>) -> Error {
    Error::BadMount {
        kind: mount.kind.clone(),
        from: mount.source.clone(),
        problem: problem.into(),
    }
}

/// Sorts the options of a mount. Refuses what only containerd's mount
/// activation could have handled (`X-containerd.*`): to ignore it would give
/// the container another file system than the one asked for.
pub fn parse(mount: &Mount) -> Result<Parsed> {
    let mut parsed = Parsed {
        flags: Flags::empty(),
        propagation: Flags::empty(),
        data: Vec::new(),
        on_loop: false,
        direct_io: false,
        ids: None,
    };
    let (mut uids, mut gids) = (None, None);
    for option in &mount.options {
        if let Some((set, flag)) = word(option) {
            let kind = flag & propagation_types();
            if kind.is_empty() {
                parsed.flags.set(flag, set);
            } else {
                parsed.propagation = flag;
            }
        } else if option == "loop" {
            parsed.on_loop = true;
        } else if option.starts_with("X-containerd.") {
            let why = format!("option {option} is for containerd and cannot be carried out here");
            return Err(bad(mount, why));
        } else if let Some(map) = option.strip_prefix("uidmap=") {
            uids = Some(id_map(map).ok_or_else(|| bad(mount, format!("bad option {option}")))?);
        } else if let Some(map) = option.strip_prefix("gidmap=") {
            gids = Some(id_map(map).ok_or_else(|| bad(mount, format!("bad option {option}")))?);
        } else if !option.is_empty() {
            parsed.data.push(option.clone());
        }
    }
    if parsed.on_loop {
        let before = parsed.data.len();
        parsed.data.retain(|o| o != "direct-io");
        parsed.direct_io = parsed.data.len() != before;
    }
    parsed.ids = match (uids, gids) {
        (None, None) => None,
        (Some(uids), Some(gids)) => Some((uids, gids)),
        (Some(_), None) | (None, Some(_)) => {
            return Err(bad(mount, "uidmap and gidmap are needed together"));
        }
    };
    Ok(parsed)
}

/// `inside:outside:count[,…]` as lines of `/proc/PID/uid_map`.
fn id_map(text: &str) -> Option<String> {
    let mut lines = String::new();
    for range in text.split(',') {
        let numbers: Vec<u32> = range
            .split(':')
            .map(str::parse)
            .collect::<std::result::Result<_, _>>()
            .ok()?;
        let [inside, outside, count] = numbers[..] else {
            return None;
        };
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{inside} {outside} {count}");
    }
    Some(lines)
}

/// Position of `lowerdir=` in overlay's data, and the directories in it. Empty
/// pieces (overlay's `::` before data-only layers) are kept.
pub fn lower_dirs(data: &[String]) -> Option<(usize, Vec<String>)> {
    let at = data.iter().position(|o| o.starts_with("lowerdir="))?;
    let mut dirs = vec![String::new()];
    let mut escaped = false;
    for c in data[at]["lowerdir=".len()..].chars() {
        if c == ':' && !escaped {
            dirs.push(String::new());
        } else if let Some(last) = dirs.last_mut() {
            last.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    Some((at, dirs))
}

/// Shortens overlay's data by taking the directory common to all lower
/// directories out of them: (that directory, the new data). The mount is then
/// to be made from there. `None`: there is nothing to gain.
pub fn compact(data: &[String]) -> Option<(String, Vec<String>)> {
    let (at, dirs) = lower_dirs(data)?;
    let named: Vec<&str> = dirs
        .iter()
        .map(String::as_str)
        .filter(|d| !d.is_empty())
        .collect();
    if named.len() < 2 || named.iter().any(|d| !d.starts_with('/')) {
        return None;
    }
    // Of each the directory it lies in, so that no relative name is empty.
    let parents = named
        .iter()
        .map(|d| d.trim_end_matches('/').rsplit_once('/').map_or("", |p| p.0));
    let common = parents
        .map(|p| p.split('/').collect::<Vec<_>>())
        .reduce(|a, b| {
            a.iter()
                .zip(&b)
                .take_while(|(x, y)| x == y)
                .map(|(x, _)| *x)
                .collect()
        })?
        .join("/");
    if common.is_empty() {
        return None;
    }
    let short: Vec<&str> = dirs
        .iter()
        .map(|d| {
            d.strip_prefix(&common)
                .map_or(d.as_str(), |rest| rest.trim_start_matches('/'))
        })
        .collect();
    let mut data = data.to_vec();
    data[at] = format!("lowerdir={}", short.join(":"));
    Some((common.replace('\\', ""), data))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.into(),
            source: "from".into(),
            target: String::new(),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words_are_flags_and_the_rest_is_data() {
        let parsed = parse(&mount(
            "tmpfs",
            &["ro", "nosuid", "rw", "size=1m", "rslave", "defaults"],
        ))
        .unwrap();
        assert_eq!(parsed.flags, Flags::MS_NOSUID);
        assert_eq!(parsed.propagation, Flags::MS_SLAVE | Flags::MS_REC);
        assert_eq!(parsed.data, strings(&["size=1m"]));
        let bind = parse(&mount("bind", &["rbind", "ro"])).unwrap();
        assert_eq!(
            bind.flags,
            Flags::MS_BIND | Flags::MS_REC | Flags::MS_RDONLY
        );
        assert!(bind.data.is_empty());
    }

    #[test]
    fn loop_takes_direct_io_out_of_the_data() {
        let parsed = parse(&mount("ext4", &["loop", "direct-io", "noload"])).unwrap();
        assert!(parsed.on_loop && parsed.direct_io);
        assert_eq!(parsed.data, strings(&["noload"]));
        let plain = parse(&mount("ext4", &["direct-io"])).unwrap();
        assert_eq!(
            (plain.direct_io, plain.data),
            (false, strings(&["direct-io"]))
        );
    }

    #[test]
    fn id_maps_come_in_pairs_and_are_numbers() {
        let ids = |options: &[&str]| parse(&mount("overlay", options)).map(|p| p.ids);
        assert_eq!(
            ids(&["uidmap=0:1000:10,10:5000:5", "gidmap=0:2000:10"]).unwrap(),
            Some(("0 1000 10\n10 5000 5\n".into(), "0 2000 10\n".into())),
        );
        for bad in [
            &["uidmap=0:1:2"][..],
            &["uidmap=x", "gidmap=0:1:2"],
            &["uidmap=0:1", "gidmap=0:1:2"],
        ] {
            assert!(ids(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn options_for_containerd_are_refused_by_name() {
        let error = parse(&mount("ext4", &["X-containerd.mkfs.size=1"])).unwrap_err();
        assert!(
            error.to_string().contains("X-containerd.mkfs.size=1"),
            "{error}"
        );
    }

    #[test]
    fn lower_directories_are_made_relative_to_where_they_lie() {
        let data = strings(&[
            "upperdir=/s/9/fs",
            "lowerdir=/s/11/fs:/s/1/fs::/s/12/d",
            "index=off",
        ]);
        let (dir, short) = compact(&data).unwrap();
        assert_eq!(dir, "/s");
        assert_eq!(
            short,
            strings(&["upperdir=/s/9/fs", "lowerdir=11/fs:1/fs::12/d", "index=off"])
        );
        // One inside the other: no name becomes empty.
        let (dir, short) = compact(&strings(&["lowerdir=/a/b:/a/b/c"])).unwrap();
        assert_eq!((dir.as_str(), short[0].as_str()), ("/a", "lowerdir=b:b/c"));
        let (dir, short) = compact(&strings(&[r"lowerdir=/a\:b/x:/a\:b/y"])).unwrap();
        assert_eq!((dir.as_str(), short[0].as_str()), ("/a:b", "lowerdir=x:y"));
        for nothing in [
            "lowerdir=/a/b",
            "lowerdir=/a/b:/c/d",
            "lowerdir=a:b",
            "upperdir=/x",
        ] {
            assert_eq!(compact(&strings(&[nothing])), None, "{nothing}");
        }
    }
}
