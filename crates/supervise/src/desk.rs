//! The front desk: where requests are handed in. A handle is cheap to clone
//! and may be dropped at any await without undoing anything: the work belongs
//! to the owner, the caller only waits for the answer.

use tokio::sync::{mpsc, oneshot};
use vigil_model::{Answer, Kind, Refusal, Request, RequestId};

use crate::owner::Message;

/// Requests and finished effects waiting for the owner at one time.
pub(crate) const INBOX_MAX: usize = 256;

/// Where an answer goes.
pub(crate) type Reply = oneshot::Sender<Result<Answer, Refusal>>;

/// Hands requests to the owner.
#[derive(Debug, Clone)]
pub struct Desk {
    inbox: mpsc::Sender<Message>,
}

impl Desk {
    pub(crate) fn new(inbox: mpsc::Sender<Message>) -> Self {
        Self { inbox }
    }

    /// Asks, and waits for the answer as long as it takes. Dropping the
    /// future drops the answer, never the work.
    pub async fn ask(&self, request: Request, from: Option<RequestId>) -> Result<Answer, Refusal> {
        let (reply, answered) = oneshot::channel();
        let gone = || Refusal::new(Kind::Unavailable, "the shim is leaving");
        self.inbox
            .send(Message::Ask {
                request,
                from,
                reply,
            })
            .await
            .map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}
