//! One test's set-up for driving a shim directly: scratch, event sink, root file system,
//! containers, and a polite end that is checked.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use containerd_shim_protos::api::ExecProcessRequest;

use crate::bundle::{Bundle, Spec, Stdio, busybox_rootfs};
use crate::containerd::Version;
use crate::events::EventSink;
use crate::fifo::{FifoReader, FifoWriter};
use crate::poll::{by, until};
use crate::process::mkfifo;
use crate::residue::Residue;
use crate::scratch::Scratch;
use crate::shim::{Caller, Dialect, Shim};
use crate::task::{Task, any};
use crate::times;

/// A shim binary under test.
#[derive(Debug, Clone)]
pub struct ShimBinary {
    /// Short name for reports: `go-1`, `go-2`, `vigil`.
    pub name: &'static str,
    /// The file.
    pub path: PathBuf,
    /// How the containerd it comes with calls it.
    pub dialect: Dialect,
}

impl ShimBinary {
    /// The shim of Debian's containerd.
    #[must_use]
    pub fn go_1() -> Self {
        Self {
            name: "go-1",
            path: Version::Debian.directory().join("containerd-shim-runc-v2"),
            dialect: Dialect::V1_6,
        }
    }

    /// The shim of the containerd 2 that `scripts/setup` unpacked.
    #[must_use]
    pub fn go_2() -> Self {
        Self {
            name: "go-2",
            path: Version::V2.directory().join("containerd-shim-runc-v2"),
            dialect: Dialect::V2_1,
        }
    }

    /// The containerd it came with; ours came with none, and is driven by Debian's.
    #[must_use]
    pub fn containerd(&self) -> Version {
        if self.name == "go-2" {
            Version::V2
        } else {
            Version::Debian
        }
    }

    /// What a table calls it: `Go 1.6.20`, `Vigil`.
    #[must_use]
    pub fn title(name: &str) -> String {
        match name {
            "go-1" => format!("Go {}", Version::Debian.number()),
            "go-2" => format!("Go {}", Version::V2.number()),
            "vigil" => "Vigil".to_owned(),
            other => other.to_owned(),
        }
    }

    /// Ours: `$VIGIL_SHIM`, else what cargo built last: release for the machine's target, release, debug.
    #[must_use]
    pub fn vigil() -> Option<Self> {
        let path = if let Some(path) = std::env::var_os("VIGIL_SHIM") {
            PathBuf::from(path)
        } else {
            let target = std::env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| repository().join("target"), PathBuf::from);
            let built = ["debug", "release", "x86_64-unknown-linux-gnu/release"]
                .map(|profile| target.join(profile).join("containerd-shim-vigil-v2"));
            let age = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).ok();
            built.into_iter().filter(|p| p.exists()).max_by_key(age)?
        };
        Some(Self {
            name: "vigil",
            path,
            dialect: Dialect::V1_6,
        })
    }
}

/// The root of the checkout.
#[must_use]
pub fn repository() -> PathBuf {
    // Of this crate, at the time it was built: tests run where they were built.
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[derive(Debug)]
struct Known {
    id: String,
    task: Task,
    caller: Caller,
    bundle: PathBuf,
    socket: PathBuf,
}

/// See the module.
#[derive(Debug)]
pub struct Kit {
    /// containerd's place in this play. Before `scratch`: it must go first.
    pub sink: EventSink,
    /// The binary under test.
    pub binary: ShimBinary,
    /// How `start` and `delete` are called.
    pub caller: Caller,
    known: Mutex<Vec<Known>>,
    sockets: Mutex<Vec<PathBuf>>,
    logs: Mutex<Vec<Arc<File>>>,
    readers: Mutex<Vec<Arc<FifoReader>>>,
    next: AtomicU32,
    /// Also holds the shim to the order of its events and to the time of what only reads.
    pub strict: bool,
    /// Private directory and mark.
    pub scratch: Scratch,
}

/// A container under a shim of its own, with its streams.
#[derive(Debug)]
pub struct Container {
    /// Container id.
    pub id: String,
    /// Its bundle.
    pub bundle: Bundle,
    /// Its shim.
    pub shim: Shim,
    /// Reader of stdout, if it is a fifo.
    pub stdout: Option<FifoReader>,
    /// Reader of stderr, if it is a fifo.
    pub stderr: Option<FifoReader>,
    /// The pid Create answered.
    pub pid: u32,
}

impl Container {
    /// The Task client.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.shim.task
    }

    /// The reader of stdout.
    pub fn out(&self) -> Result<&FifoReader> {
        self.stdout.as_ref().context("this container has no stdout")
    }

    /// Opens the client's end of stdin.
    pub fn stdin(&self) -> Result<FifoWriter> {
        FifoWriter::open(self.bundle.stdio[0].as_ref(), by(10.0))
    }

    /// Start of init.
    pub fn start(&self) -> Result<u32> {
        Ok(self.task().start(&self.id, "")?)
    }

    /// Exit status of init, waited for.
    pub fn exit_status(&self) -> Result<u32> {
        Ok(self.task().wait(&self.id, "")?.exit_status)
    }
}

/// An exec'd process that was registered.
#[derive(Debug)]
pub struct Exec {
    /// Exec id.
    pub id: String,
    /// Reader of its stdout.
    pub stdout: Arc<FifoReader>,
    /// Reader of its stderr, without a terminal.
    pub stderr: Option<Arc<FifoReader>>,
    /// Path of its stdin fifo.
    pub stdin: PathBuf,
}

impl Kit {
    /// Scratch, sink and root file system for one test of `binary`.
    pub fn new(binary: &ShimBinary) -> Result<Self> {
        let scratch = Scratch::new()?;
        let sink = EventSink::listen(&scratch.path("e.sock"))?;
        busybox_rootfs(&scratch.path("base"))?;
        let caller = Caller {
            binary: binary.path.clone(),
            namespace: scratch.mark().to_owned(),
            grpc: scratch.path("g.sock"),
            ttrpc: sink.address().to_owned(),
            dialect: binary.dialect,
            options: Vec::new(),
            env: Vec::new(),
        };
        Ok(Self {
            sink,
            binary: binary.clone(),
            caller,
            known: Mutex::default(),
            sockets: Mutex::default(),
            logs: Mutex::default(),
            readers: Mutex::default(),
            next: AtomicU32::new(1),
            strict: false,
            scratch,
        })
    }

    /// An id nobody has used in this kit.
    #[must_use]
    pub fn fresh_id(&self) -> String {
        format!("c{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A bundle with a fresh id.
    pub fn bundle(&self, spec: &Spec, stdio: Stdio) -> Result<Bundle> {
        let state = self.scratch.path("state");
        let bundle = Bundle::make(
            &state,
            self.scratch.mark(),
            &self.fresh_id(),
            spec,
            stdio,
            &self.scratch.path("base"),
        )?;
        self.logs
            .lock()
            .map_err(|_| anyhow::anyhow!("a test thread panicked"))?
            .push(bundle.log());
        Ok(bundle)
    }

    /// `start` for a bundle.
    pub fn shim(&self, bundle: &Bundle) -> Result<Shim> {
        self.adopt(Shim::start(&self.caller, bundle)?)
    }

    /// Makes a shim that was started otherwise one of the kit's, to be ended by [`Kit::finish`].
    pub fn adopt(&self, shim: Shim) -> Result<Shim> {
        let poisoned = |_| anyhow::anyhow!("a test thread panicked");
        self.sockets
            .lock()
            .map_err(poisoned)?
            .push(shim.reply.socket.clone());
        let known = Known {
            id: shim.id.clone(),
            task: shim.task.clone(),
            caller: shim.caller.clone(),
            bundle: shim.bundle.clone(),
            socket: shim.reply.socket.clone(),
        };
        self.known
            .lock()
            .map_err(|_| anyhow::anyhow!("a test thread panicked"))?
            .push(known);
        Ok(shim)
    }

    /// A shim and its readers, before Create.
    pub fn prepared(&self, spec: &Spec, stdio: Stdio) -> Result<Container> {
        let bundle = self.bundle(spec, stdio)?;
        let shim = self.shim(&bundle)?;
        let reader = |path: &String| {
            if path.is_empty() {
                Ok(None)
            } else {
                FifoReader::open(path.as_ref()).map(Some)
            }
        };
        let (stdout, stderr) = (reader(&bundle.stdio[1])?, reader(&bundle.stdio[2])?);
        Ok(Container {
            id: bundle.id.clone(),
            bundle,
            shim,
            stdout,
            stderr,
            pid: 0,
        })
    }

    /// A created container with `stdio`.
    pub fn created_with(&self, spec: &Spec, stdio: Stdio) -> Result<Container> {
        let mut container = self.prepared(spec, stdio)?;
        let answer = container.task().create(&container.bundle.create_request());
        container.pid = answer
            .with_context(|| format!("Create; log: {}", container.bundle.log_text()))?
            .pid;
        Ok(container)
    }

    /// A created container with output fifos.
    pub fn created(&self, spec: &Spec) -> Result<Container> {
        self.created_with(spec, Stdio::Output)
    }

    /// A started container with output fifos.
    pub fn running(&self, spec: &Spec) -> Result<Container> {
        let container = self.created(spec)?;
        container.start().context("Start")?;
        Ok(container)
    }

    /// Keeps a reader until the kit ends: a shim waits for the reader of every output.
    pub fn keep(&self, reader: Arc<FifoReader>) -> Result<()> {
        self.readers
            .lock()
            .map_err(|_| anyhow::anyhow!("a test thread panicked"))?
            .push(reader);
        Ok(())
    }

    /// Opens and keeps a reader for each output fifo of a bundle.
    pub fn read_all(&self, bundle: &Bundle) -> Result<()> {
        for path in bundle.stdio[1..].iter().filter(|p| !p.is_empty()) {
            self.keep(Arc::new(FifoReader::open(path.as_ref())?))?;
        }
        Ok(())
    }

    /// Registers an exec; nothing runs until it is started.
    pub fn exec(&self, container: &Container, id: &str, spec: &Spec) -> Result<Exec> {
        let base = self
            .scratch
            .path("state")
            .join(format!("{}-{id}", container.id));
        let path = |name: &str| base.with_extension(name);
        mkfifo(&path("stdin"))?;
        mkfifo(&path("stdout"))?;
        let stdout = Arc::new(FifoReader::open(&path("stdout"))?);
        self.keep(Arc::clone(&stdout))?;
        let mut request = ExecProcessRequest {
            id: container.id.clone(),
            exec_id: id.into(),
            terminal: spec.terminal,
            stdin: path("stdin").to_string_lossy().into_owned(),
            stdout: path("stdout").to_string_lossy().into_owned(),
            spec: Some(exec_spec(spec)).into(),
            ..Default::default()
        };
        let mut stderr = None;
        if !spec.terminal {
            mkfifo(&path("stderr"))?;
            let reader = Arc::new(FifoReader::open(&path("stderr"))?);
            self.keep(Arc::clone(&reader))?;
            stderr = Some(reader);
            request.stderr = path("stderr").to_string_lossy().into_owned();
        }
        container.task().exec(&request)?;
        Ok(Exec {
            id: id.into(),
            stdout,
            stderr,
            stdin: path("stdin"),
        })
    }

    /// Notes how long calls took; those that only read and were slow, in words.
    fn slow_reads(&self, task: &Task) -> Vec<String> {
        let mut slow = Vec::new();
        for (method, took) in task.times() {
            times::note(self.binary.name, &method, took);
            if times::READING.contains(&method.as_str()) && took > times::READING_LIMIT {
                slow.push(format!("{method} took {took:?}"));
            }
        }
        slow
    }

    /// Ends every container as containerd would, then fails if anything is left anywhere.
    pub fn finish(self) -> Result<()> {
        let mark = self.scratch.mark().to_owned();
        let mut slow = Vec::new();
        for known in self
            .known
            .lock()
            .map_err(|_| anyhow::anyhow!("a test thread panicked"))?
            .drain(..)
        {
            let task = known.task.patient(5.0);
            slow.extend(self.slow_reads(&task));
            let hung_up = task.client().closed();
            let _ = task.resume(&known.id);
            let _ = task.kill(&known.id, "", 9, true);
            let _ = task.wait(&known.id, "");
            let _ = task.delete(&known.id, "");
            // The answer may be cut off or come late; that the shim goes is what counts, below.
            let _ = task.shutdown(&known.id);
            // A bundle the test has removed already had its `delete`.
            if known.bundle.exists() {
                // Its end must come; a failure shows as residue below. (Go's exits 1 when nothing was created.)
                known
                    .caller
                    .delete(&known.id, &known.bundle)
                    .context("the closing delete")?;
                let _ = nix::mount::umount2(
                    &known.bundle.join("rootfs"),
                    nix::mount::MntFlags::empty(),
                );
                std::fs::remove_dir_all(&known.bundle)
                    .with_context(|| format!("removing {}", known.bundle.display()))?;
            }
            if !hung_up {
                let gone = until("the shim to remove its socket", by(12.0), || {
                    (!known.socket.exists()).then_some(())
                });
                gone.with_context(|| known.socket.display().to_string())?;
            }
        }
        if self.strict {
            let breaches = crate::order::breaches(&self.sink.all());
            anyhow::ensure!(breaches.is_empty(), "{}", breaches.join("; "));
            anyhow::ensure!(slow.is_empty(), "{}", slow.join("; "));
        }
        let sink = format!("listening socket {}", self.sink.address().display());
        let runc = format!("file /run/containerd/runc/{mark}");
        // The namespace's own cgroup and directory stay in containerd too; the scratch removes them.
        // A waiter that has nothing to sleep on looks again after a minute at the latest.
        Residue::expect_none(&mark, by(75.0), |line| {
            line == sink || line == runc || line.starts_with("cgroup ") && line.ends_with(&mark)
        })
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        // Go's `delete` leaves the socket of a killed shim behind; the machine must not fill up with them.
        for socket in self
            .sockets
            .lock()
            .map(|mut s| std::mem::take(&mut *s))
            .unwrap_or_default()
        {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// The `Any` of an exec's process.
#[must_use]
pub fn exec_spec(spec: &Spec) -> protobuf::well_known_types::any::Any {
    any(
        "types.containerd.io/opencontainers/runtime-spec/1/Process",
        spec.process().to_string(),
    )
}
