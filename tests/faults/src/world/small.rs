//! A `/run` of one's own that is small: for whatever is started in it, the state of
//! containerd, of runc and of the shim shares some hundred KiB, and the machine's own
//! `/run` is not touched.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use vigil_lab::Kit;

/// The small file system that is `/run` and the state directory of the kit.
#[derive(Debug)]
pub struct SmallRun {
    place: PathBuf,
}

/// What a small `/run` is made of.
#[derive(Debug, Clone, Copy)]
pub enum Medium {
    /// A tmpfs with these options: `size=256k`, `nr_inodes=100`.
    Tmpfs(&'static str),
    /// An ext4 of 16 MiB in a loop device, which becomes read-only at its first error.
    Ext4,
}

/// Runs `test` in a mount namespace of its own, in which `/run` and the kit's state
/// directory are one small file system. Containers must be made in it and be gone at its
/// end.
pub fn in_small_run(
    kit: &Kit,
    medium: Medium,
    test: impl FnOnce(&SmallRun) -> Result<()> + Send,
) -> Result<()> {
    let state = kit.scratch.path("state");
    fs::create_dir_all(&state)?;
    // Without the kit's mark: the kit's own ends of fifos keep it mounted a while longer.
    let image = std::env::temp_dir().join(format!(
        "run-{}-{:?}.ext4",
        std::process::id(),
        std::thread::current().id()
    ));
    std::thread::scope(|scope| {
        // A thread of its own: namespaces belong to threads, and this one ends with it.
        let thread = scope.spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, "/", none, private, none).context("making mounts private")?;
            match medium {
                Medium::Tmpfs(options) => {
                    mount(
                        Some("small"),
                        "/run",
                        Some("tmpfs"),
                        MsFlags::empty(),
                        Some(options),
                    )
                    .context("mounting a small /run")?;
                }
                Medium::Ext4 => {
                    File::create(&image)?.set_len(16 << 20)?;
                    done(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
                    let options = ["-o", "loop,errors=remount-ro"];
                    let mounted = done(Command::new("mount").args(options).arg(&image).arg("/run"));
                    let _ = fs::remove_file(&image);
                    mounted?;
                }
            }
            for directory in ["containerd/s", "containerd/runc", "state", "lock"] {
                fs::create_dir_all(Path::new("/run").join(directory))?;
            }
            mount(Some("/run/state"), &state, none, MsFlags::MS_BIND, none)?;
            let small = SmallRun {
                place: "/run/filling".into(),
            };
            let outcome = test(&small);
            small.free();
            let _ = umount2(&state, MntFlags::MNT_DETACH);
            outcome
        });
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the test panicked"))?
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

    /// Makes an ext4 read-only as the kernel does when it finds an error, with files open
    /// for writing.
    pub fn break_ext4(&self) -> Result<()> {
        let table = fs::read_to_string("/proc/thread-self/mounts")?;
        let device = table.lines().rev().find_map(|line| {
            let mut words = line.split(' ');
            let device = words.next()?;
            (words.next()? == "/run").then_some(device)
        });
        let name = device
            .and_then(|d| d.strip_prefix("/dev/loop"))
            .context("/run is no loop device")?;
        let trigger = format!("/sys/fs/ext4/loop{name}/trigger_fs_error");
        fs::write(&trigger, "1").with_context(|| trigger.clone())?;
        ensure!(
            fs::write("/run/probe", "x").is_err(),
            "/run can be written to"
        );
        Ok(())
    }
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {words}",
        output.status
    );
    Ok(())
}
