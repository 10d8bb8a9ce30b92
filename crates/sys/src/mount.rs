//! Mounting: mount(2), umount2(2), the fd-based calls for id-mapped mounts,
//! and loop devices. All of it can sleep uninterruptibly and runs in a
//! worker, never on a thread that answers requests. What the options of a
//! mount mean is not known here.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag};

use crate::{Errno, Result, fd};

/// Flags of umount2(2).
pub use nix::mount::MntFlags as UmountFlags;
/// `MS_*` flags of mount(2).
pub use nix::mount::MsFlags as Flags;

/// mount(2). `None` passes a null pointer.
pub fn mount(
    source: Option<&OsStr>,
    target: &Path,
    kind: Option<&str>,
    flags: Flags,
    data: Option<&OsStr>,
) -> Result<()> {
    nix::mount::mount(source, target, kind, flags, data)
}

/// umount2(2).
pub fn umount(target: &Path, flags: UmountFlags) -> Result<()> {
    nix::mount::umount2(target, flags)
}

/// Makes an existing bind mount read-only; the other per-mount flags stay as
/// `flags` says.
pub fn remount_bind_readonly(target: &Path, flags: Flags) -> Result<()> {
    let flags = flags | Flags::MS_BIND | Flags::MS_REMOUNT | Flags::MS_RDONLY;
    mount(None, target, None, flags, None)
}

/// Changes the propagation of a mount: one of `MS_SHARED`, `MS_PRIVATE`,
/// `MS_SLAVE`, `MS_UNBINDABLE`, possibly with `MS_REC`.
pub fn set_propagation(target: &Path, flags: Flags) -> Result<()> {
    mount(None, target, None, flags, None)
}

/// Gives the calling thread a mount namespace of its own in which nothing
/// propagates back; other threads of the process stay where they are.
pub fn unshare_private() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    set_propagation(Path::new("/"), Flags::MS_REC | Flags::MS_PRIVATE)
}

/// Opens (as `O_PATH`) what `path` means when `root` is the root directory:
/// symlinks, absolute ones too, and `..` stay below it. `root` itself is no symlink (`ENOTDIR`).
pub fn open_inside(root: &Path, path: &Path) -> Result<OwnedFd> {
    let root = nix::fcntl::open(
        root,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // EAGAIN: something was renamed meanwhile, and `..` could not be trusted.
    for _ in 0..16 {
        match nix::fcntl::openat2(&root, path, how) {
            Err(Errno::EAGAIN) => {}
            answer => return answer,
        }
    }
    Err(Errno::EAGAIN)
}

/// A path by which the kernel finds what `fd` is open on.
pub fn path_of(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Whether `path` lies on a tmpfs: there fsync is free and a reboot forgets.
pub fn is_tmpfs(path: &Path) -> Result<bool> {
    Ok(nix::sys::statfs::statfs(path)?.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

/// A detached copy of the mount at `path` (with those below it if
/// `recursive`); it vanishes with the descriptor unless attached.
pub fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let path = c_path(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    // SAFETY: the path is nul-terminated and lives until after the call.
    let raw = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    owned(raw)
}

/// Maps the owners of a detached tree by `user_namespace`.
pub fn map_ids(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: all fields are plain integers, for which zero is a value.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = u64::try_from(user_namespace.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    // SAFETY: the structure is passed with its size; the path is an empty
    // nul-terminated string.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(answer).map(drop)
}

/// Attaches a detached tree at `target`.
pub fn attach_tree(tree: BorrowedFd<'_>, target: &Path) -> Result<()> {
    let target = c_path(target)?;
    // SAFETY: both paths are nul-terminated and live until after the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS,
        )
    };
    Errno::result(answer).map(drop)
}

/// A user namespace with the given maps (lines as in `/proc/PID/uid_map`), for
/// [`map_ids`]. Forks a worker, hence `EINVAL` in a process of several threads.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    let (made, made_in) = fd::pipe()?;
    let (hold, hold_in) = fd::pipe()?;
    let keep = [made_in.as_fd(), hold.as_fd()];
    let child = crate::spawn::fork_worker(&keep, || {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_err() {
            return 1;
        }
        let told = nix::unistd::write(&made_in, b"1");
        // Lives until the parent has opened its namespace, or is gone.
        let _ = nix::unistd::read(&hold, &mut [0]);
        i32::from(told.is_err())
    })?;
    drop(made_in);
    drop(hold);
    let opened = nix::unistd::read(&made, &mut [0]).and_then(|count| {
        if count == 0 {
            return Err(Errno::EPERM);
        }
        let of = |name: &str| format!("/proc/{}/{name}", child.pid);
        write_all(&of("uid_map"), uid_map)?;
        write_all(&of("gid_map"), gid_map)?;
        File::open(of("ns/user"))
            .map(OwnedFd::from)
            .map_err(|e| errno(&e))
    });
    drop(hold_in);
    // It does nothing but wait for us; the bound is for the case that it was
    // stopped by somebody.
    if !fd::wait_readable(&child.pidfd, std::time::Duration::from_secs(2))? {
        crate::pidfd::send_signal(&child.pidfd, libc::SIGKILL)?;
        fd::wait_readable(&child.pidfd, std::time::Duration::from_secs(2))?;
    }
    let _ = crate::pidfd::wait(&child.pidfd);
    opened
}

fn write_all(path: &str, text: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| errno(&e))
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

fn owned(raw: libc::c_long) -> Result<OwnedFd> {
    let raw = i32::try_from(Errno::result(raw)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

// Of linux/loop.h; not in libc.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// A loop device on a file. It goes by itself (autoclear) when the last
/// descriptor *and* the last mount of it are gone.
#[derive(Debug)]
pub struct LoopDevice {
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// Holds it until it is mounted.
    pub fd: OwnedFd,
}

/// Attaches `file` to a free loop device. `EBUSY` after 100 times losing the
/// race for the free one.
pub fn attach_loop(file: &Path, read_only: bool, direct_io: bool) -> Result<LoopDevice> {
    let open = |path: &Path| {
        OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|e| errno(&e))
    };
    let backing = open(file)?;
    let control = open(Path::new("/dev/loop-control"))
        .or_else(|_| File::open("/dev/loop-control").map_err(|e| errno(&e)))?;
    let mut flags = LO_FLAGS_AUTOCLEAR;
    if read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    if direct_io {
        flags |= LO_FLAGS_DIRECT_IO;
    }
    // SAFETY: all fields are plain integers, for which zero is a value.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = backing.as_raw_fd().cast_unsigned();
    config.info.flags = flags;
    // For losetup(8) to show; cut, and always nul-terminated.
    let name = file.as_os_str().as_bytes();
    let shown = name.len().min(config.info.file_name.len() - 1);
    config.info.file_name[..shown].copy_from_slice(&name[..shown]);
    for _ in 0..100 {
        // SAFETY: takes no argument, returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = Errno::result(number)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path)?;
        // SAFETY: the structure is the one this request reads.
        let answer = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match Errno::result(answer) {
            Ok(_) => {
                return Ok(LoopDevice {
                    path,
                    fd: device.into(),
                });
            }
            Err(Errno::EBUSY) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::EBUSY)
}

/// The size of a page, which bounds the data of mount(2).
pub fn page_size() -> usize {
    // SAFETY: asks for a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
