//! Putting the loop together at the start of a shim, and taking it apart at
//! the end: open the journal, say hello, own the task, say *ready*; then, when
//! the owner is done, say *this is the end* before anything is answered.

use std::collections::BTreeMap;
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
use crate::control::{Control, FromReaper};
use crate::crash;
use crate::desk::{Desk, INBOX_MAX};
use crate::error::Error;
use crate::exits::ExitRecords;
use crate::hands::Hands;
use crate::heir::Bequest;
use crate::jobs::{HostCgroups, Tools};
use crate::ledger::JournalLedger;
use crate::loggers::Loggers;
use crate::outbox::{self, Publish};
use crate::owner::{Ended, Ending, Message, Owner, Place};
use crate::replies::{Replies, answer};
use crate::watched::{SharedFd, Watched, shared, watch_shared};

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
    /// The number of the next connection.
    pub conns: u32,
}

/// A connection to be served.
#[derive(Debug)]
pub struct Arrival {
    /// Its number.
    pub conn: u32,
    /// The socketpair that carries its frames.
    pub pair: UnixStream,
    /// containerd's own connection, for the next reaper.
    pub own: Arc<UnixStream>,
}

/// A shim at work.
#[derive(Debug)]
pub struct Shim {
    desk: Desk,
    control: Control,
    connections: mpsc::Receiver<Arrival>,
    owner: tokio::task::JoinHandle<Ended>,
    ended: Option<Ended>,
    place: Arc<Place>,
    held: Option<Held>,
}

/// For the next reaper; one of an earlier version hands some of it down to nobody.
#[derive(Debug)]
struct Held {
    owner: Whose,
    listener: SharedFd,
    memory: SharedFd,
    exits: SharedFd,
    bell: SharedFd,
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
        let control =
            Control::open(inherited.control, place.reaper, inherited.conns, unasked).await?;
        let boot = proc::boot_id()?;
        let boot = BootId::parse(&boot.0).map_err(|source| Error::Boot { source })?;
        let memory = inherited.memory.map(shared);
        let copy = memory.as_ref().and_then(|memory| memory.try_clone().ok());
        let bell = shared(inherited.doorbell);
        let held = inherited
            .listener
            .zip(memory)
            .map(|(listener, memory)| Held {
                owner: whose.clone(),
                listener: shared(listener),
                memory,
                exits: exits.file(),
                bell: bell.clone(),
            });
        let (ledger, remembered) = JournalLedger::open(
            &place.bundle.join(names::JOURNAL),
            boot,
            &whose,
            place.takeovers == 0,
            copy,
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
            watch_shared(&bell, Interest::READABLE).map_err(|source| Error::Runtime {
                op: "watch the doorbell",
                source,
            })?;
        tokio::spawn(answer_doorbell(doorbell, sender.clone()));
        tokio::spawn(outbox::send(news, sender.clone(), publisher));
        let (arrivals, connections) = mpsc::channel(CONNECTIONS_MAX);
        tokio::spawn(sort(from_reaper, sender.clone(), arrivals));
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
            held,
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
        if self.ended.is_some() {
            return self.connections.try_recv().ok();
        }
        let ended = tokio::select! {
            Some(connection) = self.connections.recv() => return Some(connection),
            ended = &mut self.owner => ended,
        };
        // Those that came before the reaper died, of which nobody else knows.
        let came = self.connections.try_recv().ok();
        self.ended = Some(ended.unwrap_or(Ended {
            ending: Ending::ReaperLeaves,
            replies: Vec::new(),
            ends: Vec::new(),
        }));
        came
    }

    /// Why it is over. At the end of everything the reaper is told before
    /// anyone else, then Shutdown is answered.
    pub async fn end(self) -> (Ending, Option<Bequest>) {
        let Some(Ended {
            ending,
            replies,
            ends,
        }) = self.ended
        else {
            return (Ending::ReaperLeaves, None);
        };
        if ending == Ending::Succeeds {
            let (slots, conns) = (self.control.held(), self.control.conns());
            let bequest = self.held.map(|held| Bequest {
                owner: held.owner,
                listener: held.listener,
                memory: held.memory,
                exits: held.exits,
                bell: held.bell,
                conns,
                slots,
                ends,
            });
            return (ending, bequest);
        }
        if ending != Ending::Shutdown {
            return (ending, None);
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
        (ending, None)
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
        let _ = (&**bell.get_ref()).read(&mut rings);
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
) {
    while let Some(message) = from_reaper.recv().await {
        let sent = match message {
            FromReaper::Connection { conn, pair, own } => {
                let arrival = Arrival {
                    conn,
                    pair: UnixStream::from(pair),
                    own: Arc::new(UnixStream::from(own)),
                };
                // containerd's own end is the owner's too, to see who is there.
                let own = arrival.own.clone();
                owner.send(Message::Connected(own)).await.is_ok()
                    && arrivals.send(arrival).await.is_ok()
            }
            message @ (FromReaper::Leave | FromReaper::Retire | FromReaper::Gone) => {
                owner.send(Message::FromReaper(message)).await.is_ok()
            }
        };
        if !sent {
            return;
        }
    }
}
