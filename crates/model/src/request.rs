//! What containerd asks and what it is answered, free of the wire.

use serde::{Deserialize, Serialize};

use crate::options::is_default;
use crate::{ExecId, Exit, Options, Who, metrics::Metrics};

/// One mount of the rootfs, as containerd describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// File system type.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// What to mount.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Below the rootfs; usually empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// fstab-style options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// The streams of a process, verbatim as asked (State returns them verbatim).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stdio {
    /// Fifo path or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stdin: String,
    /// Fifo path, URI or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stdout: String,
    /// Fifo path, URI or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stderr: String,
    /// Whether the process gets a terminal.
    #[serde(skip_serializing_if = "is_default")]
    pub terminal: bool,
}

/// A `Create` request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Create {
    /// Bundle directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bundle: String,
    /// Mounts, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rootfs: Vec<Mount>,
    /// Streams.
    #[serde(skip_serializing_if = "is_default")]
    pub stdio: Stdio,
    /// Checkpoint directory to restore from, or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub checkpoint: String,
    /// Never sent by containerd; kept.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parent_checkpoint: String,
    /// The options of this task, already decoded.
    #[serde(skip_serializing_if = "is_default")]
    pub options: Options,
}

/// A `Checkpoint` request with its options decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Image directory.
    pub path: String,
    /// Stop the container afterwards.
    pub exit: bool,
    /// `--tcp-established`
    pub open_tcp: bool,
    /// `--ext-unix-sk`
    pub external_unix_sockets: bool,
    /// `--shell-job`
    pub terminal: bool,
    /// `--file-locks`
    pub file_locks: bool,
    /// `--empty-ns` each.
    pub empty_namespaces: Vec<String>,
    /// `--work-path`
    pub work_path: String,
    /// `--parent-path`
    pub parent_path: String,
}

/// A request of the Task service, for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Create the container.
    Create(Box<Create>),
    /// Start init or an exec.
    Start(Who),
    /// Add an exec; nothing runs yet.
    Exec {
        /// Its id.
        exec: ExecId,
        /// Its streams.
        stdio: Stdio,
        /// JSON of an OCI `Process`, passed through untouched.
        spec: Vec<u8>,
    },
    /// The state of a process.
    State(Who),
    /// All processes of the container.
    Pids,
    /// The end of a process, whenever it comes.
    Wait(Who),
    /// Send a signal.
    Kill {
        /// To whom.
        who: Who,
        /// Number, 0 to 64.
        signal: u32,
        /// To every process of the container (init only).
        all: bool,
    },
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Forget a process that ended, and what it left.
    Delete(Who),
    /// Close our writer of its stdin.
    CloseStdin(Who),
    /// Size of its terminal.
    Resize {
        /// Whose.
        who: Who,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// JSON of OCI `LinuxResources`, passed through untouched.
    Update(Vec<u8>),
    /// Counters of the container's cgroup.
    Stats,
    /// Dump it with CRIU.
    Checkpoint(Box<Checkpoint>),
    /// Who serves.
    Connect,
    /// Leave, if no container is left.
    Shutdown,
}

/// What `State` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// Created, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Stopped,
    /// Frozen.
    Paused,
    /// Being frozen.
    Pausing,
}

/// The answer to `State`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Container id, or the exec's id for an exec.
    pub id: String,
    /// Bundle directory.
    pub bundle: String,
    /// Pid, 0 before there is one.
    pub pid: u32,
    /// Where it stands.
    pub shown: Shown,
    /// Streams as asked.
    pub stdio: Stdio,
    /// Its end, if it ended.
    pub exit: Option<Exit>,
}

/// One line of the answer to `Pids`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidOf {
    /// The pid.
    pub pid: u32,
    /// The exec whose first process it is.
    pub exec: Option<ExecId>,
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Done, nothing to say.
    Done,
    /// Create, Start.
    Pid(u32),
    /// State.
    State(Box<State>),
    /// Pids.
    Pids(Vec<PidOf>),
    /// Wait.
    Exit(Exit),
    /// Delete.
    Deleted {
        /// Pid of the process that ended, 0 if there never was one.
        pid: u32,
        /// How it ended; none for an exec that never ran, which never ended either.
        exit: Option<Exit>,
    },
    /// Stats.
    Stats(Box<Metrics>),
    /// Connect.
    Connected {
        /// The reaper's pid.
        shim_pid: u32,
        /// Init's pid, 0 if there is none or the id is not ours.
        task_pid: u32,
    },
}
