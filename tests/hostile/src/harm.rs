//! The files that Vigil keeps, and what is done to them: the two sides of the table in
//! `tests/foreign.rs`. A file, or a harm, is added here in one line.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vigil_lab::kit::{Container, repository};
use vigil_lab::process::mkfifo;

/// Where what outlives a container lies; a test has one of its own.
const RUN: &str = "/run/vigil";
/// Id of somebody of whom nothing is there but a tombstone.
const GONE: &str = "gone";

/// Bytes of the header of a journal.
const JOURNAL_HEAD: usize = 256;

/// What is harmed together, in one container: files that are looked at alone, then those of
/// which several can be harmed at once without one hiding the other. `*` is an exec's name,
/// `/` what lies below `/run/vigil`, `/stone` the tombstone of somebody who is gone, `/start` the
/// note that nobody has called on it yet.
pub const ROWS: &[&[&str]] = &[
    &["journal"],
    &["exits"],
    &["pair"],
    &["lock"],
    &["journal", "init.pid"],
    &[
        "takeovers",
        "ended",
        "panic",
        "exec-*.asked",
        "address",
        "journal.new",
        "pair.new",
        "takeovers.new",
        "journal.bad",
        "next",
        "/tombstone",
        "/stone",
        "/start",
        "/history",
        "/history.old",
        "/crashes",
        "/crashes.old",
    ],
];

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Nothing has its name.
    Missing,
    /// It is there, and empty.
    Empty,
    /// Cut to so many 64ths.
    Cut(u64),
    /// Bits flipped, by this seed.
    Flipped(u64),
    /// Its head is left, and no byte behind that.
    Blind,
    /// Its head is left, and zeros behind it: as if nothing had been written yet.
    Blank,
    /// The bystander's is in its place.
    Foreign,
    /// One of an older version.
    Older,
    /// It says that it is of a later version.
    Newer,
    /// The same bytes, in another file.
    Replaced,
    /// A fifo that nobody writes into.
    Fifo,
    /// A link to the bystander's.
    Link,
    /// A link to what has no end.
    Endless,
    /// A link to nothing.
    Dangling,
    /// A directory with something in it.
    Directory,
}

/// Each of them; of those that have a number a few.
pub const HARMS: &[Harm] = &[
    Harm::Missing,
    Harm::Empty,
    Harm::Cut(1),
    Harm::Cut(2),
    Harm::Cut(7),
    Harm::Cut(32),
    Harm::Flipped(3),
    Harm::Flipped(5),
    Harm::Flipped(8),
    Harm::Blind,
    Harm::Blank,
    Harm::Foreign,
    Harm::Older,
    Harm::Newer,
    Harm::Replaced,
    Harm::Fifo,
    Harm::Link,
    Harm::Endless,
    Harm::Dangling,
    Harm::Directory,
];

/// Where one of the files lies for a container, and for a bystander that has nothing below
/// `/run/vigil` but in a `theirs` of its own.
#[must_use]
pub fn place(name: &str, container: &Container, exec: &str) -> PathBuf {
    match name.strip_prefix('/') {
        Some(stone @ ("tombstone" | "stone")) => {
            let namespace = &container.shim.caller.namespace;
            let id = if stone == "stone" {
                GONE
            } else {
                &container.id
            };
            Path::new(RUN).join(format!("tombstones/{namespace}+{id}.json"))
        }
        Some("start") => {
            let (namespace, id) = (&container.shim.caller.namespace, &container.id);
            Path::new(RUN).join(format!("starts/{namespace}+{id}.json"))
        }
        Some(below) => Path::new(RUN).join(below),
        None => container.bundle.dir.join(name.replace('*', exec)),
    }
}

/// What a healthy file of this name holds, for those that a living pair need not have.
/// What it says of an end is about no life there is.
#[must_use]
pub fn sound(name: &str, container: &Container) -> Option<Vec<u8>> {
    let (namespace, id) = (&container.shim.caller.namespace, &container.id);
    let pair = fs::read_to_string(container.bundle.dir.join("pair")).unwrap_or_default();
    let owner = pair.lines().find(|line| line.starts_with("owner "));
    let owner = owner.unwrap_or_default();
    let end = json!({"status": {"exited": 42}, "at": {"secs": 1, "nanos": 0}});
    let line = |value: &Value| format!("{value}\n{value}\n");
    let text = match name {
        "ended" => format!("vigil-ended 1\n{owner}\n{}", json!([1, container.pid, end])),
        "panic" => format!("vigil-panic 1\n{owner}\nit broke"),
        "/tombstone" | "/stone" => json!({
            "format": 2, "id": if name == "/stone" { GONE } else { id },
            "namespace": namespace, "bundle": container.bundle.dir,
            "runtime": "runc", "runtime_root": format!("/run/containerd/runc/{namespace}"),
            "init": null, "exit": null, "claims": [], "left": ["something"],
        })
        .to_string(),
        "/start" => json!({
            "format": 2, "id": id, "namespace": namespace, "bundle": "/nothing/is/here",
            "socket": container.shim.reply.socket,
        })
        .to_string(),
        "/history" | "/history.old" => line(&json!({
            "format": 2, "id": id, "namespace": namespace, "found": "something",
            "exit": end, "done": [], "left": [],
        })),
        "/crashes" | "/crashes.old" => line(&json!({
            "format": 2, "id": id, "namespace": namespace, "at": end["at"], "version": "0",
            "how": "signal 9", "words": null, "records": [],
        })),
        _ => return None,
    };
    Some(text.into_bytes())
}

/// Numbers that are the same in each run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Removes whatever has the name.
pub fn clear(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    Ok(())
}

impl Harm {
    /// Does it to the file at `path`; `theirs` is the bystander's of the same name.
    pub fn to(self, name: &str, path: &Path, theirs: &Path) -> Result<()> {
        self.at(name, path, theirs)
            .with_context(|| format!("{self:?} to {}", path.display()))
    }

    fn at(self, name: &str, path: &Path, theirs: &Path) -> Result<()> {
        // Of an earlier harm: a fifo would hold us, and a link lead us elsewhere.
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
            clear(path)?;
        }
        let old = fs::read(path).unwrap_or_default();
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let link = |to: &Path| {
            clear(path)?;
            anyhow::Ok(symlink(to, path)?)
        };
        match self {
            Harm::Missing => clear(path)?,
            Harm::Empty => fs::write(path, "")?,
            Harm::Cut(part) => {
                let length = old.len() as u64 * part / 64;
                fs::write(path, &old[..usize::try_from(length)?])?;
            }
            Harm::Flipped(seed) => fs::write(path, flipped(old, seed)?)?,
            Harm::Blind => fs::write(path, behind_head(old, |byte| !byte))?,
            Harm::Blank => fs::write(path, behind_head(old, |_| 0))?,
            Harm::Foreign => fs::write(path, fs::read(theirs).unwrap_or_default())?,
            Harm::Older => fs::write(path, older(name, &old)?)?,
            Harm::Newer => fs::write(path, newer(old))?,
            Harm::Replaced => {
                clear(path)?;
                fs::write(path, old)?;
            }
            Harm::Fifo => {
                clear(path)?;
                mkfifo(path)?;
            }
            Harm::Link => link(theirs)?,
            Harm::Endless => link(Path::new("/dev/zero"))?,
            Harm::Dangling => link(Path::new("/nothing/is/here"))?,
            Harm::Directory => {
                clear(path)?;
                fs::create_dir(path)?;
                fs::write(path.join("inside"), old)?;
            }
        }
        Ok(())
    }
}

fn flipped(mut bytes: Vec<u8>, mut seed: u64) -> Result<Vec<u8>> {
    // Where something is written, not in the zeros behind it.
    let used = bytes.iter().rposition(|b| *b != 0).unwrap_or(0) as u64 + 1;
    for _ in 0..16 {
        let at = usize::try_from(random(&mut seed) % used)?;
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << (random(&mut seed) % 8);
        }
    }
    Ok(bytes)
}

/// Each byte behind the head done so to: of a journal that is its header, of text its first line.
fn behind_head(mut bytes: Vec<u8>, done: fn(u8) -> u8) -> Vec<u8> {
    let line = bytes.iter().position(|byte| *byte == b'\n');
    let head = match line {
        _ if bytes.starts_with(b"VIGIL") => JOURNAL_HEAD,
        line => line.map_or(0, |at| at + 1),
    };
    bytes
        .iter_mut()
        .skip(head)
        .for_each(|byte| *byte = done(*byte));
    bytes
}

/// Of another container where there are files of that version, else what it would be.
fn older(name: &str, now: &[u8]) -> Result<Vec<u8>> {
    let fixture = match name {
        "journal" => "clean",
        "exits" | "pair" | "takeovers" => name,
        _ => {
            // Text had no head, and objects no format.
            let text = String::from_utf8_lossy(now).replace("\"format\":2,", "");
            let below = text.splitn(3, '\n').nth(2).map(str::to_owned);
            let headed = text.starts_with("vigil-");
            let text = below.filter(|_| headed).unwrap_or(text);
            return Ok(text.into_bytes());
        }
    };
    Ok(fs::read(
        repository().join("tests/journals/v1").join(fixture),
    )?)
}

fn newer(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.starts_with(b"VIGIL") {
        bytes[8] = 99;
        return bytes;
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = text.replace("\"format\":2", "\"format\":99");
    let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
    match head.rsplit_once(' ') {
        Some((title, "1" | "2")) => format!("{title} 99\n{rest}").into_bytes(),
        _ => text.into_bytes(),
    }
}
