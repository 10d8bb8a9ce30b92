//! Waiting for descriptors under tokio, and for the first of two things. The
//! runtime's readiness is edge-triggered and its "closed" states are final;
//! who waits must know both, so all registrations are made here.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::Poll;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// A descriptor the runtime watches; deregistered before it is closed.
pub(super) type Watched = AsyncFd<File>;

/// Registers a descriptor that is already non-blocking.
#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their descriptor; a File cannot"
)]
pub(super) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    AsyncFd::with_interest(File::from(fd), interest)
}

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
