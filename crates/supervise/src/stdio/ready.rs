//! Waiting for the first of two things, and until a time that may never come.
//! Small, because the runtime is built without its macros.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use tokio::time::Instant;

pub(super) use crate::watched::{SharedFd, Watched, shared, watch, watch_shared};

/// Which of two came first.
pub(super) enum First<A, B> {
    One(A),
    Other(B),
}

/// Waits for the first of two; of both at once, `one`. The loser is dropped.
pub(super) async fn first<A, B>(
    one: impl Future<Output = A>,
    other: impl Future<Output = B>,
) -> First<A, B> {
    let mut one = pin!(one);
    let mut other = pin!(other);
    poll_fn(|cx| {
        if let Poll::Ready(value) = one.as_mut().poll(cx) {
            return Poll::Ready(First::One(value));
        }
        other.as_mut().poll(cx).map(First::Other)
    })
    .await
}

/// Sleeps until then; for ever without a time.
pub(super) async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
