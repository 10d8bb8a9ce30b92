//! A file as shared words: the reaper stores, the shim and `delete` look on.
//! Nothing but atomics leaves this module, so two processes may use the same
//! words at once. The file must not be cut while it is mapped (a touch beyond
//! its end is SIGBUS): it is a memfd sealed against that ([`crate::fd::memfd_capped`]).

use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;

use crate::{Errno, Result};

/// A mapping of a whole file, gone when dropped.
#[derive(Debug)]
pub struct SharedMap {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is mapped for the whole process and reached only as
// atomics; unmapping happens once, in drop.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps a file open for reading and writing. Stores are seen by every
    /// process that maps it. All pages are made present now, so that no later
    /// store can fail for want of memory or space.
    pub fn read_write(file: BorrowedFd<'_>) -> Result<SharedMap> {
        Self::map(file, MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE)
    }

    /// As [`SharedMap::read_write`], until the process ends.
    pub fn for_ever(file: BorrowedFd<'_>) -> Result<&'static [AtomicU64]> {
        Ok(Box::leak(Box::new(Self::read_write(file)?)).words())
    }

    /// Maps a file open for reading and follows what others store in it. A
    /// store through this mapping is not an error, but stays in this process
    /// and ends the following of that page: do not.
    pub fn read_only(file: BorrowedFd<'_>) -> Result<SharedMap> {
        // Not PROT_READ: a stray store would then kill the process, and
        // `&[AtomicU64]` promises that storing is allowed.
        Self::map(file, MapFlags::MAP_PRIVATE)
    }

    /// `EINVAL`: the file is empty or no whole number of words.
    fn map(file: BorrowedFd<'_>, flags: MapFlags) -> Result<SharedMap> {
        let len = usize::try_from(fstat(file)?.st_size).map_err(|_| Errno::EFBIG)?;
        let len = NonZeroUsize::new(len)
            .filter(|len| len.get() % size_of::<AtomicU64>() == 0)
            .ok_or(Errno::EINVAL)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so no memory in use is replaced;
        // the result is page aligned, which suffices for AtomicU64, and every
        // bit pattern is a valid one.
        let start = unsafe { mmap(None, len, prot, flags, file, 0)? };
        Ok(SharedMap {
            start: start.cast(),
            words: len.get() / size_of::<AtomicU64>(),
        })
    }

    /// The file's words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is the begin of a mapping of `words` words that lives
        // as long as self, and is only ever reached as atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this start and length, and no
        // borrow of it can outlive self. It cannot fail for a mapping of ours.
        let _ = unsafe { munmap(self.start.cast(), self.words * size_of::<AtomicU64>()) };
    }
}

/// Makes the allocator give memory back as soon as it is freed: big pieces are
/// mappings of their own, and the heap's end is cut when 16 KiB lie unused. The
/// default keeps up to twice the biggest piece ever freed. For long-lived
/// processes with rare bursts; without effect where the libc has no such knob.
pub fn thrifty_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes integers; must not run beside another thread's allocation
    // only in libcs that do not lock, which glibc does.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 10);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Gives back what is free in the middle of the heap too, which the thrift of
/// [`thrifty_heap`] cannot see. Costs a walk over the heap: for after a burst.
pub fn release_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; glibc takes its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back the pages of this thread's stack that lie below what is in use:
/// a deep call dirties them once and the kernel keeps them for ever. For after
/// a burst, and on the main thread: any other has its stack between other mappings, and
/// gives nothing back.
pub fn release_stack() {
    /// Left alone below the present frame: this function's and the kernel's own.
    const KEPT: usize = 8 << 10;
    /// How far down is looked; less than the gap the kernel keeps below every
    /// stack (`stack_guard_gap`, 1 MiB), so that nothing else can lie there.
    const DEPTH: usize = 512 << 10;
    const PAGE: usize = 4 << 10;
    if nix::unistd::gettid() != nix::unistd::getpid() {
        return;
    }
    let here = 0u8;
    let top = (std::ptr::from_ref(&here).addr().saturating_sub(KEPT)) & !(PAGE - 1);
    let bottom = top.saturating_sub(DEPTH);
    // SAFETY: everything below the stack pointer (less the ABI's red zone, far
    // smaller than KEPT) is dead: no frame lives there and no signal handler
    // runs in these processes. Parts that are not mapped are refused, and
    // nothing but this stack can be mapped so close below it. The pages read
    // as zeros when the stack next reaches them, which no frame relies on.
    unsafe {
        libc::madvise(
            std::ptr::without_provenance_mut::<libc::c_void>(bottom),
            top - bottom,
            libc::MADV_DONTNEED,
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::{Acquire, Release};

    #[test]
    fn a_reader_follows_a_writer_and_cannot_disturb_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16384).unwrap();
        let writer = SharedMap::read_write(file.as_file().as_fd()).unwrap();
        let readable = std::fs::File::open(file.path()).unwrap();
        let reader = SharedMap::read_only(readable.as_fd()).unwrap();
        assert_eq!(reader.words().len(), 2048);
        assert_eq!(reader.words()[5].load(Acquire), 0);
        writer.words()[5].store(77, Release);
        assert_eq!(
            reader.words()[5].load(Acquire),
            77,
            "after it was looked at"
        );
        reader.words()[1500].store(1, Release);
        assert_eq!(writer.words()[1500].load(Acquire), 0);
        drop(writer);
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes[40..48], 77u64.to_ne_bytes());
    }

    #[test]
    fn a_reader_may_not_write_and_odd_sizes_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = |file: &std::fs::File| SharedMap::read_write(file.as_fd()).err();
        assert_eq!(refused(file.as_file()), Some(Errno::EINVAL));
        file.as_file().set_len(12).unwrap();
        assert_eq!(refused(file.as_file()), Some(Errno::EINVAL));
        file.as_file().set_len(16).unwrap();
        let readable = std::fs::File::open(file.path()).unwrap();
        assert_eq!(refused(&readable), Some(Errno::EACCES));
    }
}
