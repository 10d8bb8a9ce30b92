//! What a task may hold has bounds: whatever clients ask and whatever happens
//! while containerd is away, the journal can still be cut.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Life, exec, exec_plan, exit, process};
use vigil_model::step::{EXECS_LEN_MAX, EXECS_MAX};
use vigil_model::{ExecPlan, Kind, Stdio, TaskEvent, What, Who};

const RUNNING: [&str; 4] = ["create asked", "create done", "start asked", "start done"];

/// A container that ran out of memory in a loop while containerd was down
/// filled the outbox with events that may not be dropped.
#[test]
fn an_untold_oom_takes_the_next_ones_with_it() {
    let mut life = Life::through(&RUNNING);
    for count in 1..=100 {
        life.live(What::Oom { count }).unwrap();
    }
    let ooms = |life: &Life| {
        let told = life.task.outbox.iter();
        told.filter(|told| told.event == TaskEvent::Oom).count()
    };
    assert_eq!(ooms(&life), 1);
    assert_eq!(life.task.standing.ooms, 100);
    // Told in the meantime: the next one is news.
    let seq = life.task.outbox.back().unwrap().seq;
    life.live(What::Acked { seq }).unwrap();
    life.live(What::Oom { count: 101 }).unwrap();
    assert_eq!(ooms(&life), 1);
}

/// Many execs that were never deleted made a snapshot longer than a record may
/// be, so the journal could not be cut and grew until it closed. What they were
/// asked to be is beside it, so there is room for many, in whatever they stand.
#[test]
fn execs_together_hold_no_more_than_a_snapshot_takes() {
    for width in [1, 76] {
        let mut life = Life::through(&RUNNING);
        let mut execs = Vec::new();
        let refused = (0..).find_map(|n| {
            let exec = exec(&format!("{n:0width$}"));
            let plan = ExecPlan {
                stdio: Stdio {
                    stdout: "/run/containerd/fifo/123456789/stdout".repeat(10),
                    ..Stdio::default()
                },
                spec: String::new(),
                file: Some(u32::MAX),
            };
            execs.push(exec.clone());
            life.live(What::ExecAsked { exec, plan }).err()
        });
        assert_eq!(refused.unwrap().kind, Kind::ResourceExhausted);
        execs.pop();
        assert!(execs.len() > 1500, "{} of {width}", execs.len());
        let seq = life.task.outbox.back().unwrap().seq;
        life.live(What::Acked { seq }).unwrap();
        // So much more takes one that ran, wherever it stands.
        let held = |life: &Life| life.task.encode().unwrap().len();
        let (before, many) = (held(&life), execs.len());
        for exec in execs.drain(..100) {
            let who = Who::Exec(exec.clone());
            let process = process(4_194_304);
            for what in [
                What::ExecStartAsked(exec.clone()),
                What::ExecStartDone { exec, process },
                What::Exited {
                    who: who.clone(),
                    exit: exit(255),
                },
                What::Drained(who),
            ] {
                life.live(what).unwrap();
            }
            let seq = life.task.outbox.back().unwrap().seq;
            life.live(What::Acked { seq }).unwrap();
        }
        let most = before + (held(&life) - before) * many / 100;
        assert!(most < EXECS_LEN_MAX + (16 << 10), "{most} of {width}");
    }
}

/// Each one that runs needs an exit record, of which there are not so many.
#[test]
fn no_more_execs_run_than_there_are_exit_records() {
    let mut life = Life::through(&RUNNING);
    for n in 0..=EXECS_MAX {
        let exec = exec(&format!("e{n}"));
        let plan = ExecPlan {
            file: Some(1),
            ..exec_plan()
        };
        life.live(What::ExecAsked {
            exec: exec.clone(),
            plan,
        })
        .unwrap();
        let started = life.live(What::ExecStartAsked(exec));
        let refused = started.err().map(|refusal| refusal.kind);
        let wanted = (n == EXECS_MAX).then_some(Kind::ResourceExhausted);
        assert_eq!(refused, wanted, "{n}");
    }
}
