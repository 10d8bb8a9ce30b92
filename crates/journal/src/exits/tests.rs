//! The exit records under a reaper that stops between any two stores, and
//! under a reader on another processor.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::spill::Spill;
use super::*;
use crate::boot::BootId;

fn boot() -> BootId {
    BootId::parse("0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d").unwrap()
}

fn owner() -> crate::Owner {
    crate::Owner::with_salt("default", "web-1", 7)
}

fn memory() -> Vec<AtomicU64> {
    (0..WORDS).map(|_| AtomicU64::new(0)).collect()
}

fn copy(words: &[AtomicU64]) -> Vec<AtomicU64> {
    words
        .iter()
        .map(|word| AtomicU64::new(word.load(Ordering::Relaxed)))
        .collect()
}

/// A death whose every field depends on `n`, so that a mixture shows.
fn death(n: u32) -> Death {
    Death {
        way: Way::Waited,
        pid: 1000 + n,
        start_ticks: u64::from(n) * 7 + 1,
        status: ((n % 256) << 8).cast_signed(),
        at_secs: i64::from(n) + 1_700_000_000,
        at_nanos: n,
    }
}

fn is_consistent(found: &Death) -> bool {
    *found == death(found.pid - 1000)
}

#[test]
fn a_registered_death_goes_to_its_slot_and_any_other_to_the_ring() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    let exits = Exits::new(&words).unwrap();
    assert_eq!(exits.boot_id(), Some(boot()));
    let index = recorder.pin(1001, death(1).start_ticks, 0).unwrap();
    assert_eq!(exits.pinned(index), None);
    assert_eq!(
        exits.slot(index),
        Some(Slot::Waiting {
            pid: 1001,
            start_ticks: death(1).start_ticks
        })
    );
    assert_eq!(recorder.record(death(2)), Kept::Ring(0));
    assert_eq!(recorder.record(death(1)), Kept::Slot(index));
    assert_eq!(exits.pinned(index), Some(death(1)));
    assert_eq!(exits.find(1002, 0), Some(death(2)));
    assert_eq!(exits.find(1001, 0), Some(death(1)));
    assert_eq!(exits.find(1001, 99), None);
    assert_eq!(exits.ring_seq(), 1);
    assert!(recorder.unpin(index));
    assert_eq!(exits.slot(index), Some(Slot::Free));
    assert_eq!(exits.find(1001, 0), None);
    assert!(!recorder.unpin(PINNED));
    assert_eq!(exits.slot(PINNED), None);
}

#[test]
fn a_death_before_its_registration_is_found_in_the_ring() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    recorder.record(death(1));
    let since = recorder.exits().ring_seq();
    recorder.record(death(2));
    let seen = recorder.pin(1002, death(2).start_ticks, since).unwrap();
    assert_eq!(recorder.exits().pinned(seen), Some(death(2)));
    // Older than `since`: the pid of somebody before.
    let unseen = recorder.pin(1001, 0, since).unwrap();
    assert_eq!(recorder.exits().pinned(unseen), None);
    // Same pid, another start: another process.
    let other = recorder.pin(1002, 99_999, since).unwrap();
    assert_ne!(other, seen);
    assert_eq!(recorder.exits().pinned(other), None);
}

#[test]
fn unknown_starts_match_unless_two_deaths_claim_the_pid() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    let nameless = Death {
        start_ticks: 0,
        ..death(1)
    };
    recorder.record(nameless);
    let index = recorder.pin(1001, 55, 0).unwrap();
    let found = recorder.exits().pinned(index).unwrap();
    assert_eq!(
        found,
        Death {
            start_ticks: 55,
            ..nameless
        }
    );
    // Slot and ring tell of one death, not of two.
    assert!(recorder.exits().find(1001, 0).is_some());

    recorder.record(death(5));
    let reused = Death {
        start_ticks: 9_999,
        status: 9,
        ..death(5)
    };
    recorder.record(reused);
    assert_eq!(
        recorder.pin(1005, 0, 0),
        Err(PinError::Ambiguous { pid: 1005 })
    );
    assert_eq!(recorder.exits().find(1005, 0), None);
    assert_eq!(recorder.exits().find(1005, 9_999), Some(reused));
    let exact = recorder.pin(1005, death(5).start_ticks, 0).unwrap();
    assert_eq!(recorder.exits().pinned(exact), Some(death(5)));
}

#[test]
fn pinning_twice_gives_one_slot() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    let ticks = death(1).start_ticks;
    let index = recorder.pin(1001, ticks, 0).unwrap();
    assert_eq!(recorder.pin(1001, ticks, 0), Ok(index));
    assert_eq!(recorder.pin(1001, 0, 0), Ok(index));
    recorder.record(death(1));
    assert_eq!(recorder.pin(1001, ticks, 0), Ok(index));
    assert_eq!(recorder.exits().pinned(index), Some(death(1)));
}

#[test]
fn a_slot_of_unknown_start_learns_it_from_the_death() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    let index = recorder.pin(1001, 0, 0).unwrap();
    recorder.record(death(1));
    assert_eq!(recorder.exits().pinned(index), Some(death(1)));
    // And a death of unknown start keeps the slot's.
    let index = recorder.pin(1002, 77, 0).unwrap();
    recorder.record(Death {
        start_ticks: 0,
        ..death(2)
    });
    assert_eq!(recorder.exits().pinned(index).unwrap().start_ticks, 77);
}

#[test]
fn all_slots_can_be_taken_and_freed() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    for n in 0..u32::try_from(PINNED).unwrap() {
        assert_eq!(recorder.pin(1 + n, 1, 0), Ok(n as usize));
    }
    assert_eq!(recorder.pin(50_000, 1, 0), Err(PinError::Full));
    recorder.unpin(17);
    assert_eq!(recorder.pin(50_000, 1, 0), Ok(17));
}

#[test]
fn the_ring_keeps_the_last_deaths_in_order() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    for n in 0..1000 {
        assert_eq!(recorder.record(death(n)), Kept::Ring(u64::from(n)));
    }
    let ring: Vec<_> = recorder.exits().ring().collect();
    let expected: Vec<_> = (1000 - 256..1000)
        .map(|n| (u64::from(n), death(n)))
        .collect();
    assert_eq!(ring, expected);
}

/// Something the reaper does to the records.
type Act = Box<dyn Fn(&mut Recorder<'_>)>;

/// What a reader can see of the records.
type View = (Vec<Slot>, Vec<(u64, Death)>);

fn view(words: &[AtomicU64]) -> View {
    let exits = Exits::new(words).unwrap();
    (
        exits.slots().map(|(_, slot)| slot).collect(),
        exits.ring().collect(),
    )
}

/// Runs `act` stopped after each number of stores and gives what is then seen.
fn prefixes(words: &[AtomicU64], act: impl Fn(&mut Recorder<'_>)) -> Vec<View> {
    let whole = copy(words);
    let mut recorder = Recorder::new(&whole).unwrap();
    recorder.stores_left = Some(usize::MAX);
    act(&mut recorder);
    let stores = usize::MAX - recorder.stores_left.unwrap();
    assert!(stores > 0);
    (0..=stores)
        .map(|count| {
            let stopped = copy(words);
            let mut recorder = Recorder::new(&stopped).unwrap();
            recorder.stores_left = Some(count);
            act(&mut recorder);
            view(&stopped)
        })
        .collect()
}

/// The slots are as before or as after. A start learnt by a waiting slot is
/// neither a death nor another process, so it may show on the way.
fn slots_old_or_new(seen: &View, old: &View, new: &View, index: usize) {
    for (at, slot) in seen.0.iter().enumerate() {
        let refined = matches!(
            (slot, old.0[at]),
            (Slot::Waiting { pid, .. }, Slot::Waiting { pid: was, start_ticks: 0 }) if *pid == was
        );
        assert!(
            *slot == old.0[at] || at == index && (*slot == new.0[at] || refined),
            "slot {at}: {slot:?}"
        );
    }
}

#[test]
fn a_reaper_stopped_between_any_two_stores_leaves_old_or_new() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    // A ring that is full, slots of each kind, and one with a past.
    for n in 100..500 {
        recorder.record(death(n));
    }
    let past = recorder.pin(1003, death(3).start_ticks, 0).unwrap();
    recorder.record(death(3));
    recorder.pin(1004, death(4).start_ticks, 0).unwrap();
    let unknown = recorder.pin(1005, 0, 0).unwrap();
    let old = view(&words);

    let acts: Vec<(&str, usize, Act)> = vec![
        ("slot", 1, Box::new(|r| _ = r.record(death(4)))),
        (
            "slot of unknown start",
            unknown,
            Box::new(|r| _ = r.record(death(5))),
        ),
        ("pin", 3, Box::new(|r| _ = r.pin(77, 5, 0).unwrap())),
        (
            "pin a death",
            3,
            Box::new(|r| _ = r.pin(1499, 0, 0).unwrap()),
        ),
        ("unpin", past, Box::new(move |r| _ = r.unpin(past))),
    ];
    for (name, index, act) in acts {
        let seen = prefixes(&words, act);
        let new = seen.last().unwrap().clone();
        assert_ne!(old, new, "{name}");
        for view in &seen {
            slots_old_or_new(view, &old, &new, index);
            assert_eq!(view.1, old.1, "{name}: the ring is not touched");
        }
    }

    // The ring: the oldest makes room, the others stay, the new one is whole or absent.
    let seen = prefixes(&words, |r| _ = r.record(death(9)));
    for view in &seen {
        assert_eq!(view.0, old.0);
        let new = (400, death(9));
        let kept: Vec<_> = view
            .1
            .iter()
            .filter(|entry| **entry != new)
            .copied()
            .collect();
        assert!(kept == old.1 || kept == old.1[1..], "{kept:?}");
    }
    assert!(seen.last().unwrap().1.ends_with(&[(400, death(9))]));
}

#[test]
fn an_uncounted_ring_entry_is_not_written_over_by_the_next_writer() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    recorder.stores_left = Some(5);
    recorder.record(death(1));
    assert_eq!(recorder.exits().ring_seq(), 0, "the sixth store counts");
    let mut next = Recorder::new(&words).unwrap();
    next.record(death(2));
    let ring: Vec<_> = next.exits().ring().collect();
    assert_eq!(ring, [(0, death(1)), (1, death(2))]);
}

#[test]
fn memory_half_formatted_is_not_believed() {
    // Zeros everywhere, then five words of boot id and the version; the
    // magic is the last store.
    for count in 0..=WORDS + 5 + 1 {
        // Every 97th, and all of the end where the head is written.
        if count % 97 != 0 && count < WORDS - 2 {
            continue;
        }
        let words = memory();
        for word in &words {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        let mut recorder = Recorder {
            stores_left: Some(count),
            file: None,
            spill: Spill::new(),
            used: 0,
            unsaid: false,
            exits: Exits::unchecked(&words).unwrap(),
        };
        recorder.lay_out(boot(), &owner());
        assert!(Exits::new(&words).is_err(), "after {count} stores");
        recorder.stores_left = None;
        recorder.lay_out(boot(), &owner());
        Exits::new(&words).unwrap();
    }
}

#[test]
fn a_reader_beside_the_writer_never_sees_a_mixture() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let exits = Exits::new(&words).unwrap();
            let mut seen = 0_u64;
            while !done.load(Ordering::Relaxed) {
                for found in exits.ring().map(|(_, death)| death).chain(exits.pinned(0)) {
                    assert!(is_consistent(&found), "{found:?}");
                    seen += 1;
                }
            }
            seen
        });
        for n in 0..4_000 {
            recorder.record(death(n));
            if n % 4 == 0 {
                let slot = recorder.pin(death(n + 1).pid, 0, u64::MAX).unwrap();
                assert_eq!(slot, 0);
                recorder.record(death(n + 1));
                recorder.unpin(slot);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn the_file_says_what_the_memory_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(crate::names::EXITS);
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    recorder.keep_in(&path).unwrap();
    // Written, not a hole: nothing can lack space later.
    let made = std::fs::metadata(&path).unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&made);
    assert!(blocks * 512 >= BYTES as u64, "{blocks} blocks");
    let index = recorder.pin(1001, 0, 0).unwrap();
    recorder.record(death(1));
    recorder.record(death(2));
    let snapshot = read(&path, &owner()).unwrap();
    let exits = snapshot.exits().unwrap();
    assert_eq!(exits.pinned(index), Some(death(1)));
    assert_eq!(exits.find(1002, 0), Some(death(2)));
    assert_eq!(snapshot.to_bytes(), bytes(&words));
    // The next writer goes on with it.
    let mut next = Recorder::new(&words).unwrap();
    next.keep_in(&path).unwrap();
    next.unpin(index);
    assert_eq!(std::fs::read(&path).unwrap(), bytes(&words));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

/// A container whose orphans die by the thousand sent the ring round between the start of an
/// exec and its pin: the exec's own end was not recorded, and its Start failed.
#[test]
fn strangers_in_any_number_do_not_cover_a_death_that_is_looked_for_in_time() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    let since = recorder.exits().ring_seq();
    let mut own = death(1);
    own.start_ticks = 0;
    recorder.record(own);
    let strangers = |recorder: &mut Recorder<'_>, first: u32, count: u32| {
        for n in 0..count {
            let stranger = Death {
                way: Way::Waited,
                pid: first + n,
                ..death(2)
            };
            recorder.record_of_many(stranger);
        }
    };
    strangers(&mut recorder, 1002, 20_000);
    let slot = recorder.pin(1001, 0, since).unwrap();
    assert_eq!(recorder.exits().pinned(slot), Some(own));
    recorder.unpin(slot);
    // Who was started after it, with the same number, has not died.
    let later = recorder.exits().ring_seq();
    let slot = recorder.pin(1001, 0, later).unwrap();
    assert_eq!(recorder.exits().pinned(slot), None);
    recorder.unpin(slot);
    // The number is another's by now: nobody can say whose the death is.
    strangers(&mut recorder, 1001, 1000);
    let ambiguous = Err(PinError::Ambiguous { pid: 1001 });
    assert_eq!(recorder.pin(1001, 0, since), ambiguous);
}

/// Of many that die at once none that is pinned is looked for in all the slots there are, and
/// the file is written once for all of them; it is behind in nothing that anybody waits for.
#[test]
fn of_many_deaths_the_file_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(crate::names::EXITS);
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    recorder.keep_in(&path).unwrap();
    let slots: Vec<usize> = (1..=3)
        .map(|n| recorder.pin(death(n).pid, 0, 0).unwrap())
        .collect();
    assert_eq!(recorder.used, 3);
    let before = std::fs::read(&path).unwrap();
    for n in 100..600 {
        assert!(matches!(recorder.record_of_many(death(n)), Kept::Ring(_)));
    }
    assert_eq!(std::fs::read(&path).unwrap(), before, "written for each");
    // One that is waited for: with all before it.
    assert_eq!(recorder.record_of_many(death(2)), Kept::Slot(slots[1]));
    assert_eq!(std::fs::read(&path).unwrap(), bytes(&words));
    recorder.record_of_many(death(700));
    recorder.unpin(slots[2]);
    recorder.unpin(slots[1]);
    assert_eq!(recorder.used, 1);
    recorder.say();
    assert_eq!(std::fs::read(&path).unwrap(), bytes(&words));
    recorder.record_of_many(death(701));
    assert_eq!(recorder.pin(death(4).pid, 0, 0), Ok(slots[1]));
    recorder.record(death(702));
    assert_eq!(std::fs::read(&path).unwrap(), bytes(&words));
    assert!(
        !folder.path().join("exits.bad").exists(),
        "taken for another's"
    );
}

/// The order of the stores is the file's too: what the memory tells, the file has told.
#[test]
fn a_reaper_stopped_between_any_two_stores_leaves_a_file_that_is_not_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(crate::names::EXITS);
    for stores in 0..20 {
        let words = memory();
        let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
        recorder.keep_in(&path).unwrap();
        recorder.pin(1001, death(1).start_ticks, 0).unwrap();
        recorder.stores_left = Some(stores);
        recorder.record(death(1));
        recorder.record(death(2));
        let memory = Exits::new(&words).unwrap();
        let file = read(&path, &owner()).unwrap();
        let file = file.exits().unwrap();
        for n in [1, 2] {
            let told = memory.find(1000 + n, death(n).start_ticks);
            let kept = file.find(1000 + n, death(n).start_ticks);
            assert!(
                told.is_none() || kept == told,
                "{stores}: {told:?} {kept:?}"
            );
            assert!(
                kept.is_none() || kept == Some(death(n)),
                "{stores}: {kept:?}"
            );
        }
    }
}

/// Somebody removes, cuts, overwrites or replaces the file: once the pair never had it again,
/// or died of it. The next record makes it anew, and what was there is set aside.
#[test]
fn a_file_that_was_meddled_with_is_made_anew_by_the_next_record() {
    use std::fs;
    type Meddle = fn(&std::path::Path, &std::path::Path);
    let meddles: [(&str, Meddle); 9] = [
        ("removed", |path, _| fs::remove_file(path).unwrap()),
        ("emptied", |path, _| fs::write(path, "").unwrap()),
        ("cut", |path, _| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(BYTES as u64 / 2).unwrap();
        }),
        ("longer", |path, _| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(BYTES as u64 + 1).unwrap();
        }),
        ("one bit", |path, _| {
            let mut bytes = fs::read(path).unwrap();
            bytes[33 * 8] ^= 4;
            fs::write(path, bytes).unwrap();
        }),
        ("link", |path, other| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink(other, path).unwrap();
        }),
        ("second name", |path, other| {
            fs::remove_file(path).unwrap();
            fs::hard_link(other, path).unwrap();
        }),
        ("directory", |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("moved", |path, _| {
            fs::rename(path, path.with_extension("away")).unwrap();
        }),
    ];
    for (name, meddle) in meddles {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(crate::names::EXITS);
        let other = folder.path().join("other");
        fs::write(&other, vec![1; BYTES]).unwrap();
        let words = memory();
        let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
        recorder.keep_in(&path).unwrap();
        recorder.record(death(1));
        meddle(&path, &other);
        recorder.record(death(2));
        let snapshot = read(&path, &owner()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let exits = snapshot.exits().unwrap();
        assert_eq!(exits.find(1001, 0), Some(death(1)), "{name}");
        assert_eq!(exits.find(1002, 0), Some(death(2)), "{name}");
        assert_eq!(fs::read(&other).unwrap(), vec![1; BYTES], "{name}");
        let aside = fs::symlink_metadata(path.with_extension("bad"));
        assert_eq!(
            aside.is_ok(),
            !["removed", "moved"].contains(&name),
            "{name}"
        );
        // And again.
        meddle(&path, &other);
        recorder.pin(77, 5, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes(&words), "{name}, again");
    }
}

/// Where no second file can be made, the first is written over; never another's.
#[test]
fn without_room_for_another_file_ours_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(crate::names::EXITS);
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    recorder.keep_in(&path).unwrap();
    recorder.file.as_mut().unwrap().side = folder.path().join("missing/exits.new");
    std::fs::write(&path, vec![1; BYTES]).unwrap();
    recorder.record(death(1));
    assert!(std::fs::read(&path).unwrap() == bytes(&words));
    let other = folder.path().join("other");
    std::fs::write(&other, vec![1; BYTES]).unwrap();
    std::fs::rename(&other, &path).unwrap();
    recorder.record(death(2));
    assert!(std::fs::read(&path).unwrap() == vec![1; BYTES]);
    assert_eq!(recorder.exits().find(1002, 0), Some(death(2)));
}

#[test]
fn what_is_not_exit_records_has_a_name() {
    let words = memory();
    Recorder::format(&words, boot(), &owner()).unwrap();
    let good = bytes(&words);
    let of = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Snapshot::from_bytes(&bytes).unwrap_err()
    };
    assert!(matches!(of(&Vec::clear), ExitsError::Size { len: 0 }));
    assert!(matches!(
        of(&|b| b.truncate(BYTES / 2)),
        ExitsError::Size { .. }
    ));
    assert!(matches!(of(&|b| b.push(0)), ExitsError::Size { .. }));
    assert!(matches!(of(&|b| b[0] ^= 1), ExitsError::Foreign));
    assert!(matches!(
        of(&|b| b[8] = 3),
        ExitsError::Newer { version: 3 }
    ));
    assert!(matches!(of(&|b| b[8] = 0), ExitsError::Damaged));
    assert!(matches!(of(&|b| b[24] = b'z'), ExitsError::Damaged));
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        read(folder.path(), &owner()),
        Err(ExitsError::NotAFile { .. })
    ));
    assert!(matches!(
        read(&folder.path().join("none"), &owner()),
        Err(ExitsError::Read { .. })
    ));
}

#[test]
fn garbage_behind_a_good_head_harms_nobody() {
    let words = memory();
    Recorder::format(&words, boot(), &owner()).unwrap();
    let mut bytes = bytes(&words);
    for (at, byte) in bytes.iter_mut().enumerate().skip(256) {
        *byte = u8::try_from(at * 31 % 251).unwrap();
    }
    bytes[16..24].fill(0xff);
    let snapshot = Snapshot::from_bytes(&bytes).unwrap();
    let exits = snapshot.exits().unwrap();
    assert_eq!(exits.slots().count(), PINNED);
    let _ = (exits.ring().count(), exits.find(1, 0));
    Recorder::new(&snapshot.words).unwrap().record(death(1));
}

fn bytes(words: &[AtomicU64]) -> Vec<u8> {
    words
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
        .collect()
}

/// Found by the simulator: without a journal, the end of an earlier process
/// was told for an init that had got its pid.
#[test]
fn a_pid_alone_finds_registered_processes_only() {
    let words = memory();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    recorder.record(death(1));
    assert_eq!(recorder.exits().find(1001, 0), Some(death(1)));
    assert_eq!(recorder.exits().registered(1001), None);
    let init = Death {
        start_ticks: 77,
        status: 9,
        ..death(1)
    };
    let slot = recorder.pin(1001, 77, recorder.exits().ring_seq()).unwrap();
    assert_eq!(recorder.exits().registered(1001), None, "it lives");
    recorder.record(init);
    assert_eq!(recorder.exits().registered(1001), Some(init));
    recorder.pin(1001, 99, recorder.exits().ring_seq()).unwrap();
    assert_eq!(recorder.exits().registered(1001), None, "two of them");
    recorder.unpin(slot);
    assert_eq!(recorder.exits().registered(1001), None, "the other lives");
}
