//! The journal on a real file system: what comes back, and what each kind of
//! bad file is called.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{boot, owner, payloads, record, small};
use tempfile::TempDir;
use vigil_journal::{
    Damage, Error, FILE_BYTES_MAX, FRAME_BYTES_MIN, HEADER_BYTES, Journal, PAYLOAD_BYTES_MAX,
    Settings, Tail, replay, set_aside,
};

fn bundle() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(vigil_journal::names::JOURNAL);
    (folder, path)
}

fn names(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A journal of three records, and the offset of each and of the end.
fn three(path: &Path) -> Vec<usize> {
    let mut journal = Journal::create(path, boot(), &owner(), small()).unwrap();
    let mut offsets = vec![journal.used()];
    for (kind, payload) in [(1, &b"first"[..]), (2, b""), (3, b"the third")] {
        journal.append(kind, payload).unwrap();
        offsets.push(journal.used());
    }
    offsets
        .iter()
        .map(|at| usize::try_from(*at).unwrap())
        .collect()
}

fn corrupt(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_appended_comes_back() {
    let (folder, path) = bundle();
    assert_eq!(three(&path)[0], HEADER_BYTES);
    let replayed = replay(&path, &owner()).unwrap();
    assert_eq!(replayed.tail, Tail::Clean);
    assert_eq!(replayed.header.boot, boot());
    assert_eq!(replayed.header.generation, 1);
    assert_eq!(
        replayed.records,
        [
            record(1, 1, b"first"),
            record(2, 2, b""),
            record(3, 3, b"the third")
        ]
    );
    let mut opened = Journal::open(&path, &owner(), small()).unwrap();
    assert_eq!(opened.replayed, replayed);
    assert_eq!(opened.journal.append(9, b"x").unwrap(), 4);
    assert_eq!(replay(&path, &owner()).unwrap().records.len(), 4);
    assert_eq!(names(&folder), ["journal"]);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn the_preallocation_is_written_not_promised() {
    let (_folder, path) = bundle();
    let mut journal = Journal::create(&path, boot(), &owner(), Settings::default()).unwrap();
    let before = fs::metadata(&path).unwrap();
    assert_eq!(before.len(), 16 * 1024);
    assert!(before.blocks() * 512 >= before.len(), "{}", before.blocks());
    for _ in 0..100 {
        journal.append(1, &[7; 100]).unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 16 * 1024);
    for _ in 0..100 {
        journal.append(1, &[7; 100]).unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), journal.used());
    assert_eq!(replay(&path, &owner()).unwrap().records.len(), 200);
}

/// Cut between two records it looked whole, and what was acknowledged was not missed: a
/// `delete` took the container for one that was never made, and left it running.
#[test]
fn a_journal_that_was_cut_is_never_taken_for_a_whole_one() {
    let (_folder, path) = bundle();
    let end = three(&path)[3];
    let whole = fs::read(&path).unwrap();
    for cut in HEADER_BYTES..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let tail = replay(&path, &owner()).unwrap().tail;
        let Tail::Corrupt { damage, .. } = tail else {
            panic!("cut at {cut}: {tail:?}");
        };
        assert_eq!(damage, Damage::Cut { capacity: 1024 });
    }
    fs::write(&path, &whole[..end]).unwrap();
    let opened = Journal::open(&path, &owner(), small()).unwrap();
    assert_eq!(opened.replayed.records.len(), 3);
    let restored = fs::metadata(&path).unwrap().len();
    assert_eq!(restored, u64::from(opened.journal.header().capacity));
    assert_eq!(replay(&path, &owner()).unwrap().tail, Tail::Clean);
}

#[test]
fn nothing_is_created_over_anything() {
    let (folder, path) = bundle();
    fs::write(&path, "somebody's").unwrap();
    let error = Journal::create(&path, boot(), &owner(), small()).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    assert_eq!(names(&folder), ["journal"]);
    let error =
        Journal::create(&folder.path().join("no/journal"), boot(), &owner(), small()).unwrap_err();
    assert!(matches!(error, Error::Create { .. }), "{error:?}");
}

#[test]
fn a_tail_torn_at_each_byte_is_cut() {
    let (_folder, path) = bundle();
    let offsets = three(&path);
    let whole = fs::read(&path).unwrap();
    let (start, end) = (offsets[2], offsets[3]);
    for cut in start..end {
        let mut bytes = whole[..cut].to_vec();
        bytes.resize(1024, 0);
        fs::write(&path, &bytes).unwrap();
        let read_only = replay(&path, &owner()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes, "replay writes nothing");
        let opened = Journal::open(&path, &owner(), small()).unwrap();
        assert_eq!(opened.replayed, read_only);
        assert_eq!(payloads(&read_only), [&b"first"[..], b""]);
        let last = whole[start..cut].iter().rposition(|b| *b != 0);
        let expected = match last {
            None => Tail::Clean,
            Some(last) => Tail::Torn {
                at: start as u64,
                dropped: last as u64 + 1,
            },
        };
        assert_eq!(read_only.tail, expected, "cut at {cut}");
        let mut journal = opened.journal;
        assert_eq!(journal.append(4, b"new").unwrap(), 3);
        let after = replay(&path, &owner()).unwrap();
        assert_eq!(after.tail, Tail::Clean, "cut at {cut}");
        assert_eq!(payloads(&after), [&b"first"[..], b"", b"new"]);
    }
}

#[test]
fn a_torn_tail_beyond_the_preallocation_is_cut_off_the_file() {
    let (_folder, path) = bundle();
    let mut journal = Journal::create(&path, boot(), &owner(), small()).unwrap();
    journal.append(1, &[1; 724]).unwrap();
    journal.append(2, &[2; 500]).unwrap();
    let used = journal.used();
    drop(journal);
    corrupt(&path, |bytes| _ = bytes.pop());
    let opened = Journal::open(&path, &owner(), small()).unwrap();
    assert_eq!(opened.journal.used(), 1000);
    let dropped = used - 1 - 1000;
    assert_eq!(opened.replayed.tail, Tail::Torn { at: 1000, dropped });
    assert_eq!(fs::metadata(&path).unwrap().len(), 1024);
    assert_eq!(replay(&path, &owner()).unwrap().tail, Tail::Clean);
}

#[test]
fn a_flipped_bit_in_the_middle_is_corruption_and_the_file_is_kept() {
    let (folder, path) = bundle();
    let offsets = three(&path);
    let whole = fs::read(&path).unwrap();
    for at in offsets[1]..offsets[2] {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let mut opened = Journal::open(&path, &owner(), small()).unwrap();
        assert_eq!(payloads(&opened.replayed), [&b"first"[..]]);
        let bad_name = folder.path().join("journal.bad-1");
        let expected = Tail::Corrupt {
            at: offsets[1] as u64,
            damage: Damage::Hole {
                next_at: offsets[2] as u64,
                next_seq: 3,
            },
            kept: Some(bad_name.clone()),
        };
        assert_eq!(opened.replayed.tail, expected, "byte {at}");
        assert_eq!(fs::read(&bad_name).unwrap(), bad, "kept as it was");
        // What goes on is a new generation with the records before the damage.
        assert_eq!(opened.journal.append(4, b"on").unwrap(), 2);
        let after = replay(&path, &owner()).unwrap();
        assert_eq!(after.tail, Tail::Clean);
        assert_eq!(after.header.generation, 2);
        assert_eq!(payloads(&after), [&b"first"[..], b"on"]);
        assert_eq!(names(&folder), ["journal", "journal.bad-1"]);
        fs::remove_file(&bad_name).unwrap();
    }
}

#[test]
fn a_second_bad_file_does_not_replace_the_first() {
    let (folder, path) = bundle();
    for expected in ["journal.bad-1", "journal.bad-1.1"] {
        let offsets = three(&path);
        corrupt(&path, |bytes| bytes[offsets[0] + 17] ^= 1);
        let opened = Journal::open(&path, &owner(), small()).unwrap();
        let Tail::Corrupt { kept, .. } = opened.replayed.tail else {
            panic!("{:?}", opened.replayed.tail);
        };
        assert_eq!(kept, Some(folder.path().join(expected)));
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn zeros_over_a_record_are_a_hole_too() {
    let (_folder, path) = bundle();
    let offsets = three(&path);
    corrupt(&path, |bytes| bytes[offsets[0]..offsets[2]].fill(0));
    let tail = replay(&path, &owner()).unwrap().tail;
    let damage = Damage::Hole {
        next_at: offsets[2] as u64,
        next_seq: 3,
    };
    assert!(
        matches!(tail, Tail::Corrupt { damage: d, .. } if d == damage),
        "{tail:?}"
    );
}

#[test]
fn records_out_of_turn_or_of_another_generation_are_not_taken() {
    let (_folder, path) = bundle();
    let offsets = three(&path);
    let whole = fs::read(&path).unwrap();
    // The first record again, behind the third.
    corrupt(&path, |bytes| {
        let again = whole[offsets[0]..offsets[1]].to_vec();
        bytes[offsets[3]..offsets[3] + again.len()].copy_from_slice(&again);
    });
    let replayed = replay(&path, &owner()).unwrap();
    assert_eq!(replayed.records.len(), 3);
    let damage = Damage::OutOfOrder {
        expected: 4,
        found: 1,
    };
    assert!(matches!(replayed.tail, Tail::Corrupt { damage: d, .. } if d == damage));

    // A record of generation 1 where generation 2 goes on.
    fs::write(&path, &whole).unwrap();
    let mut journal = Journal::open(&path, &owner(), small()).unwrap().journal;
    journal.compact(7, b"").unwrap();
    let end = usize::try_from(journal.used()).unwrap();
    drop(journal);
    corrupt(&path, |bytes| {
        let stale = &whole[offsets[2]..offsets[3]];
        bytes[end..end + stale.len()].copy_from_slice(stale);
    });
    let replayed = replay(&path, &owner()).unwrap();
    assert_eq!(replayed.records.len(), 1);
    let damage = Damage::OtherGeneration { generation: 1 };
    assert!(matches!(replayed.tail, Tail::Corrupt { damage: d, .. } if d == damage));
}

#[test]
fn a_payload_that_looks_like_a_record_is_never_replayed() {
    let (_folder, path) = bundle();
    three(&path);
    let mut journal = Journal::open(&path, &owner(), small()).unwrap().journal;
    let fourth = usize::try_from(journal.used()).unwrap();
    journal.append(4, b"genuine").unwrap();
    let forged =
        fs::read(&path).unwrap()[fourth..usize::try_from(journal.used()).unwrap()].to_vec();
    drop(journal);
    // The same generation and a number that is due: carried inside a record, then torn.
    corrupt(&path, |bytes| {
        bytes[fourth..].fill(0);
        bytes[fourth..fourth + 4].copy_from_slice(&200_u32.to_le_bytes());
        bytes[fourth + 16..fourth + 16 + forged.len()].copy_from_slice(&forged);
    });
    let replayed = replay(&path, &owner()).unwrap();
    assert_eq!(replayed.records.len(), 3);
    assert!(
        matches!(replayed.tail, Tail::Corrupt { .. }),
        "erring to the loud side"
    );
}

#[test]
fn each_kind_of_stranger_has_its_name_and_is_not_touched() {
    let (folder, path) = bundle();
    three(&path);
    let good = fs::read(&path).unwrap();
    let verdict = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let read_only = replay(&path, &owner()).unwrap_err();
        let opened = Journal::open(&path, &owner(), small()).unwrap_err();
        assert_eq!(
            std::mem::discriminant(&read_only),
            std::mem::discriminant(&opened)
        );
        assert_eq!(fs::read(&path).unwrap(), bytes, "not touched");
        opened
    };
    assert!(matches!(verdict(b""), Error::Short { len: 0, .. }));
    assert!(matches!(verdict(&good[..40]), Error::Short { len: 40, .. }));
    assert!(matches!(verdict(b"{\"json\":true}"), Error::Foreign { .. }));
    assert!(matches!(verdict(&[0; 2000]), Error::Foreign { .. }));
    let mut newer = good.clone();
    newer[8] = 3;
    assert!(matches!(verdict(&newer), Error::Newer { version: 3, .. }));
    let mut damaged = good.clone();
    damaged[20] ^= 1;
    assert!(matches!(verdict(&damaged), Error::Damaged { .. }));
    assert_eq!(names(&folder), ["journal"]);

    fs::remove_file(&path).unwrap();
    assert!(matches!(replay(&path, &owner()), Err(Error::Open { .. })));
    fs::create_dir(&path).unwrap();
    assert!(matches!(
        replay(&path, &owner()),
        Err(Error::NotAFile { .. })
    ));
    assert!(matches!(
        Journal::open(&path, &owner(), small()),
        Err(Error::NotAFile { .. })
    ));
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    assert!(matches!(
        replay(&path, &owner()),
        Err(Error::NotAFile { .. })
    ));
}

#[test]
fn a_huge_file_is_not_read() {
    let (_folder, path) = bundle();
    three(&path);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(FILE_BYTES_MAX + 1).unwrap();
    assert!(matches!(replay(&path, &owner()), Err(Error::TooBig { .. })));
}

#[test]
fn whatever_cannot_be_read_can_be_set_aside() {
    let (folder, path) = bundle();
    fs::write(&path, "foreign").unwrap();
    assert_eq!(set_aside(&path).unwrap(), folder.path().join("journal.bad"));
    fs::create_dir(&path).unwrap();
    assert_eq!(
        set_aside(&path).unwrap(),
        folder.path().join("journal.bad.1")
    );
    assert!(matches!(set_aside(&path), Err(Error::SetAside { .. })));
    Journal::create(&path, boot(), &owner(), small()).unwrap();
    assert_eq!(names(&folder), ["journal", "journal.bad", "journal.bad.1"]);
}

#[test]
fn payloads_and_files_have_a_bound_that_latches_nothing() {
    let (_folder, path) = bundle();
    let mut journal = Journal::create(&path, boot(), &owner(), small()).unwrap();
    let big = vec![1; PAYLOAD_BYTES_MAX + 1];
    assert!(matches!(
        journal.append(5, &big),
        Err(Error::PayloadTooBig { kind: 5, .. })
    ));
    assert!(matches!(
        journal.compact(5, &big),
        Err(Error::PayloadTooBig { kind: 5, .. })
    ));
    let biggest = &big[1..];
    let fits = (usize::try_from(FILE_BYTES_MAX).unwrap() - HEADER_BYTES)
        / (PAYLOAD_BYTES_MAX + FRAME_BYTES_MIN);
    for _ in 0..fits {
        journal.append(1, biggest).unwrap();
    }
    assert!(matches!(
        journal.append(1, biggest),
        Err(Error::Full { .. })
    ));
    assert_eq!(replay(&path, &owner()).unwrap().records.len(), fits);
    let seq = journal.compact(2, b"small again").unwrap();
    assert_eq!(seq, fits as u64 + 1);
    assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
}

#[test]
fn compaction_goes_on_counting_in_a_new_generation() {
    let (folder, path) = bundle();
    let mut journal = Journal::create(&path, boot(), &owner(), small()).unwrap();
    assert!(!journal.needs_compaction());
    while !journal.needs_compaction() {
        journal.append(1, &[1; 50]).unwrap();
    }
    assert!(journal.used() > 512 && journal.used() < 512 + 70);
    let last = journal.next_seq();
    assert_eq!(journal.compact(9, b"all of it").unwrap(), last);
    assert!(!journal.needs_compaction());
    journal.append(1, b"after").unwrap();
    let replayed = replay(&path, &owner()).unwrap();
    assert_eq!(replayed.header.generation, 2);
    assert_eq!(replayed.header.start_seq, last);
    assert_eq!(
        replayed.records,
        [record(last, 9, b"all of it"), record(last + 1, 1, b"after")]
    );
    assert_eq!(names(&folder), ["journal"]);

    // A snapshot bigger than the preallocation gets room of its own.
    journal.compact(9, &[3; 5000]).unwrap();
    assert!(!journal.needs_compaction());
    assert_eq!(journal.header().capacity, 24576);
    journal.compact(9, b"small").unwrap();
    assert_eq!(journal.header().capacity, 4096);
}

#[test]
fn a_leftover_side_file_is_removed_never_written_through() {
    let (folder, path) = bundle();
    three(&path);
    // As a crash between link and unlink in `create` leaves it.
    fs::hard_link(&path, folder.path().join("journal.new")).unwrap();
    let mut journal = Journal::open(&path, &owner(), small()).unwrap().journal;
    assert_eq!(names(&folder), ["journal"]);
    fs::hard_link(&path, folder.path().join("journal.new")).unwrap();
    fs::create_dir(folder.path().join("unrelated")).unwrap();
    journal.compact(1, b"s").unwrap();
    assert_eq!(payloads(&replay(&path, &owner()).unwrap()), [b"s"]);
}

#[test]
fn durable_journals_work_on_a_real_disk() {
    let (_folder, path) = bundle();
    let settings = Settings {
        durable: true,
        ..small()
    };
    let mut journal = Journal::create(&path, boot(), &owner(), settings).unwrap();
    journal.append(1, b"a").unwrap();
    journal.compact(2, b"b").unwrap();
    journal.append(3, b"c").unwrap();
    drop(journal);
    let opened = Journal::open(&path, &owner(), settings).unwrap();
    assert_eq!(payloads(&opened.replayed), [b"b", b"c"]);
}
