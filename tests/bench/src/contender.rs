//! One shim binary in the race: its private place, the pairs it made, and their end.
//!
//! Plays containerd by the laboratory's rules (same flags, same bundle), but through
//! `Line` and `clock`. It must leave nothing behind,
//! and proves that when it ends.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api;
use vigil_lab::bundle::{Stdio, busybox_rootfs};
use vigil_lab::kit::exec_spec;
use vigil_lab::process::{Process, mkfifo};
use vigil_lab::shim::{Caller, parse_reply};
use vigil_lab::task::{V2, V3};
use vigil_lab::{Bundle, Residue, Scratch, ShimBinary, Spec, by, until};

use crate::clock::{self, Ran};
use crate::line::Line;
use crate::{memory, sink};

/// A shim binary and its private place.
#[derive(Debug)]
pub struct Contender {
    /// Which.
    pub binary: ShimBinary,
    caller: Caller,
    next: u32,
    scratch: Scratch,
    /// After the scratch, whose end takes what is mounted there.
    state: State,
}

/// Where the bundles lie: in memory, as below containerd's `/run`, whatever /tmp is.
#[derive(Debug)]
struct State(PathBuf);

/// A file system in memory on every Linux machine.
const IN_MEMORY: &str = "/dev/shm";

impl State {
    fn new(mark: &str) -> Result<Self> {
        let dir = Path::new(IN_MEMORY).join(mark);
        std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("bench: removing {}: {error}", self.0.display());
        }
    }
}

/// Removes what runs that were killed have left there; call it after the laboratory's sweep.
pub fn sweep() {
    for entry in std::fs::read_dir(IN_MEMORY).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| {
            let (pid, _) = name.strip_prefix("vl")?.split_once('x')?;
            pid.parse().ok()
        });
        if maker.is_some_and(|pid| !vigil_lab::process::alive(pid)) {
            drop(State(entry.path()));
        }
    }
}

/// A shim that was started; with ours, two processes.
#[derive(Debug)]
pub struct Pair {
    /// The container's bundle.
    pub bundle: Bundle,
    /// The one connection to it.
    pub line: Line,
    /// The run of `start`.
    pub start: Ran,
    /// From before `start` until the first answer to Connect.
    pub first_answer: Duration,
    socket: PathBuf,
    /// Both ends of the stdio fifos, as a client that does not read just now.
    _stdio: Vec<File>,
}

/// How a pair's `delete` went.
#[derive(Debug)]
pub struct Deleted {
    /// The run.
    pub took: Duration,
    /// Whether it exited 0.
    pub ok: bool,
}

impl Contender {
    /// Makes the place.
    pub fn new(binary: &ShimBinary) -> Result<Self> {
        ensure!(
            binary.path.exists(),
            "no {}: run scripts/setup",
            binary.path.display()
        );
        let scratch = Scratch::new()?;
        let events = scratch.path("e.sock");
        sink::listen(&events)?;
        busybox_rootfs(&scratch.path("base"))?;
        Ok(Self {
            state: State::new(scratch.mark())?,
            binary: binary.clone(),
            caller: Caller {
                binary: binary.path.clone(),
                namespace: scratch.mark().to_owned(),
                grpc: scratch.path("g.sock"),
                ttrpc: events,
                dialect: binary.dialect,
                options: Vec::new(),
                env: Vec::new(),
            },
            next: 0,
            scratch,
        })
    }

    /// Runs `start` in a fresh bundle and asks Connect.
    pub fn start(&mut self) -> Result<Pair> {
        self.next += 1;
        let id = format!("c{}", self.next);
        let spec = Spec::args(&["sleep", "100000"]);
        let base = self.scratch.path("base");
        let bundle = Bundle::make(
            &self.state.0,
            self.scratch.mark(),
            &id,
            &spec,
            Stdio::Output,
            &base,
        )?;
        let stdio = bundle.stdio.iter().filter(|path| !path.is_empty());
        let stdio = stdio
            .map(|path| OpenOptions::new().read(true).write(true).open(path))
            .collect::<std::io::Result<Vec<_>>>()?;
        let start = clock::run(self.caller.command(&id, &bundle.dir).arg("start"), true)?;
        ensure!(
            start.status.success(),
            "{}: start: {}: {}",
            self.binary.name,
            start.status,
            String::from_utf8_lossy(&start.out)
        );
        let (address, version, _) = parse_reply(&start.out)?;
        let socket = PathBuf::from(address.trim_start_matches("unix://"));
        let mut line = Line::open(&socket, if version >= 3 { V3 } else { V2 })?;
        let request = api::ConnectRequest {
            id,
            ..Default::default()
        };
        let answered: Result<api::ConnectResponse> = line.call("Connect", &request);
        let first_answer = start.began.elapsed();
        // Go's shims know no container yet and may say so; an answer it is.
        if let Err(error) = answered {
            ensure!(
                format!("{error:#}").contains("code "),
                "{}: {error:#}",
                self.binary.name
            );
        }
        Ok(Pair {
            bundle,
            line,
            start,
            first_answer,
            socket,
            _stdio: stdio,
        })
    }

    /// A pair with a running container.
    pub fn running(&mut self) -> Result<Pair> {
        let mut pair = self.start()?;
        let log = pair.bundle.log();
        let created: Result<api::CreateTaskResponse> =
            pair.line.call("Create", &pair.bundle.create_request());
        created.with_context(|| format!("{}: {}", self.binary.name, pair.bundle.log_text()))?;
        let request = api::StartRequest {
            id: pair.bundle.id.clone(),
            ..Default::default()
        };
        let _: api::StartResponse = pair.line.call("Start", &request)?;
        // The log fifo would fill up over time; nobody here reads it later.
        drop(log);
        let _ = pair.bundle.log_text();
        Ok(pair)
    }

    /// How many descriptors an exec with three streams takes, as long as it lives.
    pub fn descriptors_of_an_exec(&self, pair: &mut Pair) -> Result<u64> {
        let (id, exec) = (pair.bundle.id.clone(), "descriptors".to_owned());
        let held = |pair: &Pair| memory::descriptors(&self.processes_of(pair));
        let before = held(pair)?;
        let mut request = api::ExecProcessRequest {
            id: id.clone(),
            exec_id: exec.clone(),
            spec: Some(exec_spec(&Spec::args(&["sleep", "100000"]))).into(),
            ..Default::default()
        };
        let mut ends = Vec::new();
        for (name, path) in [
            ("stdin", &mut request.stdin),
            ("stdout", &mut request.stdout),
            ("stderr", &mut request.stderr),
        ] {
            let fifo = self.scratch.path(&format!("{id}-{exec}-{name}"));
            mkfifo(&fifo)?;
            ends.push(File::options().read(true).write(true).open(&fifo)?);
            fifo.to_str().context("not UTF-8")?.clone_into(path);
        }
        let _: api::Empty = pair.line.call("Exec", &request)?;
        let start = api::StartRequest {
            id: id.clone(),
            exec_id: exec.clone(),
            ..Default::default()
        };
        let _: api::StartResponse = pair.line.call("Start", &start)?;
        let during = held(pair)?;
        let kill = api::KillRequest {
            id: id.clone(),
            exec_id: exec.clone(),
            signal: 9,
            ..Default::default()
        };
        let _: api::Empty = pair.line.call("Kill", &kill)?;
        let wait = api::WaitRequest {
            id: id.clone(),
            exec_id: exec.clone(),
            ..Default::default()
        };
        let _: api::WaitResponse = pair.line.call("Wait", &wait)?;
        let delete = api::DeleteRequest {
            id,
            exec_id: exec,
            ..Default::default()
        };
        let _: api::DeleteResponse = pair.line.call("Delete", &delete)?;
        Ok(during.saturating_sub(before))
    }

    /// Shutdown of a pair that has no task any more, until its processes are gone.
    fn shut_down(&self, pair: Pair) -> Result<Bundle> {
        let Pair {
            bundle,
            mut line,
            socket,
            ..
        } = pair;
        let request = api::ShutdownRequest {
            id: bundle.id.clone(),
            ..Default::default()
        };
        // The answer may be cut off by the end it asks for.
        let _: Result<api::Empty> = line.call("Shutdown", &request);
        let _ = line.hung_up();
        let word = format!("-id {} ", bundle.id);
        until("the pair to leave", by(12.0), || {
            let gone = self.processes().iter().all(|p| !p.cmdline.contains(&word));
            (gone && !socket.exists()).then_some(())
        })
        .with_context(|| format!("{}: {}", self.binary.name, bundle.id))?;
        Ok(bundle)
    }

    /// Ends a pair that never got a container; `delete` then finds a bundle and nothing else.
    pub fn end_unused(&self, pair: Pair) -> Result<Deleted> {
        let bundle = self.shut_down(pair)?;
        self.delete(&bundle)
    }

    /// Kills the container, deletes the task, ends the pair; `delete` then has nothing to do.
    pub fn end_used(&self, mut pair: Pair) -> Result<Deleted> {
        let id = pair.bundle.id.clone();
        let kill = api::KillRequest {
            id: id.clone(),
            signal: 9,
            ..Default::default()
        };
        let _: api::Empty = pair.line.call("Kill", &kill)?;
        let wait = api::WaitRequest {
            id: id.clone(),
            ..Default::default()
        };
        let _: api::WaitResponse = pair.line.call("Wait", &wait)?;
        let delete = api::DeleteRequest {
            id,
            ..Default::default()
        };
        let _: api::DeleteResponse = pair.line.call("Delete", &delete)?;
        let bundle = self.shut_down(pair)?;
        self.delete(&bundle)
    }

    /// What containerd does when a shim's connection has ended by itself: `delete`.
    pub fn end_orphaned(&self, pair: Pair) -> Result<()> {
        let Pair { bundle, socket, .. } = pair;
        let deleted = self.delete(&bundle)?;
        ensure!(deleted.ok, "`delete` failed");
        // Some leave it for the next `start` of the id.
        let _ = std::fs::remove_file(socket);
        Ok(())
    }

    fn delete(&self, bundle: &Bundle) -> Result<Deleted> {
        let mut command = self.caller.command(&bundle.id, &bundle.dir);
        let ran = clock::run(command.arg("-bundle").arg(&bundle.dir).arg("delete"), false)?;
        for name in ["stdout", "stderr"] {
            let _ =
                std::fs::remove_file(format!("{}/{}-{name}", self.state.0.display(), bundle.id));
        }
        bundle.remove()?;
        Ok(Deleted {
            took: ran.took,
            ok: ran.status.success(),
        })
    }

    /// The runtime's own processes of all containers here.
    pub fn processes(&self) -> Vec<Process> {
        let namespace = format!("-namespace {} ", self.scratch.mark());
        Process::marked(self.scratch.mark())
            .into_iter()
            .map(|mut process| {
                process.cmdline.push(' ');
                process
            })
            .filter(|p| p.cmdline.contains("containerd-shim") && p.cmdline.contains(&namespace))
            .collect()
    }

    /// Those of one pair.
    pub fn processes_of(&self, pair: &Pair) -> Vec<Process> {
        let word = format!("-id {} ", pair.bundle.id);
        let mut found = self.processes();
        found.retain(|p| p.cmdline.contains(&word));
        found
    }

    /// Fails if anything of it is left.
    pub fn finish(self) -> Result<()> {
        let mark = self.scratch.mark();
        let (events, runc) = (
            format!("listening socket {}", self.caller.ttrpc.display()),
            Path::new("/run/containerd/runc").join(mark),
        );
        let runc = format!("file {}", runc.display());
        // The namespace's own cgroup and directory stay in containerd too; the scratch removes them.
        Residue::expect_none(mark, by(12.0), |line| {
            line == events || line == runc || line.starts_with("cgroup ") && line.ends_with(mark)
        })
        .with_context(|| self.binary.name.to_owned())
    }
}
