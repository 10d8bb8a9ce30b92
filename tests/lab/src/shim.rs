//! Plays containerd towards one shim binary: runs `start` and `delete` exactly as the
//! contract (§1, §2.4) says, and connects to what was announced.
//!
//! Works with the Go shims of 1.6 and 2.1 as with ours; it must not know which one it
//! drives.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio as Pipe};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;

use crate::bundle::Bundle;
use crate::place::kill_at_once;
use crate::poll::{by, left, until};
use crate::process::Process;
use crate::task::{Task, V2, V3};

/// Whose manner of calling `start` is imitated (contract §0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// containerd 1.6: no `MAX_SHIM_VERSION`; options or nothing on stdin.
    V1_6,
    /// containerd 1.7 to 2.2: the same stdin, more environment.
    V2_1,
    /// containerd 2.3 and later: `BootstrapParams` on stdin.
    V2_3,
}

/// In what form the address was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `unix://…`
    Plain,
    /// `{"version":…}`
    Json,
    /// `BootstrapResult`
    Protobuf,
}

/// The answer of `start`.
#[derive(Debug, Clone)]
pub struct StartReply {
    /// What came on stdout and stderr, merged as containerd merges them.
    pub raw: Vec<u8>,
    /// Path of the socket.
    pub socket: PathBuf,
    /// Announced Task API version.
    pub version: i32,
    /// Form of the answer.
    pub form: Form,
    /// From exec to end of file on its output, which is when containerd goes on.
    pub took: Duration,
}

/// A program that ran to the end of its output.
#[derive(Debug)]
pub struct Ran {
    /// Exit status.
    pub status: ExitStatus,
    /// Its stdout; with merged output also its stderr.
    pub stdout: Vec<u8>,
    /// Its stderr, unless merged.
    pub stderr: Vec<u8>,
    /// From exec to end of file.
    pub took: Duration,
}

/// Runs a command to the **end of its output**, as Go's `CombinedOutput` does; SIGKILL at the deadline.
pub fn run(command: &mut Command, input: &[u8], merged: bool, deadline: Instant) -> Result<Ran> {
    let what = format!("{command:?}");
    let (mut stdout, writer) = std::io::pipe()?;
    let (mut stderr, error_writer) = std::io::pipe()?;
    command.stdin(if input.is_empty() {
        Pipe::null()
    } else {
        Pipe::piped()
    });
    if merged {
        command.stdout(writer.try_clone()?).stderr(writer);
        drop(error_writer);
    } else {
        command.stdout(writer).stderr(error_writer);
    }
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("running {what}"))?;
    // The command keeps its copies of the pipes' write ends until it is told otherwise.
    command
        .stdin(Pipe::null())
        .stdout(Pipe::null())
        .stderr(Pipe::null());
    let (sender, ended) = mpsc::channel();
    for (name, pipe) in [("out", &mut stdout), ("err", &mut stderr)] {
        let (mut pipe, sender) = (pipe.try_clone()?, sender.clone());
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            let _ = sender.send((name, bytes));
        });
    }
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // In the background: a shim need not read what it does not want.
        std::thread::spawn(move || stdin.write_all(&input));
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        match ended.recv_timeout(left(deadline)) {
            Ok(("out", bytes)) => out = bytes,
            Ok((_, bytes)) => err = bytes,
            Err(_) => {
                let _ = child.kill();
                let exited = child.wait();
                bail!(
                    "{what}: output not at its end after {:.1} s (process: {exited:?})",
                    began.elapsed().as_secs_f64()
                );
            }
        }
    }
    let took = began.elapsed();
    let status = match until(
        "the process to exit after its output ended",
        deadline,
        || child.try_wait().ok().flatten(),
    ) {
        Ok(status) => status,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error.context(what));
        }
    };
    Ok(Ran {
        status,
        stdout: out,
        stderr: err,
        took,
    })
}

/// How a shim is called: binary, namespace, addresses.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The shim binary.
    pub binary: PathBuf,
    /// containerd namespace.
    pub namespace: String,
    /// containerd's gRPC socket; need not exist.
    pub grpc: PathBuf,
    /// containerd's ttrpc socket for events.
    pub ttrpc: PathBuf,
    /// Whose manner.
    pub dialect: Dialect,
    /// Runtime options for `start` (a serialized `Any`); empty for none.
    pub options: Vec<u8>,
    /// Further environment.
    pub env: Vec<(String, String)>,
}

impl Caller {
    /// The flags and the environment every action gets, without the action; for who runs it himself.
    #[must_use]
    pub fn command(&self, id: &str, bundle: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("-namespace")
            .arg(&self.namespace)
            .arg("-address")
            .arg(&self.grpc);
        command
            .arg("-publish-binary")
            .arg("/usr/bin/containerd")
            .arg("-id")
            .arg(id);
        command.current_dir(bundle).process_group(0);
        command
            .env("TTRPC_ADDRESS", &self.ttrpc)
            .env("GOMAXPROCS", "2");
        if self.dialect != Dialect::V1_6 {
            command
                .env("GRPC_ADDRESS", &self.grpc)
                .env("NAMESPACE", &self.namespace)
                .env("MAX_SHIM_VERSION", "2");
        }
        command.envs(self.env.iter().cloned());
        command
    }

    fn start_input(&self, id: &str) -> Result<Vec<u8>> {
        if self.dialect != Dialect::V2_3 {
            return Ok(self.options.clone());
        }
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: self.namespace.clone(),
            containerd_version: "2.3.0".into(),
            containerd_ttrpc_address: self.ttrpc.to_string_lossy().into_owned(),
            containerd_grpc_address: self.grpc.to_string_lossy().into_owned(),
            containerd_binary: "/usr/bin/containerd".into(),
            ..Default::default()
        };
        Ok(params.write_to_bytes()?)
    }

    /// Runs `start`, whatever it answers.
    pub fn run_start(&self, id: &str, bundle: &Path) -> Result<Ran> {
        let mut command = self.command(id, bundle);
        command.arg("start");
        run(&mut command, &self.start_input(id)?, true, by(20.0))
    }

    /// Runs `start` with these bytes on stdin.
    pub fn run_start_with(&self, id: &str, bundle: &Path, input: &[u8]) -> Result<Ran> {
        let mut command = self.command(id, bundle);
        command.arg("start");
        run(&mut command, input, true, by(20.0))
    }

    /// Runs `delete` as containerd does: in the bundle, 5 s, then SIGKILL.
    pub fn delete(&self, id: &str, bundle: &Path) -> Result<Deleted> {
        let mut command = self.command(id, bundle);
        command.arg("-bundle").arg(bundle).arg("delete");
        let ran = run(&mut command, &[], false, by(5.0))?;
        let response = ran
            .status
            .success()
            .then(|| DeleteResponse::parse_from_bytes(&ran.stdout))
            .transpose();
        Ok(Deleted {
            response: response.context("stdout of delete")?,
            ran,
        })
    }
}

/// What `delete` said.
#[derive(Debug)]
pub struct Deleted {
    /// The decoded stdout, if it exited 0. Empty stdout decodes to zeros, as in containerd.
    pub response: Option<DeleteResponse>,
    /// The run itself.
    pub ran: Ran,
}

impl Deleted {
    /// The response, or an error with what it printed.
    pub fn ok(self) -> Result<DeleteResponse> {
        let stderr = String::from_utf8_lossy(&self.ran.stderr).into_owned();
        ensure!(
            !self.ran.stdout.is_empty(),
            "delete printed nothing ({}); stderr: {stderr}",
            self.ran.status
        );
        self.response
            .with_context(|| format!("delete: {}; stderr: {stderr}", self.ran.status))
    }
}

/// Reads the announcement in the order containerd 2.3 does: protobuf, JSON, plain.
pub fn parse_reply(raw: &[u8]) -> Result<(String, i32, Form)> {
    if let Ok(result) = BootstrapResult::parse_from_bytes(raw)
        && result.version > 0
        && !result.address.is_empty()
    {
        ensure!(result.protocol == "ttrpc", "protocol {:?}", result.protocol);
        return Ok((result.address, result.version, Form::Protobuf));
    }
    let text = std::str::from_utf8(raw)
        .context("neither protobuf nor text")?
        .trim();
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(text) {
        let version = json["version"]
            .as_i64()
            .and_then(|v| i32::try_from(v).ok())
            .unwrap_or(2);
        let address = json["address"]
            .as_str()
            .context("JSON without an address")?;
        ensure!(json["protocol"] == "ttrpc", "protocol {}", json["protocol"]);
        return Ok((address.to_owned(), version, Form::Json));
    }
    ensure!(text.starts_with("unix://"), "not an address: {text:?}");
    Ok((text.to_owned(), 2, Form::Plain))
}

/// A shim that was started and answered.
#[derive(Debug)]
pub struct Shim {
    /// Container id it was started for.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// How it was called, and will be for `delete`.
    pub caller: Caller,
    /// What `start` answered.
    pub reply: StartReply,
    /// A connection, under the service name its version asks for.
    pub task: Task,
}

impl Shim {
    /// Runs `start` in the bundle and connects.
    pub fn start(caller: &Caller, bundle: &Bundle) -> Result<Self> {
        Self::connect(caller, bundle, caller.run_start(&bundle.id, &bundle.dir)?)
    }

    /// Connects to what a run of `start` has answered.
    pub fn connect(caller: &Caller, bundle: &Bundle, ran: Ran) -> Result<Self> {
        let text = || String::from_utf8_lossy(&ran.stdout).into_owned();
        ensure!(ran.status.success(), "start: {}: {}", ran.status, text());
        let (address, version, form) =
            parse_reply(&ran.stdout).with_context(|| format!("answer of start: {:?}", text()))?;
        let socket = PathBuf::from(
            address
                .strip_prefix("unix://")
                .context("an address that is no unix socket")?,
        );
        let task = Task::connect(&socket, if version >= 3 { V3 } else { V2 })
            .with_context(|| format!("connecting to {}", socket.display()))?;
        // containerd writes it after dialling, for a later delete.
        fs::write(
            bundle.dir.join("shim-binary-path"),
            caller.binary.to_string_lossy().as_bytes(),
        )?;
        let reply = StartReply {
            raw: ran.stdout,
            socket,
            version,
            form,
            took: ran.took,
        };
        Ok(Self {
            id: bundle.id.clone(),
            bundle: bundle.dir.clone(),
            caller: caller.clone(),
            reply,
            task,
        })
    }

    /// The runtime's own processes for this container: one with Go, reaper and shim with ours.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let (namespace, id) = (
            format!("-namespace {} ", self.caller.namespace),
            format!("-id {} ", self.id),
        );
        let is = |p: &Process| {
            let line = format!("{} ", p.cmdline);
            line.contains("containerd-shim") && line.contains(&namespace) && line.contains(&id)
        };
        Process::marked(&self.caller.namespace)
            .into_iter()
            .filter(is)
            .collect()
    }

    /// SIGKILLs all of them, so that none can react to another's death.
    pub fn kill_all(&self) -> Result<()> {
        let ours = self.processes();
        ensure!(!ours.is_empty(), "no shim process to kill");
        kill_at_once(&ours)
    }

    /// Runs `delete` for it.
    pub fn delete(&self) -> Result<Deleted> {
        self.caller.delete(&self.id, &self.bundle)
    }
}
