//! One connection to a shim without a thread behind it: a request is written, its answer
//! read, by the one who measures. What the laboratory's client adds (a thread, a channel,
//! a wake-up) would be measured as the shim's.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use protobuf::Message;
use ttrpc::proto::{Request, Response};
use vigil_lab::wire::{Frame, REQUEST};

/// Longer than any call here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection and the service its shim announced.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
    service: &'static str,
    next: u32,
}

impl Line {
    /// Connects.
    pub fn open(socket: &Path, service: &'static str) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            service,
            next: 1,
        })
    }

    /// Sends a request and leaves its answer to the future (a pending Wait).
    pub fn send(&mut self, method: &str, request: &impl Message) -> Result<u32> {
        self.send_bytes(method, request.write_to_bytes()?)
    }

    fn send_bytes(&mut self, method: &str, payload: Vec<u8>) -> Result<u32> {
        let mut envelope = Request::new();
        envelope.service.push_str(self.service);
        envelope.method.push_str(method);
        envelope.payload = payload;
        let stream = self.next;
        self.next += 2;
        let frame = Frame {
            stream,
            kind: REQUEST,
            payload: envelope.write_to_bytes()?,
        };
        self.stream
            .write_all(&frame.encode())
            .with_context(|| format!("sending {method}"))?;
        Ok(stream)
    }

    /// One call; answers to older requests are dropped on the way.
    pub fn call<A: Message>(&mut self, method: &str, request: &impl Message) -> Result<A> {
        let stream = self.send(method, request)?;
        loop {
            let frame = Frame::read(&mut self.stream).with_context(|| method.to_owned())?;
            let frame = frame.with_context(|| format!("{method}: connection closed"))?;
            if frame.stream != stream {
                continue;
            }
            let response = Response::parse_from_bytes(&frame.payload)?;
            let status = response.status.unwrap_or_default();
            if status.code.value() != 0 {
                bail!("{method}: code {}: {}", status.code.value(), status.message);
            }
            return Ok(A::parse_from_bytes(&response.payload)?);
        }
    }

    /// One call whose answer may be long in coming: whether it was granted or refused,
    /// `None` if neither within `patience`; the line is of no use then.
    pub fn try_call(
        &mut self,
        method: &str,
        request: &[u8],
        patience: Duration,
    ) -> Result<Option<bool>> {
        let stream = self.send_bytes(method, request.to_vec())?;
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let frame = match Frame::read(&mut self.stream) {
                Ok(frame) => frame.with_context(|| format!("{method}: connection closed"))?,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(e) => return Err(e).with_context(|| method.to_owned()),
            };
            if frame.stream == stream {
                let response = Response::parse_from_bytes(&frame.payload)?;
                return Ok(Some(response.status.unwrap_or_default().code.value() == 0));
            }
        }
    }

    /// Waits until the other side hangs up, which is the shim's last act.
    pub fn hung_up(mut self) -> Result<()> {
        while let Some(frame) = Frame::read(&mut self.stream).context("waiting for the end")? {
            ensure!(frame.kind != REQUEST, "a request from a server");
        }
        Ok(())
    }
}
