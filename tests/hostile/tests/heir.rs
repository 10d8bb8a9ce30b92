//! The reaper dies at a moment at which its shim cannot, or need not, take its place.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use anyhow::ensure;
use vigil_hostile::{Armed, Pair, exit_in_time, trial};
use vigil_lab::process::alive;
use vigil_lab::{GENEROUS, Spec, by, until};

/// A shim that had answered Shutdown with nobody to tell, since its reaper was dead, waited 5 s for
/// a dead one's word, and left everybody who asked meanwhile without an answer.
#[test]
fn a_shim_that_leaves_waits_for_no_dead_reaper() {
    trial(90, |kit| {
        let armed = Armed::of(kit)?;
        let container = kit.running(&Spec::sh("exit 7"))?;
        ensure!(exit_in_time(&container, 10.0)? == 7);
        let (task, id) = (container.task(), container.id.clone());
        task.delete(&id, "")?;
        let pair = Pair::of(&container.shim)?;
        armed.arm("S17", "stop")?;
        let asks = {
            let (task, id) = (task.clone(), id.clone());
            std::thread::spawn(move || task.shutdown(&id))
        };
        until("the shim to leave", by(20.0), || {
            armed.reached("S17").then_some(())
        })?;
        pair.signal(pair.reaper, 9)?;
        until("the reaper to die", by(5.0), || {
            (!alive(pair.reaper)).then_some(())
        })?;
        pair.signal(pair.shim, 18)?;
        let began = Instant::now();
        let _ = asks.join().expect("the client panicked");
        pair.gone(20.0)?;
        let log = container.bundle.log_text();
        ensure!(!log.contains("does not answer"), "{log}");
        ensure!(began.elapsed() < GENEROUS, "{:?}", began.elapsed());
        ensure!(container.shim.delete()?.ok()?.exit_status == 7);
        Ok(())
    });
}
