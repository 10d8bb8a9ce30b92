//! What a request is answered that comes again to a shim that took over: the same as it
//! would have been.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Life, exec};
use vigil_model::{RequestId, Signalling, Verb, What, Who, forgotten, started};

const CREATED: [&str; 2] = ["create asked", "create done"];

/// A Start whose init had ended before it was let run was once answered with success,
/// when the shim died between its failure and the answer.
#[test]
fn a_start_that_failed_is_not_answered_with_a_pid() {
    let mut life = Life::through(&CREATED);
    life.live(What::Asked(Verb::Start)).unwrap();
    life.live(What::Failed(Verb::Start)).unwrap();
    let end = ["init exited", "rest gone", "init drained"];
    let ended = Life::through(&[&CREATED[..], &end].concat());
    assert_eq!(started(&life.task), None);
    assert_eq!(started(&ended.task), None);
    let ran = ["start asked", "start done"];
    let ran = Life::through(&[&CREATED[..], &ran, &end].concat());
    assert_eq!(started(&ran.task), Some(1), "it ran, and has ended since");
}

/// "Whether it was delivered is not known" stays the answer however many shims die: the
/// second to be asked once said that it was.
#[test]
fn a_signal_nobody_knows_of_stays_unknown_while_another_of_its_kind_is_sent() {
    let mut life = Life::through(&["create asked", "create done", "start asked", "start done"]);
    let kill = |all| What::KillAsked {
        who: Who::Init,
        signal: 15,
        all,
    };
    life.live(kill(true)).unwrap();
    // Its shim died. Another was asked for by the next.
    life.live(kill(false)).unwrap();
    let done = What::KillDone {
        who: Who::Init,
        signal: 15,
    };
    life.live(done).unwrap();
    let open: Vec<bool> = life
        .task
        .standing
        .signalling
        .iter()
        .map(|s| s.all)
        .collect();
    assert_eq!(open, [true]);
}

#[test]
fn signals_nobody_will_ask_for_make_room() {
    let mut life = Life::through(&["create asked", "create done", "start asked", "start done"]);
    let asked = |number| RequestId {
        conn: 1,
        stream: number,
    };
    let lost = |number, signal| Signalling {
        who: Who::Exec(exec("x")),
        signal,
        all: false,
        asked: Some(asked(number)),
    };
    let standing = &mut life.task.standing;
    standing.taken.push_back(asked(3));
    standing.signalling = vec![lost(1, 15), lost(2, 9), lost(3, 15)];
    assert_eq!(forgotten(&life.task), [], "there is room");
    let many = (10..40).map(|number| lost(number, 10));
    life.task.standing.signalling.extend(many);
    let forgotten = forgotten(&life.task);
    assert_eq!(forgotten.len(), 31);
    assert!(forgotten.contains(&lost(1, 15)));
}
