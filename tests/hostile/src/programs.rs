//! The programs of `tests/programs`, and options that name them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use protobuf::well_known_types::any::Any;
use vigil_lab::kit::repository;
use vigil_lab::task::any;
use vigil_lab::{Kit, by, until};

/// Runs the tool that lies beside the shim; its exit code and what it said.
pub fn vigil(kit: &Kit, args: &[&str]) -> Result<(i32, String)> {
    let state = kit.scratch.path("by-state");
    let tasks = state.join("io.containerd.runtime.v2.task");
    if !tasks.exists() {
        fs::create_dir_all(&state)?;
        symlink(kit.scratch.path("state"), &tasks)?;
    }
    let out = Command::new(kit.binary.path.with_file_name("vigil"))
        .args(args)
        .env("VIGIL_CONTAINERD_STATE", &state)
        .env_remove("CONTAINERD_NAMESPACE")
        .output()?;
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((out.status.code().unwrap_or(-1), text.concat()))
}

/// The same with a `/run/vigil` of the test's own, where nobody else leaves anything.
pub fn vigil_apart(kit: &Kit, args: &[&str]) -> Result<(i32, String)> {
    let run = kit.scratch.path("run-of-its-own");
    let run = run.to_str().context("a path")?;
    vigil(kit, &[args, &["--run", run]].concat())
}

/// A runc that fails in one way.
#[derive(Debug)]
pub struct FaultyRunc(PathBuf);

impl FaultyRunc {
    /// Puts one into `dir`: at `verb` it commits `fault` (see the program), else it is runc.
    pub fn new(dir: &Path, verb: &str, fault: &str) -> Result<Self> {
        let path = dir.join("faulty-runc");
        fs::copy(repository().join("tests/programs/faulty-runc"), &path)
            .context("copying faulty-runc")?;
        let program = Self(path);
        program.commit(verb, fault)?;
        Ok(program)
    }

    /// Changes what it does.
    pub fn commit(&self, verb: &str, fault: &str) -> Result<()> {
        fs::write(
            self.0.with_file_name("faulty-runc.fault"),
            format!("{verb} {fault}\n"),
        )?;
        Ok(())
    }

    /// How often this verb was called.
    pub fn calls(&self, verb: &str) -> Result<usize> {
        let path = self.0.with_extension("calls");
        let calls = fs::read_to_string(path).unwrap_or_default();
        Ok(calls.lines().filter(|line| *line == verb).count())
    }

    /// Waits until it stands at its verb (`waits-then-done`).
    pub fn waits(&self) -> Result<()> {
        let waits = self.0.with_extension("waits");
        until("runc to wait", by(20.0), || waits.exists().then_some(()))
    }

    /// Lets it go on.
    pub fn go(&self) -> Result<()> {
        Ok(fs::write(self.0.with_file_name("go"), "")?)
    }

    /// The process the fault `stranger` names.
    pub fn stranger(&self, pid: u32) -> Result<()> {
        fs::write(
            self.0.with_file_name("faulty-runc.stranger"),
            pid.to_string(),
        )?;
        Ok(())
    }

    /// Options that make it the runtime.
    #[must_use]
    pub fn options(&self) -> Any {
        runc_options(&self.0.to_string_lossy())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A field of length and bytes, as protobuf writes it.
fn field(number: u8, text: &str) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = text.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or(0));
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// containerd's options for runc with this `BinaryName`.
#[must_use]
pub fn runc_options(binary: &str) -> Any {
    any("containerd.runc.v1.Options", field(6, binary))
}

/// The runtime's options with this root for its state.
#[must_use]
pub fn runc_root_options(root: &Path) -> Any {
    any(
        "containerd.runc.v1.Options",
        field(7, &root.to_string_lossy()),
    )
}

/// The generic options with this TOML.
#[must_use]
pub fn toml_options(body: &str) -> Any {
    any("runtimeoptions.v1.Options", field(3, body))
}

/// Builds the program that forks as many children as it is told, below `root`; its path there.
pub fn crowd(root: &Path) -> Result<String> {
    built(root, "crowd")
}

/// Builds the program that says which signals reach it, below `root`; its path there.
pub fn counter(root: &Path) -> Result<String> {
    built(root, "counter")
}

fn built(root: &Path, name: &str) -> Result<String> {
    let source = repository().join("tests/programs").join(name);
    let built = Command::new("cc")
        .args(["-O1", "-static", "-s", "-o"])
        .arg(root.join("bin").join(name))
        .arg(source.with_extension("c"))
        .output()
        .context("running cc")?;
    ensure!(
        built.status.success(),
        "cc: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    Ok(format!("/bin/{name}"))
}
