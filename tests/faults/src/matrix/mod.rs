//! The crash-point matrix: the pair dies at a named instant, containerd cleans up (or is
//! killed too and started again), and then what the catalogue's section 5 says must be so.
//!
//! Each gate is a row in `gates`; each way of making it worse is a [`Variant`]. Whatever
//! the gate: nothing left, no stranger hurt, `delete` in time and twice the same, the id
//! usable at once. Where the shim dies alone, another takes over, and there is nothing to
//! be seen of it at all.

pub mod ends;
pub mod gates;
pub mod journal;
pub mod scene;

use std::time::Duration;

use anyhow::{Result, ensure};
use vigil_lab::ShimBinary;
use vigil_lab::suite::{Trial, bounded};
use vigil_sys::points::Point;

use gates::{GATES, Gate};
use scene::Scene;

/// How long one may take.
const DEADLINE: Duration = Duration::from_mins(1);

/// How often an instant inside of runc is looked for: a processor that was taken away
/// from the one who stops it may let it slip.
const TRIES: usize = 5;

/// runc was past the instant when it stood still: nothing was tried.
#[derive(Debug)]
pub struct TooQuick;

impl std::fmt::Display for TooQuick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("runc was too quick")
    }
}

impl std::error::Error for TooQuick {}

/// What else goes wrong at that instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Nothing.
    Plain,
    /// Only who is at the gate dies, and nobody notices.
    OneAlone,
    /// The reaper dies while the shim is at the gate, and nobody notices that either.
    ReaperAlone,
    /// containerd dies as well, and is started again at once.
    ContainerdToo,
    /// containerd dies as well, and is started again after ten seconds.
    ContainerdLater,
    /// Two more containers are there, and must not notice.
    OneOfThree,
    /// The last record of the journal is half written.
    TornRecord,
    /// containerd's state directory is full to the last byte.
    StateFull,
}

impl Variant {
    fn ends_containerd(self) -> bool {
        matches!(self, Self::ContainerdToo | Self::ContainerdLater)
    }

    /// The end of a trial's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::OneAlone => "_alone",
            Self::ReaperAlone => "_without_reaper",
            Self::ContainerdToo => "_and_containerd",
            Self::ContainerdLater => "_and_containerd_for_long",
            Self::OneOfThree => "_of_three",
            Self::TornRecord => "_torn_record",
            Self::StateFull => "_state_full",
        }
    }
}

/// All trials of the matrix; for ours only, since nobody else has our crash points.
#[must_use]
pub fn trials(shim: &ShimBinary) -> Vec<Trial> {
    let trial = |name: String, run: Box<dyn Fn() -> Result<()> + Send + Sync>| Trial {
        shim: shim.name.to_owned(),
        name,
        alone: false,
        run,
    };
    let mut trials = vec![trial(
        "s00_every_point_is_a_gate".to_owned(),
        Box::new(every_point_is_a_gate),
    )];
    for gate in GATES {
        let instead = gate.runc.is_some() || gate.reaper_is_there();
        for &variant in gate.variants {
            // Where a runc stands still or the reaper does, it is no case of its own.
            if variant == Variant::ReaperAlone && instead {
                continue;
            }
            let asked = shim.clone();
            trials.push(trial(
                format!("{}{}", gate.name, variant.suffix()),
                Box::new(move || attempt(&asked, gate, variant)),
            ));
        }
    }
    trials
}

fn attempt(shim: &ShimBinary, gate: &'static Gate, variant: Variant) -> Result<()> {
    for _ in 1..TRIES {
        match once(shim, gate, variant) {
            Err(error) if error.is::<TooQuick>() => {}
            outcome => return outcome,
        }
    }
    once(shim, gate, variant)
}

fn once(shim: &ShimBinary, gate: &'static Gate, variant: Variant) -> Result<()> {
    let scene = Scene::open(shim, gate, variant)?;
    let mark = scene.mark().to_owned();
    bounded(&mark, DEADLINE, move || scene.play())
}

/// A point without a gate would be a crash nobody has tried; each gate fails by itself
/// if its point is not reached.
fn every_point_is_a_gate() -> Result<()> {
    let missing: Vec<&Point> = Point::ALL
        .iter()
        .filter(|point| !GATES.iter().any(|gate| gate.point == **point))
        .collect();
    ensure!(missing.is_empty(), "no gate for {missing:?}");
    Ok(())
}
