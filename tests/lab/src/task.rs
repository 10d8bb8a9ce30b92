//! The Task service as containerd calls it, under either of its two names.
//!
//! Thin: requests in, answers or a code out. It decides nothing and retries nothing.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;

use crate::poll;
use crate::wire::Client;

/// gRPC codes the contract names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are gRPC's own")]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
}

/// How a call ended when it did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// The shim answered with an error.
    Status {
        /// gRPC code.
        code: i32,
        /// The shim's words.
        message: String,
    },
    /// The connection ended before an answer came.
    Closed,
    /// No answer in time.
    Deadline,
    /// The request or the answer is no protobuf.
    Encoding(String),
}

impl CallError {
    /// Whether this is an answer with `code`.
    #[must_use]
    pub fn is(&self, code: Code) -> bool {
        matches!(self, Self::Status { code: got, .. } if *got == code as i32)
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status { code, message } => write!(f, "code {code}: {message}"),
            Self::Closed => f.write_str("connection closed"),
            Self::Deadline => f.write_str("no answer in time"),
            Self::Encoding(what) => write!(f, "not protobuf: {what}"),
        }
    }
}

impl std::error::Error for CallError {}

/// Name of the service up to containerd 2.
pub const V2: &str = "containerd.task.v2.Task";
/// Its second name; same messages.
pub const V3: &str = "containerd.task.v3.Task";

/// A client of one shim.
#[derive(Debug, Clone)]
pub struct Task {
    client: Arc<Client>,
    service: &'static str,
    /// Seconds every call may take unless another `patience` is given.
    pub patience: f64,
    /// How long answered calls took, of this task and its copies.
    took: Arc<Mutex<Vec<(String, Duration)>>>,
}

/// Calls whose times are kept.
const TIMES_MAX: usize = 1 << 14;

type Answer<T> = Result<T, CallError>;

impl Task {
    /// Connects to the shim's socket; `service` is [`V2`] or [`V3`].
    pub fn connect(socket: &Path, service: &'static str) -> std::io::Result<Self> {
        Ok(Self {
            client: Arc::new(Client::connect(socket)?),
            service,
            patience: poll::generosity().as_secs_f64(),
            took: Arc::default(),
        })
    }

    /// The connection itself.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The same connection under the other name of the service.
    #[must_use]
    pub fn under(&self, service: &'static str) -> Self {
        Self {
            service,
            ..self.clone()
        }
    }

    /// The same connection with another patience, in seconds.
    #[must_use]
    pub fn patient(&self, patience: f64) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Answer<A> {
        let encoding = |e: protobuf::Error| CallError::Encoding(e.to_string());
        let payload = request.write_to_bytes().map_err(encoding)?;
        let began = Instant::now();
        let answer = self
            .client
            .call(self.service, method, payload, poll::sharp(self.patience));
        if let Ok(_) | Err(CallError::Status { .. }) = &answer {
            let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
            if took.len() < TIMES_MAX {
                took.push((method.to_owned(), began.elapsed()));
            }
        }
        A::parse_from_bytes(&answer?).map_err(encoding)
    }

    /// Method and time of the calls that were answered since this was asked last.
    #[must_use]
    pub fn times(&self) -> Vec<(String, Duration)> {
        std::mem::take(&mut *self.took.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Create.
    pub fn create(&self, request: &api::CreateTaskRequest) -> Answer<api::CreateTaskResponse> {
        self.call("Create", request)
    }

    /// Start of init (`exec` empty) or an exec. The answer is the pid.
    pub fn start(&self, id: &str, exec: &str) -> Answer<u32> {
        let request = api::StartRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..Default::default()
        };
        self.call::<_, api::StartResponse>("Start", &request)
            .map(|a| a.pid)
    }

    /// State.
    pub fn state(&self, id: &str, exec: &str) -> Answer<api::StateResponse> {
        self.call(
            "State",
            &api::StateRequest {
                id: id.into(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )
    }

    /// Pids.
    pub fn pids(&self, id: &str) -> Answer<api::PidsResponse> {
        self.call(
            "Pids",
            &api::PidsRequest {
                id: id.into(),
                ..Default::default()
            },
        )
    }

    /// Wait; blocks for at most `patience`.
    pub fn wait(&self, id: &str, exec: &str) -> Answer<api::WaitResponse> {
        self.call(
            "Wait",
            &api::WaitRequest {
                id: id.into(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )
    }

    /// Kill with a signal number.
    pub fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Answer<()> {
        let request = api::KillRequest {
            id: id.into(),
            exec_id: exec.into(),
            signal,
            all,
            ..Default::default()
        };
        self.call::<_, api::Empty>("Kill", &request).map(drop)
    }

    /// Delete of init or an exec.
    pub fn delete(&self, id: &str, exec: &str) -> Answer<api::DeleteResponse> {
        self.call(
            "Delete",
            &api::DeleteRequest {
                id: id.into(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )
    }

    /// Exec: registers a process.
    pub fn exec(&self, request: &api::ExecProcessRequest) -> Answer<()> {
        self.call::<_, api::Empty>("Exec", request).map(drop)
    }

    /// Pause.
    pub fn pause(&self, id: &str) -> Answer<()> {
        self.call::<_, api::Empty>(
            "Pause",
            &api::PauseRequest {
                id: id.into(),
                ..Default::default()
            },
        )
        .map(drop)
    }

    /// Resume.
    pub fn resume(&self, id: &str) -> Answer<()> {
        self.call::<_, api::Empty>(
            "Resume",
            &api::ResumeRequest {
                id: id.into(),
                ..Default::default()
            },
        )
        .map(drop)
    }

    /// CloseIO of stdin.
    pub fn close_io(&self, id: &str, exec: &str) -> Answer<()> {
        let request = api::CloseIORequest {
            id: id.into(),
            exec_id: exec.into(),
            stdin: true,
            ..Default::default()
        };
        self.call::<_, api::Empty>("CloseIO", &request).map(drop)
    }

    /// ResizePty.
    pub fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Answer<()> {
        let request = api::ResizePtyRequest {
            id: id.into(),
            exec_id: exec.into(),
            width,
            height,
            ..Default::default()
        };
        self.call::<_, api::Empty>("ResizePty", &request).map(drop)
    }

    /// Update with the JSON of an OCI `LinuxResources`.
    pub fn update(&self, id: &str, resources: &serde_json::Value) -> Answer<()> {
        let any = any(
            "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
            resources.to_string(),
        );
        let request = api::UpdateTaskRequest {
            id: id.into(),
            resources: Some(any).into(),
            ..Default::default()
        };
        self.call::<_, api::Empty>("Update", &request).map(drop)
    }

    /// Stats; the `Any` as it came.
    pub fn stats(&self, id: &str) -> Answer<protobuf::well_known_types::any::Any> {
        let answer: api::StatsResponse = self.call(
            "Stats",
            &api::StatsRequest {
                id: id.into(),
                ..Default::default()
            },
        )?;
        Ok(answer.stats.unwrap_or_default())
    }

    /// Connect.
    pub fn connect_task(&self, id: &str) -> Answer<api::ConnectResponse> {
        self.call(
            "Connect",
            &api::ConnectRequest {
                id: id.into(),
                ..Default::default()
            },
        )
    }

    /// Checkpoint to `path`.
    pub fn checkpoint(&self, id: &str, path: &str) -> Answer<()> {
        let request = api::CheckpointTaskRequest {
            id: id.into(),
            path: path.into(),
            ..Default::default()
        };
        self.call::<_, api::Empty>("Checkpoint", &request).map(drop)
    }

    /// Shutdown. A connection that closes instead of an answer counts as done, as in containerd.
    pub fn shutdown(&self, id: &str) -> Answer<()> {
        match self.shutdown_answered(id) {
            Ok(()) | Err(CallError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Shutdown, with its answer.
    pub fn shutdown_answered(&self, id: &str) -> Answer<()> {
        let request = api::ShutdownRequest {
            id: id.into(),
            ..Default::default()
        };
        self.call::<_, api::Empty>("Shutdown", &request).map(drop)
    }
}

/// An `Any` with a type URL and bytes.
#[must_use]
pub fn any(type_url: &str, value: impl Into<Vec<u8>>) -> protobuf::well_known_types::any::Any {
    protobuf::well_known_types::any::Any {
        type_url: type_url.into(),
        value: value.into(),
        ..Default::default()
    }
}
