//! Looks over the shoulder of a pair while something is made hard for it: whether one of
//! its threads sleeps uninterruptibly, and how fast State is answered meanwhile.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vigil_lab::GENEROUS;

use anyhow::{Result, ensure};
use vigil_lab::Code;
use vigil_lab::kit::Container;
use vigil_lab::task::{Task, V2, V3};

/// How long a thread may be seen in D: reading a page of its own program is no stall.
const MOMENT: Duration = Duration::from_millis(150);

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// The longest time a thread of the pair was in D without a break.
    pub asleep: Duration,
    /// How long each State took, sorted.
    pub states: Vec<Duration>,
    /// States that were not answered with success.
    pub failed: Vec<String>,
    /// How long it was watched.
    pub lasted: Duration,
}

impl Seen {
    /// The share `of` all States was answered in this time.
    #[must_use]
    pub fn quantile(&self, of: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a few thousand"
        )]
        let at = (self.states.len() as f64 * of) as usize;
        self.states
            .get(at.min(self.states.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }

    /// Nobody of the pair was in D, and State was answered all the time.
    pub fn calm(&self) -> Result<()> {
        ensure!(
            self.asleep < MOMENT.max(self.lasted / 4),
            "a thread of the pair slept uninterruptibly for {:?}",
            self.asleep
        );
        self.brisk()
    }

    /// The second half of [`Seen::calm`].
    pub fn brisk(&self) -> Result<()> {
        ensure!(
            self.failed.is_empty(),
            "{} of {} States failed, the first: {}",
            self.failed.len(),
            self.states.len() + self.failed.len(),
            self.failed[0]
        );
        let enough = self.lasted < Duration::from_secs(1) || self.states.len() >= 20;
        ensure!(enough, "only {} States", self.states.len());
        let (half, most) = (self.quantile(0.5), self.quantile(1.0));
        // A State that waits for what is in the way is answered when that has passed: it takes
        // as long as the watch. How fast one is answered that does not, the bench says.
        ensure!(
            most < (self.lasted / 2).max(Duration::from_secs(1)),
            "State took {half:?} at the median, {:?} at the 99th percentile, {most:?} at most of {:?}",
            self.quantile(0.99),
            self.lasted
        );
        Ok(())
    }
}

/// A watch that is kept until it is ended.
#[derive(Debug)]
pub struct Watch {
    began: Instant,
    over: Arc<AtomicBool>,
    sleeper: JoinHandle<Duration>,
    asker: JoinHandle<Seen>,
}

impl Watch {
    /// Watches the runtime's processes of `container`, and asks State on a connection of its own.
    pub fn start(container: &Container) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let pids: Vec<i32> = container.shim.processes().iter().map(|p| p.pid).collect();
        ensure!(!pids.is_empty(), "no shim to watch");
        let stop = Arc::clone(&over);
        let sleeper = std::thread::spawn(move || longest_sleep(&pids, &stop));
        let service = if container.shim.reply.version >= 3 {
            V3
        } else {
            V2
        };
        let task =
            Task::connect(&container.shim.reply.socket, service)?.patient(GENEROUS.as_secs_f64());
        let (stop, id) = (Arc::clone(&over), container.id.clone());
        let asker = std::thread::spawn(move || ask(&task, &id, &stop));
        Ok(Self {
            began: Instant::now(),
            over,
            sleeper,
            asker,
        })
    }

    /// Ends it.
    pub fn end(self) -> Result<Seen> {
        self.over.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a watch panicked");
        let asleep = self.sleeper.join().map_err(panicked)?;
        let mut seen = self.asker.join().map_err(panicked)?;
        seen.asleep = asleep;
        seen.lasted = self.began.elapsed();
        seen.states.sort();
        Ok(seen)
    }
}

fn ask(task: &Task, id: &str, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let at = Instant::now();
        match task.state(id, "") {
            Ok(_) => seen.states.push(at.elapsed()),
            // After Delete has been answered; an answer all the same.
            Err(error) if error.is(Code::NotFound) => seen.states.push(at.elapsed()),
            Err(error) => seen.failed.push(error.to_string()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    seen
}

/// Whether a thread of the process is in D.
fn in_d(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('D'))
    })
}

/// Whether a process that is no thread of the kernel's has a thread in D. Only in our own
/// cgroup, where runtimes and their workers are: what a freezer of v1 holds is in D too.
#[must_use]
pub fn waits_for_a_device(pid: i32) -> bool {
    let read = |pid: &str, name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let number = pid.to_string();
    let stat = read(&number, "stat").unwrap_or_default();
    let of_the_kernel = stat
        .rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.split(' ').nth(1).is_none_or(|p| p == "2" || p == "0"));
    let ours = read(&number, "cgroup").ok() == read("self", "cgroup").ok();
    !of_the_kernel && ours && in_d(pid)
}

fn longest_sleep(pids: &[i32], over: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    let mut since: Vec<Option<Instant>> = vec![None; pids.len()];
    while !over.load(Ordering::Relaxed) {
        for (pid, since) in pids.iter().zip(&mut since) {
            if in_d(*pid) {
                let began = *since.get_or_insert_with(Instant::now);
                longest = longest.max(began.elapsed());
            } else {
                *since = None;
            }
        }
        std::thread::sleep(Duration::from_millis(4));
    }
    longest
}
