//! Words shared by the tests of the journal.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(dead_code)] // each test program uses its part

use vigil_journal::{BootId, Owner, Record, Replayed, Settings};

pub const BOOT: &str = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d";

pub fn boot() -> BootId {
    BootId::parse(BOOT).unwrap()
}

pub fn owner() -> Owner {
    Owner::with_salt("default", "web-1", 0x0123_4567_89ab_cdef)
}

/// Small, so that tests leave the preallocation soon.
pub fn small() -> Settings {
    Settings {
        prealloc: 1024,
        durable: false,
        ..Settings::default()
    }
}

pub fn payloads(replayed: &Replayed) -> Vec<&[u8]> {
    replayed.records.iter().map(|r| &r.payload[..]).collect()
}

pub fn record(seq: u64, kind: u16, payload: &[u8]) -> Record {
    Record {
        seq,
        kind,
        payload: payload.to_vec(),
    }
}
