//! The shim itself: takes over what the reaper handed down and serves until
//! the end. One thread. Until it has said *ready*, a failure is told to
//! `start` through the ready pipe; afterwards to the log.

use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vigil_host::enact::{RUN, reconcile_to_gone};
use vigil_host::observe::{Below, Subject};
use vigil_host::{proc, starts};
use vigil_journal::{Owner, names};
use vigil_model::{Answer, Kind, Options, Published, Refusal, Request, RequestId};
use vigil_protocol::{Ask, Flags, Publisher, Server};
use vigil_reaper::{CONTROL_FD, DOORBELL_FD, EXITS_FD, LISTENER_FD, LOCK_FD, MEMORY_FD, READY_FD};
use vigil_supervise::crash;
use vigil_supervise::stdio::LogFifo;
use vigil_supervise::{
    Arrival, Delivery, Desk, Ending, Inherited, Limits, Place, Publish, Shim, chain, end_lost,
    is_in_its_place,
};
use vigil_sys::points::{self, Point};
use vigil_sys::{fd, fork, map, pidfd, process, signal};

use crate::waiter::Case;
use crate::{RUNTIME, delete, heir};

/// For the last answers to reach the reaper.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// For ending a container whose bundle is gone, which nobody waits for.
const WITHOUT_BUNDLE: Duration = Duration::from_secs(5);
/// What is told of in one wait; the rest is told of in the next.
const IO_EVENTS: usize = 64;

/// Serves one container.
pub fn run(flags: &Flags) -> Result<()> {
    let inherited = |number, what| {
        fork::inherited(number).with_context(|| {
            format!("{what} was not handed down: `serve` is started by the reaper only")
        })
    };
    // A name for `ps`, which knows it by a descriptor's number so far.
    let _ = process::set_name(c"containerd-shim");
    let control = inherited(CONTROL_FD, "the control socket")?;
    let doorbell = inherited(DOORBELL_FD, "the doorbell")?;
    // Held by being open: the lock is free when both of us are gone.
    let lock = inherited(LOCK_FD, "the lock")?;
    let mut ready = Some(std::fs::File::from(inherited(READY_FD, "the ready pipe")?));
    // The reaper takes the control socket's end for ours: it is open for as long as we live.
    let held = fd::duplicate(&control).context("cannot keep the control socket")?;
    let inherited = Inherited {
        control,
        doorbell,
        listener: fork::inherited(LISTENER_FD).ok(),
        memory: fork::inherited(MEMORY_FD).ok(),
        exits: fork::inherited(EXITS_FD).ok(),
        // One of a version that counts from 0 and does not say how far it has come.
        conns: counted(vigil_reaper::CONNS).unwrap_or(1 << 31),
    };
    let outcome = serve(flags, inherited, &lock, &mut ready);
    if let Err(error) = &outcome {
        log::error!("{}", chain(error.as_ref()));
        // `start` may be gone; then the log has it.
        if let Some(mut ready) = ready {
            let _ = ready.write_all(format!("E{}\n", chain(error.as_ref())).as_bytes());
        }
        // The kernel fixes the status before it closes what is held.
        process::exit_now(1);
    }
    drop((held, lock));
    outcome
}

/// A number that the reaper has set, if it is not an older one.
fn counted(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

fn serve(
    flags: &Flags,
    inherited: Inherited,
    lock: &OwnedFd,
    ready: &mut Option<std::fs::File>,
) -> Result<()> {
    map::thrifty_heap();
    // The standard library's own of SIGSEGV and SIGBUS let one that somebody sent pass, and
    // tell of a full stack to nobody.
    signal::reset_for_exec().context("cannot reset signals")?;
    for number in [signal::HUP, signal::PIPE, signal::USR1] {
        signal::ignore(number).context("cannot ignore a signal")?;
    }
    let open_files = std::env::var(crate::start::OPEN_FILES).ok();
    // The reaper's limit is its own: one that was lowered there must not be that of each who
    // takes over.
    let _ = process::raise_open_files();
    if let Some(soft) = open_files.and_then(|soft| soft.parse().ok()) {
        process::children_open_files(soft);
    }
    // No huge pages for a process of a few hundred KiB.
    let _ = process::disable_huge_pages();
    let bundle = match std::env::current_dir() {
        // Removed, while nobody of us lived to see it.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return end_without_bundle(flags, inherited);
        }
        bundle => bundle.context("cannot see the bundle")?,
    };
    // Where it was at `start`; a pair of an earlier version was not told.
    let bundle = std::env::var_os(crate::start::BUNDLE).map_or(bundle, PathBuf::from);
    if !is_in_its_place(&bundle) {
        return end_without_bundle(flags, inherited);
    }
    let owner = Owner::of_bundle(&bundle, flags.namespace.as_str(), flags.id.as_str());
    crash::keep_last_words(bundle.join(names::PANIC), &owner);
    let level = if flags.debug {
        log::LevelFilter::Debug
    } else {
        log::LevelFilter::Info
    };
    let fields = [
        ("runtime", RUNTIME),
        ("namespace", flags.namespace.as_str()),
        ("id", flags.id.as_str()),
    ];
    LogFifo::new(&bundle.join("log"), level, &fields).install();
    for warning in std::env::var(crate::start::WARNINGS)
        .unwrap_or_default()
        .lines()
    {
        log::warn!("{warning}");
    }
    let place = place(flags, bundle)?;
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let publisher = ToContainerd(Publisher::new(
        &address,
        flags.namespace.clone(),
        flags.id.clone(),
    ));
    let runtime = runtime()?;
    let named = (flags.namespace.as_str(), flags.id.as_str());
    runtime.block_on(async {
        let id = place.id.to_string();
        let reaper = place.reaper;
        let at = place.bundle.clone();
        let mut shim = Shim::start(place, inherited, publisher).await?;
        let server = Server::start(Arc::new(Front {
            desk: shim.desk(),
            id,
            reaper,
        }))
        .await?;
        points::reach(Point::PairNotReady);
        shim.ready().await?;
        // Ours; the reaper's copy is closed once it has told `start`.
        *ready = None;
        let mut called = false;
        while let Some(Arrival { conn, pair, own }) = shim.next().await {
            if !called {
                called = true;
                starts::over(Path::new(RUN), named);
            }
            if let Err(error) = server.add_relayed(conn, pair, own).await {
                log::error!("connection not served: {}", error.story());
            }
        }
        let (ending, bequest) = shim.end().await;
        if let Some(bequest) = bequest {
            log::warn!("the reaper is dead: this process goes on as the reaper, with another shim");
            let why = heir::succeed(lock, server.end(), &bequest);
            if let Err(error) = why {
                log::error!(
                    "the reaper is dead, and nobody follows: {}",
                    chain(error.as_ref())
                );
            }
            process::exit_now(1)
        }
        if ending == Ending::Shutdown {
            starts::over(Path::new(RUN), named);
        }
        if ending != Ending::ReaperLeaves {
            server.flushed(LAST_ANSWERS).await;
        }
        // Whatever still runs (a pending Wait, a closing logger) ends here; so
        // does what would go on making things that nobody could undo. Another
        // shim finds what this one had under way.
        if ending != Ending::Retires {
            process::kill_errands();
        }
        // Who makes us leave does the rest.
        if !matches!(ending, Ending::Retires | Ending::ReaperLeaves) {
            wait_for_what_is_left(flags, &at);
        }
        process::exit_now(0)
    })
}

/// Where and for whom it works.
fn place(flags: &Flags, bundle: PathBuf) -> Result<Place> {
    let options: Options = match std::env::var(crate::start::OPTIONS) {
        Ok(text) => serde_json::from_str(&text).context("cannot read the options of `start`")?,
        Err(_) => Options::default(),
    };
    let (limits, unfit) = Limits::given(|name| std::env::var(name).ok());
    for warning in unfit {
        log::warn!("{warning}");
    }
    Ok(Place {
        id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        bundle,
        socket: PathBuf::from(&flags.socket),
        reaper: process::parent_pid(),
        options,
        limits,
        takeovers: counted(vigil_reaper::TAKEOVERS).unwrap_or(0),
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Room for the 1,024 of the default is three pages of each shim.
        .max_io_events_per_tick(IO_EVENTS)
        .build()
        .context("cannot start the runtime")
}

/// Nobody will ask for a container whose bundle is gone, and its records are gone with it: what
/// the reaper's memory has of them counts.
fn end_without_bundle(flags: &Flags, inherited: Inherited) -> Result<()> {
    let at = std::env::var_os(crate::start::BUNDLE).context("nobody says where the bundle was")?;
    let place = place(flags, PathBuf::from(&at))?;
    let options = place.options.clone();
    match runtime()?.block_on(end_lost(place, inherited)) {
        Ok(true) => {
            starts::over(
                Path::new(RUN),
                (flags.namespace.as_str(), flags.id.as_str()),
            );
            process::kill_errands();
            wait_for_what_is_left(flags, Path::new(&at));
            process::exit_now(0)
        }
        // A reaper or a shim of an earlier version.
        Ok(false) => end_unrecorded(flags, &options, PathBuf::from(at)),
        // The next shim may be answered, or have all of it.
        Err(
            error @ (vigil_supervise::Error::ReaperSilent
            | vigil_supervise::Error::SlotsLost { .. }),
        ) => Err(error.into()),
        // Its memory is no journal, or holds what nobody can read. There is no log any more.
        Err(error) => {
            let owner = Owner::of(flags.namespace.as_str(), flags.id.as_str());
            let why = format!(
                "the bundle is gone, and the container was ended without its records: {}",
                chain(&error)
            );
            crash::tell(Path::new(&at), &owner, vigil_supervise::now(), why, &[]);
            end_unrecorded(flags, &options, PathBuf::from(at))
        }
    }
}

/// Without any record: what descends from the reaper is the container; runc's state and its
/// cgroups bear its name.
fn end_unrecorded(flags: &Flags, options: &Options, at: PathBuf) -> Result<()> {
    let reaper = process::parent_pid();
    let root = match options.root.as_str() {
        "" => Path::new(delete::RUNC_ROOT),
        root => Path::new(root),
    };
    let mut subject = Subject::unrecorded(flags.id.clone(), flags.namespace.clone(), at, root);
    subject.socket = Some(PathBuf::from(&flags.socket));
    subject.below = proc::incarnation(reaper)?.map(|reaper| Below {
        reaper,
        spare: vec![process::pid()],
        loggers: Vec::new(),
    });
    let _ = reconcile_to_gone(&subject, Instant::now() + WITHOUT_BUNDLE);
    let case = Case::new(flags, &subject.bundle);
    if case.is_entombed() {
        case.leave();
    }
    if let Some((_, reaper)) = proc::open_now(reaper)? {
        pidfd::send_signal(&reaper, signal::USR2).context("the reaper cannot be told")?;
    }
    // It ends us with itself.
    std::thread::sleep(WITHOUT_BUNDLE);
    anyhow::bail!("the bundle was removed, and the reaper does not leave")
}

/// What the container could not get rid of, if anything.
fn wait_for_what_is_left(flags: &Flags, bundle: &Path) {
    let case = Case::new(flags, bundle);
    if case.is_entombed() {
        case.leave();
    }
}

/// The owner of the task, as the wire sees it.
struct Front {
    desk: Desk,
    id: String,
    reaper: u32,
}

impl Ask for Front {
    async fn ask(
        &self,
        id: &str,
        request: Request,
        from: Option<RequestId>,
    ) -> Result<Answer, Refusal> {
        if id != self.id {
            return match request {
                // Never fails, and knows of no task with this id.
                Request::Connect => Ok(Answer::Connected {
                    shim_pid: self.reaper,
                    task_pid: 0,
                }),
                // Whoever asks means this shim; there is no other container.
                Request::Shutdown => self.desk.ask(request, from).await,
                Request::Create(_) => Err(Refusal::new(
                    Kind::FailedPrecondition,
                    format!(
                        "this shim serves container {} alone, not {id}: containers of a pod do not share a shim",
                        self.id
                    ),
                )),
                _ => Err(Refusal::new(
                    Kind::NotFound,
                    format!("container {id} not created"),
                )),
            };
        }
        self.desk.ask(request, from).await
    }
}

/// containerd's events socket, as the outbox sees it.
struct ToContainerd(Publisher);

impl Publish for ToContainerd {
    async fn publish(&mut self, event: &Published) -> Delivery {
        match self.0.forward(event).await {
            vigil_protocol::Delivery::Acked => Delivery::Acked,
            vigil_protocol::Delivery::Refused { code, says } => {
                Delivery::Refused(format!("code {code}: {says}"))
            }
            vigil_protocol::Delivery::Retry(why) => Delivery::Retry(why.to_string()),
        }
    }
}
