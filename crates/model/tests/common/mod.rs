//! Sample tasks and events, reached by living through them.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;

use vigil_model::{
    BootId, Driver, Effect, Event, ExecId, ExecPlan, Exit, Incarnation, Ledger, Moment, Plan,
    Record, Status, Stdio, Task, Verb, What, Who, request, step,
};

#[derive(Default)]
pub struct Memory(pub Vec<Record>);

impl Ledger for Memory {
    type Error = Infallible;
    fn append(&mut self, record: &Record) -> Result<(), Infallible> {
        // What is kept is what the bytes say, so that the codec is tested too.
        self.0
            .push(Record::decode(&record.encode().unwrap()).unwrap());
        Ok(())
    }
}

pub fn at(secs: i64) -> Moment {
    Moment { secs, nanos: 0 }
}

pub fn process(pid: u32) -> Incarnation {
    Incarnation {
        pid,
        start_ticks: u64::from(pid) * 10,
        pid_ns: 1,
        boot: BootId("b".to_owned()),
        pidfd_inode: None,
    }
}

pub fn exec(name: &str) -> ExecId {
    ExecId::new(name).unwrap()
}

pub fn exit(code: u8) -> Exit {
    Exit {
        status: Status::Exited(code),
        at: at(9),
    }
}

pub fn plan() -> Box<Plan> {
    Box::new(Plan {
        create: request::Create {
            bundle: "/b".to_owned(),
            ..request::Create::default()
        },
        driver: Driver::Cgroupfs,
        claims: Vec::new(),
        private_pid_ns: true,
        runtime_root: "/r".to_owned(),
        runtime: "runc".to_owned(),
    })
}

pub fn exec_plan() -> ExecPlan {
    ExecPlan {
        stdio: Stdio::default(),
        spec: "{}".to_owned(),
        file: None,
    }
}

/// Every kind of thing that can happen, on init (pid 1) and exec `x` (pid 2).
pub fn all_events() -> Vec<(&'static str, What)> {
    let x = || exec("x");
    let mut events = vec![
        ("create asked", What::CreateAsked(plan())),
        (
            "create done",
            What::CreateDone {
                init: Some(process(1)),
                claims: Vec::new(),
            },
        ),
        ("create failed", What::CreateFailed { undone: true }),
        ("create not undone", What::CreateFailed { undone: false }),
    ];
    for verb in [
        Verb::Start,
        Verb::Pause,
        Verb::Resume,
        Verb::Update,
        Verb::Checkpoint,
        Verb::Delete,
    ] {
        let names = match verb {
            Verb::Start => ["start asked", "start done", "start failed"],
            Verb::Pause => ["pause asked", "pause done", "pause failed"],
            Verb::Resume => ["resume asked", "resume done", "resume failed"],
            Verb::Update => ["update asked", "update done", "update failed"],
            Verb::Checkpoint => ["checkpoint asked", "checkpoint done", "checkpoint failed"],
            Verb::Delete => ["delete asked", "delete done", "delete failed"],
        };
        events.push((names[0], What::Asked(verb)));
        events.push((names[1], What::Done { verb, init: None }));
        events.push((names[2], What::Failed(verb)));
    }
    events.extend([
        (
            "exec asked",
            What::ExecAsked {
                exec: x(),
                plan: exec_plan(),
            },
        ),
        ("exec start asked", What::ExecStartAsked(x())),
        (
            "exec start done",
            What::ExecStartDone {
                exec: x(),
                process: process(2),
            },
        ),
        ("exec start failed", What::ExecStartFailed(x())),
        ("exec delete asked", What::ExecDeleteAsked(x())),
        (
            "kill init asked",
            What::KillAsked {
                who: Who::Init,
                signal: 15,
                all: false,
            },
        ),
        (
            "kill exec asked",
            What::KillAsked {
                who: Who::Exec(x()),
                signal: 9,
                all: false,
            },
        ),
        (
            "kill done",
            What::KillDone {
                who: Who::Init,
                signal: 15,
            },
        ),
        (
            "init exited",
            What::Exited {
                who: Who::Init,
                exit: exit(7),
            },
        ),
        (
            "exec exited",
            What::Exited {
                who: Who::Exec(x()),
                exit: exit(3),
            },
        ),
        ("rest gone", What::RestGone),
        ("init drained", What::Drained(Who::Init)),
        ("exec drained", What::Drained(Who::Exec(x()))),
        ("overdue", What::Overdue),
        ("seen frozen", What::SeenFrozen(true)),
        ("seen thawed", What::SeenFrozen(false)),
        ("oom", What::Oom { count: 1 }),
        ("acked", What::Acked { seq: 1 }),
        ("shutdown asked", What::ShutdownAsked),
    ]);
    events
}

/// A task with the ledger it was written to and all effects it gave up.
#[derive(Default)]
pub struct Life {
    pub task: Task,
    pub ledger: Memory,
    pub effects: Vec<Effect>,
}

impl Life {
    pub fn live(&mut self, what: What) -> Result<Vec<Effect>, vigil_model::Refusal> {
        let now = at(1 + i64::try_from(self.ledger.0.len()).unwrap());
        let step = step(
            &self.task,
            Event {
                at: now,
                asked: None,
                what,
            },
        )?;
        let effects = step.commit(&mut self.task, &mut self.ledger).unwrap();
        self.effects.extend(effects.iter().cloned());
        Ok(effects)
    }

    /// Lives through the named events, each of which must be accepted.
    pub fn through(names: &[&str]) -> Self {
        let events = all_events();
        let mut life = Self::default();
        for name in names {
            let found = events.iter().find(|(known, _)| known == name).expect(name);
            life.live(found.1.clone())
                .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        }
        life
    }
}

const CREATED: &[&str] = &["create asked", "create done"];
const RUNNING: &[&str] = &["create asked", "create done", "start asked", "start done"];

/// Every phase, every verb under way, every phase of an exec.
pub fn all_tasks() -> Vec<(String, Life)> {
    let mut tasks = Vec::new();
    let mut add = |name: &str, start: &[&str], more: &[&str]| {
        let names: Vec<&str> = start.iter().chain(more).copied().collect();
        tasks.push((name.to_owned(), Life::through(&names)));
    };
    add("empty", &[], &[]);
    add("empty, ending", &[], &["shutdown asked"]);
    add(
        "empty, not undone",
        &["create asked", "create not undone"],
        &[],
    );
    add("creating", &["create asked"], &[]);
    add("created", CREATED, &[]);
    add("created, start under way", CREATED, &["start asked"]);
    add("created, update under way", CREATED, &["update asked"]);
    add("created, delete under way", CREATED, &["delete asked"]);
    add("running", RUNNING, &[]);
    add("running, pause under way", RUNNING, &["pause asked"]);
    add("running, update under way", RUNNING, &["update asked"]);
    add(
        "running, update and pause under way",
        RUNNING,
        &["update asked", "pause asked"],
    );
    add(
        "paused, update under way",
        RUNNING,
        &["pause asked", "pause done", "update asked"],
    );
    add(
        "running, checkpoint under way",
        RUNNING,
        &["checkpoint asked"],
    );
    add("running, exec added", RUNNING, &["exec asked"]);
    add(
        "running, exec starting",
        RUNNING,
        &["exec asked", "exec start asked"],
    );
    add(
        "running, exec failed",
        RUNNING,
        &["exec asked", "exec start asked", "exec start failed"],
    );
    let exec_running = &["exec asked", "exec start asked", "exec start done"][..];
    add("running, exec running", RUNNING, exec_running);
    add(
        "running, exec ended",
        RUNNING,
        &[exec_running, &["exec exited"]].concat(),
    );
    let exec_told = [exec_running, &["exec exited", "exec drained"]].concat();
    add("running, exec told", RUNNING, &exec_told);
    add("paused", RUNNING, &["pause asked", "pause done"]);
    add(
        "paused, resume under way",
        RUNNING,
        &["pause asked", "pause done", "resume asked"],
    );
    add("ended in start", CREATED, &["start asked", "init exited"]);
    add("ended", RUNNING, &["init exited"]);
    add("ended, rest gone", RUNNING, &["init exited", "rest gone"]);
    add("ended, drained", RUNNING, &["init exited", "init drained"]);
    add(
        "ended, exec starting",
        RUNNING,
        &["exec asked", "exec start asked", "init exited"],
    );
    add(
        "ended, exec running",
        RUNNING,
        &[exec_running, &["init exited"]].concat(),
    );
    let told = [RUNNING, &["init exited", "rest gone", "init drained"]].concat();
    add("stopped", &told, &[]);
    add("stopped, delete under way", &told, &["delete asked"]);
    let updating = [RUNNING, &["update asked"], &told[RUNNING.len()..]].concat();
    add("stopped, update under way", &updating, &[]);
    add(
        "stopped, update and delete under way",
        &updating,
        &["delete asked"],
    );
    add("deleted", &told, &["delete asked", "delete done"]);
    add(
        "deleted, ending",
        &told,
        &["delete asked", "delete done", "shutdown asked"],
    );
    tasks
}
