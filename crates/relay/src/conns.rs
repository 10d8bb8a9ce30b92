//! All connections: who is let in, which of them an event means, and what is to
//! happen when they hold too much together. Pure: what a connection is made of
//! beside its relay is the caller's affair.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use crate::budget::{Budget, make_room};
use crate::burst::Burst;
use crate::places::Places;
use crate::switch::Relay;

/// A connection: something with a number and a relay.
pub trait Connection {
    /// Its number.
    fn number(&self) -> u32;
    /// What is under way on it.
    fn relay(&self) -> &Relay;
    /// The same, to be changed.
    fn relay_mut(&mut self) -> &mut Relay;
}

/// See the module; by itself the list of them, in the order in which they came.
#[derive(Debug)]
pub struct Conns<C> {
    /// There may be thousands, and any be taken out.
    all: Vec<Box<C>>,
    next: u32,
    places: Places,
    budget: Budget,
    burst: Burst,
}

impl<C> Deref for Conns<C> {
    type Target = [Box<C>];

    fn deref(&self) -> &[Box<C>] {
        &self.all
    }
}

impl<C> DerefMut for Conns<C> {
    fn deref_mut(&mut self) -> &mut [Box<C>] {
        &mut self.all
    }
}

impl<C: Connection> Conns<C> {
    /// None yet, in a process that may open so many files.
    pub fn new(open_files: u64) -> Conns<C> {
        Conns {
            all: Vec::new(),
            next: 0,
            places: Places::within(open_files),
            budget: Budget::default(),
            burst: Burst::default(),
        }
    }

    /// Those another reaper had, and the number of the next.
    pub fn go_on(&mut self, next: u32, all: impl IntoIterator<Item = C>) {
        self.all.extend(all.into_iter().map(Box::new));
        let last = self.all.last().map_or(0, |one| one.number() + 1);
        self.next = next.max(last);
        for at in 0..self.all.len() {
            self.seat(at, Instant::now());
        }
    }

    /// The number of the next.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// For one that goes on.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whether nobody can be let in, not even as a guest.
    pub fn is_full(&self) -> bool {
        self.places.full(self.all.len())
    }

    /// Who makes room for the next.
    pub fn who_goes(&self, now: Instant) -> Option<usize> {
        self.all.iter().position(|one| one.relay().gives_way(now))
    }

    /// One more, which is made with its number; its place in the list.
    pub fn enter(&mut self, now: Instant, make: impl FnOnce(u32, &Budget) -> C) -> usize {
        self.all.push(Box::new(make(self.next, &self.budget)));
        self.next = self.next.wrapping_add(1);
        self.seat(self.all.len() - 1, now);
        self.all.len() - 1
    }

    /// It has a place from now on if there is one for it.
    fn seat(&mut self, at: usize, now: Instant) {
        let peer = self.all[at].relay().peer();
        let others = self.all.iter().enumerate();
        let others = others.filter(|(other, _)| *other != at);
        let others = others.map(|(_, one)| one.relay());
        let free = self.places.has_one(self.all.len(), others, peer);
        self.all[at].relay_mut().seat(now, free);
    }

    fn place_of(&self, number: u32) -> Option<usize> {
        let place = self.all.binary_search_by_key(&number, |one| one.number());
        place.ok()
    }

    /// The shim says that it has the one with this number.
    pub fn taken(&mut self, number: u32) {
        if let Some(at) = self.place_of(number) {
            self.all[at].relay_mut().be_taken(true);
        }
    }

    /// Where the one with this number is, for which something has come; a guest may have
    /// a place by now.
    pub fn find(&mut self, now: Instant, number: u32) -> Option<usize> {
        let at = self.place_of(number)?;
        if self.all[at].relay().is_guest() {
            self.seat(at, now);
        }
        Some(at)
    }

    /// Takes one out.
    pub fn remove(&mut self, at: usize) {
        self.all.remove(at);
        if self.all.is_empty() {
            self.all = Vec::new();
        }
    }

    /// After something has come: if too much is held, requests that came by half make
    /// room. Whether memory is worth giving back.
    pub fn keep_bounds(&mut self) -> bool {
        let all = self.all.iter_mut().map(|one| one.relay_mut());
        make_room(&self.budget, all);
        self.burst.is_over(self.budget.held())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(u32, Relay);

    impl Connection for One {
        fn number(&self) -> u32 {
            self.0
        }

        fn relay(&self) -> &Relay {
            &self.1
        }

        fn relay_mut(&mut self) -> &mut Relay {
            &mut self.1
        }
    }

    fn come(conns: &mut Conns<One>, peer: u32) -> usize {
        let make = |number, budget: &Budget| One(number, Relay::within(budget, peer));
        conns.enter(Instant::now(), make)
    }

    #[test]
    fn who_comes_late_is_a_guest_until_there_is_a_place() {
        let now = Instant::now();
        let mut conns = Conns::new(0);
        let mut guests = 0;
        while !conns.is_full() {
            let at = come(&mut conns, 7);
            guests += usize::from(conns[at].1.is_guest());
        }
        // Eight places of 64 are for others.
        assert_eq!((conns.len(), guests), (128, 72));
        assert_eq!(conns.who_goes(now), None, "none of them was answered");
        let last = conns.len() - 1;
        assert_eq!(conns.find(now, 127), Some(last));
        conns.remove(0);
        assert_eq!(conns.find(now, 0), None);
        assert_eq!(conns.find(now, 127), Some(last - 1));
        assert!(!conns[last - 1].1.is_guest(), "there is a place");
        let at = come(&mut conns, 8);
        assert!(!conns[at].1.is_guest(), "another process");
        let at = come(&mut conns, 7);
        assert!(conns[at].1.is_guest());
    }
}
