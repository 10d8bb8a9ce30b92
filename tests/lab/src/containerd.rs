//! A private containerd: own root, state and sockets below /tmp, started and ended by
//! the test that wants it.
//!
//! It must never be confused with a containerd of the machine: every `ctr` gets the
//! private address, every container the scratch's namespace.

use std::fmt::Write;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as Pipe};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::kit::{ShimBinary, repository};
use crate::poll::{by, until};
use crate::residue::Residue;
use crate::scratch::Scratch;
use crate::shim::{Ran, run};

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian's, as installed.
    Debian,
    /// The newest containerd 2 that was to be had, unpacked by `scripts/setup`.
    V2,
}

impl Version {
    /// The directory of `containerd`, `ctr` and the Go shim.
    #[must_use]
    pub fn directory(self) -> PathBuf {
        match self {
            Self::Debian => "/usr/bin".into(),
            Self::V2 => repository().join(".lab/containerd-2/usr/bin"),
        }
    }

    /// Its number as the program itself says, `1.6.20`; `?` where it cannot be asked.
    #[must_use]
    pub fn number(self) -> &'static str {
        static NUMBERS: [OnceLock<String>; 2] = [OnceLock::new(), OnceLock::new()];
        let asked = || {
            let program = self.directory().join("containerd");
            let said = Command::new(program).arg("--version").output().ok();
            let text = said.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
            text.as_deref().and_then(number).unwrap_or("?").to_owned()
        };
        NUMBERS[self as usize].get_or_init(asked)
    }

    /// Whether it is there.
    #[must_use]
    pub fn installed(self) -> bool {
        self.directory().join("containerd").exists()
    }
}

/// The number in what `containerd --version` prints: program, module, version, revision.
fn number(said: &str) -> Option<&str> {
    let version = said.split_whitespace().nth(2)?.trim_start_matches('v');
    let end = version.find(|c: char| c != '.' && !c.is_ascii_digit());
    let number = &version[..end.unwrap_or(version.len())];
    (!number.is_empty()).then_some(number)
}

/// The image every test runs.
pub const IMAGE: &str = "docker.io/library/vigil-busybox:latest";

/// Path of the socket of a shim that groups by nothing but its own id (contract §5).
#[must_use]
pub fn socket_of(address: &Path, namespace: &str, id: &str) -> PathBuf {
    let key = address.join(namespace).join(id);
    let mut hex = String::new();
    for byte in Sha256::digest(key.as_os_str().as_encoded_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    Path::new("/run/containerd/s").join(hex)
}

/// A running private containerd.
#[derive(Debug)]
pub struct Containerd {
    version: Version,
    process: Option<Child>,
    path: String,
    /// What the daemon, and so every shim, gets beside the environment of the tests.
    env: Vec<(String, String)>,
    /// Private directory; its mark is the namespace. Dropped last.
    pub scratch: Scratch,
}

impl Containerd {
    /// Starts one and imports the busybox image. `shim` is put first in its PATH.
    pub fn start(version: Version, shim: Option<&ShimBinary>) -> Result<Self> {
        Self::start_with(version, shim, &[])
    }

    /// The same with further environment for the daemon.
    pub fn start_with(
        version: Version,
        shim: Option<&ShimBinary>,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        // resolveRuntimePath (contract §1.6) looks in PATH; ours must come before any installed one.
        let mut path: Vec<String> = shim
            .iter()
            .filter_map(|s| Some(s.path.parent()?.to_str()?.to_owned()))
            .collect();
        path.push(version.directory().to_string_lossy().into_owned());
        path.push(std::env::var("PATH").unwrap_or_default());
        for directory in ["/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
            path.push(directory.into());
        }
        let mut containerd = Self {
            version,
            process: None,
            path: path.join(":"),
            env: env
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            scratch,
        };
        containerd.write_config()?;
        containerd.launch()?;
        containerd.import()?;
        Ok(containerd)
    }

    fn write_config(&self) -> Result<()> {
        let dir = self.scratch.dir().display().to_string();
        // Plugins that reach outside the private directories, or that nobody here needs.
        let disabled = [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.nri.v1.nri",
            "io.containerd.internal.v1.opt",
            "io.containerd.internal.v1.tracing",
            "io.containerd.tracing.processor.v1.otlp",
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.devmapper",
            "io.containerd.snapshotter.v1.zfs",
            "io.containerd.snapshotter.v1.erofs",
            "io.containerd.snapshotter.v1.blockfile",
        ];
        // Not debug: Go's shims would open a second, debugging socket and leave that behind too.
        let config = format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\ndisabled_plugins = {disabled:?}\n\
             [grpc]\naddress = \"{dir}/c.sock\"\n[ttrpc]\naddress = \"{dir}/c.sock.ttrpc\"\n\
             [debug]\nlevel = \"info\"\n"
        );
        fs::write(self.scratch.path("config.toml"), config).context("writing config.toml")
    }

    /// containerd's gRPC socket.
    #[must_use]
    pub fn address(&self) -> PathBuf {
        self.scratch.path("c.sock")
    }

    /// The namespace of its containers.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.scratch.mark()
    }

    /// The bundle of a task.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.scratch
            .dir()
            .join("state/io.containerd.runtime.v2.task")
            .join(self.namespace())
            .join(id)
    }

    /// The socket of a task's shim when it groups by nothing but its own id (contract §5).
    #[must_use]
    pub fn shim_socket(&self, id: &str) -> PathBuf {
        socket_of(&self.address(), self.namespace(), id)
    }

    /// Starts the daemon (again) and waits until it answers.
    pub fn launch(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.scratch.path("containerd.log"))?;
        let binary = self.version.directory().join("containerd");
        ensure!(
            binary.exists(),
            "no {}: run scripts/setup",
            binary.display()
        );
        let child = Command::new(&binary)
            .arg("-c")
            .arg(self.scratch.path("config.toml"))
            .env("PATH", &self.path)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Pipe::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        self.process = Some(child);
        let ready = until("containerd to answer", by(30.0), || {
            if let Some(Ok(Some(status))) = self.process.as_mut().map(Child::try_wait) {
                return Some(Err(anyhow::anyhow!("containerd ended: {status}")));
            }
            self.address()
                .exists()
                .then(|| self.ctr(&["version"]).map(drop))
                .filter(Result::is_ok)
        });
        ready.and_then(|r| r).with_context(|| self.log_tail())
    }

    /// Stands still until it is ended; what it would do about a death comes after that.
    pub fn freeze(&self) -> Result<()> {
        let child = self.process.as_ref().context("containerd is not running")?;
        let pid = i32::try_from(child.id()).context("a pid")?;
        // Our own unreaped child: the number cannot be anyone else's.
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
        Ok(())
    }

    /// Replaces the daemon by one of another version, as an upgrade does; containers stay.
    pub fn relaunch_as(&mut self, version: Version) -> Result<()> {
        self.stop(15)?;
        self.version = version;
        self.launch()
    }

    /// Ends the daemon with SIGTERM, or SIGKILL; containers stay.
    pub fn stop(&mut self, signal: i32) -> Result<()> {
        let Some(mut child) = self.process.take() else {
            return Ok(());
        };
        let pid = i32::try_from(child.id()).context("a pid")?;
        // Our own unreaped child: the number cannot be anyone else's.
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::try_from(signal)?,
        )?;
        let ended = until("containerd to end", by(10.0), || {
            child.try_wait().ok().flatten()
        });
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_file(self.address());
        ended.map(drop)
    }

    fn import(&self) -> Result<()> {
        let image = repository().join(".lab/busybox.tar");
        if !image.exists() {
            fs::create_dir_all(repository().join(".lab"))?;
            let made = Command::new(repository().join("scripts/busybox-image"))
                .arg(&image)
                .status()?;
            ensure!(made.success(), "scripts/busybox-image: {made}");
        }
        self.ctr(&[
            "images",
            "import",
            image.to_str().context("a path that is not UTF-8")?,
        ])
        .map(drop)
    }

    /// A `ctr` command for this daemon and namespace, not yet run.
    #[must_use]
    pub fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.version.directory().join("ctr"));
        command
            .arg("--address")
            .arg(self.address())
            .arg("--namespace")
            .arg(self.namespace())
            .args(args);
        command.env("PATH", &self.path);
        command
    }

    /// Runs `ctr`, whatever its exit status.
    pub fn try_ctr(&self, args: &[&str]) -> Result<Ran> {
        run(&mut self.ctr_command(args), &[], false, by(60.0))
    }

    /// Runs `ctr` and gives its stdout; an error if it fails.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let ran = self.try_ctr(args)?;
        if !ran.status.success() {
            bail!(
                "ctr {args:?}: {}: {}",
                ran.status,
                String::from_utf8_lossy(&ran.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    /// The status column of `ctr tasks ls` for `id`, if it is listed.
    pub fn task_status(&self, id: &str) -> Result<Option<String>> {
        let table = self.ctr(&["tasks", "ls"])?;
        Ok(table.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(id)).then(|| words.nth(1).unwrap_or_default().to_owned())
        }))
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.scratch.path("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "the end of containerd's log:\n{}",
            lines[lines.len().saturating_sub(15)..].join("\n")
        )
    }

    /// Fails if anything of this namespace is left, the daemon itself apart.
    pub fn expect_clean(&self) -> Result<()> {
        let (dir, mark) = (
            self.scratch.dir().display().to_string(),
            self.scratch.mark().to_owned(),
        );
        let runc = format!("file /run/containerd/runc/{mark}");
        Residue::expect_none(&mark, by(6.0), |line| {
            line.starts_with("process ") && line.contains(&format!("containerd -c {dir}"))
                || line.starts_with(&format!("listening socket {dir}/c.sock"))
                || line == runc
                || line.starts_with("cgroup ") && line.ends_with(&mark)
        })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Shims, containers and mounts are the scratch's to end; the daemon first, or it would fight back.
        if self.stop(9).is_err() {
            eprintln!("lab: containerd did not end");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_the_program_says() {
        for (said, expected) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u2\n",
                "1.6.20",
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9~ds2 \n",
                "2.1.9",
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.3.0-rc.1 abc\n",
                "2.3.0",
            ),
        ] {
            assert_eq!(number(said), Some(expected), "{said}");
        }
        assert_eq!(number("containerd: not found"), None);
        assert_eq!(number("Segmentation fault"), None);
    }
}
