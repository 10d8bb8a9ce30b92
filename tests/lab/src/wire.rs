//! ttrpc by hand: frames, a blocking client, and nothing clever.
//!
//! Written apart from the ttrpc crate on purpose (only its `Request`/`Response` messages
//! are shared): the shim is served by that crate, and a test that shares the code of
//! what it tests cannot see it fail. Also lets a test send half a frame.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use protobuf::Message;
use ttrpc::proto::{Request, Response};

use crate::poll;
use crate::task::CallError;

/// Message type of a request.
pub const REQUEST: u8 = 1;
/// Message type of a response.
pub const RESPONSE: u8 = 2;
/// Largest payload either side accepts.
pub const LIMIT: usize = 4 << 20;

/// One frame: header (length u32, stream u32, type u8, flags u8, big endian) and payload.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Odd for requests of a client.
    pub stream: u32,
    /// [`REQUEST`] or [`RESPONSE`].
    pub kind: u8,
    /// A protobuf `Request` or `Response`.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The frame's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10 + self.payload.len());
        out.extend(
            u32::try_from(self.payload.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        out.extend(self.stream.to_be_bytes());
        out.extend([self.kind, 0]);
        out.extend(&self.payload);
        out
    }

    /// Reads one frame; `None` at a clean end between frames.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0_u8; 10];
        let first = from.read(&mut header)?;
        if first == 0 {
            return Ok(None);
        }
        from.read_exact(&mut header[first..])?;
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length > LIMIT {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        Ok(Some(Self {
            stream,
            kind: header[8],
            payload,
        }))
    }
}

#[derive(Debug, Default)]
struct Waiting {
    calls: HashMap<u32, mpsc::Sender<Response>>,
    next: u32,
    closed: bool,
}

/// A connection on which any number of threads may call.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    waiting: Arc<Mutex<Waiting>>,
}

fn locked(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Connects to a path, or to an abstract address (leading NUL not included) if there is no such path.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        let waiting = Arc::new(Mutex::new(Waiting {
            next: 1,
            ..Waiting::default()
        }));
        let (mut from, shared) = (stream.try_clone()?, Arc::clone(&waiting));
        std::thread::spawn(move || {
            while let Ok(Some(frame)) = Frame::read(&mut from) {
                let Ok(response) = Response::parse_from_bytes(&frame.payload) else {
                    break;
                };
                if let Some(call) = locked(&shared).calls.remove(&frame.stream) {
                    let _ = call.send(response);
                }
            }
            // Dropping the senders wakes every caller with "closed".
            let mut waiting = locked(&shared);
            waiting.closed = true;
            waiting.calls.clear();
        });
        Ok(Self { stream, waiting })
    }

    /// One call. `deadline` is also told to the server as `timeout_nano`, as containerd does.
    pub fn call(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, CallError> {
        let mut request = Request::new();
        request.service.push_str(service);
        request.method.push_str(method);
        request.payload = payload;
        request.timeout_nano = i64::try_from(poll::left(deadline).as_nanos()).unwrap_or(0);
        let body = request
            .write_to_bytes()
            .map_err(|e| CallError::Encoding(e.to_string()))?;
        let answer = self.send(REQUEST, body)?;
        match answer.recv_timeout(poll::left(deadline)) {
            Ok(response) => {
                let status = response.status.unwrap_or_default();
                let code = status.code.value();
                if code == 0 {
                    Ok(response.payload)
                } else {
                    Err(CallError::Status {
                        code,
                        message: status.message,
                    })
                }
            }
            Err(RecvTimeoutError::Timeout) => Err(CallError::Deadline),
            Err(RecvTimeoutError::Disconnected) => Err(CallError::Closed),
        }
    }

    fn send(&self, kind: u8, payload: Vec<u8>) -> Result<mpsc::Receiver<Response>, CallError> {
        let (sender, answer) = mpsc::channel();
        let mut waiting = locked(&self.waiting);
        if waiting.closed {
            return Err(CallError::Closed);
        }
        let stream = waiting.next;
        waiting.next += 2;
        waiting.calls.insert(stream, sender);
        let frame = Frame {
            stream,
            kind,
            payload,
        };
        // Under the lock: two callers must not mix their bytes.
        (&self.stream)
            .write_all(&frame.encode())
            .map_err(|_| CallError::Closed)?;
        Ok(answer)
    }

    /// Bytes as they are: half frames, garbage.
    pub fn send_raw(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    /// Whether the other side has hung up.
    #[must_use]
    pub fn closed(&self) -> bool {
        locked(&self.waiting).closed
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
