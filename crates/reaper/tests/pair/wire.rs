//! ttrpc frames as the tests write and read them, and a client that speaks them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use vigil_sys::{Errno, listen, scm};

pub const REQUEST: u8 = 1;
pub const RESPONSE: u8 = 2;

/// How long anything may take here before the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    out.extend(stream.to_be_bytes());
    out.extend([kind, 0]);
    out.extend(payload);
    out
}

/// Whole frames out of bytes.
#[derive(Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Adds bytes; (stream, payload) of each frame that is whole now.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.0.extend(bytes);
        let mut out = Vec::new();
        while self.0.len() >= 10 {
            let word = |at: usize| u32::from_be_bytes(self.0[at..at + 4].try_into().unwrap());
            let end = 10 + usize::try_from(word(0)).unwrap();
            if self.0.len() < end {
                break;
            }
            out.push((word(4), self.0[10..end].to_vec()));
            self.0.drain(..end);
        }
        out
    }
}

/// containerd's side.
pub struct Client {
    pub fd: OwnedFd,
    frames: Frames,
    got: Vec<(u32, Vec<u8>)>,
    stream: u32,
}

impl Client {
    pub fn connect(path: &Path) -> Client {
        let fd = listen::connect(path, PATIENCE).unwrap();
        Client {
            fd,
            frames: Frames::default(),
            got: Vec::new(),
            stream: 1,
        }
    }

    /// Sends a request; its stream id.
    pub fn ask(&mut self, text: &str) -> u32 {
        let stream = self.stream;
        self.stream += 2;
        self.write(&frame(stream, REQUEST, text.as_bytes()));
        stream
    }

    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = scm::send(self.fd.as_fd(), bytes, &[]).unwrap();
            bytes = &bytes[count..];
        }
    }

    /// The answer to a request; `None` when the connection ends before it.
    pub fn answer(&mut self, stream: u32) -> Option<Vec<u8>> {
        loop {
            if let Some(place) = self.got.iter().position(|(id, _)| *id == stream) {
                return Some(self.got.swap_remove(place).1);
            }
            let mut bytes = [0; 8192];
            match scm::read(self.fd.as_fd(), &mut bytes) {
                Ok(0) | Err(Errno::ECONNRESET) => return None,
                Ok(count) => self.got.extend(self.frames.take(&bytes[..count])),
                Err(errno) => panic!("no answer on stream {stream}: {errno}"),
            }
        }
    }

    /// Asks and waits, in text.
    pub fn call(&mut self, text: &str) -> String {
        let stream = self.ask(text);
        let answer = self
            .answer(stream)
            .unwrap_or_else(|| panic!("{text}: connection ended"));
        String::from_utf8(answer).unwrap()
    }
}
