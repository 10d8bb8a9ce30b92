//! What is left, as bytes: written and read it is the same, the fixtures of every version are read,
//! and whatever else is read is an error and no panic.
#![allow(clippy::unwrap_used)]

use super::*;

/// Of every kind of part one at least, each number another.
fn full() -> Estate {
    let request = |stream: u8, attempts| Request {
        age_ms: 70 + u32::from(stream),
        attempts,
        proven: attempts == 0,
        frame: [0, 0, 0, 2, 0, 0, 0, stream, 1, 0, 0x0a, 0].into(),
    };
    let answer: Box<[u8]> = [0, 0, 0, 0, 0, 0, 0, 1, 2, 0].into();
    Estate {
        whose: "owner 1 2 ab".to_owned(),
        held: Held {
            listener: Fd(10),
            lock: Fd(11),
            exits: Fd(12),
            memory: Fd(13),
            bell: Fd(14),
            program: Fd(15),
            before: Some(Fd(16)),
            next_conn: 9,
        },
        conns: vec![
            Conn {
                number: 3,
                own: Fd(20),
                passed: Some(7),
                half: Some(9),
                requests: vec![request(5, 0), request(7, 2)],
                answers: vec![answer.clone(), answer],
                left: 4,
                pair: Some(Pair {
                    fd: Fd(22),
                    sent: 1,
                    part: 3,
                    taken: true,
                }),
            },
            Conn {
                number: 8,
                own: Fd(21),
                passed: None,
                half: None,
                requests: Vec::new(),
                answers: Vec::new(),
                left: 0,
                pair: None,
            },
        ],
        slots: vec![
            (Slot { slot: 33, kind: 4 }, Fd(30)),
            (Slot { slot: 2, kind: 1 }, Fd(31)),
        ],
        ends: vec![End {
            pin: 0,
            pidfd: Fd(40),
        }],
        story: b"vigil-takeovers 2\n".to_vec(),
        shim: Some(Shim {
            pid: 77,
            control: Fd(50),
            serving: true,
            silent: false,
            proving_ms: 60_000,
        }),
    }
}

#[test]
fn what_is_written_is_read() {
    let estate = full();
    assert_eq!(Estate::decode(&estate.encode()), Ok(estate.clone()));
    let all: Vec<u32> = estate.fds().map(|fd| fd.0).collect();
    assert_eq!(
        all,
        [10, 11, 12, 13, 14, 15, 30, 31, 40, 16, 50, 20, 22, 21]
    );
    let bare = Estate {
        shim: None,
        conns: Vec::new(),
        slots: Vec::new(),
        ends: Vec::new(),
        story: Vec::new(),
        ..estate
    };
    assert_eq!(Estate::decode(&bare.encode()), Ok(bare));
}

/// The bytes that this version writes are those of the fixture: a change of them is a new version.
#[test]
fn the_fixture_of_this_version_is_what_is_written() {
    let fixture = include_bytes!("../fixtures/estate-1");
    assert_eq!(full().encode(), fixture);
}

#[test]
#[ignore = "run by hand, once for each new version"]
fn write_the_fixture_of_a_new_version() {
    let path = format!("{}/fixtures/estate-{VERSION}", env!("CARGO_MANIFEST_DIR"));
    std::fs::write(path, full().encode()).unwrap();
}

#[test]
fn no_beginning_of_one_is_one() {
    let whole = full().encode();
    for len in 0..whole.len() {
        assert!(Estate::decode(&whole[..len]).is_err(), "{len}");
    }
    let mut more = whole;
    more.push(0);
    assert_eq!(
        Estate::decode(&more),
        Err(EstateError::Damaged { at: HEADER })
    );
}

/// Whatever byte is another: it is refused, or reads as something that is written the same.
#[test]
fn a_changed_byte_does_no_harm() {
    let whole = full().encode();
    for at in 0..whole.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            if let Ok(read) = Estate::decode(&bytes) {
                assert_eq!(Estate::decode(&read.encode()), Ok(read), "{at}");
            }
        }
    }
}

#[test]
fn what_a_later_version_adds_is_passed_over_or_refused() {
    let with = |kind: u16| {
        let mut bytes = full().encode();
        part(&mut bytes, kind, b"news");
        let length = length(bytes.len() - HEADER);
        bytes[12..HEADER].copy_from_slice(&length);
        Estate::decode(&bytes)
    };
    assert_eq!(with(OPTIONAL | 8), Ok(full()));
    assert_eq!(with(8), Err(EstateError::Unknown { kind: 8 }));
    let mut bytes = full().encode();
    bytes[8] = 2;
    assert_eq!(
        Estate::decode(&bytes),
        Err(EstateError::Newer { version: 2 })
    );
    bytes[0] = b'v';
    assert_eq!(Estate::decode(&bytes), Err(EstateError::Foreign));
}

#[test]
fn without_an_owner_or_what_is_held_there_is_none() {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        Estate::decode(&out),
        Err(EstateError::Missing("whose it is"))
    );
}
