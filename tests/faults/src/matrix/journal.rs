//! Tearing the last record off a journal, as a write that was cut leaves it.

use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Bytes of the file's head (`crates/journal/FORMAT.md`).
const HEADER: u64 = 256;

/// Makes the second half of the last record zeros again; its type.
pub fn tear_last_record(path: &Path) -> Result<u16> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut at = HEADER;
    let mut last = None;
    while at + 8 <= length {
        let mut head = [0; 8];
        file.read_exact_at(&mut head, at)?;
        let size = u64::from(u32::from_le_bytes([head[0], head[1], head[2], head[3]]));
        if size == 0 {
            break;
        }
        ensure!(
            size >= 20 && at + size <= length,
            "no journal: {}",
            path.display()
        );
        last = Some((at, size, u16::from_le_bytes([head[4], head[5]])));
        at += size;
    }
    let (at, size, kind) = last.context("a journal without a record")?;
    let zeros = vec![0; usize::try_from(size / 2)?];
    file.write_all_at(&zeros, at + size - size / 2)?;
    Ok(kind)
}
