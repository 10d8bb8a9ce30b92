//! Making the container: mounts, streams, `runc create`, and the undoing of
//! whatever was made when one of them fails.

use std::sync::Arc;

use vigil_host::cgroup::{Cgroup, OomWatch};
use vigil_host::rootfs;
use vigil_host::runc::{Call, Invocation, Streams as Given};
use vigil_host::stdio::Owner as StdioOwner;
use vigil_host::worker::{Outcome, Worker};
use vigil_model::{Claim, Incarnation, Kind, Plan, Refusal};
use vigil_sys::points::{self, Point};

use super::{Tools, gone, identify, runc, runtime};
use crate::kept::Kept;
use crate::stdio::{Asked, Streams};

/// A container that was made.
#[derive(Debug)]
pub(crate) struct Made {
    /// `None` for a restore, which Start carries out.
    pub(crate) begun: Option<Begun>,
    pub(crate) claims: Vec<Claim>,
}

/// A container whose init exists.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) init: Incarnation,
    pub(crate) pin: usize,
    pub(crate) streams: Streams<Kept>,
    pub(crate) cgroup: Arc<Cgroup>,
    pub(crate) oom: Option<OomWatch>,
}

/// A container that could not be made.
#[derive(Debug)]
pub(crate) struct NotMade {
    pub(crate) why: Refusal,
    /// Nothing is left of the attempt.
    pub(crate) undone: bool,
}

/// Makes the container, or leaves nothing of it as far as it can.
pub(crate) async fn create(
    tools: Tools,
    plan: Box<Plan>,
    streams: Streams<Kept>,
) -> Result<Made, NotMade> {
    match attempt(&tools, &plan, streams).await {
        Ok(made) => Ok(made),
        Err(why) => {
            let undone = gone::undo(&tools, &plan).await;
            Err(NotMade { why, undone })
        }
    }
}

async fn attempt(tools: &Tools, plan: &Plan, streams: Streams<Kept>) -> Result<Made, Refusal> {
    if let Err(refusal) = mount(tools, plan).await {
        streams.close_all(std::time::Duration::ZERO).await;
        return Err(refusal);
    }
    points::reach(Point::RootfsMounted);
    if !plan.create.checkpoint.is_empty() {
        return Ok(Made {
            begun: None,
            claims: plan.claims.clone(),
        });
    }
    let mut claims = plan.claims.clone();
    let begun = begin(tools, plan, &mut claims, streams).await?;
    Ok(Made {
        begun: Some(begun),
        claims,
    })
}

/// Runs `runc create`, or `runc restore` of a checkpoint.
pub(crate) async fn begin(
    tools: &Tools,
    plan: &Plan,
    claims: &mut [Claim],
    streams: Streams<Kept>,
) -> Result<Begun, Refusal> {
    let place = &tools.place;
    let create = &plan.create;
    let asked = Asked {
        stdio: &create.stdio,
        task: &place.id,
        namespace: &place.namespace,
        owner: StdioOwner::from(&create.options),
    };
    let (child, mut streams) = streams
        .open_anew(&asked)
        .await
        .map_err(|error| super::refusal(&error))?;
    let pid_file = place.bundle.join("init.pid");
    // A file an earlier life left must not be taken for this one's.
    let _ = std::fs::remove_file(&pid_file);
    let since = tools.exits.ring_seq();
    let work = if create.options.criu_work_path.is_empty() {
        place.bundle.join("work")
    } else {
        create.options.criu_work_path.clone().into()
    };
    let running = {
        let runtime = runtime(plan);
        let console_socket = streams.console_socket();
        let call = if create.checkpoint.is_empty() {
            Call::Create {
                id: place.id.as_str(),
                bundle: &place.bundle,
                pid_file: &pid_file,
                console_socket,
                no_pivot: create.options.no_pivot_root,
                no_new_keyring: create.options.no_new_keyring,
            }
        } else {
            Call::Restore {
                id: place.id.as_str(),
                bundle: &place.bundle,
                image: create.checkpoint.as_ref(),
                work: &work,
                pid_file: &pid_file,
                console_socket,
                no_pivot: create.options.no_pivot_root,
            }
        };
        Invocation::new(&runtime, call)
            .streams(given(&child))
            .spawn()
    };
    drop(child);
    points::reach(Point::RuncCreateCalled);
    let (outcome, copying) = match running {
        Ok(running) => {
            let never = std::future::pending();
            runc::finish_copying(running, &tools.deadlines, &mut streams, never).await
        }
        Err(failure) => (Err(failure), Ok(())),
    };
    points::reach(Point::RuncCreateDone);
    let identified = match outcome {
        Ok(()) => match identify::pid_in(&pid_file) {
            Ok(pid) => identify::identify(tools, claims, pid, since).await,
            Err(refusal) => Err(refusal),
        },
        Err(failure) => Err(runc::refusal(&failure)),
    };
    let identified = match identified {
        Ok(identified) => identified,
        Err(refusal) => {
            streams.close_all(std::time::Duration::ZERO).await;
            return Err(refusal);
        }
    };
    let copying = copying.map_err(|error| super::refusal(&error));
    own(tools, claims, identified, streams, copying).await
}

/// Takes possession of the container whose init was found: its cgroup, its
/// counters, its streams, if those are copied as they should.
pub(crate) async fn own(
    tools: &Tools,
    claims: &mut [Claim],
    identified: Identified,
    streams: Streams<Kept>,
    copying: Result<(), Refusal>,
) -> Result<Begun, Refusal> {
    let hierarchies = tools.hierarchies.read();
    let taken = hierarchies.and_then(|known| Cgroup::take(known, claims, identified.process.pid));
    let outcome = match taken {
        Ok(cgroup) => match copying {
            Ok(()) => Ok(cgroup),
            Err(refusal) => Err(refusal),
        },
        Err(error) => Err(super::refusal(&error)),
    };
    let cgroup = match outcome {
        Ok(cgroup) => cgroup,
        Err(refusal) => {
            streams.close_all(std::time::Duration::ZERO).await;
            let _ = tools.control.unregister(identified.pin).await;
            return Err(refusal);
        }
    };
    let handed = tools
        .hierarchies
        .read()
        .and_then(|known| cgroup.enable_controllers(known));
    if let Err(error) = handed {
        log::debug!("controllers not handed down: {}", vigil_host::chain(&error));
    }
    let oom = OomWatch::open(&cgroup).unwrap_or_else(|error| {
        log::warn!(
            "out-of-memory kills are not watched: {}",
            vigil_host::chain(&error)
        );
        None
    });
    let Identified { process: init, pin } = identified;
    Ok(Begun {
        init,
        pin,
        streams,
        cgroup: Arc::new(cgroup),
        oom,
    })
}

use identify::Identified;

/// The ends a child is given.
pub(crate) fn given(child: &vigil_host::stdio::ChildFds) -> Given<'_> {
    use std::os::fd::AsFd;
    Given {
        stdin: Some(child.stdin.as_fd()),
        stdout: Some(child.stdout.as_fd()),
        stderr: Some(child.stderr.as_fd()),
    }
}

async fn mount(tools: &Tools, plan: &Plan) -> Result<(), Refusal> {
    if plan.create.rootfs.is_empty() {
        return Ok(());
    }
    let rootfs = tools.place.bundle.join("rootfs");
    let mounts = plan.create.rootfs.clone();
    let worker = Worker::start_bound("mount", move |notes| {
        rootfs::mount_all(&mounts, &rootfs, notes).map_err(|error| vigil_host::chain(&error))
    })
    .map_err(|error| super::refusal(&error))?;
    match gone::worked(worker, gone::MOUNT_WAIT).await {
        Outcome::Done => Ok(()),
        Outcome::Failed(why) => Err(Refusal::new(
            Kind::Unknown,
            format!("failed to mount rootfs component: {why}"),
        )),
        Outcome::Overdue { pid, doing, left } => Err(Refusal::new(
            Kind::DeadlineExceeded,
            format!(
                "mounting the rootfs did not end in time: {doing}{}",
                if left {
                    format!(" (process {pid} sleeps uninterruptibly)")
                } else {
                    String::new()
                }
            ),
        )),
    }
}
