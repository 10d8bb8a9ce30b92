//! The `takeovers` file: whole, or an error with a name.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;

use common::owner;
use proptest::prelude::*;
use vigil_journal::pair::ParseError;
use vigil_journal::takeovers::{CAUSE_BYTES_MAX, STORY_MAX, Takeovers, TakeoversError};

proptest! {
    #[test]
    fn what_was_added_comes_back(causes in prop::collection::vec(".{0,300}", 0..40)) {
        let mut all = Takeovers::default();
        for cause in &causes {
            all.add(cause);
        }
        prop_assert_eq!(all.count, causes.len() as u64);
        prop_assert!(all.last.len() <= STORY_MAX);
        prop_assert!(all.last.iter().all(|one| one.cause.len() <= CAUSE_BYTES_MAX));
        prop_assert_eq!(Takeovers::parse(&all.to_bytes(&owner())), Ok((all, Some(owner()))));
    }

    #[test]
    fn bytes_of_any_kind_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Takeovers::parse(&bytes).is_err());
    }
}

#[test]
fn no_flipped_bit_passes_and_each_fault_has_its_name() {
    let mut all = Takeovers::default();
    all.add("died 9");
    all.add("refused exit status 1:\nno");
    assert_eq!(all.last[1].cause, "refused exit status 1: no");
    let bytes = all.to_bytes(&owner());
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(Takeovers::parse(&bad).is_err(), "byte {at}");
        assert!(Takeovers::parse(&bytes[..at]).is_err(), "cut at {at}");
    }
    for (bytes, expected) in [
        (&b"x"[..], ParseError::Foreign),
        (b"vigil-takeovers 0\n", ParseError::Foreign),
        (b"vigil-takeovers 3\nnew", ParseError::Newer { version: 3 }),
        (b"vigil-takeovers 1\ncount 1\n", ParseError::Sum),
    ] {
        assert_eq!(Takeovers::parse(bytes), Err(expected));
    }
}

#[test]
fn a_file_that_is_not_there_is_none_and_one_that_is_foreign_an_error() {
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path().join("takeovers");
    assert_eq!(
        Takeovers::read(&path, &owner()).unwrap(),
        Takeovers::default()
    );
    let mut all = Takeovers::default();
    for _ in 0..100 {
        all.add(&"x".repeat(1000));
        all.write(&path, &owner()).unwrap();
    }
    assert_eq!(Takeovers::read(&path, &owner()).unwrap(), all);
    assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
    fs::write(&path, "else").unwrap();
    assert!(matches!(
        Takeovers::read(&path, &owner()),
        Err(TakeoversError::Parse { .. })
    ));
    let dir = Takeovers::read(bundle.path(), &owner());
    assert!(matches!(dir, Err(TakeoversError::NotAFile { .. })));
    assert!(
        all.write(&bundle.path().join("no/takeovers"), &owner())
            .is_err()
    );
}
