//! The file of the exit records: a copy of the memory, for whoever comes when both are dead.
//!
//! Owns that the file says what the memory says, and each thing first. It is written to and
//! read, never mapped: whoever cuts, overwrites or removes it can hurt no process of ours. One
//! that no longer says what the memory says is set aside and made anew.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::BYTES;
use crate::file::{make_way, open_regular};
use crate::names::{BAD, SIDE_SUFFIX};

/// Written or compared at once.
const PAGE: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    /// What is made before it gets the name.
    pub(super) side: PathBuf,
    bad: PathBuf,
    /// `None`: none was made yet, or it could not be written.
    file: Option<File>,
}

impl Kept {
    /// At `path`; nothing is done yet.
    pub(super) fn new(path: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            path: path.to_owned(),
            side: beside(SIDE_SUFFIX),
            bad: beside(BAD),
            file: None,
        }
    }

    /// One word, before it is stored in the memory.
    pub(super) fn store(&mut self, index: usize, value: u64) {
        let at = index as u64 * 8;
        let write = |file: &File| file.write_all_at(&value.to_ne_bytes(), at);
        if self.file.as_ref().is_some_and(|file| write(file).is_err()) {
            self.file = None;
        }
    }

    /// Some words that are in the memory already.
    pub(super) fn copy(&mut self, words: &[AtomicU64], range: Range<usize>) {
        let mut index = range.start;
        for words in words.get(range).unwrap_or_default().chunks(PAGE / 8) {
            let (page, at) = (page(words), index as u64 * 8);
            let write = |file: &File| file.write_all_at(&page[..words.len() * 8], at);
            if self.file.as_ref().is_some_and(|file| write(file).is_err()) {
                self.file = None;
            }
            index += words.len();
        }
    }

    /// Sees to it that the file under the name is ours and says what the memory says. What is
    /// there instead is set aside. Without room for another, ours is written over.
    pub(super) fn mend(&mut self, words: &[AtomicU64]) -> io::Result<()> {
        if self.is_ours() && self.file.as_ref().is_some_and(|file| says(file, words)) {
            return Ok(());
        }
        match open_regular(&self.path, true) {
            Ok(there) if has_length(&there.0) && says(&there.0, words) => {
                self.file = Some(there.0);
                Ok(())
            }
            Ok(_) | Err(_) => self.renew(words).or_else(|error| match &self.file {
                Some(file) if self.is_ours() => fill(file, words),
                Some(_) | None => Err(error),
            }),
        }
    }

    /// Whether the file that was made is the one under the name, and of its length.
    fn is_ours(&self) -> bool {
        let is = |found: fs::Metadata| (found.is_file(), found.dev(), found.ino());
        let named = fs::symlink_metadata(&self.path).ok().map(is);
        self.file.as_ref().is_some_and(|file| {
            has_length(file) && named.is_some() && named == file.metadata().ok().map(is)
        })
    }

    /// Another file under the name; the one that is there gets a second name first.
    fn renew(&mut self, words: &[AtomicU64]) -> io::Result<()> {
        make_way(&self.side);
        make_way(&self.path);
        // A leftover, never truncated: it may be a second name of another's.
        let _ = fs::remove_file(&self.side);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&self.side)?;
        let made = fill(&file, words).and_then(|()| {
            let _ = fs::remove_file(&self.bad);
            // If there is nothing, there is nothing to keep.
            let _ = fs::hard_link(&self.path, &self.bad);
            fs::rename(&self.side, &self.path)
        });
        match made {
            Ok(()) => self.file = Some(file),
            Err(_) => drop(fs::remove_file(&self.side)),
        }
        made
    }
}

fn has_length(file: &File) -> bool {
    file.metadata().is_ok_and(|is| is.len() == BYTES as u64)
}

/// The bytes of at most a page of words, zeros after them.
fn page(words: &[AtomicU64]) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    for (to, word) in page.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *to = word.load(Ordering::Relaxed).to_ne_bytes();
    }
    page
}

/// The memory, page by page.
fn pages(words: &[AtomicU64]) -> impl Iterator<Item = (u64, [u8; PAGE])> {
    let chunks = words.chunks(PAGE / 8).enumerate();
    chunks.map(|(number, words)| ((number * PAGE) as u64, page(words)))
}

fn fill(file: &File, words: &[AtomicU64]) -> io::Result<()> {
    pages(words).try_for_each(|(at, page)| file.write_all_at(&page, at))
}

fn says(file: &File, words: &[AtomicU64]) -> bool {
    let mut found = [0; PAGE];
    pages(words).all(|(at, page)| file.read_exact_at(&mut found, at).is_ok() && found == page)
}
