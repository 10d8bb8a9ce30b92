//! What the tests of this crate share: a runtime like the shim's own, and an
//! owner that answers as it is told.

#![allow(dead_code, reason = "no test uses all of it")]

use std::{
    future::Future,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use ttrpc::{
    Code, Request as WireRequest,
    r#async::{Client, transport::Socket},
};
use vigil_model::{Answer, Exit, Moment, Refusal, Request, RequestId, Status};
use vigil_protocol::{Ask, Server};

/// Runs a test on one thread and never longer than a minute.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            tokio::time::timeout(Duration::from_mins(1), test)
                .await
                .expect("the test did not end")
        })
}

/// Yields until `done` says so; the minute of [`run`] is the deadline.
pub async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub const V2: &str = "containerd.task.v2.Task";
pub const V3: &str = "containerd.task.v3.Task";

pub type Said = Result<Answer, Refusal>;

/// Answers everything with one thing and remembers what it was asked.
pub struct Owner {
    pub asked: Mutex<Vec<(String, Request)>>,
    pub says: Mutex<Said>,
    /// Waits are answered once this is notified.
    pub ends: Notify,
    /// Futures of `ask` that were dropped unfinished.
    pub dropped: Arc<AtomicUsize>,
}

pub struct Unfinished(Option<Arc<AtomicUsize>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(count) = self.0.take() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Owner {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            asked: Mutex::new(Vec::new()),
            says: Mutex::new(Ok(Answer::Done)),
            ends: Notify::new(),
            dropped: Arc::default(),
        })
    }

    pub fn say(&self, said: Said) {
        *self.says.lock().unwrap() = said;
    }

    pub fn last(&self) -> (String, Request) {
        self.asked.lock().unwrap().pop().expect("nothing was asked")
    }

    pub fn asked_nothing(&self) -> bool {
        self.asked.lock().unwrap().is_empty()
    }
}

impl Ask for Owner {
    async fn ask(&self, id: &str, request: Request, _: Option<RequestId>) -> Said {
        let waits = matches!(request, Request::Wait(_));
        self.asked.lock().unwrap().push((id.to_owned(), request));
        let mut unfinished = Unfinished(Some(Arc::clone(&self.dropped)));
        if waits {
            self.ends.notified().await;
        }
        unfinished.0 = None;
        self.says.lock().unwrap().clone()
    }
}

pub async fn served() -> (Arc<Owner>, Server) {
    let owner = Owner::new();
    let server = Server::start(Arc::clone(&owner)).await.unwrap();
    (owner, server)
}

/// A raw connection; the client's side blocks unless it is made into a client.
pub async fn connect(server: &Server) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    server.add(0, ours).await.unwrap();
    theirs
}

pub async fn client(server: &Server) -> Client {
    let stream = connect(server).await;
    stream.set_nonblocking(true).unwrap();
    Client::new(Socket::new(
        tokio::net::UnixStream::from_std(stream).unwrap(),
    ))
}

pub fn wire(service: &str, method: &str, payload: &[u8]) -> WireRequest {
    WireRequest {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: payload.to_vec(),
        ..WireRequest::default()
    }
}

pub async fn call(
    client: &Client,
    service: &str,
    method: &str,
    payload: &[u8],
) -> Result<Vec<u8>, (Code, String)> {
    match client.request(wire(service, method, payload)).await {
        Ok(response) => Ok(response.payload),
        Err(ttrpc::Error::RpcStatus(status)) => Err((status.code(), status.message)),
        Err(other) => panic!("{method}: {other:?}"),
    }
}

pub fn code(result: Result<Vec<u8>, (Code, String)>) -> Code {
    result.expect_err("it was answered").0
}

pub fn exit(status: Status) -> Exit {
    Exit {
        status,
        at: Moment { secs: 5, nanos: 6 },
    }
}

/// A message of strings and messages, each shorter than 128 bytes.
pub fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, value) in fields {
        bytes.extend_from_slice(&[number << 3 | 2, u8::try_from(value.len()).unwrap()]);
        bytes.extend_from_slice(value);
    }
    bytes
}

pub fn packed(url: &str, value: &[u8]) -> Vec<u8> {
    message(&[(1, url.as_bytes()), (2, value)])
}
