//! poststop hooks where the runtime cannot be asked to run them: it would kill
//! strangers first, or cannot read its own state any more. They are run as it
//! would: in order, each with the container's state on its stdin, a failing
//! one in nobody's way. What they do may take for ever, so: in a worker.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::bundle::CONFIG_LEN_MAX;
use crate::proc::read_bounded;
use crate::worker::Notes;
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default, rename = "ociVersion")]
    version: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    hooks: Option<Hooks>,
}

#[derive(Debug, Default, Deserialize)]
struct Hooks {
    #[serde(default)]
    poststop: Option<Vec<Hook>>,
}

/// One hook.
#[derive(Debug, Deserialize)]
struct Hook {
    path: PathBuf,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
}

/// The poststop hooks of a bundle, and what they are told.
#[derive(Debug)]
pub(super) struct Poststop {
    hooks: Vec<Hook>,
    state: String,
}

impl Poststop {
    /// As `config.json` has them.
    pub(super) fn load(bundle: &Path, id: &str) -> Result<Self> {
        let path = bundle.join("config.json");
        let bytes = read_bounded(&path, CONFIG_LEN_MAX)?;
        let config: Config = serde_json::from_slice(&bytes).map_err(|e| Error::Malformed {
            problem: format!("not an OCI spec: {e}"),
            path,
        })?;
        let state = serde_json::json!({
            "ociVersion": config.version,
            "id": id,
            "status": "stopped",
            "bundle": bundle,
            "annotations": config.annotations.unwrap_or_default(),
        });
        let hooks = config.hooks.and_then(|hooks| hooks.poststop);
        Ok(Self {
            hooks: hooks.unwrap_or_default(),
            state: state.to_string(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Runs them all; in a worker, whose end is theirs.
    pub(super) fn run(&self, notes: &Notes) {
        for hook in &self.hooks {
            notes.doing(&format!("run the poststop hook {}", hook.path.display()));
            if let Err(why) = self.run_one(hook) {
                notes.say(&format!("poststop hook {}: {why}", hook.path.display()));
            }
        }
    }

    fn run_one(&self, hook: &Hook) -> std::result::Result<(), String> {
        let mut command = Command::new(&hook.path);
        if let Some((name, args)) = hook.args.as_deref().and_then(<[_]>::split_first) {
            command.arg0(name).args(args);
        }
        let env = hook.env.iter().flatten();
        let mut child = command
            .env_clear()
            .envs(env.filter_map(|line| line.split_once('=')))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| e.to_string())?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read has decided not to.
            let _ = stdin.write_all(self.state.as_bytes());
        }
        let status = child.wait().map_err(|e| e.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    }
}
