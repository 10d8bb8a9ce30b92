//! One event to containerd, and what became of it.
//!
//! Owns the one connection to the events socket: made when first needed, made
//! anew after any failure, small while idle. Order, patience and memory are
//! the outbox's; nothing is queued, retried later or dropped here.

use std::{path::PathBuf, time::Duration};

use containerd_shim_protos::{api::ForwardRequest, shim_async::EventsClient};
use tokio::net::UnixStream;
use ttrpc::{
    Code,
    r#async::{Client, transport::Socket},
    context::Context,
};
use vigil_model::{Namespace, Published, TaskId};

use crate::{error::shown, events};

/// How long one attempt may take, connecting included (the Go shim's number).
pub const ATTEMPT: Duration = Duration::from_secs(5);

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// containerd has it.
    Acked,
    /// containerd has judged it and does not want it; sending it again would
    /// change nothing.
    Refused {
        /// The gRPC code.
        code: i32,
        /// containerd's sentence.
        says: String,
    },
    /// Nobody knows whether containerd has it: the same event is to be sent
    /// again before any later one.
    Retry(Retry),
}

/// Why an event is to be sent again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Retry {
    /// `TTRPC_ADDRESS` was not given: there is nobody to tell.
    #[error("the address of containerd's events socket is not known")]
    NoAddress,
    /// The socket could not be connected to.
    #[error("connecting to containerd's events socket: {0}")]
    Connect(std::io::ErrorKind),
    /// The connection broke before the answer.
    #[error("the connection to containerd's events socket broke: {0}")]
    Broken(String),
    /// No answer within [`ATTEMPT`].
    #[error("containerd did not answer in {} s", ATTEMPT.as_secs())]
    TimedOut,
    /// containerd answered that it could not say.
    #[error("containerd answered with code {code}: {says}")]
    Said {
        /// The gRPC code.
        code: i32,
        /// containerd's sentence.
        says: String,
    },
}

/// Sends events of one task to one containerd.
pub struct Publisher {
    address: PathBuf,
    namespace: Namespace,
    task: TaskId,
    client: Option<EventsClient>,
}

impl Publisher {
    /// `address` is `TTRPC_ADDRESS`: a path, with or without `unix://`. Nothing
    /// is connected yet; containerd may be down.
    pub fn new(address: &str, namespace: Namespace, task: TaskId) -> Self {
        Self {
            address: PathBuf::from(address.strip_prefix("unix://").unwrap_or(address)),
            namespace,
            task,
            client: None,
        }
    }

    /// Sends one event and waits for the answer, at most [`ATTEMPT`].
    ///
    /// If the connection kept from an earlier event turns out to be dead, a
    /// new one is tried within the same attempt. Dropping the future loses
    /// nothing but the answer.
    pub async fn forward(&mut self, published: &Published) -> Delivery {
        let request = match events::request(&self.namespace, &self.task, published) {
            Ok(request) => request,
            Err(error) => {
                return Delivery::Refused {
                    code: Code::INTERNAL as i32,
                    says: error.story(),
                };
            }
        };
        let delivery = match tokio::time::timeout(ATTEMPT, self.attempt(&request)).await {
            Ok(delivery) => delivery,
            Err(_) => Delivery::Retry(Retry::TimedOut),
        };
        if matches!(delivery, Delivery::Retry(_)) {
            self.client = None;
        }
        delivery
    }

    async fn attempt(&mut self, request: &ForwardRequest) -> Delivery {
        if let Some(client) = &self.client {
            match send(client, request).await {
                Delivery::Retry(Retry::Broken(_)) => self.client = None,
                delivery => return delivery,
            }
        }
        if self.address.as_os_str().is_empty() {
            return Delivery::Retry(Retry::NoAddress);
        }
        let stream = match UnixStream::connect(&self.address).await {
            Ok(stream) => stream,
            Err(error) => return Delivery::Retry(Retry::Connect(error.kind())),
        };
        let client = self
            .client
            .insert(EventsClient::new(Client::new(Socket::new(stream))));
        send(client, request).await
    }
}

async fn send(client: &EventsClient, request: &ForwardRequest) -> Delivery {
    // containerd is told the deadline too, so that it does not finish what
    // nobody waits for any more.
    let limit = i64::try_from(ATTEMPT.as_nanos()).unwrap_or(i64::MAX);
    let context = Context {
        timeout_nano: limit,
        ..Context::default()
    };
    match client.forward(context, request).await {
        Ok(_) => Delivery::Acked,
        Err(ttrpc::Error::RpcStatus(status)) => judge(status.code.value(), &status.message),
        Err(error) => Delivery::Retry(Retry::Broken(shown(&error.to_string()))),
    }
}

/// Which codes say *judged* and which *could not say*.
fn judge(code: i32, message: &str) -> Delivery {
    const UNSAID: [Code; 4] = [
        Code::CANCELLED,
        Code::UNKNOWN,
        Code::DEADLINE_EXCEEDED,
        Code::UNAVAILABLE,
    ];
    let says = shown(message);
    if UNSAID.iter().any(|unsaid| *unsaid as i32 == code) {
        Delivery::Retry(Retry::Said { code, says })
    } else {
        Delivery::Refused { code, says }
    }
}
