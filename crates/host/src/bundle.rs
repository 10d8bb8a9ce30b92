//! The bundle's `config.json`, as far as the shim must know it: where the
//! cgroup goes, whether the pid namespace is private, whether there is a
//! terminal. A shallow view that ignores everything else, so that no newer
//! spec is refused; runc is the judge of the whole. Never written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::proc::read_bounded;
use crate::{Error, Result};

/// Largest `config.json` read. containerd's own are some ten thousand bytes.
pub const CONFIG_LEN_MAX: u64 = 10 << 20;

/// One entry of `linux.namespaces`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NamespaceEntry {
    /// `pid`, `mount`, `user` …
    #[serde(rename = "type")]
    pub kind: String,
    /// Joined instead of made, if not empty.
    #[serde(default, deserialize_with = "or_default")]
    pub path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    #[serde(deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    process: RawProcess,
    #[serde(deserialize_with = "or_default")]
    root: RawRoot,
    #[serde(deserialize_with = "or_default")]
    linux: RawLinux,
    #[serde(deserialize_with = "or_default")]
    hooks: RawHooks,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawProcess {
    #[serde(deserialize_with = "or_default")]
    terminal: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawRoot {
    #[serde(deserialize_with = "or_default")]
    path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawLinux {
    #[serde(deserialize_with = "or_default")]
    cgroups_path: String,
    #[serde(deserialize_with = "or_default")]
    namespaces: Vec<NamespaceEntry>,
    #[serde(deserialize_with = "or_default")]
    uid_mappings: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    gid_mappings: Vec<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawHooks {
    #[serde(deserialize_with = "or_default")]
    poststop: Vec<serde::de::IgnoredAny>,
}

/// `null` stands for "not given", as Go's decoder has it.
fn or_default<'de, D, T>(from: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// What the shim knows of a container's spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
    /// `linux.cgroupsPath`, verbatim; empty if not given.
    pub cgroups_path: String,
    /// `linux.namespaces`.
    pub namespaces: Vec<NamespaceEntry>,
    /// Whether user or group ids are mapped.
    pub ids_mapped: bool,
    /// `process.terminal`.
    pub terminal: bool,
    /// `root.path`, made absolute by the bundle's; `None` if not given.
    pub rootfs: Option<PathBuf>,
    /// Whether there are poststop hooks.
    pub poststop_hooks: bool,
}

impl Spec {
    /// Reads `config.json` of a bundle. A missing one is [`Error::File`] with
    /// `NotFound`, a truncated or otherwise wrong one [`Error::Malformed`], one
    /// above [`CONFIG_LEN_MAX`] [`Error::TooLarge`].
    pub fn load(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let bytes = read_bounded(&path, CONFIG_LEN_MAX)?;
        Self::parse(bundle, &bytes).map_err(|e| Error::Malformed {
            problem: format!("not an OCI spec: {e}"),
            path,
        })
    }

    fn parse(bundle: &Path, bytes: &[u8]) -> serde_json::Result<Self> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let root = raw.root.path;
        Ok(Self {
            annotations: raw.annotations,
            cgroups_path: raw.linux.cgroups_path,
            namespaces: raw.linux.namespaces,
            ids_mapped: !raw.linux.uid_mappings.is_empty() || !raw.linux.gid_mappings.is_empty(),
            terminal: raw.process.terminal,
            rootfs: (!root.is_empty()).then(|| bundle.join(root)),
            poststop_hooks: !raw.hooks.poststop.is_empty(),
        })
    }

    /// Whether init gets a pid namespace of its own, in which the kernel takes
    /// everything down with it. No entry, or one with a path, is a shared one.
    pub fn private_pid_namespace(&self) -> bool {
        let mut entries = self.namespaces.iter().filter(|n| n.kind == "pid");
        entries.next().is_some_and(|n| n.path.is_empty())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::fs;

    fn of(json: &str) -> Spec {
        Spec::parse(Path::new("/b"), json.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_asked_for_is_found_among_everything_else() {
        let spec = of(r#"{
            "ociVersion": "1.2.0", "new": {"field": [1, 2]},
            "process": {"terminal": true, "args": ["sh"], "user": {"uid": 0}},
            "root": {"path": "rootfs", "readonly": true},
            "annotations": {"a": "b"},
            "hooks": {"poststop": [{"path": "/bin/true"}]},
            "linux": {"cgroupsPath": "/default/x",
                "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}],
                "namespaces": [{"type": "mount"}, {"type": "pid"}]}}"#);
        assert_eq!(spec.cgroups_path, "/default/x");
        assert_eq!(spec.rootfs.as_deref(), Some(Path::new("/b/rootfs")));
        assert!(spec.terminal && spec.ids_mapped && spec.poststop_hooks);
        assert!(spec.private_pid_namespace());
        assert_eq!(spec.annotations["a"], "b");
    }

    #[test]
    fn nulls_and_absence_are_the_same() {
        let empty = of("{}");
        assert_eq!(empty, Spec::default());
        let nulls = r#"{"process": null, "root": {"path": null}, "hooks": {"poststop": null},
            "annotations": null, "linux": {"namespaces": null, "cgroupsPath": null}}"#;
        assert_eq!(of(nulls), empty);
        assert_eq!(of(r#"{"linux": null}"#), empty);
    }

    #[test]
    fn a_pid_namespace_is_private_only_if_it_is_made() {
        assert!(!of("{}").private_pid_namespace());
        let joined =
            of(r#"{"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}}"#);
        assert!(!joined.private_pid_namespace());
        let made = of(r#"{"linux": {"namespaces": [{"type": "pid", "path": ""}]}}"#);
        assert!(made.private_pid_namespace());
    }

    #[test]
    fn bad_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let kind = |path: &Path| Spec::load(path).unwrap_err();
        assert!(matches!(kind(dir.path()), Error::File { source, .. }
            if source.kind() == std::io::ErrorKind::NotFound));
        for torn in ["", "{", r#"{"process": {"term"#, "7", r#"{"linux": 7}"#] {
            fs::write(&file, torn).unwrap();
            assert!(
                matches!(kind(dir.path()), Error::Malformed { .. }),
                "{torn}"
            );
        }
        let huge = fs::File::create(&file).unwrap();
        huge.set_len(CONFIG_LEN_MAX + 1).unwrap();
        assert!(matches!(kind(dir.path()), Error::TooLarge { .. }));
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(matches!(kind(dir.path()), Error::Malformed { .. }));
    }
}
