//! The container's root file system: making the mounts of a Create request as
//! containerd's own mount package would, and taking away whatever is mounted
//! under a path. Everything here may sleep uninterruptibly, changes the working
//! directory, and is meant to run in a [`crate::worker`]; it never runs on a
//! thread that answers requests.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vigil_model::Mount;
use vigil_sys::mount::{self as sys, Flags, UmountFlags};
use vigil_sys::{Errno, fd, pidfd, spawn};

use crate::worker::Notes;
use crate::{Error, Result, chain};

mod holder;
pub mod mountinfo;
pub mod options;

use mountinfo::MountPoint;
use options::{Parsed, bad};

/// Room that mount(2)'s page of data must leave before it counts as full.
const NEARLY: usize = 512;
/// Between two tries to unmount something busy.
const BETWEEN: Duration = Duration::from_millis(50);
/// How long a fuse mount program may take.
const MOUNT_PROGRAM: Duration = Duration::from_mins(1);
/// Rounds over the mount table; more means that somebody mounts as we unmount.
const ROUNDS: usize = 16;

/// Whether these mounts could be made at `rootfs`, as far as can be said without trying:
/// to be asked before anything is recorded or done.
pub fn check(mounts: &[Mount], rootfs: &Path) -> Result<()> {
    for mount in mounts {
        options::parse(mount)?;
    }
    if mounts.is_empty() {
        return Ok(());
    }
    is_of_the_bundle(rootfs)
}

/// A link leads out of the bundle: to another container's rootfs, say, which would be mounted
/// over, and nobody would look there for what is to be unmounted. containerd makes a directory.
fn is_of_the_bundle(rootfs: &Path) -> Result<()> {
    let is = match std::fs::symlink_metadata(rootfs) {
        Ok(there) if there.is_dir() => return Ok(()),
        // It is made.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(there) if there.is_symlink() => "a symbolic link",
        Ok(_) => "no directory",
        Err(source) => {
            return Err(Error::File {
                op: "look at",
                path: rootfs.to_owned(),
                source,
            });
        }
    };
    Err(Error::Malformed {
        path: rootfs.to_owned(),
        problem: format!(
            "it is {is}, and nothing is mounted there: the rootfs has to be a directory of the bundle itself"
        ),
    })
}

/// Makes the mounts, in order, each at its target inside `rootfs` (made if
/// missing). When one fails, those made are taken away again. No mounts: does
/// nothing, and makes no directory.
pub fn mount_all(mounts: &[Mount], rootfs: &Path, notes: &Notes) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    check(mounts, rootfs)?;
    make_directory(rootfs)?;
    for mount in mounts {
        if let Err(error) = mount_one(mount, rootfs, notes) {
            if let Err(second) = unmount_below(rootfs, Manner::Patient(BETWEEN * 4), notes) {
                notes.say(&format!("after that: {}", chain(&second)));
            }
            return Err(error);
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o711).create(path) {
        Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::File {
            op: "create directory",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn mount_one(mount: &Mount, rootfs: &Path, notes: &Notes) -> Result<()> {
    notes.doing(&format!(
        "mount {} from {} on {}",
        mount.kind,
        mount.source,
        rootfs.display()
    ));
    let within = mount.target.trim_start_matches('/');
    let within = Path::new(if within.is_empty() { "." } else { within });
    // Held open, the target cannot be exchanged for a symlink meanwhile.
    let at = sys::open_inside(rootfs, within).map_err(|source| Error::Kernel {
        op: "open mount target",
        what: format!("{} in {}", within.display(), rootfs.display()),
        source,
    })?;
    let shown = std::fs::read_link(sys::path_of(&at)).unwrap_or_else(|_| rootfs.join(within));
    let target = Target { shown, at };

    for (prefix, program) in [("fuse.", "mount.fuse"), ("fuse3.", "mount.fuse3")] {
        if let Some(kind) = mount.kind.strip_prefix(prefix) {
            return by_program(mount, program, kind, &target);
        }
    }

    let mut parsed = options::parse(mount)?;
    let overlay = mount.kind == "overlay";
    let users = match &parsed.ids {
        Some((uids, gids)) => {
            Some(
                sys::user_namespace(uids, gids).map_err(|source| Error::Kernel {
                    op: "make user namespace for",
                    what: target.what(mount),
                    source,
                })?,
            )
        }
        None => None,
    };
    // overlay itself cannot be id-mapped, its lower layers can.
    let mut lowers = Lowers::default();
    if let (true, Some(users)) = (overlay, &users) {
        lowers = Lowers::map(mount, &mut parsed, users, rootfs)?;
    }

    let made = make(mount, &mut parsed, &target);
    lowers.remove(notes);
    made?;

    // From here on a mount exists; a caller that fails takes it away.
    // What was opened before lies below it now.
    let on_top = || {
        sys::open_inside(rootfs, within)
            .map(|at| Target {
                shown: target.shown.clone(),
                at,
            })
            .map_err(|source| Error::Kernel {
                op: "open",
                what: target.what(mount),
                source,
            })
    };
    let failed = |op| {
        move |source| Error::Kernel {
            op,
            what: format!("{} mount", mount.kind),
            source,
        }
    };
    if !parsed.propagation.is_empty() {
        sys::set_propagation(&on_top()?.path(), parsed.propagation)
            .map_err(failed("set propagation of"))?;
    }
    if parsed.flags.contains(Flags::MS_BIND | Flags::MS_RDONLY) {
        sys::remount_bind_readonly(&on_top()?.path(), parsed.flags)
            .map_err(failed("make read-only the"))?;
    }
    if let (false, Some(users)) = (overlay, &users) {
        let op = failed("map the owners of");
        let top = on_top()?;
        let mapped = sys::clone_tree(&top.path(), false).map_err(&op)?;
        sys::map_ids(mapped.as_fd(), users.as_fd()).map_err(&op)?;
        // Only the mapped copy shall be there, not also the plain one below it.
        sys::umount(&top.path(), UmountFlags::MNT_DETACH).map_err(&op)?;
        sys::attach_tree(mapped.as_fd(), &target.path()).map_err(&op)?;
    }
    Ok(())
}

/// Where to mount: an open descriptor, and its name for messages.
struct Target {
    shown: PathBuf,
    at: OwnedFd,
}

impl Target {
    fn path(&self) -> PathBuf {
        sys::path_of(&self.at)
    }

    fn what(&self, mount: &Mount) -> String {
        format!(
            "{} from {} on {}",
            mount.kind,
            mount.source,
            self.shown.display()
        )
    }
}

/// The mount(2) call itself.
fn make(mount: &Mount, parsed: &mut Parsed, target: &Target) -> Result<()> {
    let failed = |op| {
        move |source| Error::Kernel {
            op,
            what: target.what(mount),
            source,
        }
    };
    let page = sys::page_size();
    let size = parsed.data.iter().map(|o| o.len() + 1).sum::<usize>();
    if mount.kind == "overlay"
        && size + NEARLY >= page
        && let Some((directory, data)) = options::compact(&parsed.data)
    {
        std::env::set_current_dir(&directory).map_err(|source| Error::File {
            op: "change to",
            path: directory.into(),
            source,
        })?;
        parsed.data = data;
    }
    let data = parsed.data.join(",");
    if data.len() >= page {
        let why = format!(
            "{} bytes of options; the kernel takes {}",
            data.len(),
            page - 1
        );
        return Err(bad(mount, why));
    }
    if parsed.flags.contains(Flags::MS_REMOUNT) && data.is_empty() {
        return Ok(());
    }
    // The device must be held until it is mounted, or it clears itself.
    let device = if parsed.on_loop {
        let read_only = parsed.flags.contains(Flags::MS_RDONLY);
        let file = Path::new(&mount.source);
        Some(
            sys::attach_loop(file, read_only, parsed.direct_io)
                .map_err(failed("attach loop device for"))?,
        )
    } else {
        None
    };
    let source = device
        .as_ref()
        .map_or(OsStr::new(&mount.source), |d| d.path.as_os_str());
    let data = (!data.is_empty()).then(|| OsStr::new(&data));
    sys::mount(
        Some(source),
        &target.path(),
        Some(&mount.kind),
        parsed.flags,
        data,
    )
    .map_err(failed("mount"))
}

/// Id-mapped copies of overlay's lower directories, needed only until overlay
/// has taken its own hold of them.
#[derive(Default)]
struct Lowers {
    within: Option<PathBuf>,
    made: Vec<PathBuf>,
}

impl Lowers {
    /// Beside the rootfs, so that whoever cleans the bundle cleans these too.
    fn map(mount: &Mount, parsed: &mut Parsed, users: &OwnedFd, rootfs: &Path) -> Result<Lowers> {
        let Some((at, dirs)) = options::lower_dirs(&parsed.data) else {
            return Err(bad(mount, "no lowerdir= to map the owners of"));
        };
        let within = rootfs.with_file_name("idmapped");
        make_directory(&within)?;
        let mut lowers = Lowers {
            within: Some(within.clone()),
            made: Vec::new(),
        };
        let mut names = Vec::with_capacity(dirs.len());
        for (number, dir) in dirs.iter().enumerate() {
            if dir.is_empty() {
                names.push(String::new());
                continue;
            }
            let copy = within.join(number.to_string());
            let attached = make_directory(&copy).and_then(|()| {
                let plain = PathBuf::from(dir.replace("\\:", ":"));
                let op = |source| Error::Kernel {
                    op: "map the owners of",
                    what: dir.clone(),
                    source,
                };
                let tree = sys::clone_tree(&plain, false).map_err(op)?;
                sys::map_ids(tree.as_fd(), users.as_fd()).map_err(op)?;
                sys::attach_tree(tree.as_fd(), &copy).map_err(op)
            });
            names.push(copy.to_string_lossy().replace(':', "\\:"));
            lowers.made.push(copy);
            if let Err(error) = attached {
                lowers.remove(&Notes::nowhere());
                return Err(error);
            }
        }
        parsed.data[at] = format!("lowerdir={}", names.join(":"));
        Ok(lowers)
    }

    fn remove(self, notes: &Notes) {
        for path in &self.made {
            // Detached, not forgotten: overlay holds it as long as it lives.
            match sys::umount(path, UmountFlags::MNT_DETACH) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(e) => notes.say(&format!("cannot unmount {}: {e}", path.display())),
            }
            let _ = std::fs::remove_dir(path);
        }
        if let Some(within) = self.within {
            let _ = std::fs::remove_dir(within);
        }
    }
}

/// Mounts by a program of the host, as fuse file systems need it.
fn by_program(mount: &Mount, program: &str, kind: &str, target: &Target) -> Result<()> {
    let found = crate::runc::find_program(OsStr::new(program))
        .map_err(|_| bad(mount, format!("{program} is not installed")))?;
    let failed = |source| Error::Kernel {
        op: "run",
        what: program.to_owned(),
        source,
    };
    let out = fd::memfd(c"mount-program").map_err(failed)?;
    let mut command = spawn::Command::new(found)
        .arg(&mount.source)
        .arg(&target.shown);
    for option in &mount.options {
        command = command.arg("-o").arg(option);
    }
    let child = command
        .args(["-t", kind])
        .envs(std::env::vars_os())
        .stdout(out.as_fd())
        .stderr(out.as_fd())
        .spawn()
        .map_err(failed)?;
    if !fd::wait_readable(&child.pidfd, MOUNT_PROGRAM).map_err(failed)? {
        let _ = pidfd::send_signal(&child.pidfd, 9);
        let after_ms = u64::try_from(MOUNT_PROGRAM.as_millis()).unwrap_or(u64::MAX);
        return Err(Error::Overdue {
            what: program.to_owned(),
            after_ms,
        });
    }
    let raw = pidfd::wait(&child.pidfd)
        .map_err(failed)?
        .unwrap_or_default();
    let status = std::process::ExitStatus::from_raw(raw);
    if status.success() {
        return Ok(());
    }
    let mut said = vec![0; 4096];
    let file = std::fs::File::from(out);
    let count = std::os::unix::fs::FileExt::read_at(&file, &mut said, 0).unwrap_or(0);
    let said = String::from_utf8_lossy(&said[..count]);
    Err(bad(
        mount,
        format!("{program} ended with {status}: {}", said.trim()),
    ))
}

/// How much to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Plain unmounts; what is still busy after this long in all is detached.
    Patient(Duration),
    /// Detached at once: for what has hung a worker before.
    Detach,
}

/// A mount that could only be detached: it is out of sight, and lives until
/// its last user lets go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Where it was.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// File system type.
    pub kind: String,
    /// What was mounted.
    pub source: String,
    /// Who keeps it, in words, if that could be seen.
    pub holder: Option<String>,
}

/// A path as people see it: one that is no text would not be told at all.
fn shown<S: serde::Serializer>(path: &Path, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// What unmounting came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "what was only detached must be reported"]
pub struct Unmounted {
    /// How many are really gone.
    pub gone: usize,
    /// Those that are only out of sight.
    pub detached: Vec<Detached>,
}

/// Unmounts everything at and below `path`, what sits on others first, and
/// says in `notes` what it is at and what it only detached. Nothing mounted
/// there, or no such path, is success.
pub fn unmount_below(path: &Path, manner: Manner, notes: &Notes) -> Result<Unmounted> {
    let path = mountinfo::as_shown(path);
    let mut result = Unmounted::default();
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        let found = mountinfo::below(&path)?;
        if found.is_empty() {
            return Ok(result);
        }
        let mut moved = false;
        for point in &found {
            moved |= unmount_one(point, manner, begun, &mut result, notes)?;
        }
        if !moved {
            // Listed, yet not to be unmounted by path: something was mounted
            // over a directory above it, or the directory is gone.
            break;
        }
    }
    match mountinfo::below(&path)?.first() {
        None => Ok(result),
        Some(left) => Err(Error::Kernel {
            op: "unmount",
            what: format!(
                "{} ({} from {})",
                left.path.display(),
                left.kind,
                left.source
            ),
            source: Errno::EBUSY,
        }),
    }
}

/// True if it is no longer there.
fn unmount_one(
    point: &MountPoint,
    manner: Manner,
    begun: Instant,
    result: &mut Unmounted,
    notes: &Notes,
) -> Result<bool> {
    notes.doing(&format!(
        "unmount {} from {} at {}",
        point.kind,
        point.source,
        point.path.display()
    ));
    let failed = |source| Error::Kernel {
        op: "unmount",
        what: point.path.display().to_string(),
        source,
    };
    let mut holder = None;
    if let Manner::Patient(in_all) = manner {
        loop {
            match sys::umount(&point.path, UmountFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {
                    result.gone += 1;
                    return Ok(true);
                }
                // Gone meanwhile, or with the one it sat on.
                Err(Errno::EINVAL | Errno::ENOENT) => return Ok(false),
                Err(Errno::EBUSY) if begun.elapsed() < in_all => std::thread::sleep(BETWEEN),
                Err(Errno::EBUSY) => {
                    // While its paths can still be seen.
                    holder = holder::holder(&point.path);
                    break;
                }
                Err(e) => return Err(failed(e)),
            }
        }
    }
    let detached = Detached {
        path: point.path.clone(),
        kind: point.kind.clone(),
        source: point.source.clone(),
        holder,
    };
    match sys::umount(
        &point.path,
        UmountFlags::MNT_DETACH | UmountFlags::UMOUNT_NOFOLLOW,
    ) {
        Ok(()) => {
            notes.tell(&detached);
            result.detached.push(detached);
            Ok(true)
        }
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
#[path = "rootfs/tests.rs"]
mod tests;
