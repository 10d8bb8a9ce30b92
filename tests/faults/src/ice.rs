//! File systems that can be made to stand still: an ext4 on a loop device whose backing
//! file lies on another ext4 on a loop device.
//!
//! Freezing the inner one stops who writes to it, in uninterruptible sleep; freezing the
//! outer one stops the inner one's *device*, so that even unmounting sleeps. It must never
//! stay frozen: a guard thaws when it is dropped, and a process of its own thaws when the
//! test's process is gone or the time it gave itself is over.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vigil_lab::process::Process;
use vigil_lab::{by, until};

use crate::watch::waits_for_a_device;

/// Two file systems, one on the other. Drop it before the scratch it lies in.
#[derive(Debug)]
pub struct Ice {
    dir: PathBuf,
    frozen: Mutex<Vec<Frozen>>,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The one files are written to: its writers sleep.
    Files,
    /// The one its device lies on: whatever needs the device sleeps.
    Device,
}

/// One frozen file system, and who thaws it if we cannot.
#[derive(Debug)]
struct Frozen {
    mount: PathBuf,
    watchdog: Child,
}

/// Its read ends when its standard input does, which is when the test's process is gone.
/// The path is no argument: what bears the test's mark there is killed with the test.
const WATCHDOG: &str =
    "read -r dir; read -r -t \"$0\" x; [ \"$x\" = over ] || exec /usr/sbin/fsfreeze -u \"$dir\"";

/// Runs a tool of the machine, which must succeed.
fn tool(name: &str, args: &[&str]) -> Result<()> {
    let ran = Command::new(name)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {name}"))?;
    ensure!(
        ran.status.success(),
        "{name} {args:?}: {}: {}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr).trim()
    );
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

impl Ice {
    /// Makes and mounts both below `scratch`, whose mark they bear.
    pub fn make(scratch: &Path) -> Result<Self> {
        let dir = scratch.join("ice");
        fs::create_dir(&dir)?;
        let ice = Self {
            dir,
            frozen: Mutex::default(),
        };
        for (at, size, on) in [
            (ice.dir.join("outer"), 64 << 20, ice.dir.join("outer.img")),
            (
                ice.files(),
                32 << 20,
                ice.dir.join("outer").join("inner.img"),
            ),
        ] {
            fs::File::create(&on)?.set_len(size)?;
            tool("mkfs.ext4", &["-q", text(&on)?])?;
            fs::create_dir(&at)?;
            tool("mount", &["-o", "loop", text(&on)?, text(&at)?])?;
        }
        for name in ["upper", "work"] {
            fs::create_dir(ice.files().join(name))?;
        }
        Ok(ice)
    }

    /// Where files are written that shall not come to rest.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.dir.join("inner")
    }

    fn mount(&self, layer: Layer) -> PathBuf {
        match layer {
            Layer::Files => self.files(),
            Layer::Device => self.dir.join("outer"),
        }
    }

    /// Freezes one for at most `seconds`.
    pub fn freeze(&self, layer: Layer, seconds: u32) -> Result<()> {
        let mount = self.mount(layer);
        if layer == Layer::Device {
            // So that there is something to be written when it is unmounted.
            fs::write(self.files().join("dirt"), vec![1; 1 << 20])?;
        }
        let mut watchdog = Command::new("busybox")
            .args(["sh", "-c", WATCHDOG, &seconds.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .context("starting who thaws")?;
        if let Some(stdin) = &mut watchdog.stdin {
            writeln!(stdin, "{}", mount.display())?;
        }
        let mut frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        frozen.push(Frozen {
            mount: mount.clone(),
            watchdog,
        });
        drop(frozen);
        tool("fsfreeze", &["-f", text(&mount)?])?;
        if layer == Layer::Device {
            self.dirty()?;
        }
        Ok(())
    }

    /// Something to be written, from behind the frozen device. What was written before the
    /// freeze the kernel of a busy machine may have brought to rest by then, and an unmount that
    /// has nothing to write does not sleep. If this one sleeps itself, so does the unmount.
    fn dirty(&self) -> Result<()> {
        let mut writer = Command::new("busybox")
            .args(["dd", "if=/dev/zero", "of=dirt", "bs=64k", "count=8"])
            .arg("conv=notrunc")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir(self.files())
            .spawn()
            .context("starting who writes")?;
        let pid = i32::try_from(writer.id())?;
        until("who writes to be through or to sleep", by(10.0), || {
            let ended = writer.try_wait().ok()?.is_some();
            (ended || waits_for_a_device(pid)).then_some(())
        })
    }

    /// Thaws whatever is frozen.
    pub fn thaw(&self) {
        let mut frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        for mut one in frozen.drain(..).rev() {
            if let Some(mount) = one.mount.to_str() {
                // Fails when the watchdog was first.
                let _ = tool("fsfreeze", &["-u", mount]);
            }
            if let Some(mut stdin) = one.watchdog.stdin.take() {
                let _ = stdin.write_all(b"over\n");
            }
            let _ = one.watchdog.wait();
        }
    }

    /// The mount of a root file system whose upper layer lies here, over `base`.
    #[must_use]
    pub fn overlay(&self, base: &Path) -> containerd_shim_protos::api::Mount {
        let files = self.files();
        containerd_shim_protos::api::Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", base.display()),
                format!("upperdir={}/upper", files.display()),
                format!("workdir={}/work", files.display()),
            ],
            ..Default::default()
        }
    }

    /// A mount of the spec that puts [`Ice::files`] at `/ice` of a container.
    #[must_use]
    pub fn bound(&self) -> serde_json::Value {
        serde_json::json!({
            "destination": "/ice", "type": "bind", "source": self.files(), "options": ["rbind", "rw"],
        })
    }
}

impl Drop for Ice {
    fn drop(&mut self) {
        self.thaw();
        for layer in [Layer::Files, Layer::Device] {
            let mount = self.mount(layer);
            // Who was stopped may still hold it, and so do the mount namespaces that other
            // tests have made meanwhile. The scratch detaches what is left.
            let _ = until("it to be unmounted", by(40.0), || {
                nix::mount::umount(&mount).ok()
            });
        }
    }
}

/// Waits until a process sleeps uninterruptibly, and not for a moment only.
pub fn sleeps(pid: i32) -> Result<()> {
    let mut since = None;
    until(&format!("{pid} to sleep uninterruptibly"), by(10.0), || {
        if Process::read(pid).is_some_and(|p| p.state == 'D') {
            let began = *since.get_or_insert_with(Instant::now);
            return (began.elapsed() > Duration::from_millis(150)).then_some(());
        }
        since = None;
        None
    })
}
