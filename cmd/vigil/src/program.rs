//! Other programs that this tool asks something: `ctr`, and a shim for its
//! version. Each has an end, and its output goes to a memfd, so that it cannot
//! block. Nothing is decided here by what they say.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use vigil_sys::fd;

/// For a shim to say its version.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of output that are looked at.
const SAID_MAX: u64 = 4 << 20;

/// How a program ended and what it said.
pub struct Told {
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
}

/// Runs it, for so long at most; else why there is nothing to be told.
pub fn ask(command: &mut Command, patience: Duration) -> Result<Told, String> {
    let failed = |what: &str, why: &dyn std::fmt::Display| format!("cannot {what}: {why}");
    let file = || {
        fd::memfd(c"told")
            .map(File::from)
            .map_err(|e| failed("make a file for its answer", &e))
    };
    let (mut out, mut err) = (file()?, file()?);
    let copy = |file: &File| {
        file.try_clone()
            .map_err(|e| failed("copy a descriptor", &e))
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(copy(&out)?)
        .stderr(copy(&err)?)
        .spawn()
        .map_err(|e| failed("run it", &e))?;
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("wait for it", &format!("{} s", patience.as_secs())));
            }
            Err(e) => return Err(failed("wait for it", &e)),
        }
    };
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind()
            .and_then(|()| file.take(SAID_MAX).read_to_end(&mut bytes))
            .map(|_| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|e| failed("read its answer", &e))
    };
    Ok(Told {
        status,
        out: read(&mut out)?,
        err: read(&mut err)?,
    })
}

/// The runtime whose shims this tool knows.
const RUNTIME: &str = "io.containerd.vigil.v2";

/// The version that a shim's program says it is; another runtime's is an error.
pub fn version_of(program: &Path) -> Result<String, String> {
    let told = ask(Command::new(program).arg("-v"), PATIENCE)?;
    if !told.status.success() {
        return Err(format!("asked for its version: {}", told.status));
    }
    let version = told.out.lines().find_map(|line| {
        let version = line.trim().strip_prefix("Version:")?.trim();
        let plain = !version.is_empty() && version.chars().all(|c| c.is_ascii_graphic());
        (plain && version.len() <= 64).then(|| version.to_owned())
    });
    let version = version.ok_or("asked for its version, it named none")?;
    let mut runtimes = told.out.lines().filter_map(|line| line.split_once(':'));
    match runtimes.find(|(key, _)| key.trim() == "Runtime") {
        Some((_, runtime)) if runtime.trim() == RUNTIME => Ok(version),
        Some((_, other)) => Err(format!(
            "version {version} of {}, not {RUNTIME}",
            other.trim()
        )),
        None => Err(format!(
            "version {version}, and does not say that it is of {RUNTIME}"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn whoever_says_nothing_of_use_is_not_waited_for() {
        let sh = |script| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let told = ask(&mut sh("echo a; echo b >&2; exit 3"), PATIENCE).unwrap();
        assert_eq!((told.out.as_str(), told.err.as_str()), ("a\n", "b\n"));
        assert_eq!(told.status.code(), Some(3));
        let late = ask(&mut sh("exec sleep 60"), Duration::from_millis(50));
        assert!(late.err().unwrap().contains("cannot wait"));
        assert!(version_of(Path::new("/nowhere")).is_err());
        assert!(version_of(Path::new("/dev/null")).is_err());
        assert!(version_of(Path::new("/bin/false")).is_err());
        assert!(version_of(Path::new("/bin/true")).is_err());
    }
}
