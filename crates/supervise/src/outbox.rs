//! The sender of events: strictly in order, each until containerd has taken
//! it, however long that is. The events themselves are in the task, and so in
//! the journal; this holds none. Nothing in a request's path waits for it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use vigil_model::{Published, TaskEvent, What, Who};
use vigil_sys::points::{self, Point};

use crate::owner::Message;

/// First and longest pause after a failed attempt.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// How containerd took an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// It has it.
    Acked,
    /// It refused it: an answer too; told to the log and not repeated.
    Refused(String),
    /// It did not get it, as far as we know.
    Retry(String),
}

/// Delivers one event; bounded in time by its implementor.
pub trait Publish: Send + 'static {
    /// One attempt.
    fn publish(&mut self, event: &Published) -> impl Future<Output = Delivery> + Send;
}

/// Rung when there may be something to send.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bell(Arc<Notify>);

impl Bell {
    pub(crate) fn ring(&self) {
        self.0.notify_one();
    }
}

/// Sends what the owner has until the owner is gone.
pub(crate) async fn send(bell: Bell, owner: mpsc::Sender<Message>, mut publisher: impl Publish) {
    let mut pause = PAUSE_FIRST;
    let mut told_down = false;
    loop {
        let (reply, next) = oneshot::channel();
        if owner.send(Message::NextEvent(reply)).await.is_err() {
            return;
        }
        let Ok(next) = next.await else { return };
        let Some(event) = next else {
            bell.0.notified().await;
            continue;
        };
        let init_exit = is_init_exit(&event);
        if init_exit {
            points::reach(Point::ExitNotSent);
        }
        match publisher.publish(&event).await {
            Delivery::Acked => {}
            Delivery::Refused(says) => log::warn!("event {} refused: {says}", event.seq),
            Delivery::Retry(says) => {
                if !told_down {
                    log::warn!("event {} waits for containerd: {says}", event.seq);
                    told_down = true;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_LONGEST);
                continue;
            }
        }
        if init_exit {
            points::reach(Point::ExitSent);
        }
        told_down = false;
        pause = PAUSE_FIRST;
        if owner
            .send(Message::Happened(What::Acked { seq: event.seq }))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Whether a crash around this event is a case of its own.
fn is_init_exit(event: &Published) -> bool {
    let init = Who::Init;
    matches!(&event.event, TaskEvent::Exit { who, .. } if *who == init)
}
