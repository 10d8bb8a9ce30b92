//! What the requests of all connections hold together: half-read ones, those
//! kept until they are answered, answers nobody has taken yet. One bound for
//! all of it, beside which there is room for whoever must get in. Pure: it
//! counts what each connection says that it holds.

use std::cell::Cell;
use std::rc::Rc;

use crate::switch::Relay;

/// Most bytes of it all.
pub const TOTAL_MAX: usize = 32 << 20;
/// Beyond that, for requests that look at a container or get rid of it.
pub const URGENT_MAX: usize = 4 << 20;
/// An answer so short always passes, one for each connection.
pub const SHORT: usize = 4 << 10;
/// What a request costs a shim beside its bytes, unless it is a Wait: of those it
/// remembers that there are several.
pub const COST: usize = 2 << 10;

#[derive(Debug, Default)]
struct Held {
    all: Cell<usize>,
    /// Of that, of requests that have not come whole: they may be given up.
    halves: Cell<usize>,
}

/// See the module; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Budget(Rc<Held>);

/// What one connection holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) all: usize,
    pub(crate) half: usize,
}

impl Budget {
    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.0.all.get()
    }

    /// More is held than may be: requests that have not come whole give way.
    pub(crate) fn is_over(&self) -> bool {
        self.held() > TOTAL_MAX
    }

    /// A connection holds `now` instead of `before`.
    pub(crate) fn change(&self, before: Share, now: Share) {
        let count = |cell: &Cell<usize>, before: usize, now: usize| {
            cell.set((cell.get() + now).saturating_sub(before));
        };
        count(&self.0.all, before.all, now.all);
        count(&self.0.halves, before.half, now.half);
    }

    /// Whether there is room for so much and `beyond`; what may be given up counts as room.
    pub(crate) fn has_room(&self, more: usize, beyond: usize) -> bool {
        let firm = self.held().saturating_sub(self.0.halves.get());
        firm.saturating_add(more) <= TOTAL_MAX + beyond
    }

    /// Longest answer there is room for.
    pub(crate) fn answer(&self) -> usize {
        TOTAL_MAX.saturating_sub(self.held()).max(SHORT)
    }
}

/// While more is held than may be: requests that came by half are given up, the one
/// that began to come first before the others.
pub(crate) fn make_room<'r>(budget: &Budget, all: impl Iterator<Item = &'r mut Relay>) {
    if !budget.is_over() {
        return;
    }
    let mut halves: Vec<&mut Relay> = all.filter(|one| one.half() > 0).collect();
    halves.sort_by_key(|one| one.half_since());
    for one in halves {
        if budget.is_over() {
            one.give_up_half();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_given_up_is_room_for_the_rest() {
        let budget = Budget::default();
        let half = Share {
            all: TOTAL_MAX,
            half: TOTAL_MAX,
        };
        budget.change(Share::default(), half);
        assert!(!budget.is_over() && budget.has_room(TOTAL_MAX, 0));
        assert!(!budget.has_room(TOTAL_MAX + 1, 0) && budget.has_room(TOTAL_MAX + 1, 1));
        assert_eq!(budget.answer(), SHORT);
        let whole = Share {
            all: 1,
            ..Share::default()
        };
        budget.clone().change(Share::default(), whole);
        assert!(budget.is_over());
        budget.change(half, Share::default());
        assert_eq!((budget.held(), budget.answer()), (1, TOTAL_MAX - 1));
    }
}
