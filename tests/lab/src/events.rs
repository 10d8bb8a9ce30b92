//! containerd's side of the event stream: a socket that takes `Forward` and keeps the
//! order of arrival, which is what the contract is about.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use containerd_shim_protos::events::task as proto;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::events::ForwardRequest;
pub use protobuf::well_known_types::timestamp::Timestamp;
use ttrpc::proto::{Request, Response};

use crate::poll::left;
use crate::wire::{Frame, RESPONSE};

/// The content of an event the contract knows.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "the events of containerd's api/events/task.proto"
)]
pub enum Fact {
    Create(proto::TaskCreate),
    Start(proto::TaskStart),
    Exit(proto::TaskExit),
    Delete(proto::TaskDelete),
    ExecAdded(proto::TaskExecAdded),
    ExecStarted(proto::TaskExecStarted),
    Oom(proto::TaskOOM),
    Paused(proto::TaskPaused),
    Resumed(proto::TaskResumed),
    /// Any other type URL.
    Other(String),
}

/// One envelope.
#[derive(Debug, Clone)]
pub struct Event {
    /// `/tasks/…`
    pub topic: String,
    /// containerd namespace.
    pub namespace: String,
    /// When the shim says it happened; absent is an error of the shim.
    pub timestamp: Option<Timestamp>,
    /// What the type URL said, decoded.
    pub fact: Fact,
}

impl Event {
    /// Topic and the process it is about: `start`, `exec-started e1`, `exit`, `exit e1` …
    #[must_use]
    pub fn short(&self) -> String {
        let name = self.topic.trim_start_matches("/tasks/");
        match &self.fact {
            Fact::Exit(e) if e.id != e.container_id => format!("{name} {}", e.id),
            Fact::ExecAdded(e) => format!("{name} {}", e.exec_id),
            Fact::ExecStarted(e) => format!("{name} {}", e.exec_id),
            Fact::Other(url) => format!("{name} ({url})"),
            _ => name.to_owned(),
        }
    }

    fn decode(payload: &[u8]) -> Result<Self> {
        let request = ForwardRequest::parse_from_bytes(payload).context("a Forward request")?;
        let envelope = request
            .envelope
            .into_option()
            .context("a Forward without envelope")?;
        let any = envelope.event.unwrap_or_default();
        let bytes = &any.value;
        let fact = match any.type_url.as_str() {
            "containerd.events.TaskCreate" => Fact::Create(Message::parse_from_bytes(bytes)?),
            "containerd.events.TaskStart" => Fact::Start(Message::parse_from_bytes(bytes)?),
            "containerd.events.TaskExit" => Fact::Exit(Message::parse_from_bytes(bytes)?),
            "containerd.events.TaskDelete" => Fact::Delete(Message::parse_from_bytes(bytes)?),
            "containerd.events.TaskExecAdded" => Fact::ExecAdded(Message::parse_from_bytes(bytes)?),
            "containerd.events.TaskExecStarted" => {
                Fact::ExecStarted(Message::parse_from_bytes(bytes)?)
            }
            "containerd.events.TaskOOM" => Fact::Oom(Message::parse_from_bytes(bytes)?),
            "containerd.events.TaskPaused" => Fact::Paused(Message::parse_from_bytes(bytes)?),
            "containerd.events.TaskResumed" => Fact::Resumed(Message::parse_from_bytes(bytes)?),
            other => Fact::Other(other.to_owned()),
        };
        Ok(Self {
            topic: envelope.topic,
            namespace: envelope.namespace,
            timestamp: envelope.timestamp.into_option(),
            fact,
        })
    }
}

#[derive(Debug, Default)]
struct Heard {
    events: Vec<Event>,
    broken: Vec<String>,
    connections: Vec<UnixStream>,
    /// How often all of them were cut.
    cuts: usize,
    stop: bool,
}

/// A listening event sink.
#[derive(Debug)]
pub struct EventSink {
    path: PathBuf,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

impl EventSink {
    /// Listens on `path` and acknowledges everything that comes.
    pub fn listen(path: &Path) -> Result<Self> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let shared = Arc::clone(&heard);
        std::thread::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                let Ok(copy) = connection.try_clone() else {
                    continue;
                };
                let cuts = {
                    let mut heard = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                    if heard.stop {
                        return;
                    }
                    heard.connections.push(copy);
                    heard.cuts
                };
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(connection, cuts, &shared));
            }
        });
        Ok(Self {
            path: path.to_owned(),
            heard,
        })
    }

    /// What `TTRPC_ADDRESS` says.
    #[must_use]
    pub fn address(&self) -> &Path {
        &self.path
    }

    /// All events so far, in order of arrival.
    #[must_use]
    pub fn all(&self) -> Vec<Event> {
        self.heard
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .events
            .clone()
    }

    /// [`Event::short`] of all so far.
    #[must_use]
    pub fn story(&self) -> Vec<String> {
        self.all().iter().map(Event::short).collect()
    }

    /// Waits until an event satisfies `found`.
    pub fn wait<T>(
        &self,
        what: &str,
        deadline: Instant,
        found: impl Fn(&Event) -> Option<T>,
    ) -> Result<T> {
        let (lock, changed) = &*self.heard;
        let mut heard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = heard.events.iter().find_map(&found) {
                return Ok(value);
            }
            if left(deadline).is_zero() {
                let story: Vec<_> = heard.events.iter().map(Event::short).collect();
                bail!(
                    "no event: {what}; heard {story:?}, broken {:?}",
                    heard.broken
                );
            }
            heard = changed
                .wait_timeout(heard, left(deadline))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the event whose [`Event::short`] is `short`.
    pub fn expect(&self, short: &str, deadline: Instant) -> Result<Event> {
        self.wait(short, deadline, |e| (e.short() == short).then(|| e.clone()))
    }

    /// From now on nobody answers: the listener goes, every connection too.
    pub fn refuse(&self) {
        self.heard
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stop = true;
        self.hang_up();
        // One connection lets the accepting thread see `stop`.
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }

    /// Hangs up on every publisher, as a dying containerd does; they may come again.
    pub fn hang_up(&self) {
        let mut heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.cuts += 1;
        for connection in heard.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn serve(mut connection: UnixStream, cuts: usize, shared: &(Mutex<Heard>, Condvar)) {
    while let Ok(Some(frame)) = Frame::read(&mut connection) {
        let decoded = Request::parse_from_bytes(&frame.payload)
            .context("a ttrpc request")
            .and_then(|request| {
                if request.service != "containerd.services.events.ttrpc.v1.Events"
                    || request.method != "Forward"
                {
                    bail!("{}/{} was called", request.service, request.method);
                }
                Event::decode(&request.payload)
            });
        {
            let mut heard = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Read before the cut and not yet heard: its publisher says it again
            // on its next connection, and that thread may be the faster one.
            if heard.cuts != cuts {
                return;
            }
            match decoded {
                Ok(event) => heard.events.push(event),
                Err(error) => heard.broken.push(format!("{error:#}")),
            }
            shared.1.notify_all();
        }
        let Ok(payload) = Response::new().write_to_bytes() else {
            return;
        };
        if connection
            .write_all(
                &Frame {
                    stream: frame.stream,
                    kind: RESPONSE,
                    payload,
                }
                .encode(),
            )
            .is_err()
        {
            return;
        }
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        self.refuse();
    }
}
