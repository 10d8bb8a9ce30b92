//! A file system that stops at the n-th act. For tests only.
//!
//! Owns two images: what a process would read now, and what the medium holds.
//! [`CrashDisk::after`] rebuilds what a process killed, or a host cut off, at
//! this moment would leave. It can also be full. Nothing in the product uses it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use crate::storage::{Directory, Storage};

/// Where to stop, counted in acts (writes, cuts, syncs, changes of names) from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The act that does not complete.
    pub at: usize,
    /// If that act is a write: bytes of it that still happen, at most all.
    pub torn: usize,
}

/// How the end came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The process was killed: every completed act stays.
    Process,
    /// The host lost power: what was not synced is there or not, as the bits
    /// of this number say.
    Power(u64),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    live: Vec<u8>,
    synced: Vec<u8>,
    /// Writes and cuts since the last sync.
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// The names after each change since the directory's last sync.
    pending_names: Vec<BTreeMap<String, usize>>,
    acts: usize,
    stop: Option<Stop>,
    stopped: bool,
    space: Option<usize>,
}

/// A directory in memory.
#[derive(Debug, Clone, Default)]
pub struct CrashDisk(Rc<RefCell<State>>);

/// One of its files.
#[derive(Debug)]
pub struct CrashFile {
    disk: CrashDisk,
    inode: usize,
}

fn stopped() -> io::Error {
    io::Error::other("stopped by the test")
}

fn offset(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, data) => {
                let end = offset(*at) + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[offset(*at)..end].copy_from_slice(data);
            }
            Change::Len(len) => bytes.resize(offset(*len), 0),
        }
    }
}

impl State {
    /// Counts an act. `Err` if it is not to happen, `Ok(Some(n))` if only `n`
    /// bytes of it are.
    fn act(&mut self) -> io::Result<Option<usize>> {
        if self.stopped {
            return Err(stopped());
        }
        let now = self.acts;
        self.acts += 1;
        match self.stop {
            Some(stop) if stop.at == now => {
                self.stopped = true;
                Ok(Some(stop.torn))
            }
            _ => Ok(None),
        }
    }

    /// An act that happens wholly or not at all.
    fn whole_act(&mut self) -> io::Result<()> {
        match self.act()? {
            None => Ok(()),
            Some(_) => Err(stopped()),
        }
    }

    fn change_names(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<String, usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.whole_act()?;
        change(&mut self.names)?;
        self.pending_names.push(self.names.clone());
        Ok(())
    }

    /// Bytes all named files take.
    fn used(&self) -> usize {
        let mut inodes: Vec<_> = self.names.values().copied().collect();
        inodes.sort_unstable();
        inodes.dedup();
        inodes
            .iter()
            .map(|inode| self.inodes[*inode].live.len())
            .sum()
    }
}

impl CrashDisk {
    /// Stops at that act.
    pub fn stop_at(&self, stop: Stop) {
        self.0.borrow_mut().stop = Some(stop);
    }

    /// Acts counted so far.
    pub fn acts(&self) -> usize {
        self.0.borrow().acts
    }

    /// Whether the stop was reached.
    pub fn is_stopped(&self) -> bool {
        self.0.borrow().stopped
    }

    /// From now on files may take this many bytes in all; `None` lifts it.
    pub fn limit_space(&self, bytes: Option<usize>) {
        self.0.borrow_mut().space = bytes;
    }

    /// Bytes all files take now.
    pub fn used(&self) -> usize {
        self.0.borrow().used()
    }

    /// Opens a file by name.
    pub fn open(&self, name: &str) -> Option<CrashFile> {
        let inode = *self.0.borrow().names.get(name)?;
        Some(CrashFile {
            disk: self.clone(),
            inode,
        })
    }

    /// The names there are.
    pub fn names(&self) -> Vec<String> {
        self.0.borrow().names.keys().cloned().collect()
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.borrow();
        Some(state.inodes[*state.names.get(name)?].live.clone())
    }

    /// Changes the bytes of a file behind everybody's back.
    pub fn meddle(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.borrow_mut();
        if let Some(inode) = state.names.get(name).copied() {
            change(&mut state.inodes[inode].live);
            let live = state.inodes[inode].live.clone();
            state.inodes[inode].synced = live;
        }
    }

    /// The disk as the next process finds it, with no stop and no limit.
    #[must_use]
    pub fn after(&self, loss: Loss) -> CrashDisk {
        let state = self.0.borrow();
        let mut bits = match loss {
            Loss::Process => u64::MAX,
            Loss::Power(bits) => bits,
        };
        let mut keep = || {
            let kept = bits & 1 == 1;
            bits = bits.rotate_right(1);
            kept
        };
        let mut inodes = Vec::new();
        for inode in &state.inodes {
            let mut bytes = inode.synced.clone();
            for change in &inode.pending {
                if keep() {
                    change.apply(&mut bytes);
                }
            }
            inodes.push(Inode {
                synced: bytes.clone(),
                live: bytes,
                pending: Vec::new(),
            });
        }
        // Names change in order: a directory is not written piecemeal.
        let mut names = state.synced_names.clone();
        for change in &state.pending_names {
            if !keep() {
                break;
            }
            names.clone_from(change);
        }
        CrashDisk(Rc::new(RefCell::new(State {
            inodes,
            synced_names: names.clone(),
            names,
            ..State::default()
        })))
    }
}

impl Storage for CrashFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.borrow().inodes[self.inode].live.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.0.borrow();
        let rest = state.inodes[self.inode]
            .live
            .get(offset(at)..)
            .unwrap_or(&[]);
        // In pieces, as a kernel may.
        let len = rest.len().min(buf.len()).min(1000);
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.disk.0.borrow_mut();
        let torn = state.act()?;
        let mut len = torn.map_or(bytes.len(), |torn| torn.min(bytes.len()));
        let mut outcome = if torn.is_some() {
            Err(stopped())
        } else {
            Ok(())
        };
        if let Some(space) = state.space {
            let free = space.saturating_sub(state.used());
            let room = state.inodes[self.inode].live.len() + free;
            if offset(at) + len > room {
                len = room.saturating_sub(offset(at));
                outcome = Err(io::ErrorKind::StorageFull.into());
            }
        }
        if len > 0 {
            let change = Change::Write(at, bytes[..len].to_vec());
            let inode = &mut state.inodes[self.inode];
            change.apply(&mut inode.live);
            inode.pending.push(change);
        }
        outcome
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.disk.0.borrow_mut();
        state.whole_act()?;
        let inode = &mut state.inodes[self.inode];
        let change = Change::Len(len);
        change.apply(&mut inode.live);
        inode.pending.push(change);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.0.borrow_mut();
        state.whole_act()?;
        let inode = &mut state.inodes[self.inode];
        inode.synced = inode.live.clone();
        inode.pending.clear();
        Ok(())
    }
}

impl Directory for CrashDisk {
    type File = CrashFile;

    fn create(&self, name: &str) -> io::Result<CrashFile> {
        let mut state = self.0.borrow_mut();
        let inode = state.inodes.len();
        state.change_names(|names| {
            if names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            names.insert(name.to_owned(), inode);
            Ok(())
        })?;
        state.inodes.push(Inode::default());
        Ok(CrashFile {
            disk: self.clone(),
            inode,
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.borrow_mut().change_names(|names| {
            let inode = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            names.insert(to.to_owned(), inode);
            Ok(())
        })
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.borrow_mut().change_names(|names| {
            let inode = *names.get(from).ok_or(io::ErrorKind::NotFound)?;
            if names.contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            names.insert(to.to_owned(), inode);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.change_names(|names| {
            names.remove(name).ok_or(io::ErrorKind::NotFound)?;
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.whole_act()?;
        state.synced_names = state.names.clone();
        state.pending_names.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/crash").join(name)
    }
}
