//! What a shim leaves whose reaper has died, and whose process is to be the reaper: everything
//! that the dead one held and that this process holds as well.

use vigil_journal::Owner as Whose;
use vigil_relay::control::Slot;

use crate::owner::Owner;
use crate::watched::SharedFd;

/// See the module.
#[derive(Debug)]
pub struct Bequest {
    /// Whose everything is.
    pub owner: Whose,
    /// Where containerd connects.
    pub listener: SharedFd,
    /// Memory of the journal's second copy.
    pub memory: SharedFd,
    /// Memory of the exit records.
    pub exits: SharedFd,
    /// Rung after each recorded death.
    pub bell: SharedFd,
    /// The number of the next connection.
    pub conns: u32,
    /// What was deposited.
    pub slots: Vec<(Slot, SharedFd)>,
    /// Processes that are told of, by their pins. Whoever made them, they are not to be our children.
    pub ends: Vec<(u32, SharedFd)>,
}

impl Owner {
    /// The processes whose ends are to be recorded.
    pub(crate) fn ends(&self) -> Vec<(u32, SharedFd)> {
        let pins = self.hands.pins.iter();
        let held = pins.filter_map(|(who, pin)| {
            let held = self.hands.held(who)?;
            Some((u32::try_from(*pin).ok()?, held.shared()))
        });
        held.collect()
    }
}
