//! The reaper dies, and its shim becomes the reaper: who is connected, who waits, and who ends
//! notices nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use vigil_journal::exits::Way;
use vigil_reaper::{EXITS_FD, LISTENER_FD, MEMORY_FD, Start};
use vigil_relay::control::Slot;
use vigil_relay::estate::{Conn, End, Estate, Fd, Held, Request};
use vigil_sys::spawn::Command;
use vigil_sys::{fd, fifo, fork, pidfd, process, signal, wait};

use crate::shim::Shim;
use crate::wire::{REQUEST, RESPONSE, frame};
use crate::{Pair, owner, until};

/// In the environment of a shim that becomes a reaper: the number of the memory.
const ESTATE: &str = "ESTATE";

/// What a shim of these tests keeps for the time after its reaper.
pub struct Heir {
    lock: OwnedFd,
    listener: OwnedFd,
    exits: OwnedFd,
    memory: OwnedFd,
    pub slots: BTreeMap<u32, OwnedFd>,
    pub came: Vec<u32>,
    pub ends: BTreeMap<u32, OwnedFd>,
    /// By connection, the stream of the last request.
    pub passed: BTreeMap<u32, u32>,
}

fn number(fd: &impl AsRawFd) -> Fd {
    Fd(fd.as_raw_fd().cast_unsigned())
}

impl Heir {
    pub fn new(lock: OwnedFd) -> Heir {
        Heir {
            lock,
            listener: fork::inherited(LISTENER_FD).unwrap(),
            exits: fork::inherited(EXITS_FD).unwrap(),
            memory: fork::inherited(MEMORY_FD).unwrap(),
            slots: BTreeMap::new(),
            came: Vec::new(),
            ends: BTreeMap::new(),
            passed: BTreeMap::new(),
        }
    }

    /// What a shim before has registered, as a real one knows it by its journal.
    pub fn recall(&mut self) {
        for entry in fs::read_dir(".").unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(pin) = name.strip_prefix("pinned-") else {
                continue;
            };
            let pid = fs::read_to_string(&name).unwrap().parse().unwrap();
            if let Ok(pidfd) = pidfd::open(pid) {
                self.ends.insert(pin.parse().unwrap(), pidfd);
            }
        }
    }

    pub fn become_it(self, shim: &mut Shim) -> ! {
        let program = fd::hold(std::path::Path::new("/proc/self/exe")).unwrap();
        let request = |stream: u32| Request {
            age_ms: 0,
            attempts: 0,
            proven: false,
            frame: frame(stream, REQUEST, b"\nhold").into(),
        };
        let conns = shim.conns.iter().map(|(conn, (_, own, _))| Conn {
            number: *conn,
            own: number(own),
            passed: self.passed.get(conn).copied(),
            half: None,
            requests: shim
                .held
                .iter()
                .filter(|(at, _)| at == conn)
                .map(|(_, stream)| request(*stream))
                .collect(),
            answers: vec![frame(9_999, RESPONSE, b"said again").into()],
            left: 0,
            pair: None,
        });
        let estate = Estate {
            whose: owner().line(),
            held: Held {
                listener: number(&self.listener),
                lock: number(&self.lock),
                exits: number(&self.exits),
                memory: number(&self.memory),
                bell: number(&shim.bell),
                program: number(&program),
                before: None,
                next_conn: 0,
            },
            conns: conns.collect(),
            slots: self
                .slots
                .iter()
                .map(|(slot, fd)| {
                    (
                        Slot {
                            slot: *slot,
                            kind: 7,
                        },
                        number(fd),
                    )
                })
                .collect(),
            ends: self
                .ends
                .iter()
                .map(|(pin, fd)| End {
                    pin: *pin,
                    pidfd: number(fd),
                })
                .collect(),
            story: Vec::new(),
            shim: None,
        };
        let memory = fd::memfd_with(c"estate", &estate.encode()).unwrap();
        let own = shim.conns.values().map(|(_, own, _)| own.as_fd());
        let held = [
            &self.listener,
            &self.lock,
            &self.exits,
            &self.memory,
            &program,
            &memory,
        ];
        let held = held
            .into_iter()
            .chain(self.slots.values())
            .chain(self.ends.values());
        let keep: Vec<_> = held
            .map(AsFd::as_fd)
            .chain(own)
            .chain([shim.bell.as_fd()])
            .collect();
        let why = Command::new(fd::held_path(&program))
            .args(["shim", "heir"])
            .env(ESTATE, memory.as_raw_fd().to_string())
            .replace_us(&keep);
        panic!("{why}");
    }
}

/// Goes on as the reaper, if that is what this process was started for.
pub fn run() {
    let Ok(memory) = std::env::var(ESTATE) else {
        return;
    };
    let memory = fork::inherited(memory.parse::<u32>().unwrap()).unwrap();
    let start = Start {
        bundle: std::env::current_dir().unwrap(),
        arg0: "pair-test".into(),
        args: vec!["shim".into(), "heir".into()],
        env: Vec::new(),
        before: None,
    };
    vigil_reaper::succeed(start, memory);
}

/// Kills the reaper there is, and waits for the two that follow.
fn bereave(pair: &Pair) -> (u32, u32) {
    let before = pair.pair_file();
    let reaper = pidfd::open(before.reaper.pid).unwrap();
    pidfd::send_signal(&reaper, signal::KILL).unwrap();
    until("another reaper", || {
        pair.pair_file().reaper.pid != before.reaper.pid
    });
    let now = pair.pair_file();
    let shim = now.shim.unwrap().pid;
    assert_eq!(
        now.reaper.pid,
        before.shim.unwrap().pid,
        "the shim became it"
    );
    (now.reaper.pid, shim)
}

pub fn a_shim_becomes_the_reaper_and_nobody_notices() {
    process::set_subreaper(true).unwrap();
    let mut pair = Pair::start("heir");
    assert_eq!(pair.told(), "R");
    let mut client = pair.client();
    assert_eq!(client.call("\necho first"), "first");
    let waits = client.ask("\nhold");
    let path = pair.path("fifo");
    fifo::make(&path, 0o600).unwrap();
    fifo::make(&pair.path("go"), 0o600).unwrap();
    let mut reader = fs::OpenOptions::new()
        .read(true)
        .custom_flags(0o4000)
        .open(&path)
        .unwrap();
    assert_eq!(
        client.call(&format!("\ndeposit 5 {}", path.display())),
        "Ok(0)"
    );
    let old: u32 = client
        .call("\norphan (read_x_<go;exit_7)_>/dev/null_&_echo_$!")
        .parse()
        .unwrap();
    assert_eq!(client.call(&format!("\nregister {old} 0")), "Ok(0)");

    let (mut reaper, mut shim) = bereave(&pair);
    for _ in 0..5 {
        assert_eq!(client.call("\necho again"), "again");
        let mut other = pair.client();
        assert_eq!(
            vigil_sys::listen::peer(other.fd.as_fd()).unwrap().pid,
            reaper
        );
        assert_eq!(other.call("\necho new"), "new");
        let again = reader.read(&mut [0; 8]).unwrap_err();
        assert_eq!(
            again.kind(),
            ErrorKind::WouldBlock,
            "what was deposited is held"
        );
        // What is made now is its child.
        let script = "\norphan (sleep_0.05;exit_6)_>/dev/null_&_echo_$!";
        let pid = client.call(script).parse().unwrap();
        let death = pair.death_of(pid);
        assert_eq!(
            (wait::exited(death.status), death.way),
            (Some(6), Way::Waited)
        );
        let next = bereave(&pair);
        assert_eq!(next.0, shim);
        (reaper, shim) = next;
    }
    assert_eq!(client.call("\nrelease"), "done");
    assert_eq!(client.answer(waits).as_deref(), Some(&b"released"[..]));
    assert!(
        client.answer(9_999).is_some(),
        "what may not have left is said again"
    );
    assert_eq!(client.call("\nended 5"), "Ok(0)");
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0, "it is closed");
    // One that is no child of anybody here.
    fs::write(pair.path("go"), "x\n").unwrap();
    let death = pair.death_of(old);
    assert_ne!(death.way, Way::Waited);
    assert!(
        death.way == Way::Unseen || wait::exited(death.status) == Some(7),
        "{death:?}"
    );
    assert!(!pair.lock_is_free());
    assert!(shim != reaper);
}
