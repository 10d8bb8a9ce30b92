//! The relay against a model of both sides: whatever is split, delayed,
//! answered out of order or killed, each request is answered exactly once and
//! containerd sees nothing but whole frames.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::budget::{TOTAL_MAX, make_room};
use crate::frame::{
    CODE_INTERNAL, CODE_RESOURCE_EXHAUSTED, CODE_UNAVAILABLE, HEADER_LEN, REQUEST, RESPONSE,
};
use crate::glance::tests::payload;

fn frame_of(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    out.extend(stream.to_be_bytes());
    out.extend([kind, 0]);
    out.extend(payload);
    out
}

/// Everything the relay has for the shim, taken.
fn shim_takes(relay: &mut Relay) -> Vec<u8> {
    let mut got = Vec::new();
    while !relay.for_shim().is_empty() {
        let count = relay.for_shim().len();
        got.extend_from_slice(relay.for_shim());
        relay.shim_took(count);
    }
    got
}

fn containerd_takes(relay: &mut Relay) -> Vec<u8> {
    let mut got = Vec::new();
    while !relay.for_containerd().is_empty() {
        let count = relay.for_containerd().len();
        got.extend_from_slice(relay.for_containerd());
        relay.containerd_took(count);
    }
    got
}

fn cut(bytes: &[u8]) -> Vec<(Header, Box<[u8]>)> {
    let (mut cutter, mut rest, mut out) = (Cutter::default(), bytes, Vec::new());
    while !rest.is_empty() {
        match cutter.next(&mut rest) {
            Some(Piece::Frame(header, frame)) => out.push((header, frame)),
            Some(Piece::TooLong(header) | Piece::GivenUp(header)) => {
                panic!("{header:?} is not whole")
            }
            None => {}
        }
    }
    assert_eq!(cutter.held(), 0, "a half frame at the end");
    out
}

/// The code in a refusal of the relay.
fn code_of(frame: &[u8]) -> u8 {
    assert_eq!(frame[HEADER_LEN], 0x0a);
    let status = if frame[HEADER_LEN + 1] < 0x80 { 2 } else { 3 };
    frame[HEADER_LEN + status + 1]
}

#[test]
fn a_request_and_its_answer_pass_unchanged() {
    let mut relay = Relay::new();
    let request = frame_of(1, REQUEST, b"ask");
    relay.from_containerd(&request);
    assert_eq!(shim_takes(&mut relay), request);
    assert_eq!(relay.unanswered(), 1);
    let answer = frame_of(1, RESPONSE, b"told");
    relay.from_shim(&answer);
    assert_eq!(containerd_takes(&mut relay), answer);
    assert_eq!(relay.held(), 0, "idle again, and nothing is held");
    assert_eq!(relay.counts(), Counts::default());
}

#[test]
fn only_the_first_whole_answer_to_a_kept_request_passes() {
    let mut relay = Relay::new();
    relay.from_containerd(&frame_of(3, REQUEST, b""));
    // Before the shim has it, it cannot have answered it.
    relay.from_shim(&frame_of(3, RESPONSE, b"early"));
    shim_takes(&mut relay);
    let answer = frame_of(3, RESPONSE, b"once");
    relay.from_shim(&answer);
    relay.from_shim(&answer);
    relay.from_shim(&frame_of(5, RESPONSE, b"unasked"));
    relay.from_shim(&frame_of(3, 3, b"stream"));
    assert_eq!(containerd_takes(&mut relay), answer);
    assert_eq!(relay.counts().unmatched, 4);
}

#[test]
fn a_half_answer_dies_with_its_shim_and_the_request_is_asked_again() {
    let mut relay = Relay::new();
    let (first, second) = (frame_of(1, REQUEST, b"a"), frame_of(3, REQUEST, b"b"));
    relay.from_containerd(&first);
    shim_takes(&mut relay);
    relay.from_containerd(&second);
    relay.shim_took(4);
    let answer = frame_of(1, RESPONSE, b"whole");
    relay.from_shim(&answer[..answer.len() - 1]);
    assert!(relay.for_containerd().is_empty());
    relay.shim_died(true);
    assert!(relay.for_containerd().is_empty());
    assert_eq!(shim_takes(&mut relay), [first, second].concat());
    relay.from_shim(&answer);
    assert_eq!(containerd_takes(&mut relay), answer);
}

#[test]
fn a_request_too_long_is_refused_and_the_next_one_served() {
    let mut relay = Relay::new();
    let long = frame_of(7, REQUEST, &vec![1; PAYLOAD_MAX + 1]);
    for chunk in long.chunks(4096) {
        relay.from_containerd(chunk);
        assert!(relay.held() < 1000, "the body is not stored");
    }
    let next = frame_of(9, REQUEST, &vec![2; PAYLOAD_MAX]);
    relay.from_containerd(&next);
    assert_eq!(shim_takes(&mut relay), next, "4 MiB exactly is allowed");
    let refusals = cut(&containerd_takes(&mut relay));
    assert_eq!(refusals.len(), 1);
    assert_eq!((refusals[0].0.stream, refusals[0].0.kind), (7, RESPONSE));
    assert_eq!(code_of(&refusals[0].1), CODE_RESOURCE_EXHAUSTED);
    // The same from the other side: an answer nobody could read.
    relay.from_shim(&frame_of(9, RESPONSE, &vec![3; PAYLOAD_MAX + 1]));
    let refusals = cut(&containerd_takes(&mut relay));
    assert_eq!((refusals.len(), refusals[0].0.stream), (1, 9));
    assert_eq!((relay.unanswered(), relay.held()), (0, 0));
}

#[test]
fn what_is_no_request_is_dropped() {
    let mut relay = Relay::new();
    relay.from_containerd(&frame_of(1, 3, b"stream"));
    relay.from_containerd(&frame_of(1, RESPONSE, b""));
    relay.from_containerd(&frame_of(1, 0, b""));
    assert_eq!(
        (relay.for_shim(), relay.for_containerd()),
        (&[][..], &[][..])
    );
    assert_eq!(relay.counts().foreign, 3);
}

#[test]
fn a_request_that_kills_three_shims_is_answered_by_the_relay() {
    let mut relay = Relay::new();
    let harmless = frame_of(1, REQUEST, b"wait");
    let killer = frame_of(5, REQUEST, b"boom");
    relay.from_containerd(&harmless);
    shim_takes(&mut relay);
    relay.from_containerd(&frame_of(3, REQUEST, b""));
    shim_takes(&mut relay);
    relay.from_shim(&frame_of(3, RESPONSE, b""));
    containerd_takes(&mut relay);
    for death in 1..=ATTEMPTS_MAX {
        if death == 1 {
            relay.from_containerd(&killer);
        }
        shim_takes(&mut relay);
        assert!(relay.for_containerd().is_empty(), "death {death}");
        relay.shim_died(true);
    }
    let told = cut(&containerd_takes(&mut relay));
    assert_eq!((told.len(), told[0].0.stream), (1, 5));
    assert_eq!(code_of(&told[0].1), CODE_INTERNAL);
    assert_eq!(shim_takes(&mut relay), harmless, "it had proven itself");
}

#[test]
fn a_request_the_shim_never_had_whole_is_not_to_blame() {
    let mut relay = Relay::new();
    let request = frame_of(1, REQUEST, b"later");
    relay.from_containerd(&request);
    for _ in 0..10 {
        relay.shim_took(request.len() - 1);
        relay.shim_died(true);
    }
    assert_eq!(shim_takes(&mut relay), request);
    relay.prove();
    for _ in 0..10 {
        relay.shim_died(true);
        assert_eq!(shim_takes(&mut relay), request, "proven by time");
    }
}

#[test]
fn queues_are_bounded_and_a_kill_passes_behind_many_waits() {
    let mut relay = Relay::new();
    let wait = payload("Wait", None);
    for n in 0..u32::try_from(KEPT_MAX).unwrap() {
        relay.from_containerd(&frame_of(n * 2 + 1, REQUEST, &wait));
    }
    shim_takes(&mut relay);
    assert!(relay.for_containerd().is_empty());
    relay.from_containerd(&frame_of(9999, REQUEST, b"one more"));
    let told = cut(&containerd_takes(&mut relay));
    assert_eq!(
        (told[0].0.stream, code_of(&told[0].1)),
        (9999, CODE_RESOURCE_EXHAUSTED)
    );
    // Who looks at a container, or gets rid of it, always finds room.
    for (stream, method) in (20_001..)
        .step_by(2)
        .zip(["State", "Kill", "Delete", "Shutdown"])
    {
        let urgent = frame_of(stream, REQUEST, &payload(method, None));
        relay.from_containerd(&urgent);
        assert_eq!(shim_takes(&mut relay), urgent, "{method}");
        relay.from_shim(&frame_of(stream, RESPONSE, b""));
    }
    assert_eq!(cut(&containerd_takes(&mut relay)).len(), 4);
    relay.from_shim(&frame_of(1, RESPONSE, b""));
    containerd_takes(&mut relay);
    assert!(relay.wants_containerd());
    let kill = frame_of(10_001, REQUEST, b"kill");
    relay.from_containerd(&kill);
    assert_eq!(shim_takes(&mut relay), kill);
}

#[test]
fn a_side_that_takes_nothing_stops_the_reading() {
    let mut relay = Relay::new();
    let big = vec![0; UNSENT_MAX / 2];
    relay.from_containerd(&frame_of(1, REQUEST, &big));
    assert!(relay.wants_containerd());
    relay.from_containerd(&frame_of(3, REQUEST, &big));
    assert!(
        !relay.wants_containerd() && relay.wants_shim(),
        "the shim takes nothing"
    );
    shim_takes(&mut relay);
    assert!(relay.wants_containerd());
    relay.from_shim(&frame_of(1, RESPONSE, &vec![0; QUEUE_MAX]));
    assert!(
        !relay.wants_containerd() && !relay.wants_shim(),
        "containerd takes nothing"
    );
    containerd_takes(&mut relay);
    assert!(relay.wants_containerd() && relay.wants_shim());
    let kept = 16 * 1024 * 1024 / (PAYLOAD_MAX + HEADER_LEN);
    let full = vec![0; PAYLOAD_MAX];
    for n in 0..=kept {
        relay.from_containerd(&frame_of(u32::try_from(n).unwrap(), REQUEST, &full));
        shim_takes(&mut relay);
    }
    let told = cut(&containerd_takes(&mut relay));
    assert_eq!(told.len(), 1, "16 MiB unanswered are the most");
    assert_eq!(relay.unanswered(), kept + 1);
}

/// What a history is made of.
#[derive(Debug, Clone)]
enum Op {
    /// containerd sends a request with so many bytes.
    Ask(usize),
    /// So many bytes arrive from containerd.
    Arrive(usize),
    /// The shim takes at most so many bytes.
    ShimTakes(usize),
    /// The shim answers one of what it has, with so many bytes.
    Answer(prop::sample::Index, usize),
    /// So many bytes arrive from the shim.
    ShimWrites(usize),
    /// containerd takes at most so many bytes.
    ContainerdTakes(usize),
    /// The shim repeats an answer it gave.
    Repeat(prop::sample::Index),
    Die,
}

fn op() -> impl Strategy<Value = Op> {
    let any_index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0usize..300).prop_map(Op::Ask),
        6 => (1usize..400).prop_map(Op::Arrive),
        6 => (1usize..400).prop_map(Op::ShimTakes),
        6 => (any_index(), 0usize..300).prop_map(|(which, len)| Op::Answer(which, len)),
        6 => (1usize..400).prop_map(Op::ShimWrites),
        6 => (1usize..400).prop_map(Op::ContainerdTakes),
        1 => any_index().prop_map(Op::Repeat),
        1 => Just(Op::Die),
    ]
}

/// Both sides of one connection.
#[derive(Default)]
struct World {
    relay: Relay,
    next: u32,
    asked: BTreeSet<u32>,
    /// On the way from containerd.
    wire_in: VecDeque<u8>,
    /// Seen by containerd.
    told: Vec<u8>,
    /// Bytes the living shim has, and the requests in them.
    shim: Vec<u8>,
    /// Requests the living shim has and has not answered, in order of arrival.
    open: Vec<u32>,
    /// What it has answered, and bytes written and not yet relayed.
    given: Vec<Vec<u8>>,
    shim_out: VecDeque<u8>,
    /// The answer that was committed for each stream: the first relayed whole.
    committed: BTreeMap<u32, Vec<u8>>,
    relayed: Vec<u8>,
    deaths: u32,
}

impl World {
    fn shim_writes(&mut self, count: usize) {
        let count = count.min(self.shim_out.len());
        let bytes: Vec<u8> = self.shim_out.drain(..count).collect();
        self.relayed.extend_from_slice(&bytes);
        let mut rest = &self.relayed[..];
        let mut used = 0;
        while let Some(header) = Header::read(rest) {
            let len = HEADER_LEN + usize::try_from(header.len).unwrap();
            let Some(frame) = rest.get(..len) else { break };
            self.committed
                .entry(header.stream)
                .or_insert_with(|| frame.to_vec());
            rest = &rest[len..];
            used += len;
        }
        self.relayed.drain(..used);
        self.relay.from_shim(&bytes);
    }

    fn shim_takes(&mut self, count: usize) {
        let now = self.relay.for_shim();
        let count = count.min(now.len());
        self.shim.extend_from_slice(&now[..count]);
        self.relay.shim_took(count);
        while let Some(header) = Header::read(&self.shim) {
            let len = HEADER_LEN + usize::try_from(header.len).unwrap();
            if self.shim.len() < len {
                break;
            }
            self.shim.drain(..len);
            if let Some(&last) = self.open.last() {
                assert!(last < header.stream, "requests come in order");
            }
            assert!(
                !self.committed.contains_key(&header.stream),
                "asked again after its answer"
            );
            self.open.push(header.stream);
        }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Ask(len) => {
                self.next += 2;
                let stream = self.next + 1;
                self.asked.insert(stream);
                self.wire_in
                    .extend(frame_of(stream, REQUEST, &vec![7; *len]));
            }
            Op::Arrive(count) => {
                if self.relay.wants_containerd() {
                    let count = (*count).min(self.wire_in.len());
                    let bytes: Vec<u8> = self.wire_in.drain(..count).collect();
                    self.relay.from_containerd(&bytes);
                }
            }
            Op::ShimTakes(count) => self.shim_takes(*count),
            Op::Answer(which, len) if !self.open.is_empty() => {
                let stream = self.open.remove(which.index(self.open.len()));
                let mark = u8::try_from(self.deaths % 256).unwrap();
                let answer = frame_of(stream, RESPONSE, &vec![mark; *len]);
                self.shim_out.extend(&answer);
                self.given.push(answer);
            }
            Op::Repeat(which) if !self.given.is_empty() => {
                let again = &self.given[which.index(self.given.len())];
                self.shim_out.extend(again);
            }
            Op::Answer(..) | Op::Repeat(_) => {}
            Op::ShimWrites(count) => {
                if self.relay.wants_shim() {
                    self.shim_writes(*count);
                }
            }
            Op::ContainerdTakes(count) => {
                let now = self.relay.for_containerd();
                let count = (*count).min(now.len());
                self.told.extend_from_slice(&now[..count]);
                self.relay.containerd_took(count);
            }
            Op::Die => {
                // The reaper reads the socketpair to its end, then tells.
                self.shim_writes(usize::MAX);
                self.relay.shim_died(true);
                self.deaths += 1;
                self.relayed.clear();
                self.shim.clear();
                self.open.clear();
                self.given.clear();
            }
        }
        assert!(self.relay.unanswered() <= KEPT_MAX);
    }

    /// Everything is delivered and answered; nothing may be missing.
    fn settle(&mut self) {
        while !self.wire_in.is_empty() || !self.relay.for_shim().is_empty() || !self.open.is_empty()
        {
            for op in [
                Op::Arrive(usize::MAX),
                Op::ShimTakes(usize::MAX),
                Op::ShimWrites(usize::MAX),
                Op::ContainerdTakes(usize::MAX),
            ] {
                self.run(&op);
            }
            if let Some(stream) = self.open.pop() {
                self.shim_out.extend(frame_of(stream, RESPONSE, b"end"));
            }
        }
        while !self.shim_out.is_empty() || !self.relay.for_containerd().is_empty() {
            self.run(&Op::ShimWrites(usize::MAX));
            self.run(&Op::ContainerdTakes(usize::MAX));
        }
        let mut answered = BTreeSet::new();
        let mut refused = 0;
        for (header, frame) in cut(&self.told) {
            assert_eq!(header.kind, RESPONSE);
            assert!(
                answered.insert(header.stream),
                "{} answered twice",
                header.stream
            );
            match self.committed.get(&header.stream) {
                Some(first) => assert_eq!(*first, *frame, "the first whole answer is the one"),
                None => refused += 1,
            }
        }
        assert_eq!(answered, self.asked, "each request is answered");
        assert_eq!(refused, self.relay.counts().refused);
        assert!(refused == 0 || self.deaths >= u32::from(ATTEMPTS_MAX));
        assert_eq!(self.relay.unanswered(), 0);
        assert_eq!(self.relay.held(), 0, "no memory is kept after the burst");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_lost_or_doubled(ops in vec(op(), 1..400)) {
        let mut world = World::default();
        for op in &ops {
            world.run(op);
        }
        world.settle();
    }

    #[test]
    fn any_history_keeps_the_bounds(data in vec(any::<u8>(), 0..4000)) {
        fuzz_one(&data);
    }

    /// Mostly well-formed, so that the deeper states are reached too.
    #[test]
    fn any_history_of_frames_keeps_the_bounds(
        parts in vec((0u8..4, 0u8..4, 0u8..16, any::<u8>()), 0..400)
    ) {
        let mut data = Vec::new();
        for (stream, kind, len, op) in parts {
            let source = if kind == REQUEST { 0 } else { 2 };
            data.push(10 << 3 | source);
            data.extend([0, 0, 0, len, 0, 0, 0, stream, kind, 0]);
            data.push(len << 3 | source);
            data.extend(vec![op; usize::from(len)]);
            data.push(op);
            data.extend(vec![0; usize::from(op >> 3)]);
        }
        fuzz_one(&data);
    }
}

/// After the reaper's death what is not taken is read by the shim: it must
/// begin with a frame.
#[test]
fn what_is_taken_ends_with_a_frame() {
    let bytes = [
        frame_of(1, REQUEST, b"abc"),
        frame_of(3, REQUEST, b""),
        frame_of(5, RESPONSE, &[7; 300]),
    ]
    .concat();
    let ends = [13, 23, bytes.len()];
    for peeked in 1..=bytes.len() {
        let mut relay = Relay::new();
        let mut at = 0;
        while at < bytes.len() {
            let ahead = &bytes[at..bytes.len().min(at + peeked)];
            let takes = relay.takes(ahead);
            let next = ends.iter().find(|end| **end > at).unwrap();
            assert!(at + takes <= *next, "{takes} bytes at {at} are too many");
            if takes <= ahead.len() && ahead.len() >= HEADER_LEN {
                assert_eq!(at + takes, *next, "{takes} bytes at {at} are too few");
            }
            let take = takes.min(ahead.len());
            relay.from_containerd(&ahead[..take]);
            at += take;
        }
        assert_eq!(relay.unanswered(), 2);
    }
    // One that is too long is skipped to its end and no further.
    let mut relay = Relay::new();
    let mut head = u32::try_from(PAYLOAD_MAX + 1)
        .unwrap()
        .to_be_bytes()
        .to_vec();
    head.extend([0, 0, 0, 9, REQUEST, 0]);
    assert_eq!(relay.takes(&head), HEADER_LEN + PAYLOAD_MAX + 1);
    relay.from_containerd(&head);
    assert_eq!(relay.takes(&[0; 50]), PAYLOAD_MAX + 1);
}

/// Killed from outside, however often, a shim blames nobody; by its own fault it does.
#[test]
fn only_a_shims_own_fault_blames_what_was_with_it() {
    let mut relay = Relay::new();
    let request = frame_of(1, REQUEST, b"innocent");
    relay.from_containerd(&request);
    for _ in 0..1000 {
        assert_eq!(shim_takes(&mut relay), request);
        relay.shim_died(false);
    }
    for _ in 0..ATTEMPTS_MAX {
        assert_eq!(
            shim_takes(&mut relay),
            request,
            "and none of it was counted"
        );
        relay.shim_died(true);
    }
    let told = cut(&containerd_takes(&mut relay));
    assert_eq!((told.len(), code_of(&told[0].1)), (1, CODE_INTERNAL));
    // An error would be taken for the container's end.
    let wait = frame_of(3, REQUEST, &payload("Wait", None));
    relay.from_containerd(&wait);
    for _ in 0..100 {
        assert_eq!(shim_takes(&mut relay), wait);
        relay.shim_died(true);
    }
}

/// A Create may run for minutes. One that a shim had worked on for longer than anybody waits for
/// a shim was answered UNAVAILABLE at that shim's death, or at an upgrade, and was made all the
/// same: what counts is how long nobody has served it.
#[test]
fn a_request_under_way_for_long_waits_for_the_next_shim() {
    let begun = Instant::now();
    let at = |secs| begun + Duration::from_secs(secs);
    let why = || "no shim".to_owned();
    let mut relay = Relay::new();
    relay.from_containerd(&frame_of(1, REQUEST, &payload("Create", None)));
    relay.stamp(at(0));
    shim_takes(&mut relay);
    relay.lost_shim(at(32), false);
    assert_eq!(relay.expire(at(32), why), Some(at(62)));
    // The death of another that has taken nothing is no reason to begin anew.
    relay.lost_shim(at(50), true);
    assert_eq!(relay.expire(at(50), why), Some(at(62)));
    assert!(relay.for_containerd().is_empty());
    shim_takes(&mut relay);
    relay.lost_shim(at(70), false);
    assert_eq!(relay.expire(at(99), why), Some(at(100)));
    assert_eq!(relay.expire(at(100), why), None);
    let told = cut(&containerd_takes(&mut relay));
    assert_eq!((told.len(), code_of(&told[0].1)), (1, CODE_UNAVAILABLE));
}

/// After a shim's death all that is kept counts as unsent. Behind thirty thousand Waits nothing
/// was read any more until the next one served, so that not even a State was refused in time.
#[test]
fn without_a_shim_much_that_is_kept_stops_no_reading() {
    let begun = Instant::now();
    let mut relay = Relay::new();
    for stream in 0..60_000 {
        let wait = frame_of(stream, REQUEST, &payload("Wait", None));
        relay.from_containerd(&wait);
        shim_takes(&mut relay);
    }
    assert!(relay.kept_bytes > UNSENT_MAX);
    relay.lost_shim(begun, true);
    assert!(relay.wants_containerd());
    let state = payload("State", Some(Duration::from_secs(2)));
    relay.from_containerd(&frame_of(60_001, REQUEST, &state));
    relay.stamp(begun);
    let why = || "crash-looping".to_owned();
    assert_eq!(relay.expire(begun + Duration::from_secs(2), why), None);
    let told = cut(&containerd_takes(&mut relay));
    let first = (told[0].0.stream, code_of(&told[0].1));
    assert_eq!(first, (60_001, CODE_UNAVAILABLE));
    // One that has taken something and takes no more stops the reading as ever.
    relay.shim_took(1);
    assert!(!relay.wants_containerd());
}

/// Without a shim a request is answered before its client gives up; a Wait, whose error would
/// be taken for the container's end, is not answered at all.
#[test]
fn without_a_shim_a_request_waits_for_as_long_as_its_client() {
    let begun = Instant::now();
    let at = |secs| begun + Duration::from_secs(secs);
    let mut relay = Relay::new();
    let asks = [
        payload("State", Some(Duration::from_secs(10))),
        payload("Wait", None),
        payload("Kill", None),
        payload("Start", Some(Duration::from_secs(100))),
    ];
    for (stream, ask) in (1..).step_by(2).zip(&asks) {
        relay.from_containerd(&frame_of(stream, REQUEST, ask));
    }
    relay.stamp(at(0));
    let why = || "no shim".to_owned();
    let ten = at(10).checked_sub(EARLY).unwrap();
    assert_eq!(relay.expire(at(9), why), Some(ten));
    assert!(relay.for_containerd().is_empty());
    assert_eq!(relay.expire(ten, why), Some(at(0) + WAIT_MAX));
    // What comes later waits from then on.
    relay.from_containerd(&frame_of(9, REQUEST, &asks[0]));
    relay.stamp(at(29));
    let late = at(39).checked_sub(EARLY).unwrap();
    assert_eq!(relay.expire(at(30), why), Some(late));
    let told = cut(&containerd_takes(&mut relay));
    let told: Vec<_> = told.iter().map(|(h, f)| (h.stream, code_of(f))).collect();
    assert_eq!(told, [(1, CODE_UNAVAILABLE), (5, CODE_UNAVAILABLE)]);
    assert_eq!(relay.expire(at(10_000), why), None);
    assert_eq!(relay.unanswered(), 1, "the Wait");
    let wait = frame_of(3, REQUEST, &asks[1]);
    assert_eq!(shim_takes(&mut relay), wait);
    assert_eq!(relay.expire(at(20_000), why), None);
    relay.from_shim(&frame_of(3, RESPONSE, b"137"));
    assert_eq!(relay.unanswered(), 0);
}

/// Requests that came by half hold no more than the bound together, and the one begun first
/// makes room; its client is told when it has sent the rest.
#[test]
fn half_requests_of_many_connections_share_one_bound() {
    let (budget, begun) = (Budget::default(), Instant::now());
    let long = frame_of(7, REQUEST, &vec![1; PAYLOAD_MAX]);
    let mut relays: Vec<Relay> = (0..100).map(|_| Relay::within(&budget, 1)).collect();
    for at in 0..relays.len() {
        for chunk in long[..long.len() - 1].chunks(4096) {
            relays[at].from_containerd(chunk);
            relays[at].stamp(begun + Duration::from_secs(at as u64));
            make_room(&budget, relays.iter_mut());
        }
    }
    assert!(budget.held() <= TOTAL_MAX && budget.held() > TOTAL_MAX - (4 << 20));
    let whole = relays.last_mut().unwrap();
    whole.from_containerd(&long[long.len() - 1..]);
    assert_eq!(shim_takes(whole), long);
    let given_up = &mut relays[0];
    assert!(given_up.for_containerd().is_empty());
    given_up.from_containerd(&long[long.len() - 1..]);
    let told = cut(&containerd_takes(given_up));
    assert_eq!((told.len(), told[0].0.stream), (1, 7));
    assert_eq!(code_of(&told[0].1), CODE_RESOURCE_EXHAUSTED);
    // It goes on as if nothing had been.
    let next = frame_of(9, REQUEST, b"next");
    given_up.from_containerd(&next);
    assert_eq!(shim_takes(given_up), next);
    drop(relays);
    assert_eq!(budget.held(), 0);
}

/// Whoever holds all there may be held keeps nobody from the first few of its own, nor from a
/// Kill, nor from its short answers.
#[test]
fn a_full_budget_refuses_nobody_who_must_get_in() {
    let budget = Budget::default();
    let mut greedy: Vec<Relay> = (0..8).map(|_| Relay::within(&budget, 1)).collect();
    let big = frame_of(1, REQUEST, &vec![1; (1 << 20) - HEADER_LEN]);
    for _ in 0..5 {
        for one in &mut greedy {
            one.from_containerd(&big);
        }
    }
    let rest = frame_of(3, REQUEST, &[1; 2000]);
    for _ in 0..1000 {
        greedy[0].from_containerd(&rest);
        containerd_takes(&mut greedy[0]);
    }
    assert!(budget.held() <= TOTAL_MAX + (1 << 20), "{}", budget.held());
    let mut other = Relay::within(&budget, 1);
    other.from_containerd(&frame_of(1, REQUEST, &[1; 2000]));
    let told = cut(&containerd_takes(&mut other));
    assert_eq!(code_of(&told[0].1), CODE_RESOURCE_EXHAUSTED);
    for stream in (3..).step_by(2).take(FEW) {
        let connect = frame_of(stream, REQUEST, &payload("Connect", None));
        other.from_containerd(&connect);
        assert_eq!(shim_takes(&mut other), connect);
    }
    let kill = frame_of(101, REQUEST, &payload("Kill", None));
    other.from_containerd(&kill);
    assert_eq!(shim_takes(&mut other), kill);
    let short = frame_of(101, RESPONSE, &[0; 4096]);
    other.from_shim(&short);
    assert_eq!(containerd_takes(&mut other), short);
    other.from_shim(&frame_of(3, RESPONSE, &vec![0; 1 << 20]));
    let told = cut(&containerd_takes(&mut other));
    assert_eq!(code_of(&told[0].1), CODE_RESOURCE_EXHAUSTED);
}

/// One without a place may look at the container and get rid of it.
#[test]
fn a_guest_is_served_what_is_urgent_and_told_why_not_the_rest() {
    let mut relay = Relay::new();
    let now = Instant::now();
    relay.seat(now, false);
    assert!(!relay.gives_way(now));
    relay.from_containerd(&frame_of(1, REQUEST, &payload("Connect", None)));
    let told = cut(&containerd_takes(&mut relay));
    assert_eq!(code_of(&told[0].1), CODE_RESOURCE_EXHAUSTED);
    assert!(relay.gives_way(now));
    let kill = frame_of(3, REQUEST, &payload("Kill", None));
    relay.from_containerd(&kill);
    assert_eq!(shim_takes(&mut relay), kill);
    assert!(
        !relay.gives_way(now + Duration::from_hours(1)),
        "it is asked"
    );
    relay.seat(now, true);
    let connect = frame_of(5, REQUEST, &payload("Connect", None));
    relay.from_containerd(&connect);
    assert_eq!(shim_takes(&mut relay), connect);
}
