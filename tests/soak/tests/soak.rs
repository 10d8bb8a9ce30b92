//! Some kills of each kind of a debug build; `make check` does some hundreds more of the program as it is
//! shipped, and `make soak` thousands.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{SystemTime, UNIX_EPOCH};

use vigil_lab::ShimBinary;
use vigil_soak::plan::Victims;
use vigil_soak::soak::{Wanted, run};

fn soak(victims: Victims, kills: u64) {
    let shim = ShimBinary::vigil().expect("no shim is built");
    // Another seed each time: what it finds is printed with it, and can be lived again.
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let wanted = Wanted {
        kills,
        seed: u64::from(clock.subsec_micros()),
        workers: 3,
        victims,
        daemon_every: 10,
        elders: 0,
        mute: false,
        only: None,
    };
    println!("seed {}", wanted.seed);
    let tally = run(&shim, &wanted).unwrap();
    println!("{tally}");
    assert!(tally.kills() >= kills, "{tally}");
    assert_eq!(tally.failed(), 0, "seed {}\n{tally}", wanted.seed);
}

#[test]
fn lives_whose_pair_is_killed_end_well() {
    soak(Victims::Both, 30);
}

#[test]
fn lives_whose_shims_are_killed_go_on() {
    soak(Victims::Shim, 80);
}

#[test]
fn lives_whose_reapers_are_killed_go_on() {
    soak(Victims::Reaper, 40);
}

#[test]
fn lives_whose_reapers_and_shims_are_killed_in_turn_go_on() {
    soak(Victims::Alternating, 40);
}
