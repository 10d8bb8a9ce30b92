//! An update under way, as whoever wants it ended sees it: a Delete waits for
//! no limits of a container that goes. Here are the two ends and nothing else.

use std::time::Duration;

use tokio::sync::oneshot;

/// For a call that was killed to be gone; one in D state is left behind.
const ENDING: Duration = Duration::from_millis(700);

/// Comes when the update is not wanted any more.
pub(crate) type Stop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Updating {
    stop: oneshot::Sender<()>,
    over: oneshot::Receiver<()>,
}

impl Updating {
    /// One that begins: the job keeps what is returned beside it until it is over.
    pub(crate) fn begin() -> (Self, Stop, oneshot::Sender<()>) {
        let (stop, stopped) = oneshot::channel();
        let (at_it, over) = oneshot::channel();
        let stopped = Box::pin(async { drop(stopped.await) });
        (Self { stop, over }, stopped, at_it)
    }

    /// Ends it, if it is not over; bounded.
    pub(crate) async fn end(self) {
        drop(self.stop);
        // Its end drops the other side, whatever came of it.
        let _ = tokio::time::timeout(ENDING, self.over).await;
    }
}
