//! A `/run` of one's own that is small: for whatever is started in it, the state of
//! containerd, of runc and of the shim shares some hundred KiB, and the machine's own
//! `/run` is not touched.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use vigil_lab::Kit;

/// The small file system that is `/run` and the state directory of the kit.
#[derive(Debug)]
pub struct SmallRun {
    place: PathBuf,
}

/// Runs `test` in a mount namespace of its own, in which `/run` and the kit's state
/// directory are one tmpfs with `options` (`size=256k`, `nr_inodes=100`). Containers
/// must be made in it and be gone at its end.
pub fn in_small_run(
    kit: &Kit,
    options: &str,
    test: impl FnOnce(&SmallRun) -> Result<()> + Send,
) -> Result<()> {
    let state = kit.scratch.path("state");
    fs::create_dir_all(&state)?;
    std::thread::scope(|scope| {
        // A thread of its own: namespaces belong to threads, and this one ends with it.
        let thread = scope.spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, "/", none, private, none).context("making mounts private")?;
            mount(Some("small"), "/run", Some("tmpfs"), MsFlags::empty(), Some(options))
                .context("mounting a small /run")?;
            for directory in ["containerd/s", "containerd/runc", "state", "lock"] {
                fs::create_dir_all(Path::new("/run").join(directory))?;
            }
            mount(Some("/run/state"), &state, none, MsFlags::MS_BIND, none)?;
            let small = SmallRun { place: "/run/filling".into() };
            let outcome = test(&small);
            // A failed test may leave it read-only.
            let _ = small.writable();
            small.free();
            let _ = umount2(&state, MntFlags::MNT_DETACH);
            outcome
        });
        thread.join().map_err(|_| anyhow::anyhow!("the test panicked"))?
    })
}

impl SmallRun {
    /// Takes all space that is left.
    pub fn fill(&self) -> Result<()> {
        fs::create_dir_all(&self.place)?;
        let mut file = File::create(self.place.join("space"))?;
        for size in [65536, 4096] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        let probe = fs::write("/run/probe", "x");
        let _ = fs::remove_file("/run/probe");
        ensure!(probe.is_err(), "/run is not full");
        Ok(())
    }

    /// Takes all inodes that are left.
    pub fn fill_inodes(&self) -> Result<()> {
        fs::create_dir_all(&self.place)?;
        for number in 0..100_000 {
            if File::create(self.place.join(number.to_string())).is_err() {
                return Ok(());
            }
        }
        anyhow::bail!("no end of inodes")
    }

    /// Gives back what was taken.
    pub fn free(&self) {
        let _ = fs::remove_dir_all(&self.place);
    }

    /// Nothing can be written to it from now on.
    pub fn read_only(&self) -> Result<()> {
        // The file system itself, so that all its mounts are read-only, open files apart.
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, "/run", None::<&str>, flags, None::<&str>).context("remount")
    }

    /// It can be written to again.
    pub fn writable(&self) -> Result<()> {
        mount(None::<&str>, "/run", None::<&str>, MsFlags::MS_REMOUNT, None::<&str>)
            .context("remount")
    }
}
