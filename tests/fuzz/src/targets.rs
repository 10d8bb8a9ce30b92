//! The targets: each takes any bytes and must not panic. Where a checksum would stop the
//! fuzzer at the door, the first byte chooses whether it is put right.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use vigil_journal::Owner;
use vigil_journal::exits::Snapshot;
use vigil_journal::pair::{PAIR_BYTES, Pair};
use vigil_journal::takeovers::Takeovers;
use vigil_model::{Namespace, Record, Task, TaskId};
use vigil_relay::control::{Call, ToShim};
use vigil_relay::estate::Estate;

use crate::seeds::{EXITS, ID, JOURNALS, NAMESPACE};

/// What cannot be written is no finding of its own; what was written is read as the same.
pub fn control(bytes: &[u8]) {
    if let Ok(call) = Call::decode(bytes)
        && let Ok(again) = call.encode()
    {
        assert_eq!(Call::decode(&again).as_ref(), Ok(&call));
    }
    if let Ok(message) = ToShim::decode(bytes) {
        let again = message.encode();
        assert_eq!(ToShim::decode(&again).as_ref(), Ok(&message));
    }
}

/// What a process leaves to the one that is the reaper after it.
pub fn estate(bytes: &[u8]) {
    if let Ok(estate) = Estate::decode(bytes) {
        assert_eq!(Estate::decode(&estate.encode()).as_ref(), Ok(&estate));
    }
}

/// `base` with changes in it: each three bytes of `edits` are a place and a value.
fn edited(base: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for edit in edits.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = edit[2];
        } else {
            bytes.truncate(at % (base.len() + 1));
        }
    }
    bytes
}

/// A journal of any bytes, a changed one, or one record's payload.
pub fn journal(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind {
        0 => scanned(rest),
        1 => payload(rest),
        other => scanned(&edited(JOURNALS[usize::from(other) % JOURNALS.len()], rest)),
    }
}

fn scanned(bytes: &[u8]) {
    let Ok(found) = vigil_journal::scan(bytes) else {
        return;
    };
    assert!(found.end <= bytes.len() as u64, "beyond the end");
    let mut last = None;
    for record in &found.records {
        assert!(last.is_none_or(|last| record.seq > last), "out of order");
        last = Some(record.seq);
        payload(&record.payload);
    }
}

fn payload(bytes: &[u8]) {
    if let Ok(record) = Record::decode(bytes) {
        let _ = record.gist();
        let Ok(again) = record.encode() else {
            panic!("a record that was read cannot be written");
        };
        assert_eq!(Record::decode(&again).ok().as_ref(), Some(&record));
    }
    if let Ok(task) = Task::decode(bytes) {
        let Ok(again) = task.encode() else {
            panic!("a task that was read cannot be written");
        };
        assert_eq!(Task::decode(&again).ok().as_ref(), Some(&task));
    }
}

/// The whole file, or changes of one: place and value of a word.
pub fn exits(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else {
        return;
    };
    let file = if kind == 0 {
        rest.to_vec()
    } else {
        let mut file = EXITS.to_vec();
        for edit in rest.chunks_exact(10) {
            let words = file.len() / 8;
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % words * 8;
            file[at..at + 8].copy_from_slice(&edit[2..]);
        }
        file
    };
    let Ok(snapshot) = Snapshot::from_bytes(&file) else {
        return;
    };
    assert_eq!(snapshot.to_bytes(), file, "not as it was");
    let Ok(exits) = snapshot.exits() else {
        panic!("a snapshot that was made has no records");
    };
    let _ = exits.boot_id();
    for (index, _) in exits.slots() {
        if let Some(death) = exits.pinned(index) {
            let _ = exits.find(death.pid, death.start_ticks);
            let _ = exits.registered(death.pid);
        }
    }
    assert!(exits.ring().count() <= vigil_journal::exits::RING);
}

/// With the right sum below it, if the first byte says so.
fn summed(bytes: &[u8]) -> Vec<u8> {
    let Some((&kind, rest)) = bytes.split_first() else {
        return Vec::new();
    };
    let mut text = rest.to_vec();
    if kind != 0 {
        if text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
        let sum = format!("sum {:08x}\n", crc32c::crc32c(&text));
        text.extend(sum.bytes());
    }
    text
}

fn somebody() -> Owner {
    Owner {
        namespace: NAMESPACE.to_owned(),
        id: ID.to_owned(),
        salt: 1,
    }
}

/// One size, one form: what is taken is what is written.
pub fn pair(bytes: &[u8]) {
    let mut file = summed(bytes);
    if bytes.first().is_some_and(|kind| *kind != 0) && file.len() < PAIR_BYTES {
        file.resize(PAIR_BYTES, b'\n');
    }
    if let Ok((pair, owner)) = Pair::parse(&file) {
        // A version 1 names no owner.
        let owner = owner.unwrap_or_else(somebody);
        let again = pair.to_bytes(&owner);
        assert_eq!(Pair::parse(&again).ok(), Some((pair, Some(owner))));
    }
}

/// The count, and the last few with their causes.
pub fn takeovers(bytes: &[u8]) {
    if let Ok((takeovers, owner)) = Takeovers::parse(&summed(bytes)) {
        let owner = owner.unwrap_or_else(somebody);
        let again = Takeovers::parse(&takeovers.to_bytes(&owner));
        assert_eq!(again.ok(), Some((takeovers, Some(owner))));
    }
}

fn understood(bytes: &[u8]) {
    let (Ok(namespace), Ok(id)) = (Namespace::new(NAMESPACE), TaskId::new(ID)) else {
        panic!("the names of the seeds are none");
    };
    if let Ok(stdin) = vigil_protocol::bootstrap::understand(bytes, &namespace, &id) {
        let all: usize = stdin.warnings.iter().map(String::len).sum();
        assert!(all <= 64 << 10, "{all} bytes of warnings");
    }
}

/// What containerd writes to the stdin of `start`.
pub fn bootstrap(bytes: &[u8]) {
    if let Ok(read) = vigil_protocol::bootstrap::read(bytes) {
        understood(&read);
    }
}

/// The options in each of their forms: the first byte says which.
pub fn options(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else {
        return;
    };
    let (url, value) = match kind % 4 {
        0 => ("containerd.runc.v1.Options", rest.to_vec()),
        1 => ("containerd.linux.runc.CreateOptions", rest.to_vec()),
        2 => ("runtimeoptions.v1.Options", rest.to_vec()),
        // Of the generic form, the TOML in it.
        _ => ("runtimeoptions.v1.Options", crate::seeds::generic(rest)),
    };
    let any = Any {
        type_url: url.to_owned(),
        value,
        ..Any::default()
    };
    if let Ok(bytes) = any.write_to_bytes() {
        understood(&bytes);
    }
}

/// argv, its arguments parted by a zero.
pub fn flags(bytes: &[u8]) {
    let arguments = bytes.split(|byte| *byte == 0);
    let arguments = arguments.map(|argument| OsString::from_vec(argument.to_vec()));
    let _ = vigil_protocol::flags::parse(arguments);
}
