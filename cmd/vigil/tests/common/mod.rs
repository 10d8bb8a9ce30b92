//! A node made of files: bundles with journals from the real writer, locks,
//! pairs and keepsakes in a private directory, and the tool run over them.
//! Nothing of it is on the host but processes that the test itself starts.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use vigil_host::proc;
use vigil_journal::exits::{Death, Recorder, WORDS};
use vigil_journal::pair::Pair;
use vigil_journal::{Journal, Settings, lock, names, pair};
use vigil_model::request::Create;
use vigil_model::{
    Before, BootId, Change, Claim, Driver, Exit, Incarnation, KIND_RECORD, Moment, Published,
    Record, Status, TaskEvent, Who,
};

/// 2025-11-21 09:13:01 UTC.
pub const THEN: i64 = 1_763_716_381;
/// A boot that is not this one.
pub const OTHER_BOOT: &str = "00000000-0000-4000-8000-000000000000";

pub struct Node {
    dir: TempDir,
    held: Vec<File>,
}

/// What the tool did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A process of ours that lives until it is dropped.
pub struct Sleeper(pub Child);

impl Sleeper {
    pub fn start() -> Self {
        Self::at(Path::new("/"))
    }

    /// With this working directory, as those of a pair have their bundle.
    pub fn at(dir: &Path) -> Self {
        let mut sleep = Command::new("sleep");
        let child = sleep.arg("600").current_dir(dir).spawn();
        Self(child.unwrap())
    }

    pub fn incarnation(&self) -> Incarnation {
        proc::incarnation(self.0.id()).unwrap().unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that is no more: whatever has its number started later.
pub fn dead(pid: u32) -> Incarnation {
    Incarnation {
        pid,
        start_ticks: 1,
        pid_ns: proc::pid_namespace().unwrap(),
        boot: proc::boot_id().unwrap(),
        pidfd_inode: None,
    }
}

pub fn exit(status: Status, after: i64) -> Exit {
    Exit {
        status,
        at: at(after),
    }
}

pub fn at(after: i64) -> Moment {
    Moment {
        secs: THEN + after,
        nanos: 250_000_000,
    }
}

/// The steps of a life, written as the shim writes them.
pub struct Life {
    node: PathBuf,
    namespace: String,
    records: Vec<Record>,
    events: u64,
}

impl Life {
    fn step(mut self, changes: Vec<Change>, event: Option<TaskEvent>) -> Self {
        let after = i64::try_from(self.records.len()).unwrap();
        let publish = event.map(|event| {
            self.events += 1;
            Published {
                seq: self.events,
                at: at(after),
                event,
            }
        });
        self.records.push(Record {
            at: at(after),
            changes,
            publish: publish.into_iter().collect(),
        });
        self
    }

    pub fn creating(self) -> Self {
        let claim = Claim {
            // No machine has it: this test's containers have no cgroups.
            hierarchy: "none-such".to_owned(),
            path: "/sys/fs/cgroup/none-such/vigil-golden".to_owned(),
            before: Before::Absent,
            inode: None,
        };
        let plan = vigil_model::Plan {
            create: Create::default(),
            driver: Driver::Cgroupfs,
            claims: vec![claim],
            private_pid_ns: true,
            runtime_root: self
                .node
                .join("runc")
                .join(&self.namespace)
                .display()
                .to_string(),
            runtime: "runc".to_owned(),
        };
        self.step(vec![Change::Creating(Box::new(plan))], None)
    }

    pub fn created(self, init: &Incarnation) -> Self {
        let claims = match &self.records[0].changes[0] {
            Change::Creating(plan) => plan.claims.clone(),
            _ => Vec::new(),
        };
        let change = Change::Created {
            init: Some(init.clone()),
            claims,
        };
        let event = TaskEvent::Start { pid: init.pid };
        self.step(vec![change], Some(event))
    }

    pub fn started(self) -> Self {
        self.step(vec![Change::Started { init: None }], None)
    }

    pub fn paused(self) -> Self {
        self.step(vec![Change::Frozen], Some(TaskEvent::Paused))
    }

    pub fn ended(self, init: &Incarnation, status: Status) -> Self {
        let exit = exit(status, i64::try_from(self.records.len()).unwrap());
        let who = Who::Init;
        let changes = vec![
            Change::Exited {
                who: who.clone(),
                exit,
            },
            Change::RestGone,
            Change::Told(who.clone()),
        ];
        let pid = init.pid;
        self.step(changes, Some(TaskEvent::Exit { who, pid, exit }))
    }

    pub fn deleted(self) -> Self {
        self.step(vec![Change::Deleted], None)
    }

    pub fn acked(mut self) -> Self {
        let seq = self.events;
        self = self.step(vec![Change::Acked { seq }], None);
        self
    }
}

/// Whose the files of a bundle are.
pub fn owner(bundle: &Path) -> vigil_journal::Owner {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let namespace = name(bundle.parent().unwrap());
    vigil_journal::Owner::with_salt(&namespace, &name(bundle), 7)
}

impl Node {
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("vigil-golden-").unwrap();
        fs::create_dir_all(dir.path().join("state/io.containerd.runtime.v2.task")).unwrap();
        Self {
            dir,
            held: Vec::new(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path().join("run")
    }

    pub fn bundle(&self, namespace: &str, id: &str) -> PathBuf {
        let tasks = self.path().join("state/io.containerd.runtime.v2.task");
        let bundle = tasks.join(namespace).join(id);
        fs::create_dir_all(&bundle).unwrap();
        bundle
    }

    pub fn life(&self, namespace: &str) -> Life {
        Life {
            node: self.path().to_owned(),
            namespace: namespace.to_owned(),
            records: Vec::new(),
            events: 0,
        }
    }

    /// A bundle whose journal has this life, of a pair that is gone.
    pub fn lived(&self, namespace: &str, id: &str, life: &Life) -> PathBuf {
        let boot = proc::boot_id().unwrap();
        self.lived_in(namespace, id, life, &boot)
    }

    pub fn lived_in(&self, namespace: &str, id: &str, life: &Life, boot: &BootId) -> PathBuf {
        let bundle = self.bundle(namespace, id);
        let path = bundle.join(names::JOURNAL);
        let boot = vigil_journal::BootId::parse(&boot.0).unwrap();
        let mut journal =
            Journal::create(&path, boot, &owner(&bundle), Settings::default()).unwrap();
        for record in &life.records {
            journal
                .append(KIND_RECORD, &record.encode().unwrap())
                .unwrap();
        }
        drop(lock::hold(&bundle.join(names::LOCK)).unwrap());
        Self::exits(&bundle, None);
        Self::paired(&bundle, &dead(101), &dead(102));
        let socket = "unix:///run/vigil-golden/none.sock";
        fs::write(bundle.join(names::ADDRESS), socket).unwrap();
        bundle
    }

    /// Exit records as a reaper leaves them, with a death or none.
    pub fn exits(bundle: &Path, death: Option<Death>) {
        let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let boot = vigil_journal::BootId::parse(&proc::boot_id().unwrap().0).unwrap();
        let mut recorder = Recorder::format(&words, boot, &owner(bundle)).unwrap();
        if let Some(death) = death {
            recorder.pin(death.pid, death.start_ticks, 0).unwrap();
            recorder.record(death);
        }
        let bytes: Vec<u8> = words
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        fs::write(bundle.join(names::EXITS), bytes).unwrap();
    }

    pub fn paired(bundle: &Path, reaper: &Incarnation, shim: &Incarnation) {
        let of = |incarnation: &Incarnation| pair::Incarnation {
            pid: incarnation.pid,
            start_ticks: incarnation.start_ticks,
            pid_ns: incarnation.pid_ns,
            boot: vigil_journal::BootId::parse(&incarnation.boot.0).unwrap(),
            pidfd_inode: incarnation.pidfd_inode,
        };
        let pair = Pair {
            reaper: of(reaper),
            shim: Some(of(shim)),
            session: None,
        };
        pair.write(&bundle.join(names::PAIR), &owner(bundle))
            .unwrap();
    }

    /// Makes the pair of a bundle a living one: its processes, and the lock.
    pub fn revive(&mut self, bundle: &Path, reaper: &Incarnation, shim: &Incarnation) {
        Self::paired(bundle, reaper, shim);
        self.held
            .push(lock::hold(&bundle.join(names::LOCK)).unwrap());
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vigil"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("VIGIL_CONTAINERD_STATE", self.path().join("state"))
            .env("VIGIL_RUN", self.run_dir())
            .env("VIGIL_RUNC_ROOT", self.path().join("runc"))
            .env("CONTAINERD_ADDRESS", self.path().join("no.sock"))
            .stdin(Stdio::null());
        command
    }

    /// Runs the tool; in what it prints, this node's directory is `NODE`.
    pub fn run(&self, args: &[&str]) -> Ran {
        let out = self.command(args).output().unwrap();
        let dir = self.path().display().to_string();
        let boot = proc::boot_id().unwrap().0[..8].to_owned();
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .unwrap()
                .replace(&dir, "NODE")
                .replace(&boot, "BOOTBOOT")
                .lines()
                // The pairs of tests beside this one.
                .filter(|line| !line.contains(": see --state "))
                .fold(String::new(), |text, line| text + line + "\n")
                .replace("\"notes\": [\n  ]", "\"notes\": []")
        };
        Ran {
            code: out.status.code().unwrap(),
            out: text(&out.stdout),
            err: text(&out.stderr),
        }
    }
}

impl Ran {
    /// The run as a page: what was typed, what came, how it ended.
    pub fn page(&self, args: &[&str]) -> String {
        let mut page = format!("$ vigil {}\n{}", args.join(" "), self.out);
        for line in self.err.lines() {
            page.push_str("stderr: ");
            page.push_str(line);
            page.push('\n');
        }
        page + &format!("exit code {}\n", self.code)
    }
}

/// Compares with `tests/golden/vigil/NAME`; `UPDATE_GOLDEN=1` takes over.
pub fn golden(name: &str, page: &str) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/vigil");
    let path = Path::new(dir).join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, page).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == page,
        "{} differs; UPDATE_GOLDEN=1 takes the new page over. It is now:\n{page}",
        path.display()
    );
}
