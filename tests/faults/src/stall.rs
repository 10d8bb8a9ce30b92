//! A container about which one thing stands still: a runc that hangs in one verb, an
//! unmount, the cgroup, the event sink, init in D, the log. Made for any shim, to see
//! what is answered meanwhile.
//!
//! It must never stand still for longer than its owner: the drop thaws, ends the runc
//! that hangs, and lets the log run off.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::ExecProcessRequest;
use vigil_hostile::FaultyRunc;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::{Container, exec_spec};
use vigil_lab::process::{Process, signal_if};
use vigil_lab::{CallError, Kit, Spec, Task, by, until};

use crate::ice::{Ice, Layer, sleeps};
use crate::rest::freezer;
use crate::watch::waits_for_a_device;
use crate::world::unified;

/// What stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// runc, in this verb.
    Runc(&'static str),
    /// The unmount of a Delete: the device below the root file system does not answer.
    Unmount,
    /// The container's cgroup, frozen by somebody else.
    Frozen,
    /// The event sink: it takes events and never says so.
    Sink,
    /// Init, in uninterruptible sleep.
    Init,
    /// Whoever reads the log: its fifo is full.
    Log,
}

/// At most so many seconds, whatever becomes of the test.
const LONGEST: u32 = 120;
/// What runs when nothing else is said.
const SLEEPER: &[&str] = &["sleep", "1000"];

impl Stall {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::Runc("create"),
        Self::Runc("start"),
        Self::Runc("exec"),
        Self::Runc("update"),
        Self::Runc("delete"),
        Self::Unmount,
        Self::Frozen,
        Self::Sink,
        Self::Init,
        Self::Log,
    ];

    /// In words.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Runc(verb) => format!("runc {verb} hangs"),
            Self::Unmount => "umount stalls".into(),
            Self::Frozen => "cgroup frozen".into(),
            Self::Sink => "event sink deaf".into(),
            Self::Init => "init in D".into(),
            Self::Log => "log fifo full".into(),
        }
    }

    /// Makes a container of `kit` about which this stands still.
    pub fn make(self, kit: &mut Kit) -> Result<Stalled> {
        let mut deaf = None;
        if self == Self::Sink {
            let path = kit.scratch.path("deaf.sock");
            deaf = Some(UnixListener::bind(&path)?);
            kit.caller.ttrpc = path;
        }
        let mut ice = None;
        let mut spec = Spec::args(SLEEPER);
        if matches!(self, Self::Unmount | Self::Init) {
            ice = Some(Ice::make(kit.scratch.dir())?);
        }
        match (&ice, self) {
            (Some(_), Self::Unmount) => {
                spec = Spec::sh("head -c 2000000 /dev/zero >/dirt; echo ready; exec sleep 1000");
            }
            (Some(ice), Self::Init) => {
                fs::create_dir_all(kit.scratch.path("base/ice"))?;
                spec = Spec::sh("echo ready; while :; do echo x >>/ice/f; done");
                let mut mounts = spec.config("")["mounts"].clone();
                if let Some(list) = mounts.as_array_mut() {
                    list.push(ice.bound());
                }
                spec.extra = serde_json::json!({ "mounts": mounts });
            }
            _ => {}
        }
        let mut container = kit.prepared(&spec, Stdio::Output)?;
        if let (Some(ice), Self::Unmount) = (&ice, self) {
            container.bundle.rootfs = vec![ice.overlay(&kit.scratch.path("base"))];
        }
        let mut stalled = Stalled {
            container,
            hold: Hold {
                mark: kit.scratch.mark().to_owned(),
                frozen: None,
                log: None,
            },
            _deaf: deaf,
            ice,
        };
        stalled.begin(self, kit)?;
        Ok(stalled)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Stalled {
    /// The container.
    pub container: Container,
    hold: Hold,
    _deaf: Option<UnixListener>,
    ice: Option<Ice>,
}

impl Stalled {
    fn begin(&mut self, stall: Stall, kit: &Kit) -> Result<()> {
        let container = &mut self.container;
        let mut request = container.bundle.create_request();
        if let Stall::Runc(verb) = stall {
            let runc = FaultyRunc::new(kit.scratch.dir(), verb, "hangs")?;
            request.options = Some(runc.options()).into();
        }
        let (task, id) = (container.task().patient(100.0), container.id.clone());
        if stall == Stall::Runc("create") {
            behind(move || task.create(&request).map(drop));
            return self.hangs("create");
        }
        let made = task.create(&request);
        container.pid = made
            .with_context(|| format!("Create; log: {}", container.bundle.log_text()))?
            .pid;
        if stall == Stall::Runc("start") {
            behind(move || task.start(&id, "").map(drop));
            return self.hangs("start");
        }
        container.start()?;
        match stall {
            Stall::Runc("exec") => {
                task.exec(&ExecProcessRequest {
                    id: id.clone(),
                    exec_id: "x".into(),
                    spec: Some(exec_spec(&Spec::args(SLEEPER))).into(),
                    ..Default::default()
                })?;
                behind(move || task.start(&id, "x").map(drop));
                self.hangs("exec")
            }
            Stall::Runc("update") => {
                let limits = serde_json::json!({"pids": {"limit": 500}});
                behind(move || task.update(&id, &limits));
                self.hangs("update")
            }
            Stall::Runc(_) => {
                end(&task, &id)?;
                behind(move || task.delete(&id, "").map(drop));
                self.hangs("delete")
            }
            Stall::Unmount => {
                container.out()?.expect("ready", by(10.0))?;
                end(&task, &id)?;
                let ice = self.ice.as_ref().context("no ice")?;
                ice.freeze(Layer::Device, LONGEST)?;
                behind(move || task.delete(&id, "").map(drop));
                until("somebody to wait for the device", by(10.0), || {
                    let all = Process::all();
                    all.iter().any(|p| waits_for_a_device(p.pid)).then_some(())
                })
            }
            Stall::Frozen => {
                let file = if unified() {
                    "cgroup.freeze"
                } else {
                    "freezer.state"
                };
                self.hold.frozen = Some(freezer(kit, &id).join(file));
                self.renew()
            }
            Stall::Init => {
                container.out()?.expect("ready", by(10.0))?;
                let ice = self.ice.as_ref().context("no ice")?;
                ice.freeze(Layer::Files, LONGEST)?;
                sleeps(i32::try_from(container.pid)?)
            }
            Stall::Log => {
                let log = container.bundle.log();
                // Ends with EAGAIN: it is not a blocking one.
                while (&*log).write(&[b'x'; 4096]).is_ok() {}
                self.hold.log = Some(log);
                Ok(())
            }
            Stall::Sink => Ok(()),
        }
    }

    /// Waits until the runc that hangs does.
    fn hangs(&self, verb: &str) -> Result<()> {
        until(&format!("runc {verb} to hang"), by(10.0), || {
            let found = hanging(&self.hold.mark);
            found.iter().any(|p| p.cmdline.contains(verb)).then_some(())
        })
    }

    /// Makes it stand still again, if the last call let it go on.
    pub fn renew(&self) -> Result<()> {
        if let Some(file) = &self.hold.frozen {
            let on = if unified() { "1" } else { "FROZEN" };
            fs::write(file, on).with_context(|| format!("freezing by {}", file.display()))?;
        }
        Ok(())
    }

    /// Ends the stall.
    #[must_use]
    pub fn over(self) -> Container {
        let Self {
            container,
            hold,
            ice,
            ..
        } = self;
        drop(hold);
        if let Some(ice) = ice {
            ice.thaw();
            // Until it has gone its file system cannot.
            let task = container.task().patient(10.0);
            let _ = task.kill(&container.id, "", 9, true);
            let _ = task.wait(&container.id, "");
            let _ = task.delete(&container.id, "");
        }
        container
    }
}

/// What holds things up, and lets them go.
#[derive(Debug)]
struct Hold {
    mark: String,
    /// The file that freezes the container.
    frozen: Option<PathBuf>,
    log: Option<Arc<File>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(file) = &self.frozen {
            let off = if unified() { "0" } else { "THAWED" };
            // Gone with its container, perhaps.
            let _ = fs::write(file, off);
        }
        for process in hanging(&self.mark) {
            signal_if(process.pid, 9, |p| p.cmdline.contains("faulty-runc"));
        }
        if let Some(log) = &self.log {
            let mut rest = Vec::new();
            let _ = (&**log).read_to_end(&mut rest);
        }
    }
}

fn hanging(mark: &str) -> Vec<Process> {
    let mut found = Process::marked(mark);
    found.retain(|p| p.cmdline.contains("faulty-runc"));
    found
}

/// Asks in the background; whatever the answer, nobody waits for it.
fn behind(ask: impl FnOnce() -> Result<(), CallError> + Send + 'static) {
    std::thread::spawn(move || drop(ask()));
}

/// Kills init and waits for its end.
fn end(task: &Task, id: &str) -> Result<()> {
    task.kill(id, "", 9, true).context("Kill")?;
    let status = task.wait(id, "").context("Wait")?.exit_status;
    ensure!(status == 137, "exit status {status}");
    Ok(())
}
