//! Asking another shim whether it still has its container: what `start` does
//! when somebody already listens where it wants to. Blocks, for `limit` at most.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::StateRequest;
use containerd_shim_protos::shim_async::TaskClient;
use tokio::net::UnixStream;
use ttrpc::r#async::{Client, transport::Socket};
use ttrpc::{Code, context::Context};
use vigil_model::TaskId;

/// What the other one said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// It has a task of this id that was not deleted.
    Task,
    /// It has none.
    NoTask,
    /// It could not be reached, said nothing in time, or nothing we know.
    Silent,
}

/// Asks the shim that listens at `socket` for the state of `id`.
pub fn probe(socket: &Path, id: &TaskId, limit: Duration) -> Probe {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else {
        return Probe::Silent;
    };
    runtime.block_on(async {
        tokio::time::timeout(limit, ask(socket, id))
            .await
            .unwrap_or(Probe::Silent)
    })
}

async fn ask(socket: &Path, id: &TaskId) -> Probe {
    let Ok(stream) = UnixStream::connect(socket).await else {
        return Probe::Silent;
    };
    let client = TaskClient::new(Client::new(Socket::new(stream)));
    let request = StateRequest {
        id: id.to_string(),
        ..StateRequest::default()
    };
    match client.state(Context::default(), &request).await {
        Ok(_) => Probe::Task,
        Err(ttrpc::Error::RpcStatus(status)) if status.code.value() == Code::NOT_FOUND as i32 => {
            Probe::NoTask
        }
        Err(_) => Probe::Silent,
    }
}
