//! Putting the loop together at the start of a shim, and taking it apart at
//! the end: open the journal, say hello, own the task, say *ready*; then, when
//! the owner is done, say *this is the end* before anything is answered.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::sync::{Notify, mpsc};
use vigil_host::proc;
use vigil_journal::owner::draw_salt;
use vigil_journal::{BootId, Owner as Whose, Tail, names};
use vigil_sys::points::{self, Point};

use crate::bundle::{self, BUNDLE_LOOKS};
use crate::control::{Control, FromReaper, Reaper};
use crate::crash;
use crate::desk::{Desk, INBOX_MAX, Reply};
use crate::error::Error;
use crate::exits::ExitRecords;
use crate::hands::Hands;
use crate::jobs::{HostCgroups, Tools};
use crate::ledger::JournalLedger;
use crate::loggers::Loggers;
use crate::orphan;
use crate::outbox::{self, Publish};
use crate::owner::{Ending, Message, Owner, Place};
use crate::replies::{Replies, answer};
use crate::watched::{Watched, watch};

/// Connections waiting to be served.
const CONNECTIONS_MAX: usize = 64;

/// What the reaper gave this shim at its start.
#[derive(Debug)]
pub struct Inherited {
    /// The control socket.
    pub control: OwnedFd,
    /// Rung after each recorded death.
    pub doorbell: OwnedFd,
    /// Where containerd connects. Touched only when the reaper is dead; one of
    /// an earlier version does not hand it down.
    pub listener: Option<OwnedFd>,
    /// Memory for a second copy of the journal; likewise.
    pub memory: Option<OwnedFd>,
    /// The exit records, whatever has their name in the bundle by now; likewise.
    pub exits: Option<OwnedFd>,
}

/// A connection to be served.
#[derive(Debug)]
pub struct Arrival {
    /// Its number.
    pub conn: u32,
    /// The socketpair that carries its frames, if it comes through the reaper.
    pub pair: Option<UnixStream>,
    /// containerd's own connection; only for when the pair has ended.
    pub own: Arc<UnixStream>,
}

/// A shim at work.
#[derive(Debug)]
pub struct Shim {
    desk: Desk,
    control: Control,
    connections: mpsc::Receiver<Arrival>,
    owner: tokio::task::JoinHandle<(Ending, Vec<Reply>)>,
    ended: Option<(Ending, Vec<Reply>)>,
    place: Arc<Place>,
}

impl Shim {
    /// Opens the journal and the records and starts the owner.
    pub async fn start(
        place: Place,
        inherited: Inherited,
        publisher: impl Publish,
    ) -> Result<Self, Error> {
        // Never full, since whoever waits for an answer of the reaper would wait for it; the
        // reaper bounds how many connections there are.
        let (unasked, from_reaper) = mpsc::unbounded_channel();
        let whose = Whose::of(place.namespace.as_str(), place.id.as_str());
        let exits = ExitRecords::open(&place.bundle.join(names::EXITS), inherited.exits, &whose)?;
        // A reaper of an earlier version drew no salt.
        let salted = || Whose {
            salt: draw_salt(),
            ..whose.clone()
        };
        let whose = exits.owner().unwrap_or_else(salted);
        let reaper = Reaper {
            parent: place.parent.clone(),
            exits: exits.clone(),
        };
        let control = Control::open(inherited.control, reaper, unasked).await?;
        let boot = proc::boot_id()?;
        let boot = BootId::parse(&boot.0).map_err(|source| Error::Boot { source })?;
        let (ledger, remembered) = JournalLedger::open(
            &place.bundle.join(names::JOURNAL),
            boot,
            &whose,
            place.takeovers == 0,
            inherited.memory.map(File::from),
        )?;
        match &remembered.tail {
            Tail::Clean => {}
            tail => log::warn!("the journal was not whole: {tail:?}"),
        }
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let news = outbox::Bell::default();
        let (salt, place) = (whose.salt, Arc::new(place));
        let tools = Tools {
            place: place.clone(),
            control: control.clone(),
            loggers: Loggers::default(),
            exits,
            hierarchies: HostCgroups::default(),
            deadlines: place.limits.runc,
        };
        let mut owner = Owner {
            place: (*place).clone(),
            task: remembered.task,
            ledger,
            hands: Hands::new(tools),
            replies: Replies::default(),
            desk: sender.clone(),
            news: news.clone(),
            connections: Vec::new(),
            leaving: None,
            shutdown_replies: Vec::new(),
            signal_outcome: None,
            resting: true,
            // Whoever started us is about to ask.
            asked: true,
            idle_armed: false,
            at_bundle: Arc::new(Notify::new()),
            bundle_waits: BUNDLE_LOOKS,
            asking: None,
            undoing: false,
            changed: false,
            resumed: None,
            resuming: BTreeMap::new(),
        };
        if owner.place.takeovers == 0 {
            owner.hands.save();
            owner.arm_idle();
        }
        let doorbell =
            watch(inherited.doorbell, Interest::READABLE).map_err(|source| Error::Runtime {
                op: "watch the doorbell",
                source,
            })?;
        tokio::spawn(answer_doorbell(doorbell, sender.clone()));
        tokio::spawn(outbox::send(news, sender.clone(), publisher));
        let (arrivals, connections) = mpsc::channel(CONNECTIONS_MAX);
        let listener = inherited.listener;
        tokio::spawn(sort(from_reaper, sender.clone(), arrivals, listener));
        if owner.place.takeovers > 0 {
            control.greeted().await?;
            owner.take_over().await?;
            // Not before: what it takes over must find room.
            owner.hands.save();
            crash::tell_of_the_one_before(&owner.place, salt, &remembered.gist);
        }
        let (at, asked) = (place.bundle.clone(), owner.at_bundle.clone());
        tokio::spawn(bundle::observe(at, asked, sender.clone()));
        let owner = tokio::spawn(owner.run(inbox));
        Ok(Self {
            desk: Desk::new(sender),
            control,
            connections,
            owner,
            ended: None,
            place,
        })
    }

    /// Where requests are handed in.
    pub fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Requests can be served: lets `start` print its address.
    pub async fn ready(&self) -> Result<(), Error> {
        self.control.greeted().await?;
        self.control.ready().await
    }

    /// The next connection to serve; `None` when it is time to leave.
    pub async fn next(&mut self) -> Option<Arrival> {
        let ended = tokio::select! {
            Some(connection) = self.connections.recv() => return Some(connection),
            ended = &mut self.owner => ended,
        };
        self.ended = Some(ended.unwrap_or((Ending::ReaperLeaves, Vec::new())));
        None
    }

    /// Why it is over. At the end of everything the reaper is told before
    /// anyone else, then Shutdown is answered.
    pub async fn end(self) -> Ending {
        let (ending, replies) = self.ended.unwrap_or((Ending::ReaperLeaves, Vec::new()));
        if ending != Ending::Shutdown {
            return ending;
        }
        // First the socket, so that nobody finds a pair that is leaving.
        remove_socket(&self.place.socket);
        points::reach(Point::SocketRemoved);
        if let Err(error) = self.control.end().await {
            log::warn!(
                "the reaper was not told of the end: {}",
                vigil_host::chain(&error)
            );
        }
        for reply in replies {
            answer(Some(reply), Ok(vigil_model::Answer::Done));
        }
        ending
    }
}

/// Nobody is to find a pair that is leaving.
pub(crate) fn remove_socket(socket: &Path) {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            log::warn!("cannot remove {}: {error}", socket.display());
        }
        Ok(()) | Err(_) => {}
    }
}

/// The doorbell carries no data: who rings has written the record before.
async fn answer_doorbell(bell: Watched, owner: mpsc::Sender<Message>) {
    loop {
        let Ok(mut ready) = bell.readable().await else {
            return;
        };
        ready.clear_ready();
        let mut rings = [0; 8];
        // Edge-triggered: not draining it would do, but for the counter's end.
        let _ = bell.get_ref().read(&mut rings);
        if owner.send(Message::Doorbell).await.is_err() {
            return;
        }
    }
}

/// Connections to whoever serves them, the rest to the owner.
async fn sort(
    mut from_reaper: mpsc::UnboundedReceiver<FromReaper>,
    owner: mpsc::Sender<Message>,
    arrivals: mpsc::Sender<Arrival>,
    listener: Option<OwnedFd>,
) {
    while let Some(message) = from_reaper.recv().await {
        let sent = match message {
            FromReaper::Connection { conn, pair, own } => {
                let arrival = Arrival {
                    conn,
                    pair: Some(UnixStream::from(pair)),
                    own: Arc::new(UnixStream::from(own)),
                };
                orphan::arrive(arrival, &owner, &arrivals).await
            }
            message @ (FromReaper::Leave | FromReaper::Retire) => {
                owner.send(Message::FromReaper(message)).await.is_ok()
            }
            message @ FromReaper::Gone => {
                if owner.send(Message::FromReaper(message)).await.is_ok()
                    && let Some(listener) = listener
                {
                    orphan::accept(listener, owner, arrivals).await;
                }
                return;
            }
        };
        if !sent {
            return;
        }
    }
}
