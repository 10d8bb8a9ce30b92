//! The promises about a full file system, on a real one: a tmpfs of 128 KiB.
//! Needs root for the mount; without it there is nothing to test and the
//! tests say so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::{boot, owner};
use tempfile::TempDir;
use vigil_journal::exits::{self, ExitsError};
use vigil_journal::pair::{Incarnation, Pair};
use vigil_journal::{Error, Journal, Settings, replay};

/// A small tmpfs, unmounted on drop.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let point = tempfile::tempdir().unwrap();
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            println!("not tested: only root can mount a tmpfs");
            return None;
        }
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k", "vigil-journal-test"])
            .arg(point.path())
            .status()
            .unwrap();
        assert!(status.success(), "mount: {status}");
        Some(SmallDisk(point))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no byte.
    fn fill(&self) {
        let mut file = File::create(self.path().join("filler")).unwrap();
        let error = loop {
            if let Err(error) = file.write_all(&[1; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn the_last_records_are_written_on_a_full_tmpfs() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let path = disk.path().join("journal");
    let mut journal = Journal::create(&path, boot(), &owner(), Settings::default()).unwrap();
    while !journal.needs_compaction() {
        journal.append(1, &[1; 100]).unwrap();
    }
    disk.fill();
    assert!(matches!(
        journal.compact(2, b"snapshot"),
        Err(Error::Compact { .. })
    ));
    let mut acknowledged = replay(&path, &owner()).unwrap().records.len();
    assert!(acknowledged > 60);
    let reserve = (0..1000)
        .take_while(|_| journal.append(3, &[3; 100]).is_ok())
        .count();
    // Half of 16 KiB, in records of 120 bytes.
    assert!(reserve > 65, "{reserve}");
    acknowledged += reserve;
    assert!(journal.latched().is_some());
    let mut opened = Journal::open(&path, &owner(), Settings::default()).unwrap();
    assert_eq!(opened.replayed.records.len(), acknowledged);
    fs::remove_file(disk.path().join("filler")).unwrap();
    opened.journal.compact(2, b"room again").unwrap();
    assert_eq!(replay(&path, &owner()).unwrap().records.len(), 1);
}

#[test]
fn a_pair_can_be_replaced_on_a_full_tmpfs() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let path = disk.path().join("pair");
    let reaper = Incarnation {
        pid: 7,
        start_ticks: 8,
        pid_ns: 9,
        boot: boot(),
        pidfd_inode: None,
    };
    let mut pair = Pair {
        reaper,
        shim: None,
        session: None,
    };
    pair.write(&path, &owner()).unwrap();
    disk.fill();
    pair.shim = Some(Incarnation { pid: 10, ..reaper });
    pair.write(&path, &owner()).unwrap();
    assert_eq!(Pair::read(&path, &owner()).unwrap(), pair);
    assert!(!disk.path().join("pair.new").exists());
}

#[test]
fn exit_records_are_made_whole_or_not_at_all() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    fs::write(disk.path().join("half"), vec![1; 100 * 1024]).unwrap();
    let path = disk.path().join("exits");
    let words: Vec<_> = std::iter::repeat_with(Default::default)
        .take(exits::WORDS)
        .collect();
    let mut recorder = exits::Recorder::format(&words, boot(), &owner()).unwrap();
    let error = recorder.keep_in(&path).unwrap_err();
    assert!(matches!(error, ExitsError::Create { .. }), "{error:?}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 1, "the half");
    // Tried again at each record.
    fs::remove_file(disk.path().join("half")).unwrap();
    recorder.record(exits::Death::seen_now(5, 6, 7));
    let read = exits::read(&path, &owner()).unwrap();
    assert_eq!(read.exits().unwrap().find(5, 6).unwrap().status, 7);
}
