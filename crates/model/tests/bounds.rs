//! What a task may hold has bounds: whatever clients ask and whatever happens
//! while containerd is away, the journal can still be cut.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Life, exec};
use vigil_model::{ExecPlan, Kind, Stdio, TaskEvent, What, step::EXEC_PLANS_LEN_MAX};

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

/// Many large execs that were never started made a snapshot longer than a
/// record may be, so the journal could not be cut and grew until it closed.
#[test]
fn execs_together_hold_no_more_than_a_snapshot_takes() {
    let mut life = Life::through(&RUNNING);
    let plan = ExecPlan {
        stdio: Stdio::default(),
        spec: "x".repeat(100 << 10),
    };
    let mut refused = None;
    for n in 0..100 {
        let what = What::ExecAsked {
            exec: exec(&format!("e{n}")),
            plan: plan.clone(),
        };
        if let Err(refusal) = life.live(what) {
            refused = Some((n, refusal.kind));
            break;
        }
    }
    assert_eq!(refused, Some((5, Kind::ResourceExhausted)));
    let held = life.task.encode().unwrap().len();
    assert!(held < EXEC_PLANS_LEN_MAX + (16 << 10), "{held}");
}
