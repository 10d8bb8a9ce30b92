//! The table of deposited things, by slot: what the control protocol's
//! Deposit and Ended do to it. Generic, so that it is tested without
//! descriptors; whatever leaves the table is dropped, and so closed, at once.

use crate::control::{Denied, Slot};

/// Most things held.
pub const SLOTS_MAX: usize = 4096;

/// What is held, in the order in which it came.
#[derive(Debug)]
pub struct Slots<T>(Vec<(Slot, T)>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots(Vec::new())
    }
}

impl<T> Slots<T> {
    /// Takes `things[i]` for `slots[i]`: all of them, or none and says why.
    pub fn deposit(&mut self, slots: &[Slot], things: Vec<T>) -> Result<(), Denied> {
        if slots.len() != things.len() {
            return Err(Denied::Malformed);
        }
        if self.0.len() + slots.len() > SLOTS_MAX {
            return Err(Denied::SlotsFull);
        }
        let held = |one: &Slot| self.iter().any(|(held, _)| held.slot == one.slot);
        let twice = |n: usize| slots[..n].iter().any(|one| one.slot == slots[n].slot);
        if slots.iter().any(held) || (0..slots.len()).any(twice) {
            return Err(Denied::SlotHeld);
        }
        self.0.extend(slots.iter().copied().zip(things));
        Ok(())
    }

    /// Drops what is held under these numbers; others are no error.
    pub fn ended(&mut self, slots: &[u32]) {
        self.0.retain(|(held, _)| !slots.contains(&held.slot));
        if self.0.capacity() > 4 * self.0.len() + 16 {
            self.0.shrink_to_fit();
        }
    }

    /// What is held under this number.
    pub fn get(&self, slot: u32) -> Option<&T> {
        let mut all = self.0.iter();
        all.find_map(|(held, thing)| (held.slot == slot).then_some(thing))
    }

    /// Those with higher numbers than `after`, by number, `count` at most.
    pub fn after(&self, after: u32, count: usize) -> Vec<(Slot, &T)> {
        let mut found: Vec<_> = self.iter().filter(|(held, _)| held.slot > after).collect();
        found.sort_unstable_by_key(|(held, _)| held.slot);
        found.truncate(count);
        found
    }

    /// Everything held, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        self.0.iter().map(|(slot, thing)| (*slot, thing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    const fn slot(slot: u32) -> Slot {
        Slot { slot, kind: 1 }
    }

    #[test]
    fn all_of_a_deposit_or_nothing_is_held() {
        let thing = Rc::new(());
        let things = |n: usize| vec![Rc::clone(&thing); n];
        let mut table = Slots::default();
        assert_eq!(table.deposit(&[slot(1), slot(2)], things(2)), Ok(()));
        for (slots, count, denied) in [
            (&[slot(3), slot(2)][..], 2, Denied::SlotHeld),
            (&[slot(3), slot(3)], 2, Denied::SlotHeld),
            (&[slot(3)], 2, Denied::Malformed),
            (&[slot(3), slot(4)], 1, Denied::Malformed),
        ] {
            assert_eq!(table.deposit(slots, things(count)), Err(denied));
            assert_eq!(Rc::strong_count(&thing), 3, "what is denied is dropped");
        }
        table.ended(&[1, 77]);
        assert_eq!(Rc::strong_count(&thing), 2);
        assert_eq!(
            table.iter().map(|(slot, _)| slot.slot).collect::<Vec<_>>(),
            [2]
        );
        assert_eq!(table.deposit(&[slot(1)], things(1)), Ok(()));
    }

    #[test]
    fn the_table_is_bounded_and_gives_its_room_back() {
        let mut table = Slots::default();
        for n in 0..4096 {
            assert_eq!(table.deposit(&[slot(n)], vec![()]), Ok(()));
        }
        assert_eq!(
            table.deposit(&[slot(5000)], vec![()]),
            Err(Denied::SlotsFull)
        );
        table.ended(&(0..4096).collect::<Vec<_>>());
        assert!(table.0.capacity() < 64);
    }
}
