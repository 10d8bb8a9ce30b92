//! What the owner holds of the host: streams, pins, the open cgroup. It looks
//! and does the quick things; what takes time is a job.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vigil_host::cgroup::{Cgroup, OomWatch, claims, place, stats, systemd_host};
use vigil_host::proc::{self, Checked};
use vigil_host::{bundle, rootfs, runc};
use vigil_model::metrics::Metrics;
use vigil_model::request::Create;
use vigil_model::{Answer, Incarnation, Kind, Options, Plan, Refusal, Request, Who};
use vigil_sys::pidfd;

use crate::control::Control;
use crate::ends::Held;
use crate::jobs;
use crate::jobs::update::Updating;
use crate::kept::Kept;
use crate::owner::Place;
use crate::replies::Outcome;
use crate::stdio::{Size, Streams};

/// Spare descriptors: for a pidfd, `/proc`, the cgroup's files, a worker with
/// its memory and a call of the runtime.
const SPARE: usize = 12;
/// runc's state root unless the options say otherwise.
const RUNC_ROOT: &str = "/run/containerd/runc";
/// Time an output gets at Delete to make room for what is still in a pipe.
const LAST_DRAIN: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(crate) struct Hands {
    pub(crate) tools: jobs::Tools,
    pub(crate) streams: BTreeMap<Who, Streams<Kept>>,
    pub(crate) pins: BTreeMap<Who, usize>,
    pub(crate) cgroup: Option<Arc<Cgroup>>,
    pub(crate) oom: Option<OomWatch>,
    /// What the verb under way was asked with.
    wish: Option<Request>,
    /// The update under way, or the last one.
    update: Option<Updating>,
    last_stats: Option<Metrics>,
    /// Those that are told of, held so that their deaths show even if nobody
    /// records them.
    held: BTreeMap<Who, Held>,
    /// When init was sent SIGKILL first: nothing may keep it from dying.
    killed: Option<Instant>,
    /// Descriptors held for nothing but to be let go of when there are no
    /// others: killing and cleaning up must always be possible.
    spare: Vec<OwnedFd>,
}

impl Hands {
    pub(crate) fn new(tools: jobs::Tools) -> Self {
        Self {
            tools,
            streams: BTreeMap::new(),
            pins: BTreeMap::new(),
            cgroup: None,
            oom: None,
            wish: None,
            update: None,
            last_stats: None,
            held: BTreeMap::new(),
            killed: None,
            spare: Vec::new(),
        }
    }

    /// Looks at the host and at the bundle, changing nothing: what Create is
    /// to make, and what stands in its way.
    pub(crate) fn plan(&self, place_: &Place, create: Create) -> Result<Plan, Refusal> {
        let wrong = |error: vigil_host::Error| jobs::refusal_of(Kind::InvalidArgument, &error);
        same_directory(&place_.bundle, &create.bundle)?;
        let spec = bundle::Spec::load(&place_.bundle).map_err(wrong)?;
        rootfs::check(&create.rootfs, &place_.bundle.join("rootfs")).map_err(wrong)?;
        let mut create = create;
        if create.options == Options::default() {
            create.options = place_.options.clone();
        }
        let options = &create.options;
        let program = if options.binary_name.is_empty() {
            "runc"
        } else {
            &options.binary_name
        };
        if let Err(why) = runc::find_program(program.as_ref()) {
            let what = match why {
                runc::Unusable::Missing => "was not found",
                runc::Unusable::NotExecutable => "is not executable",
            };
            return Err(Refusal::new(
                Kind::Unknown,
                format!("OCI runtime create failed: runtime {program:?} {what}"),
            ));
        }
        let hierarchies = self.tools.hierarchies.read().map_err(wrong)?;
        let placement = place(
            hierarchies,
            &place_.id,
            &spec.cgroups_path,
            options.systemd_cgroup,
            systemd_host(),
        )
        .map_err(wrong)?;
        if placement.inferred {
            log::warn!(
                "cgroupsPath {:?} has the form of the systemd driver: using it, although no option says so",
                spec.cgroups_path
            );
        }
        let root = if options.root.is_empty() {
            RUNC_ROOT
        } else {
            &options.root
        };
        Ok(Plan {
            driver: placement.driver,
            claims: claims(hierarchies, &placement),
            private_pid_ns: spec.private_pid_namespace(),
            runtime_root: format!("{root}/{}", place_.namespace),
            runtime: program.to_owned(),
            create,
        })
    }

    pub(crate) fn keep_wish(&mut self, request: Request) {
        match request {
            Request::Update(_) | Request::Checkpoint(_) => self.wish = Some(request),
            _ => self.wish = None,
        }
    }

    pub(crate) fn take_wish(&mut self) -> Option<Request> {
        self.wish.take()
    }

    pub(crate) fn keep_update(&mut self, update: Updating) {
        self.update = Some(update);
    }

    pub(crate) fn take_update(&mut self) -> Option<Updating> {
        self.update.take()
    }

    pub(crate) fn close_stdin(&mut self, who: &Who) {
        if let Some(streams) = self.streams.get(who) {
            let closing = streams.close_stdin();
            tokio::spawn(closing);
        }
    }

    pub(crate) fn resize(&self, who: &Who, width: u16, height: u16) -> Result<(), Refusal> {
        match self.streams.get(who) {
            Some(streams) => streams
                .resize(Size { width, height })
                .map_err(|error| jobs::refusal(&error)),
            None => Ok(()),
        }
    }

    /// Holds as many spare descriptors as there should be, or can be had.
    pub(crate) fn save(&mut self) {
        while self.spare.len() < SPARE {
            match vigil_sys::fd::null() {
                Ok(fd) => self.spare.push(fd),
                Err(_) => return,
            }
        }
    }

    /// Lets go of them, for something that must not fail for want of one.
    pub(crate) fn spend(&mut self) {
        self.spare.clear();
    }

    /// Whether an earlier life of this id is to be cleared away first.
    pub(crate) fn in_the_way(&self, plan: &Plan) -> bool {
        jobs::clear::in_the_way(&self.tools, plan)
    }

    /// An earlier shim has killed init.
    pub(crate) fn was_killed(&mut self) {
        self.killed.get_or_insert_with(Instant::now);
    }

    /// Holds a process from now on.
    pub(crate) fn know(&mut self, who: &Who, process: &Incarnation) {
        match proc::open_checked(process) {
            Ok(Checked::Same(fd)) => {
                let held = Held::new(process.clone(), fd);
                self.held.insert(who.clone(), held);
            }
            // Dead already: its end is recorded.
            Ok(Checked::Gone | Checked::Reused(_) | Checked::Elsewhere) => {}
            Err(error) => log::warn!("{who} is not held: {}", vigil_host::chain(&error)),
        }
    }

    /// A process by its descriptor.
    pub(crate) fn held(&self, who: &Who) -> Option<&Held> {
        self.held.get(who)
    }

    pub(crate) fn held_mut(&mut self, who: &Who) -> Option<&mut Held> {
        self.held.get_mut(who)
    }

    /// Lets go of a process whose end is on record.
    pub(crate) fn let_go(&mut self, who: &Who) {
        self.held.remove(who);
    }

    /// Why init does not die of a SIGKILL it was sent, if it does not.
    pub(crate) fn undying(&self) -> Option<String> {
        let since = self.killed?.elapsed().as_secs();
        let held = self.held(&Who::Init)?;
        if pidfd::is_dead(held.fd()) != Ok(false) {
            return None;
        }
        let init = held.process();
        // Init itself may only wait for others of its pid namespace.
        let others = self.cgroup.as_ref().and_then(|cg| cg.holdouts().ok());
        let mut held = others.unwrap_or_default();
        held.sort_by_key(|held| (held.state != 'D', held.pid != init.pid));
        if held.is_empty() {
            held.extend(proc::holdout(init.pid).ok().flatten());
        }
        let held: Vec<String> = held.iter().take(4).map(ToString::to_string).collect();
        Some(format!(
            "since SIGKILL was sent, {since} s ago, there is {}",
            held.join("; ")
        ))
    }

    /// v1 delivers nothing to what stands still, not even SIGKILL; and a
    /// freeze that was under way may complete after the signal was sent.
    pub(crate) fn let_die(&self) {
        if self.killed.is_some()
            && let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.thaw_all()
        {
            log::warn!("not thawed after SIGKILL: {}", vigil_host::chain(&error));
        }
    }

    /// Sends a signal to one process, or to all of the container.
    pub(crate) fn signal(
        &mut self,
        who: &Who,
        process: &Incarnation,
        signal: u32,
        all: bool,
        private_pid_ns: bool,
    ) -> Outcome {
        let number = i32::try_from(signal).unwrap_or(i32::MAX);
        let finished = || Refusal::new(Kind::NotFound, "process already finished");
        let checked = proc::open_checked(process).map_err(|error| jobs::refusal(&error))?;
        let Checked::Same(fd) = checked else {
            return Err(finished());
        };
        // SIGKILL of an init that shares its pid namespace would leave the
        // rest alive: the whole cgroup is meant, as runc has it.
        let whole = *who == Who::Init && (all || signal == 9 && !private_pid_ns);
        match pidfd::send_signal(&fd, number) {
            Err(vigil_sys::Errno::ESRCH) if !whole => return Err(finished()),
            Ok(()) | Err(vigil_sys::Errno::ESRCH) => {}
            Err(errno) => {
                return Err(Refusal::new(
                    Kind::Unknown,
                    format!(
                        "cannot send signal {signal} to {who}, process {}: {errno}",
                        process.pid
                    ),
                ));
            }
        }
        if whole && let Some(cgroup) = &self.cgroup {
            let family = jobs::gone::family(&self.tools.place, private_pid_ns, Some(process));
            cgroup
                .signal_others(number, process.pid, &family)
                .map_err(|error| jobs::refusal(&error))?;
        }
        // Not for an exec: the container would run on as a paused one.
        if signal == 9 && *who == Who::Init {
            self.killed.get_or_insert_with(Instant::now);
            self.let_die();
        }
        Ok(Answer::Done)
    }

    /// The counters of the cgroup, or the last ones seen.
    pub(crate) fn stats(&mut self) -> Result<Option<Metrics>, Refusal> {
        if let Some(cgroup) = self.cgroup.clone() {
            match self.without_spares(|| stats(&cgroup)) {
                Ok(Some(now)) => self.last_stats = Some(now),
                Ok(None) => {}
                // There is a cgroup, and nobody may say that there is none.
                Err(error) if vigil_host::scarcity(&error).is_some() => {
                    return Err(jobs::refusal(&error));
                }
                Err(error) => log::warn!("stats: {}", vigil_host::chain(&error)),
            }
        }
        Ok(self.last_stats.clone())
    }

    /// Does it again with the spare descriptors given up, if there were too few.
    pub(crate) fn without_spares<T>(
        &mut self,
        look: impl Fn() -> vigil_host::Result<T>,
    ) -> vigil_host::Result<T> {
        let first = look();
        if first
            .as_ref()
            .err()
            .is_none_or(|e| vigil_host::scarcity(e).is_none())
        {
            return first;
        }
        self.spend();
        let again = look();
        self.save();
        again
    }

    /// Lets go of everything held for a process that is deleted or never was.
    pub(crate) fn release(&mut self, who: &Who) {
        let streams = self.streams.remove(who);
        // Init's slot is kept as long as the pair lives: with a journal that
        // failed, it is all that `delete` will know of an end we have told.
        let pin = self.pins.remove(who).filter(|_| *who != Who::Init);
        if *who == Who::Init {
            self.cgroup = None;
            self.oom = None;
        }
        self.let_go(who);
        let control = self.tools.control.clone();
        tokio::spawn(async move {
            if let Some(streams) = streams {
                streams.close_all(LAST_DRAIN).await;
            }
            give_back(control, pin).await;
        });
    }

    /// Gives back the place of a process whose end is on record.
    pub(crate) fn unpin(&mut self, who: &Who) {
        let pin = self.pins.remove(who);
        tokio::spawn(give_back(self.tools.control.clone(), pin));
    }
}

/// Refuses a request for another bundle than the one `start` was run in: the
/// records of this pair lie there.
fn same_directory(ours: &std::path::Path, asked: &str) -> Result<(), Refusal> {
    use std::os::unix::fs::MetadataExt;
    let look = |path: &std::path::Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
    match (look(ours), look(asked.as_ref())) {
        (Ok(a), Ok(b)) if a == b => Ok(()),
        (_, Err(source)) => Err(jobs::refusal_of(
            Kind::InvalidArgument,
            &vigil_host::Error::File {
                op: "look at bundle",
                path: asked.into(),
                source,
            },
        )),
        (_, Ok(_)) => Err(Refusal::new(
            Kind::InvalidArgument,
            format!(
                "this shim was started in bundle {}, not in {asked:?}",
                ours.display()
            ),
        )),
    }
}

async fn give_back(control: Control, pin: Option<usize>) {
    if let Some(pin) = pin
        && let Err(error) = control.unregister(pin).await
    {
        log::warn!("pin not given back: {}", vigil_host::chain(&error));
    }
}
