//! The `pair` file: whole, or an error with a name.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::{boot, owner};
use proptest::prelude::*;
use vigil_journal::Owner;
use vigil_journal::pair::{Incarnation, PAIR_BYTES, Pair, PairError, ParseError};

fn incarnation() -> impl Strategy<Value = Incarnation> {
    (
        1..=u32::MAX,
        any::<u64>(),
        any::<u64>(),
        any::<Option<u64>>(),
    )
        .prop_map(|(pid, start_ticks, pid_ns, pidfd_inode)| Incarnation {
            pid,
            start_ticks,
            pid_ns,
            boot: boot(),
            pidfd_inode,
        })
}

fn biggest() -> Pair {
    let all = Incarnation {
        pid: u32::MAX,
        start_ticks: u64::MAX,
        pid_ns: u64::MAX,
        boot: boot(),
        pidfd_inode: Some(u64::MAX),
    };
    Pair {
        reaper: all,
        shim: Some(all),
        session: Some(u32::MAX),
    }
}

/// A pair from lines, with a good checksum.
fn sealed(lines: &str) -> Vec<u8> {
    let mut text = format!("{lines}sum {:08x}\n", crc32c::crc32c(lines.as_bytes())).into_bytes();
    text.resize(PAIR_BYTES, b'\n');
    text
}

proptest! {
    #[test]
    fn a_pair_comes_back(reaper in incarnation(), shim in prop::option::of(incarnation())) {
        let pair = Pair { reaper, shim, session: None };
        prop_assert_eq!(Pair::parse(&pair.to_bytes(&owner())), Ok((pair, Some(owner()))));
    }

    #[test]
    fn two_pairs_mixed_are_neither(
        a in incarnation(), b in incarnation(), cut in 0..PAIR_BYTES,
    ) {
        let a = Pair { reaper: a, shim: Some(b), session: None };
        let b = Pair { reaper: b, shim: None, session: Some(7) };
        let mut mixed = a.to_bytes(&owner());
        mixed[..cut].copy_from_slice(&b.to_bytes(&owner())[..cut]);
        if let Ok((pair, _)) = Pair::parse(&mixed) {
            prop_assert!(pair == a || pair == b);
        }
    }

    #[test]
    fn bytes_of_any_kind_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Pair::parse(&bytes).is_err());
    }
}

#[test]
fn the_biggest_pair_fits_and_no_flipped_bit_passes() {
    let longest = "x".repeat(vigil_journal::owner::NAME_BYTES_MAX);
    let owner = Owner::with_salt(&longest, &longest, u64::MAX);
    let bytes = biggest().to_bytes(&owner);
    assert_eq!(Pair::parse(&bytes), Ok((biggest(), Some(owner))));
    for at in 0..PAIR_BYTES {
        for bit in 0..8 {
            let mut bad = bytes;
            bad[at] ^= 1 << bit;
            assert!(Pair::parse(&bad).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn each_fault_has_its_name() {
    let good = biggest().to_bytes(&owner());
    let boot = boot();
    let one = format!("pid=1 start=2 pidns=3 boot={boot}");
    assert!(Pair::parse(&sealed(&format!("vigil-pair 1\nreaper {one}\n"))).is_ok());
    for (bytes, expected) in [
        (vec![], ParseError::Foreign),
        (good[..300].to_vec(), ParseError::Size { len: 300 }),
        (b"{}".to_vec(), ParseError::Foreign),
        (b"vigil-pair 0\n".to_vec(), ParseError::Foreign),
        (
            b"vigil-pair 4\nnew\n".to_vec(),
            ParseError::Newer { version: 4 },
        ),
        (
            sealed(&format!("vigil-pair 2\nreaper {one}\n")),
            ParseError::Line { line: 2 },
        ),
        (
            sealed(&format!("vigil-pair 2\n{}\n", owner().line())),
            ParseError::Line { line: 3 },
        ),
        (sealed("vigil-pair 1\n"), ParseError::Line { line: 2 }),
        (sealed("vigil-pair 1\nx\n"), ParseError::Line { line: 2 }),
        (
            sealed(&format!("vigil-pair 1\nreaper {one} more=1\n")),
            ParseError::Line { line: 2 },
        ),
        (
            sealed(&format!("vigil-pair 1\nreaper pid=+1{}\n", &one[5..])),
            ParseError::Line { line: 2 },
        ),
        (
            sealed(&format!("vigil-pair 1\nreaper pid=0{}\n", &one[5..])),
            ParseError::Line { line: 2 },
        ),
        (
            sealed(&format!(
                "vigil-pair 1\nreaper pid=4294967296{}\n",
                &one[5..]
            )),
            ParseError::Line { line: 2 },
        ),
        (
            sealed(&format!("vigil-pair 1\nreaper {one}\nreaper {one}\n")),
            ParseError::Line { line: 3 },
        ),
        (
            sealed(&format!(
                "vigil-pair 1\nreaper {one}\nshim {one}\nshim {one}\n"
            )),
            ParseError::Line { line: 4 },
        ),
    ] {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(Pair::parse(&bytes), Err(expected), "{text}");
    }
}

#[test]
fn writing_replaces_the_file_whole() {
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path().join("pair");
    let mut pair = biggest();
    pair.write(&path, &owner()).unwrap();
    let first = fs::metadata(&path).unwrap().ino();
    // A leftover of a reaper killed while writing is in nobody's way.
    fs::write(bundle.path().join("pair.new"), "half").unwrap();
    pair.shim = None;
    pair.write(&path, &owner()).unwrap();
    assert_eq!(Pair::read(&path, &owner()).unwrap(), pair);
    assert_ne!(fs::metadata(&path).unwrap().ino(), first);
    assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_pair_on_disk_has_a_name() {
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path().join("pair");
    assert!(matches!(
        Pair::read(&path, &owner()),
        Err(PairError::Read { .. })
    ));
    assert!(matches!(
        Pair::read(bundle.path(), &owner()),
        Err(PairError::NotAFile { .. })
    ));
    let mut long = biggest().to_bytes(&owner()).to_vec();
    long.push(b'\n');
    fs::write(&path, long).unwrap();
    assert!(matches!(
        Pair::read(&path, &owner()),
        Err(PairError::Parse {
            source: ParseError::Size { .. },
            ..
        })
    ));
    let missing = bundle.path().join("no/pair");
    assert!(matches!(
        biggest().write(&missing, &owner()),
        Err(PairError::Write { .. })
    ));
}

/// Another container's pair, copied under this one's name, had its processes signalled.
#[test]
fn the_pair_of_another_container_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pair");
    let stranger = Owner::with_salt("default", "stranger", 5);
    biggest().write(&path, &stranger).unwrap();
    let error = Pair::read(&path, &owner()).unwrap_err();
    assert!(matches!(error, PairError::NotOurs { .. }), "{error:?}");
    let says = error.to_string();
    assert!(
        says.contains("default/stranger") && says.contains("default/web-1"),
        "{says}"
    );
    let (pair, found) = Pair::read_any(&path).unwrap();
    assert_eq!((pair, found), (biggest(), Some(stranger)));
}
