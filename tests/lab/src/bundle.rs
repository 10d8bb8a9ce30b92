//! A bundle as containerd lays it out: `config.json`, `rootfs/`, `work`, the log fifo,
//! and the stdio fifos beside it.
//!
//! The spec is the least runc accepts for busybox; a test changes the one thing it is
//! about.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::{CreateTaskRequest, Mount};
use serde_json::{Value, json};

use crate::process::mkfifo;
use crate::{by, until};

/// What a container shall run, and how.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Arguments of init.
    pub args: Vec<String>,
    /// Whether init gets a terminal.
    pub terminal: bool,
    /// Memory limit in bytes.
    pub memory: Option<u64>,
    /// Whether the container has a pid namespace of its own.
    pub own_pids: bool,
    /// Further members of the spec's top level, merged last (`{"hooks": …}`).
    pub extra: Value,
}

impl Spec {
    /// A command with its arguments.
    #[must_use]
    pub fn args(args: &[&str]) -> Self {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Self {
            args,
            terminal: false,
            memory: None,
            own_pids: true,
            extra: json!({}),
        }
    }

    /// A line of shell.
    #[must_use]
    pub fn sh(script: &str) -> Self {
        Self::args(&["sh", "-c", script])
    }

    /// Something that lives until it is killed.
    #[must_use]
    pub fn sleeper() -> Self {
        // As init of a pid namespace, sh would ignore a SIGTERM it has no trap for.
        Self::sh("trap 'exit 143' TERM; while :; do sleep 1000 & wait $!; done")
    }

    /// The same with a terminal.
    #[must_use]
    pub fn on_terminal(self) -> Self {
        Self {
            terminal: true,
            ..self
        }
    }

    /// The OCI process of these arguments, as Exec wants it.
    #[must_use]
    pub fn process(&self) -> Value {
        json!({
            "terminal": self.terminal,
            "user": {"uid": 0, "gid": 0},
            "args": self.args,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "noNewPrivileges": true,
        })
    }

    /// The whole `config.json`.
    #[must_use]
    pub fn config(&self, cgroups_path: &str) -> Value {
        let mut namespaces = vec!["ipc", "uts", "mount", "network"];
        if self.own_pids {
            namespaces.push("pid");
        }
        let namespaces: Vec<_> = namespaces.iter().map(|n| json!({"type": n})).collect();
        let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
        if let Some(limit) = self.memory {
            resources["memory"] = json!({"limit": limit, "swap": limit});
        }
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": self.process(),
            "root": {"path": "rootfs"},
            "hostname": "lab",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=16m"]},
            ],
            "linux": {"cgroupsPath": cgroups_path, "namespaces": namespaces, "resources": resources},
        });
        if let (Some(config), Some(extra)) = (config.as_object_mut(), self.extra.as_object()) {
            config.extend(extra.clone());
        }
        config
    }
}

/// Which of the three streams a container gets as fifos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// stdout and stderr, no stdin.
    Output,
    /// All three.
    All,
    /// None; the container gets /dev/null.
    Empty,
}

/// A bundle on disk.
#[derive(Debug)]
pub struct Bundle {
    /// Container id, the last component of `dir`.
    pub id: String,
    /// `STATE/NAMESPACE/ID`.
    pub dir: PathBuf,
    /// Path of stdin, stdout, stderr; empty strings are none.
    pub stdio: [String; 3],
    /// Mounts of the Create request.
    pub rootfs: Vec<Mount>,
    terminal: bool,
    log: Arc<File>,
}

impl Bundle {
    /// Makes the bundle of `spec` in `state`/`namespace`, with the root file system `base` as its one mount.
    pub fn make(
        state: &Path,
        namespace: &str,
        id: &str,
        spec: &Spec,
        stdio: Stdio,
        base: &Path,
    ) -> Result<Self> {
        let dir = state.join(namespace).join(id);
        fs::create_dir_all(state.join(namespace))?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("making {}", dir.display()))?;
        fs::DirBuilder::new()
            .mode(0o711)
            .create(dir.join("rootfs"))?;
        let work = state.join("work").join(namespace).join(id);
        fs::create_dir_all(&work)?;
        symlink(&work, dir.join("work"))?;
        fs::write(
            dir.join("config.json"),
            serde_json::to_vec(&spec.config(&format!("/{namespace}/{id}")))?,
        )?;
        mkfifo(&dir.join("log"))?;
        // As containerd: both ends, before `start` runs.
        let log = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(dir.join("log"))?;
        let mut paths: [String; 3] = Default::default();
        for (path, name) in paths.iter_mut().zip(["stdin", "stdout", "stderr"]) {
            let wanted = match stdio {
                Stdio::Empty => false,
                Stdio::Output => name != "stdin",
                Stdio::All => true,
            };
            // A terminal has no stderr of its own.
            if wanted && !(spec.terminal && name == "stderr") {
                let fifo = state.join(format!("{id}-{name}"));
                mkfifo(&fifo)?;
                path.push_str(fifo.to_str().context("a path that is not UTF-8")?);
            }
        }
        let mut mount = Mount::new();
        mount.type_ = "bind".into();
        mount.source = base.to_string_lossy().into_owned();
        mount.options = vec!["rbind".into(), "ro".into()];
        Ok(Self {
            id: id.to_owned(),
            dir,
            stdio: paths,
            rootfs: vec![mount],
            terminal: spec.terminal,
            log: Arc::new(log),
        })
    }

    /// The Create request for this bundle.
    #[must_use]
    pub fn create_request(&self) -> CreateTaskRequest {
        let [stdin, stdout, stderr] = self.stdio.clone();
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.dir.to_string_lossy().into_owned(),
            rootfs: self.rootfs.clone(),
            terminal: self.terminal,
            stdin,
            stdout,
            stderr,
            ..Default::default()
        }
    }

    /// The log fifo, both ends open; a shim that opens its end waits for ours.
    #[must_use]
    pub fn log(&self) -> Arc<File> {
        Arc::clone(&self.log)
    }

    /// What the shim has written to its log so far (taken away by the call).
    #[must_use]
    pub fn log_text(&self) -> String {
        let mut text = Vec::new();
        // Ends with EAGAIN, since we hold the writing end too; what came before is in `text`.
        let _ = (&*self.log).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Removes the bundle as containerd does after a successful `delete`: unmount, then the directory.
    pub fn remove(&self) -> Result<()> {
        let rootfs = self.dir.join("rootfs");
        while nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        remove_tree(&self.dir)
    }
}

/// Removes a directory in which a living pair may still write: its next shim leaves one more
/// file, and a person would type the same again.
pub fn remove_tree(dir: &Path) -> Result<()> {
    until(
        "the directory to go",
        by(10.0),
        || match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => None,
            removed => Some(removed),
        },
    )?
    .with_context(|| format!("removing {}", dir.display()))
}

/// Lays out a root file system around the machine's static busybox.
pub fn busybox_rootfs(at: &Path) -> Result<()> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(Path::new)
        .find(|p| p.exists());
    let busybox = busybox.context("no busybox: run scripts/setup")?;
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
        fs::create_dir_all(at.join(directory))?;
    }
    fs::copy(busybox, at.join("bin/busybox"))?;
    let listing = std::process::Command::new(busybox)
        .arg("--list")
        .output()
        .context("busybox --list")?;
    if !listing.status.success() {
        bail!("busybox --list: {}", listing.status);
    }
    for applet in String::from_utf8_lossy(&listing.stdout)
        .lines()
        .filter(|a| *a != "busybox")
    {
        symlink("busybox", at.join("bin").join(applet))?;
    }
    Ok(())
}
