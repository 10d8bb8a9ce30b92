//! Whose end is found, and when.

use vigil_journal::exits::Slot;
use vigil_sys::wait;

use super::{Pair, change, until};

pub fn register_looks_back() {
    let pair = Pair::serving();
    let mut client = pair.client();
    let since = pair.exits().exits().unwrap().ring_seq();
    let pid = client
        .call("orphan (sleep_0.05;exit_9)_>/dev/null_&_echo_$!")
        .parse()
        .unwrap();
    pair.death_of(pid);
    assert_eq!(client.call(&format!("register {pid} {since}")), "Ok(0)");
    match pair.exits().exits().unwrap().slot(0).unwrap() {
        Slot::Dead(death) => assert_eq!((death.pid, wait::exited(death.status)), (pid, Some(9))),
        other => panic!("{other:?}"),
    }
    // One that lives: its death comes to its slot, not to the ring.
    let pid: u32 = client
        .call("orphan (sleep_0.2;exit_8)_>/dev/null_&_echo_$!")
        .parse()
        .unwrap();
    let seq = pair.exits().exits().unwrap().ring_seq();
    assert_eq!(client.call(&format!("register {pid} {seq}")), "Ok(1)");
    until("its slot has it", || {
        pair.exits().exits().unwrap().pinned(1).is_some()
    });
    let death = pair.exits().exits().unwrap().pinned(1).unwrap();
    assert_eq!(wait::exited(death.status), Some(8));
}

/// A thousand strangers die between the end of a process and the look for it: its end was not
/// found any more, since the ring of deaths had gone round.
pub fn register_looks_back_behind_a_thousand_others() {
    let pair = Pair::serving();
    let mut client = pair.client();
    let since = pair.exits().exits().unwrap().ring_seq();
    let orphan = "orphan (sleep_0.05;exit_9)_>/dev/null_&_echo_$!";
    let pid = client.call(orphan).parse().unwrap();
    pair.death_of(pid);
    let script = "i=0;while_[_$i_-lt_1000_];do_(_(exit_6)_&_);i=$((i+1));done;echo_done";
    assert_eq!(client.call(&format!("stopped {script}")), "done");
    until("the others are recorded", || {
        pair.exits().exits().unwrap().ring_seq() > since + 1000
    });
    assert_eq!(
        pair.exits().exits().unwrap().find(pid, 0),
        None,
        "in the ring"
    );
    assert_eq!(client.call(&format!("register {pid} {since}")), "Ok(0)");
    let found = pair.exits().exits().unwrap().pinned(0).unwrap();
    assert_eq!((found.pid, wait::exited(found.status)), (pid, Some(9)));
}

/// One that lets go of its reaper and lives on is ended, by SIGKILL. That is nobody else's, so
/// it counts, and those after it come ever later.
pub fn a_shim_that_lets_go_of_its_reaper_died_by_its_own_fault() {
    let pair = Pair::serving();
    let mut client = pair.client();
    for _ in 0..2 {
        let stream = client.ask("let go");
        let told = client.answer(stream).unwrap();
        assert!(String::from_utf8_lossy(&told).contains("3 times"));
    }
    until("the sixth is told of", || change::story(&pair).len() == 6);
    let causes = change::story(&pair);
    assert_eq!(causes[..4], ["stuck"; 4]);
    let looping = [5, 6].map(|times| format!("looping {times} killed by signal 9"));
    assert_eq!(causes[4..], looping);
}
