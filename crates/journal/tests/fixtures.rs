//! Files of every format ever shipped, kept in `tests/journals/` for ever.
//!
//! Two promises: today's code reads them all, and today's code still writes
//! today's version byte by byte. Who changes the layout must raise the version,
//! run `cargo test -p vigil-journal --test fixtures -- --ignored` once, and
//! add the new directory; the old ones stay as they are.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{boot, owner, payloads, record, small};
use vigil_journal::crash::CrashDisk;
use vigil_journal::exits::{Death, Recorder, Slot, WORDS};
use vigil_journal::pair::{Incarnation, Pair};
use vigil_journal::takeovers::{Takeover, Takeovers};
use vigil_journal::{Damage, Error, Journal, Owner, Tail, VERSION, exits, replay};

fn folder(version: u16) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/journals/v{version}"))
}

fn clean() -> CrashDisk {
    let disk = CrashDisk::default();
    let mut journal =
        Journal::create_in(disk.clone(), "journal", (boot(), &owner()), small()).unwrap();
    journal.append(1, b"create").unwrap();
    journal.append(0x0203, b"").unwrap();
    journal.append(2, &(0..=255).collect::<Vec<u8>>()).unwrap();
    disk
}

fn compacted() -> Vec<u8> {
    let disk = clean();
    let file = disk.open("journal").unwrap();
    let mut journal = Journal::open_in(disk.clone(), "journal", (file, &owner()), small())
        .unwrap()
        .journal;
    journal.compact(9, b"snapshot").unwrap();
    journal.append(1, b"after").unwrap();
    disk.bytes("journal").unwrap()
}

fn death(pid: u32) -> Death {
    Death {
        way: vigil_journal::exits::Way::Waited,
        pid,
        start_ticks: 4_500,
        status: 7 << 8,
        at_secs: 1_790_000_000,
        at_nanos: 123_456_789,
    }
}

fn some_exits() -> Vec<u8> {
    let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    let mut recorder = Recorder::format(&words, boot(), &owner()).unwrap();
    recorder.pin(11, 4_500, 0).unwrap();
    recorder.pin(12, 4_600, 0).unwrap();
    recorder.record(death(11));
    recorder.record(death(99));
    words
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
        .collect()
}

fn some_pair() -> Pair {
    let reaper = Incarnation {
        pid: 4711,
        start_ticks: 123_456,
        pid_ns: 4_026_531_836,
        boot: boot(),
        pidfd_inode: Some(987_654_321),
    };
    Pair {
        reaper,
        shim: Some(Incarnation {
            pid: 4712,
            pidfd_inode: None,
            ..reaper
        }),
        session: None,
    }
}

fn some_takeovers() -> Takeovers {
    let one = |at_secs, cause: &str| Takeover {
        at_secs,
        at_nanos: 1,
        cause: cause.to_owned(),
    };
    Takeovers {
        count: 300,
        last: [one(1_790_000_000, "died 9"), one(1_790_000_001, "upgrade")].into(),
    }
}

/// What today's code writes, by file name.
fn today() -> Vec<(&'static str, Vec<u8>)> {
    let clean = clean().bytes("journal").unwrap();
    let mut torn = clean.clone();
    torn[476..].fill(0);
    let mut bad_middle = clean.clone();
    bad_middle[274] ^= 1;
    vec![
        ("clean", clean),
        ("torn", torn),
        ("bad-middle", bad_middle),
        ("compacted", compacted()),
        ("exits", some_exits()),
        ("pair", some_pair().to_bytes(&owner()).to_vec()),
        ("takeovers", some_takeovers().to_bytes(&owner())),
    ]
}

#[test]
#[ignore = "run by hand, once for each new version"]
fn write_the_fixtures_of_a_new_version() {
    let folder = folder(VERSION);
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in today() {
        let path = folder.join(name);
        if !path.exists() {
            fs::write(path, bytes).unwrap();
        }
    }
}

#[test]
fn todays_version_is_still_written_byte_by_byte() {
    for (name, bytes) in today() {
        let kept = fs::read(folder(VERSION).join(name)).unwrap();
        assert!(
            kept == bytes,
            "{name}: the layout changed, the version did not"
        );
    }
}

#[test]
fn version_1_is_read() {
    let folder = folder(1);
    let all = [
        record(1, 1, b"create"),
        record(2, 0x0203, b""),
        record(3, 2, &(0..=255).collect::<Vec<u8>>()),
    ];
    let clean = replay(&folder.join("clean"), &owner()).unwrap();
    assert_eq!(clean.tail, Tail::Clean);
    assert_eq!(clean.records, all);
    assert_eq!(clean.header.boot, boot());
    assert_eq!((clean.header.generation, clean.header.start_seq), (1, 1));

    let torn = replay(&folder.join("torn"), &owner()).unwrap();
    assert_eq!(
        torn.tail,
        Tail::Torn {
            at: 126,
            dropped: 174
        }
    );
    assert_eq!(torn.records, all[..2]);

    let bad = replay(&folder.join("bad-middle"), &owner()).unwrap();
    assert!(bad.records.is_empty());
    assert_eq!(
        bad.tail,
        Tail::Corrupt {
            at: 80,
            damage: Damage::Hole {
                next_at: 106,
                next_seq: 2
            },
            kept: None,
        }
    );

    let compacted = replay(&folder.join("compacted"), &owner()).unwrap();
    assert_eq!(compacted.tail, Tail::Clean);
    assert_eq!(compacted.header.generation, 2);
    assert_eq!(payloads(&compacted), [&b"snapshot"[..], b"after"]);
    assert_eq!(compacted.records[0].seq, 4);
}

#[test]
fn version_1_can_be_written_on() {
    let bundle = tempfile::tempdir().unwrap();
    for name in ["clean", "torn", "bad-middle", "compacted"] {
        let path = bundle.path().join(name);
        fs::copy(folder(1).join(name), &path).unwrap();
        let mut journal = Journal::open(&path, &owner(), small()).unwrap().journal;
        journal.append(5, b"on").unwrap();
        let after = replay(&path, &owner()).unwrap();
        assert_eq!(after.tail, Tail::Clean, "{name}");
        assert_eq!(payloads(&after).last(), Some(&&b"on"[..]));
    }
}

#[test]
#[cfg_attr(target_endian = "big", ignore = "the file is in the host's byte order")]
fn exits_pair_and_takeovers_of_version_1_are_read() {
    let snapshot = exits::read(&folder(1).join("exits"), &owner()).unwrap();
    let exits = snapshot.exits().unwrap();
    assert_eq!(exits.boot_id(), Some(boot()));
    assert_eq!(exits.pinned(0), Some(death(11)));
    assert_eq!(
        exits.slot(1),
        Some(Slot::Waiting {
            pid: 12,
            start_ticks: 4_600
        })
    );
    assert_eq!(exits.ring().collect::<Vec<_>>(), [(0, death(99))]);
    assert_eq!(
        Pair::read(&folder(1).join("pair"), &owner()).unwrap(),
        some_pair()
    );
    let takeovers = Takeovers::read(&folder(1).join("takeovers"), &owner()).unwrap();
    assert_eq!(takeovers, some_takeovers());
}

#[test]
#[cfg_attr(target_endian = "big", ignore = "exits are in the host's byte order")]
fn version_2_is_read_and_says_whose_it_is() {
    let folder = folder(2);
    let clean = replay(&folder.join("clean"), &owner()).unwrap();
    assert_eq!(clean.tail, Tail::Clean);
    assert_eq!(clean.records.len(), 3);
    assert_eq!(clean.header.owner, Some(owner()));
    let torn = replay(&folder.join("torn"), &owner()).unwrap();
    let dropped = 174;
    assert_eq!(torn.tail, Tail::Torn { at: 302, dropped });
    let bad = replay(&folder.join("bad-middle"), &owner()).unwrap();
    assert!(matches!(bad.tail, Tail::Corrupt { at: 256, .. }));
    let compacted = replay(&folder.join("compacted"), &owner()).unwrap();
    assert_eq!(payloads(&compacted), [&b"snapshot"[..], b"after"]);
    let snapshot = exits::read(&folder.join("exits"), &owner()).unwrap();
    let exits = snapshot.exits().unwrap();
    assert_eq!(exits.owner(), Some(owner()));
    assert_eq!(exits.pinned(0), Some(death(11)));
    assert_eq!(
        Pair::read(&folder.join("pair"), &owner()).unwrap(),
        some_pair()
    );
    let takeovers = Takeovers::read(&folder.join("takeovers"), &owner()).unwrap();
    assert_eq!(takeovers, some_takeovers());
}

/// Another container's files under this one's names, and those of another life of it: its
/// `delete` killed the other container.
#[test]
fn every_file_of_another_owner_is_refused() {
    let folder = folder(2);
    for whose in [
        Owner::of("default", "stranger"),
        Owner::with_salt("default", "web-1", 7),
    ] {
        for name in ["clean", "torn", "bad-middle", "compacted"] {
            let path = folder.join(name);
            let error = replay(&path, &whose).unwrap_err();
            assert!(matches!(error, Error::NotOurs { .. }), "{name}: {error:?}");
            let before = fs::read(&path).unwrap();
            let copy = tempfile::tempdir().unwrap();
            let path = copy.path().join("journal");
            fs::write(&path, &before).unwrap();
            let error = Journal::open(&path, &whose, small()).unwrap_err();
            assert!(matches!(error, Error::NotOurs { .. }), "{name}: {error:?}");
            assert_eq!(fs::read(&path).unwrap(), before, "{name} was touched");
        }
        let exits = exits::read(&folder.join("exits"), &whose).unwrap_err();
        assert!(matches!(exits, exits::ExitsError::NotOurs { .. }));
        assert!(Pair::read(&folder.join("pair"), &whose).is_err());
        assert!(Takeovers::read(&folder.join("takeovers"), &whose).is_err());
    }
}
