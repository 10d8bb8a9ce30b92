//! The publisher against a real ttrpc server that dies, comes back, refuses,
//! is silent, and is not there at all.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use common::{run, until};
use containerd_shim_protos::{
    api::ForwardRequest,
    shim_async::{Events, create_events},
};
use protobuf::well_known_types::empty::Empty;
use ttrpc::{
    Code,
    r#async::{Server, TtrpcContext, transport::Listener},
};
use vigil_model::{Moment, Namespace, Published, TaskEvent, TaskId};
use vigil_protocol::{Delivery, Publisher, Retry};

/// containerd's end: keeps what it gets and answers as told.
#[derive(Default)]
struct Sink {
    got: Mutex<Vec<ForwardRequest>>,
    answers: Mutex<Option<Code>>,
    silent: AtomicUsize,
}

struct Endpoint(Arc<Sink>);

#[async_trait]
impl Events for Endpoint {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.got.lock().unwrap().push(request);
        if self.0.silent.load(Ordering::Relaxed) > 0 {
            std::future::pending::<()>().await;
        }
        match *self.0.answers.lock().unwrap() {
            None => Ok(Empty::new()),
            Some(code) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "so it is"))),
        }
    }
}

struct Place {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    sink: Arc<Sink>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            socket: dir.path().join("c.sock.ttrpc"),
            _dir: dir,
            sink: Arc::default(),
        }
    }

    /// A server in a runtime of its own, which is there when this returns.
    fn serve(&self) -> Alive {
        let _ = std::fs::remove_file(&self.socket);
        let listener = std::os::unix::net::UnixListener::bind(&self.socket).unwrap();
        let sink = Arc::clone(&self.sink);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            run(async {
                let mut server = Server::new()
                    .register_service(create_events(Arc::new(Endpoint(sink))))
                    .add_listener(Listener::try_from(listener).unwrap());
                server.start().await.unwrap();
                let _ = stopped.await;
            });
        });
        Alive {
            stop: Some(stop),
            thread: Some(thread),
            socket: self.socket.clone(),
        }
    }

    fn seqs(&self) -> Vec<i64> {
        let got = self.sink.got.lock().unwrap();
        got.iter().map(|r| r.envelope.timestamp.seconds).collect()
    }
}

/// A running server; dropped, it is gone as a killed process is: its listener,
/// its connections and its handlers, all at once.
struct Alive {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    socket: PathBuf,
}

impl Drop for Alive {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn publisher(socket: &Path) -> Publisher {
    Publisher::new(
        socket.to_str().unwrap(),
        Namespace::new("ns").unwrap(),
        TaskId::new("c1").unwrap(),
    )
}

fn event(seq: u32) -> Published {
    Published {
        seq: u64::from(seq),
        at: Moment {
            secs: i64::from(seq),
            nanos: 0,
        },
        event: TaskEvent::Start { pid: seq },
    }
}

#[test]
fn a_sink_that_dies_and_comes_back() {
    run(async {
        let place = Place::new();
        let mut publisher = publisher(&place.socket);
        // Nobody there yet.
        assert!(matches!(
            publisher.forward(&event(1)).await,
            Delivery::Retry(Retry::Connect(std::io::ErrorKind::NotFound))
        ));
        let server = place.serve();
        assert_eq!(publisher.forward(&event(1)).await, Delivery::Acked);
        assert_eq!(publisher.forward(&event(2)).await, Delivery::Acked);
        drop(server);
        assert!(matches!(
            publisher.forward(&event(3)).await,
            Delivery::Retry(Retry::Connect(_))
        ));
        let mut server = place.serve();
        assert_eq!(publisher.forward(&event(3)).await, Delivery::Acked);
        // It comes back before anything is sent: the kept connection is dead,
        // and the first attempt must get through on a new one.
        for seq in 4..8 {
            drop(server);
            server = place.serve();
            assert_eq!(publisher.forward(&event(seq)).await, Delivery::Acked);
        }
        assert_eq!(place.seqs(), (1..8).collect::<Vec<i64>>());
    });
}

#[test]
fn one_connection_is_kept() {
    run(async {
        let place = Place::new();
        let listener = tokio::net::UnixListener::bind(&place.socket).unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let mut server = Server::new()
            .register_service(create_events(Arc::new(Endpoint(Arc::clone(&place.sink)))))
            .add_listener(Listener::new(Counted { listener, count }));
        server.start().await.unwrap();
        let mut publisher = publisher(&place.socket);
        for seq in 1..=20 {
            assert_eq!(publisher.forward(&event(seq)).await, Delivery::Acked);
        }
        assert_eq!(accepted.load(Ordering::Relaxed), 1);
    });
}

struct Counted {
    listener: tokio::net::UnixListener,
    count: Arc<AtomicUsize>,
}

impl futures_core::Stream for Counted {
    type Item = std::io::Result<tokio::net::UnixStream>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.listener.poll_accept(cx).map(|accepted| {
            self.count.fetch_add(1, Ordering::Relaxed);
            Some(accepted.map(|(stream, _)| stream))
        })
    }
}

#[test]
fn codes_are_judged() {
    run(async {
        let place = Place::new();
        let _server = place.serve();
        let mut publisher = publisher(&place.socket);
        for (code, again) in [
            (Code::UNKNOWN, true),
            (Code::UNAVAILABLE, true),
            (Code::DEADLINE_EXCEEDED, true),
            (Code::CANCELLED, true),
            (Code::INVALID_ARGUMENT, false),
            (Code::NOT_FOUND, false),
            (Code::UNIMPLEMENTED, false),
            (Code::FAILED_PRECONDITION, false),
            (Code::INTERNAL, false),
        ] {
            *place.sink.answers.lock().unwrap() = Some(code);
            let says = "so it is".to_owned();
            let number = code as i32;
            let wanted = if again {
                Delivery::Retry(Retry::Said { code: number, says })
            } else {
                Delivery::Refused { code: number, says }
            };
            assert_eq!(publisher.forward(&event(1)).await, wanted);
        }
        *place.sink.answers.lock().unwrap() = None;
        assert_eq!(publisher.forward(&event(2)).await, Delivery::Acked);
    });
}

#[test]
fn a_repeated_event_has_the_same_bytes() {
    run(async {
        let place = Place::new();
        let _server = place.serve();
        let mut first = publisher(&place.socket);
        let mut second = publisher(&place.socket);
        assert_eq!(first.forward(&event(9)).await, Delivery::Acked);
        assert_eq!(second.forward(&event(9)).await, Delivery::Acked);
        let got = place.sink.got.lock().unwrap();
        let bytes = |at: usize| protobuf::Message::write_to_bytes(&got[at]).unwrap();
        assert_eq!(bytes(0), bytes(1));
        assert_eq!(got[0].envelope.topic, "/tasks/start");
        assert_eq!(
            got[0].envelope.event.type_url,
            "containerd.events.TaskStart"
        );
    });
}

#[test]
fn silence_and_death_in_mid_answer() {
    run(async {
        let place = Place::new();
        let server = place.serve();
        place.sink.silent.store(1, Ordering::Relaxed);
        let mut publisher = publisher(&place.socket);
        let started = std::time::Instant::now();
        let outcome = publisher.forward(&event(1)).await;
        assert!(
            matches!(
                &outcome,
                Delivery::Retry(Retry::TimedOut | Retry::Broken(_) | Retry::Said { .. })
            ),
            "{outcome:?}"
        );
        let took = started.elapsed().as_secs_f64();
        assert!(took >= 4.5, "{took} s");
        // It dies while the answer is awaited: known at once, not after 5 s.
        let second = event(2);
        let sending = publisher.forward(&second);
        let dying = async {
            until(|| place.seqs().len() == 2).await;
            drop(server);
        };
        let (outcome, ()) = tokio::join!(sending, dying);
        let at_once = matches!(&outcome, Delivery::Retry(why) if !matches!(why, Retry::TimedOut));
        assert!(at_once, "{outcome:?}");
        place.sink.silent.store(0, Ordering::Relaxed);
        let _server = place.serve();
        assert_eq!(publisher.forward(&event(2)).await, Delivery::Acked);
    });
}

#[test]
fn without_an_address() {
    run(async {
        let mut publisher = publisher(Path::new(""));
        assert_eq!(
            publisher.forward(&event(1)).await,
            Delivery::Retry(Retry::NoAddress)
        );
    });
}
