//! A hundred kills in `make check`; `make soak` does two thousand.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{SystemTime, UNIX_EPOCH};

use vigil_lab::ShimBinary;
use vigil_soak::plan::Victims;
use vigil_soak::soak::{Wanted, run};

#[test]
fn a_hundred_lives_end_well() {
    let shim = ShimBinary::vigil().expect("no shim is built");
    // Another seed each time: what it finds is printed with it, and can be lived again.
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let wanted = Wanted {
        kills: 100,
        seed: u64::from(clock.subsec_micros()),
        workers: 3,
        victims: Victims::Both,
        daemon_every: 10,
        only: None,
    };
    println!("seed {}", wanted.seed);
    let tally = run(&shim, &wanted).unwrap();
    println!("{tally}");
    assert!(tally.kills() >= 100, "{tally}");
    assert_eq!(tally.failed(), 0, "seed {}\n{tally}", wanted.seed);
}
