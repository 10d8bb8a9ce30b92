//! The Task service: 17 methods, two names, one table.
//!
//! Owns the way from a ttrpc request to whoever knows the task and back. The
//! ttrpc crate drops what runs here when a request times out or its connection
//! ends, so nothing is done here but decoding, asking and encoding. The
//! generated service is not used: it answers NOT_FOUND for a method that was
//! forgotten, which containerd takes for *no such task*.

use std::{collections::HashMap, future::Future, sync::Arc};

use async_trait::async_trait;
use ttrpc::{
    Code, Request as WireRequest, Response, Status,
    r#async::{MethodHandler, Service, TtrpcContext},
};
use vigil_model::{Answer, Kind, Refusal, Request, RequestId};

use crate::{
    answers::{self, Said},
    frames::conn_of,
    requests::{self, Asked},
    transport::Traffic,
};

/// The names the service is known by; the messages are the same.
pub const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// Whoever can answer for the container.
pub trait Ask: Send + Sync {
    /// Answers a request for the container `id`, which is as containerd wrote
    /// it: not necessarily ours, and for Connect and Shutdown any text at all.
    /// `from` names the request; the same one may come again to a later shim.
    ///
    /// The future may be dropped at any moment (the client's deadline passed,
    /// or its connection ended). Whatever it stands for must go on then:
    /// implementors hand the request to the owner of the task and await the
    /// answer, and do no work in the future itself.
    fn ask(
        &self,
        id: &str,
        request: Request,
        from: Option<RequestId>,
    ) -> impl Future<Output = Result<Answer, Refusal>> + Send;
}

/// One method of the service.
struct Method {
    name: &'static str,
    decode: fn(&[u8]) -> Asked,
    encode: fn(Answer) -> Said,
}

const fn method(
    name: &'static str,
    decode: fn(&[u8]) -> Asked,
    encode: fn(Answer) -> Said,
) -> Method {
    Method {
        name,
        decode,
        encode,
    }
}

static METHODS: [Method; 17] = [
    method("State", requests::state, answers::state),
    method("Create", requests::create, answers::pid),
    method("Start", requests::start, answers::pid),
    method("Delete", requests::delete, answers::deleted),
    method("Pids", requests::pids, answers::pids),
    method("Pause", requests::pause, answers::empty),
    method("Resume", requests::resume, answers::empty),
    method("Checkpoint", requests::checkpoint, answers::empty),
    method("Kill", requests::kill, answers::empty),
    method("Exec", requests::exec, answers::empty),
    method("ResizePty", requests::resize, answers::empty),
    method("CloseIO", requests::close_io, answers::empty),
    method("Update", requests::update, answers::empty),
    method("Wait", requests::wait, answers::exit),
    method("Stats", requests::stats, answers::stats),
    method("Connect", requests::connect, answers::connected),
    method("Shutdown", requests::shutdown, answers::empty),
];

/// A method bound to whoever answers.
struct Bound<A> {
    method: &'static Method,
    ask: Arc<A>,
    traffic: Arc<Traffic>,
}

#[async_trait]
impl<A: Ask + 'static> MethodHandler for Bound<A> {
    async fn handler(&self, from: TtrpcContext, request: WireRequest) -> ttrpc::Result<Response> {
        let _asking = self.traffic.asking();
        let stream = from.mh.stream_id;
        let from = conn_of(&from.metadata).map(|conn| RequestId { conn, stream });
        let asked = (self.method.decode)(&request.payload);
        // A Wait may stay here for weeks: it keeps none of the wire's bytes.
        drop(request);
        let said = match asked {
            Ok((id, asked)) => {
                let said = self.ask.ask(&id, asked, from).await;
                said.and_then(self.method.encode)
            }
            Err(refusal) => Err(refusal),
        };
        let mut response = Response::new();
        match said {
            Ok(payload) => response.payload = payload,
            Err(refusal) => response.set_status(status(refusal)),
        }
        Ok(response)
    }
}

/// The service under both names.
pub(crate) fn services<A: Ask + 'static>(
    ask: &Arc<A>,
    traffic: &Arc<Traffic>,
) -> HashMap<String, Service> {
    SERVICES
        .iter()
        .map(|name| {
            let methods = METHODS
                .iter()
                .map(|method| {
                    let bound: Box<dyn MethodHandler + Send + Sync> = Box::new(Bound {
                        method,
                        ask: Arc::clone(ask),
                        traffic: Arc::clone(traffic),
                    });
                    (method.name.to_owned(), bound)
                })
                .collect();
            let service = Service {
                methods,
                streams: HashMap::new(),
            };
            ((*name).to_owned(), service)
        })
        .collect()
}

fn status(refusal: Refusal) -> Status {
    let mut status = Status::new();
    status.set_code(code(refusal.kind));
    status.message = refusal.says;
    status
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::ResourceExhausted => Code::RESOURCE_EXHAUSTED,
        Kind::Unavailable => Code::UNAVAILABLE,
        // `Later` never leaves the shim; here it would be a fault of ours.
        Kind::Unknown | Kind::Later => Code::UNKNOWN,
    }
}
