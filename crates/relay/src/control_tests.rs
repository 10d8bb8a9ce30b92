//! The bytes of the control protocol, written out: a reaper and a shim of
//! different builds must agree on them.
#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn to_reaper(call: u32, request: ToReaper, bytes: &[u8]) {
    let call = Call { call, request };
    assert_eq!(call.encode().unwrap(), bytes, "{call:?}");
    assert_eq!(Call::decode(bytes), Ok(call));
}

fn to_shim(message: ToShim, bytes: &[u8]) {
    assert_eq!(message.encode(), bytes, "{message:?}");
    assert_eq!(ToShim::decode(bytes), Ok(message));
}

#[test]
fn requests_have_these_bytes() {
    to_reaper(
        1,
        ToReaper::Hello { version: 0x0201 },
        &[0x01, 0, 0, 0, 1, 0, 0, 0, 1, 2],
    );
    to_reaper(0x0403_0201, ToReaper::Ready, &[0x02, 0, 0, 0, 1, 2, 3, 4]);
    to_reaper(
        2,
        ToReaper::Deposit {
            slots: vec![
                Slot { slot: 1, kind: 9 },
                Slot {
                    slot: 0x0102_0304,
                    kind: 255,
                },
            ],
        },
        &[0x03, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9, 4, 3, 2, 1, 255],
    );
    to_reaper(
        3,
        ToReaper::Ended {
            slots: vec![7, 256],
        },
        &[0x04, 0, 2, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0, 1, 0, 0],
    );
    to_reaper(
        4,
        ToReaper::Register {
            pid: 0x0a0b,
            start_ticks: 0x0807_0605_0403_0201,
            since: 5,
        },
        &[
            0x05, 0, 0, 0, 4, 0, 0, 0, 0x0b, 0x0a, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 0, 0, 0, 0, 0,
            0, 0,
        ],
    );
    to_reaper(
        5,
        ToReaper::Unregister { index: 3 },
        &[0x06, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0],
    );
    to_reaper(6, ToReaper::End, &[0x07, 0, 0, 0, 6, 0, 0, 0]);
    to_reaper(
        7,
        ToReaper::Adopt { after: 258 },
        &[0x08, 0, 0, 0, 7, 0, 0, 0, 2, 1, 0, 0],
    );
    to_reaper(
        8,
        ToReaper::Accept {
            listener: 7,
            slot: Slot {
                slot: 0x0102_0304,
                kind: 18,
            },
        },
        &[0x09, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 4, 3, 2, 1, 18],
    );
}

#[test]
fn answers_have_these_bytes() {
    to_shim(
        ToShim::Ack {
            call: 9,
            answer: Ok(0x0102),
        },
        &[0x81, 0, 0, 0, 9, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
    );
    to_shim(
        ToShim::Ack {
            call: 9,
            answer: Err(Denied::SlotsFull),
        },
        &[0x81, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    to_shim(
        ToShim::Conn { conn: 258 },
        &[0x82, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0],
    );
    to_shim(
        ToShim::Slot(Slot { slot: 3, kind: 4 }),
        &[0x83, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4],
    );
    to_shim(ToShim::Leave, &[0x84, 0, 0, 0, 0, 0, 0, 0]);
    to_shim(ToShim::Retire, &[0x85, 0, 0, 0, 0, 0, 0, 0]);
}

/// Every message of a version, as bytes and as what they mean.
fn fixtures(text: &str) -> Vec<(Vec<u8>, &str)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (hex, meaning) = line.split_once("  ").unwrap();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            ((0..hex.len()).step_by(2).map(byte).collect(), meaning)
        })
        .collect()
}

/// Every version ever spoken is understood as it was meant, and written as it
/// was: the files are never changed, a new version adds one.
#[test]
fn messages_of_every_version_keep_their_bytes() {
    for (version, text) in [
        (1, include_str!("../fixtures/control-1")),
        (2, include_str!("../fixtures/control-2")),
        (3, include_str!("../fixtures/control-3")),
        (4, include_str!("../fixtures/control-4")),
        (5, include_str!("../fixtures/control-5")),
    ] {
        let fixtures = fixtures(text);
        assert!(fixtures.len() >= 12, "version {version}");
        for (bytes, meaning) in fixtures {
            let (told, again) = if bytes[0] < 0x80 {
                let call = Call::decode(&bytes).unwrap();
                (format!("{call:?}"), call.encode().unwrap())
            } else {
                let message = ToShim::decode(&bytes).unwrap();
                (format!("{message:?}"), message.encode())
            };
            assert_eq!(told, meaning, "version {version}");
            assert_eq!(again, bytes, "version {version}: {meaning}");
        }
    }
    assert_eq!(VERSION, 5, "add fixtures/control-{VERSION}, and it here");
}

#[test]
fn every_reason_keeps_its_code() {
    for code in 1..=u8::MAX {
        assert_eq!(Denied::from_code(code).code(), code);
    }
    assert_ne!(Denied::Other(0).code(), 0, "0 would read as done");
}

#[test]
fn what_is_not_a_message_is_named() {
    assert_eq!(
        Call::decode(&[1, 0]),
        Err(ControlError::NoHeader { len: 2 })
    );
    let unknown = [0x70, 0, 0, 0, 8, 0, 0, 0, 1, 2, 3];
    let error = Call::decode(&unknown).unwrap_err();
    assert_eq!(
        error,
        ControlError::UnknownType {
            kind: 0x70,
            call: 8
        }
    );
    assert_eq!(error.denied(), Denied::UnknownMessage);
    assert_eq!(number_of(&unknown), 8);
    assert_eq!(number_of(&unknown[..7]), 0);
    assert!(ToShim::decode(&unknown).is_err());
    // One byte too many, and a count that promises more than there is.
    for bytes in [
        &[0x02, 0, 0, 0, 1, 0, 0, 0, 0][..],
        &[0x03, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9],
        &[0x04, 0, 1, 0, 2, 0, 0, 0],
    ] {
        assert!(
            matches!(Call::decode(bytes), Err(ControlError::WrongLength { .. })),
            "{bytes:?}"
        );
    }
    for count in [0, 17] {
        let mut bytes = vec![0x03, 0, count, 0, 2, 0, 0, 0];
        bytes.resize(8 + usize::from(count) * 5, 0);
        assert!(
            matches!(Call::decode(&bytes), Err(ControlError::WrongCount { .. })),
            "{count}"
        );
    }
    let long = Call {
        call: 1,
        request: ToReaper::Ended {
            slots: vec![0; ENDED_MAX + 1],
        },
    };
    assert!(matches!(
        long.encode(),
        Err(ControlError::WrongCount { .. })
    ));
}

#[test]
fn the_longest_messages_fit_a_datagram() {
    let ended = Call {
        call: 1,
        request: ToReaper::Ended {
            slots: vec![u32::MAX; ENDED_MAX],
        },
    };
    let bytes = ended.encode().unwrap();
    assert!(bytes.len() <= MESSAGE_MAX);
    assert_eq!(Call::decode(&bytes), Ok(ended));
}

fn any_request() -> impl Strategy<Value = ToReaper> {
    let slot = (any::<u32>(), any::<u8>()).prop_map(|(slot, kind)| Slot { slot, kind });
    prop_oneof![
        any::<u16>().prop_map(|version| ToReaper::Hello { version }),
        Just(ToReaper::Ready),
        vec(slot, 1..=DEPOSIT_MAX).prop_map(|slots| ToReaper::Deposit { slots }),
        vec(any::<u32>(), 1..=ENDED_MAX).prop_map(|slots| ToReaper::Ended { slots }),
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(pid, start_ticks, since)| {
            ToReaper::Register {
                pid,
                start_ticks,
                since,
            }
        }),
        any::<u32>().prop_map(|index| ToReaper::Unregister { index }),
        Just(ToReaper::End),
        any::<u32>().prop_map(|conn| ToReaper::Taken { conn }),
    ]
}

fn any_answer() -> impl Strategy<Value = ToShim> {
    let answer = prop_oneof![
        any::<u64>().prop_map(Ok),
        (1..=u8::MAX).prop_map(|code| Err(Denied::from_code(code)))
    ];
    prop_oneof![
        (any::<u32>(), answer).prop_map(|(call, answer)| ToShim::Ack { call, answer }),
        any::<u32>().prop_map(|conn| ToShim::Conn { conn }),
        (any::<u32>(), any::<u8>()).prop_map(|(slot, kind)| ToShim::Slot(Slot { slot, kind })),
        Just(ToShim::Leave),
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(call: u32, request in any_request()) {
        let call = Call { call, request };
        let bytes = call.encode().unwrap();
        prop_assert!(bytes.len() <= MESSAGE_MAX);
        prop_assert_eq!(Call::decode(&bytes), Ok(call));
    }

    #[test]
    fn answers_survive_the_wire(message in any_answer()) {
        prop_assert_eq!(ToShim::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn a_cut_message_is_never_another(call: u32, request in any_request(), keep in 0.0..1.0f64) {
        let bytes = Call { call, request }.encode().unwrap();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let cut = (bytes.len() as f64 * keep) as usize;
        prop_assert!(Call::decode(&bytes[..cut]).is_err());
    }

    #[test]
    fn no_bytes_panic(kind in prop_oneof![any::<u8>(), 0u8..8, 0x81u8..0x85], mut bytes in vec(any::<u8>(), 0..600)) {
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        let _ = Call::decode(&bytes);
        let _ = ToShim::decode(&bytes);
    }
}
