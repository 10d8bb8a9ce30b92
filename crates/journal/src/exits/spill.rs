//! What falls out of the ring while it is young: who died among very many.
//!
//! A process that is started is pinned a moment later, and its death is looked for in the ring.
//! A container whose processes die by the thousand sends the ring round in that moment. So a
//! death that leaves the ring early goes on here, at the place of its pid: as pids are given in
//! turn, only thousands of later ones come to the same place. Nobody else reads this, and it
//! dies with the writer. Made once, and no page of it is touched before it is needed.

use super::{Death, Way};

/// Places.
pub(super) const PLACES: usize = 1 << 15;
/// For so long a death is looked for at most.
const YOUNG_SECS: i64 = 120;
/// Bits of the nanoseconds beside the seconds.
const NANO_BITS: u32 = 30;

/// One place: pid and status, start, time, sequence number, and the number after that of who
/// was there before.
type Place = [u64; 5];

/// See the module.
pub(super) struct Spill(Vec<Place>);

/// Another death was at the same place meanwhile: nobody can say whose this is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Covered;

impl Spill {
    pub(super) fn new() -> Self {
        // Zeros: the kernel's, page by page when they are written to.
        Self(vec![[0; 5]; PLACES])
    }

    /// Takes what has just left the ring for `newer`, unless nobody looks for it any more.
    pub(super) fn take(&mut self, seq: u64, death: &Death, newer: &Death) {
        if newer.at_secs.saturating_sub(death.at_secs) > YOUNG_SECS {
            return;
        }
        if let Some(place) = self.0.get_mut(at(death.pid)) {
            let before = if place[0] == 0 { 0 } else { place[3] + 1 };
            let secs = death.at_secs.cast_unsigned() << NANO_BITS;
            *place = [
                u64::from(death.pid) << 32 | u64::from(death.word()),
                death.start_ticks,
                secs | u64::from(death.at_nanos),
                seq,
                before,
            ];
        }
    }

    /// The death of a process with this pid, if it is here and was recorded as number `since`
    /// or later.
    pub(super) fn find(&self, pid: u32, since: u64) -> Result<Option<Death>, Covered> {
        let Some([who, start_ticks, time, seq, before]) = self.0.get(at(pid)).copied() else {
            return Ok(None);
        };
        if (who >> 32) != u64::from(pid) || seq < since {
            return Ok(None);
        }
        if before > since {
            return Err(Covered);
        }
        let word = u32::try_from(who & u64::from(u32::MAX)).unwrap_or(0);
        Ok(Some(Death {
            pid,
            start_ticks,
            way: Way::of(word),
            status: (word & 0xffff).cast_signed(),
            at_secs: (time >> NANO_BITS).cast_signed(),
            at_nanos: u32::try_from(time & ((1 << NANO_BITS) - 1)).unwrap_or(0),
        }))
    }
}

fn at(pid: u32) -> usize {
    pid as usize % PLACES
}

/// A megabyte of it would say little.
impl std::fmt::Debug for Spill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spill")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(pid: u32, at_secs: i64) -> Death {
        Death {
            pid,
            start_ticks: 7,
            status: 0xffff - i32::from(pid == 5),
            way: Way::Waited,
            at_secs,
            at_nanos: 999_999_999,
        }
    }

    #[test]
    fn what_is_taken_is_found_as_it_was_and_by_its_number_alone() {
        let mut spill = Spill::new();
        let now = death(9, 1_800_000_000);
        for pid in [5, u32::MAX] {
            let old = death(pid, now.at_secs - YOUNG_SECS);
            spill.take(40, &old, &now);
            assert_eq!(spill.find(pid, 40), Ok(Some(old)));
            assert_eq!(spill.find(pid, 41), Ok(None), "before it was started");
        }
        assert_eq!(spill.find(6, 0), Ok(None));
        let other = 5 + u32::try_from(PLACES).unwrap_or(0);
        assert_eq!(spill.find(other, 0), Ok(None));
        spill.take(41, &death(6, now.at_secs - YOUNG_SECS - 1), &now);
        assert_eq!(spill.find(6, 0), Ok(None), "nobody looks for it any more");
    }

    /// A pid that is used again, or the next one at the same place: the later death is never
    /// taken for that of the earlier process.
    #[test]
    fn a_death_that_covers_another_is_only_known_to_who_was_started_after_that() {
        let mut spill = Spill::new();
        let now = death(9, 1_800_000_000);
        let other = 5 + u32::try_from(PLACES).unwrap_or(0);
        for before in [5, other] {
            spill.take(40, &death(before, now.at_secs), &now);
            spill.take(50, &death(5, now.at_secs), &now);
            assert_eq!(spill.find(5, 40), Err(Covered));
            assert_eq!(spill.find(5, 41), Ok(Some(death(5, now.at_secs))));
        }
    }
}
