//! A shim that does what the requests say, in words: the other end of the
//! reaper in these tests. It uses nothing but the descriptors a shim is given.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use vigil_reaper::{CONTROL_FD, DOORBELL_FD, LOCK_FD, READY_FD};
use vigil_relay::control::{Call, MESSAGE_MAX, Slot, ToReaper, ToShim, VERSION};
use vigil_sys::event::Doorbell;
use vigil_sys::fd::{Watch, poll};
use vigil_sys::{Errno, fifo, fork, pidfd, process, scm, signal};

use crate::heir::Heir;
use crate::wire::{Frames, RESPONSE, frame};

const LONG: Duration = Duration::from_mins(1);
/// The number of every call that says that a connection has come.
const TAKEN: u32 = u32::MAX;

pub struct Shim {
    control: OwnedFd,
    pub bell: Doorbell,
    pub conns: BTreeMap<u32, (OwnedFd, OwnedFd, Frames)>,
    calls: u32,
    leave: bool,
    unsent: BTreeMap<u32, Vec<u8>>,
    kept: Vec<OwnedFd>,
    /// Requests to be answered by a dying shim.
    pub held: Vec<(u32, u32)>,
    /// What is needed to become the reaper, if it is one that does.
    heir: Option<Heir>,
}

/// Runs as a shim of that kind; never returns.
pub fn run(kind: &str) -> ! {
    let control = fork::inherited(CONTROL_FD).unwrap();
    let bell = Doorbell::from(fork::inherited(DOORBELL_FD).unwrap());
    let lock = fork::inherited(LOCK_FD).unwrap();
    let ready = fork::inherited(READY_FD).unwrap();
    let heir = (kind == "heir").then(|| Heir::new(lock));
    if kind == "fails" {
        scm::write(ready.as_fd(), b"Eno journal\n").unwrap();
        process::exit_now(3);
    }
    drop(ready);
    let mut shim = Shim {
        control,
        bell,
        conns: BTreeMap::new(),
        calls: 0,
        leave: false,
        unsent: BTreeMap::new(),
        kept: Vec::new(),
        held: Vec::new(),
        heir,
    };
    assert_eq!(
        shim.call(ToReaper::Hello { version: VERSION }, &[]),
        Ok(u64::from(VERSION))
    );
    if shim.heir.is_some() {
        shim.call(ToReaper::Adopt { after: 0 }, &[]).unwrap();
        let kept = std::mem::take(&mut shim.kept).into_iter();
        let heir = shim.heir.as_mut().unwrap();
        heir.slots = std::mem::take(&mut heir.came)
            .into_iter()
            .zip(kept)
            .collect();
        heir.recall();
    }
    assert_eq!(shim.call(ToReaper::Ready, &[]), Ok(0));
    while !shim.leave {
        shim.turn();
    }
    if kind == "stubborn" {
        std::thread::sleep(LONG);
    }
    process::exit_now(0)
}

impl Shim {
    fn turn(&mut self) {
        let mut watches = vec![Watch::reading(&self.control)];
        watches.extend(self.conns.values().map(|(pair, ..)| Watch::reading(pair)));
        watches.extend(
            self.unsent
                .keys()
                .map(|conn| Watch::writing(&self.conns[conn].0)),
        );
        assert!(
            poll(&mut watches, LONG).unwrap() > 0,
            "nothing came for a minute"
        );
        let ready: Vec<bool> = watches.iter().map(Watch::ready).collect();
        let numbers: Vec<u32> = self.conns.keys().copied().collect();
        for (number, _) in numbers.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            self.read_conn(*number);
        }
        if ready[0] {
            self.read_control();
        }
        self.flush();
    }

    fn read_conn(&mut self, number: u32) {
        let mut bytes = [0; 8192];
        let Some((pair, _, frames)) = self.conns.get_mut(&number) else {
            return;
        };
        match scm::read(pair.as_fd(), &mut bytes) {
            Ok(0) => {
                if self.heir.is_some() {
                    // It may be the reaper's end, and then its control socket has one.
                    assert!(vigil_sys::fd::wait_readable(&self.control, LONG).unwrap());
                    self.read_control();
                }
                self.conns.remove(&number);
            }
            Ok(count) => {
                for (stream, payload) in frames.take(&bytes[..count]) {
                    self.perform(number, stream, &payload);
                }
            }
            Err(Errno::EAGAIN) => {}
            Err(errno) => panic!("{errno}"),
        }
    }

    /// One message of the reaper; an Ack is returned.
    fn read_control(&mut self) -> Option<(u32, Result<u64, vigil_relay::control::Denied>)> {
        let (mut bytes, mut fds) = ([0; MESSAGE_MAX], Vec::new());
        let count = scm::recv(self.control.as_fd(), &mut bytes, &mut fds).unwrap();
        if count == 0 {
            if let Some(heir) = self.heir.take() {
                heir.become_it(self);
            }
            process::exit_now(9); // the reaper is dead
        }
        match ToShim::decode(&bytes[..count]).unwrap() {
            ToShim::Ack {
                call: TAKEN,
                answer,
            } => assert_eq!(answer, Ok(0)),
            ToShim::Ack { call, answer } => return Some((call, answer)),
            ToShim::Conn { conn } => {
                let [pair, own] = fds.try_into().unwrap();
                let request = ToReaper::Taken { conn };
                let taken = Call {
                    call: TAKEN,
                    request,
                };
                scm::send(self.control.as_fd(), &taken.encode().unwrap(), &[]).unwrap();
                self.conns.insert(conn, (pair, own, Frames::default()));
            }
            ToShim::Leave | ToShim::Retire => self.leave = true,
            ToShim::Slot(slot) => {
                if let Some(heir) = &mut self.heir {
                    heir.came.push(slot.slot);
                }
                self.kept.append(&mut fds);
            }
        }
        None
    }

    fn call(
        &mut self,
        request: ToReaper,
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64, vigil_relay::control::Denied> {
        self.calls += 1;
        let call = Call {
            call: self.calls,
            request,
        };
        scm::send(self.control.as_fd(), &call.encode().unwrap(), fds).unwrap();
        loop {
            assert!(vigil_sys::fd::wait_readable(&self.control, LONG).unwrap());
            if let Some((number, answer)) = self.read_control() {
                assert_eq!(number, self.calls);
                return answer;
            }
        }
    }

    fn answer(&mut self, conn: u32, stream: u32, payload: &[u8]) {
        self.write(conn, &frame(stream, RESPONSE, payload));
    }

    /// Never waits: what does not go now goes when there is room.
    fn write(&mut self, conn: u32, bytes: &[u8]) {
        self.unsent.entry(conn).or_default().extend(bytes);
        self.flush();
    }

    fn flush(&mut self) {
        let conns = &self.conns;
        self.unsent.retain(|conn, bytes| {
            let Some((pair, ..)) = conns.get(conn) else {
                return false;
            };
            while !bytes.is_empty() {
                match scm::send(pair.as_fd(), bytes, &[]) {
                    Ok(count) => drop(bytes.drain(..count)),
                    Err(Errno::EAGAIN) => return true,
                    Err(errno) => panic!("{errno}"),
                }
            }
            false
        });
    }

    fn perform(&mut self, conn: u32, stream: u32, payload: &[u8]) {
        if let Some(heir) = &mut self.heir {
            heir.passed.insert(conn, stream);
        }
        let text = String::from_utf8_lossy(payload).trim_start().to_owned();
        let words: Vec<&str> = text.split(' ').collect();
        let told = match words[..] {
            ["echo", word] => word.to_owned(),
            ["length", ..] => payload.len().to_string(),
            ["big", size] => "x".repeat(size.parse().unwrap()),
            ["ignore"] => return,
            ["self"] => about_self(),
            ["rings"] => self.bell.drain().unwrap().to_string(),
            // A grandchild: its parent, the shell between, is gone at once.
            ["orphan", script] => orphan(&script.replace('_', " ")),
            [how @ ("deposit" | "guard"), slot, path] => {
                let path = Path::new(path);
                let open = if how == "guard" {
                    fifo::open_name
                } else {
                    fifo::open_writer
                };
                let writer = open(path).unwrap();
                let slots = vec![Slot {
                    slot: slot.parse().unwrap(),
                    kind: 7,
                }];
                let answer = self.call(ToReaper::Deposit { slots }, &[writer.as_fd()]);
                if let Some(heir) = &mut self.heir {
                    heir.slots.insert(slot.parse().unwrap(), writer);
                }
                format!("{answer:?}")
            }
            ["listen", slot, path] => {
                let listener = UnixListener::bind(path).unwrap();
                listener.set_nonblocking(true).unwrap();
                let slots = vec![Slot {
                    slot: slot.parse().unwrap(),
                    kind: 8,
                }];
                let answer = self.call(ToReaper::Deposit { slots }, &[listener.as_fd()]);
                format!("{answer:?}")
            }
            ["accept", listener, slot] => {
                let request = ToReaper::Accept {
                    listener: listener.parse().unwrap(),
                    slot: Slot {
                        slot: slot.parse().unwrap(),
                        kind: 18,
                    },
                };
                let answer = self.call(request, &[]);
                format!("{answer:?}, {} given", std::mem::take(&mut self.kept).len())
            }
            ["ended", slot] => {
                let slots = vec![slot.parse().unwrap()];
                format!("{:?}", self.call(ToReaper::Ended { slots }, &[]))
            }
            ["register", pid, since] => {
                let (pid, since) = (pid.parse().unwrap(), since.parse().unwrap());
                let request = ToReaper::Register {
                    pid,
                    start_ticks: 0,
                    since,
                };
                let pinned = self.call(request, &[]);
                if let (Some(heir), Ok(pin)) = (&mut self.heir, &pinned) {
                    let pin = u32::try_from(*pin).unwrap();
                    heir.ends.insert(pin, pidfd::open(pid).unwrap());
                    fs::write(format!("pinned-{pin}"), pid.to_string()).unwrap();
                }
                format!("{pinned:?}")
            }
            ["release"] => {
                for (conn, stream) in std::mem::take(&mut self.held) {
                    self.answer(conn, stream, b"released");
                }
                "done".to_owned()
            }
            ["garbage"] => self.garbage(),
            ["end"] => {
                assert_eq!(self.call(ToReaper::End, &[]), Ok(0));
                self.leave = true;
                "ended".to_owned()
            }
            ["die", "after", word] => {
                self.answer(conn, stream, word.as_bytes());
                die()
            }
            ["hold"] => {
                self.held.push((conn, stream));
                return;
            }
            // While the reaper is stopped, so that it finds everything at once;
            // the hang-up makes it look at its signals first.
            ["die", "stopped"] => {
                let reaper = pidfd::open(process::parent_pid()).unwrap();
                pidfd::send_signal(&reaper, 19).unwrap();
                pidfd::send_signal(&reaper, signal::HUP).unwrap();
                for (conn, stream) in std::mem::take(&mut self.held) {
                    self.answer(conn, stream, b"at last");
                }
                die()
            }
            ["stopped", script] => {
                let reaper = pidfd::open(process::parent_pid()).unwrap();
                pidfd::send_signal(&reaper, 19).unwrap();
                let told = orphan(&script.replace('_', " "));
                pidfd::send_signal(&reaper, 18).unwrap();
                told
            }
            ["die", "half"] => {
                let whole = frame(stream, RESPONSE, b"never seen");
                self.write(conn, &whole[..whole.len() - 1]);
                // By its own fault.
                std::process::abort()
            }
            ["cut"] => {
                // Its copy of containerd's own connection stays open.
                self.kept
                    .extend(self.conns.remove(&conn).map(|(_, own, _)| own));
                return;
            }
            ["let", "go"] => {
                // Both were this process's only ones.
                self.control = vigil_sys::fd::null().unwrap();
                self.conns.clear();
                std::thread::sleep(LONG);
                return;
            }
            ["hang"] => {
                std::thread::sleep(LONG);
                return;
            }
            _ => panic!("{text}"),
        };
        self.answer(conn, stream, told.as_bytes());
    }

    /// Messages no shim of this build sends; the answers, in words.
    fn garbage(&mut self) -> String {
        let mut answers = Vec::new();
        for bytes in [
            &[0x70, 0, 0, 0, 9, 9, 9, 9][..],            // unknown
            &[0x03, 0, 2, 0, 9, 9, 9, 9, 1],             // cut
            &[0x03, 0, 1, 0, 9, 9, 9, 9, 1, 0, 0, 0, 0], // no descriptor
            &[0x02, 0, 0, 0, 0, 0, 0, 0],                // no number
        ] {
            scm::send(self.control.as_fd(), bytes, &[]).unwrap();
            loop {
                assert!(vigil_sys::fd::wait_readable(&self.control, LONG).unwrap());
                if let Some((_, answer)) = self.read_control() {
                    answers.push(format!("{:?}", answer.unwrap_err()));
                    break;
                }
            }
        }
        answers.join(" ")
    }
}

fn die() -> ! {
    let own = pidfd::open(process::pid()).unwrap();
    pidfd::send_signal(&own, signal::KILL).unwrap();
    unreachable!("killed")
}

/// What a new shim finds: open descriptors, blocked and ignored signals.
fn about_self() -> String {
    let mut fds: Vec<u32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    fds.sort_unstable();
    // The directory being read is one more; READY_FD was closed.
    fds.pop();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split('\t').nth(1).unwrap().to_owned()
    };
    format!("{fds:?} {} {}", field("SigBlk"), field("SigCgt"))
}

/// Starts a process whose parent is gone, so that it is the reaper's; its pid.
fn orphan(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
